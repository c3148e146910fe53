"""A table of which too many rows were rejected stops the run, with the worst reasons and what to do about them."""

from pathlib import Path

import pytest

from features.errors import DataError
from pipeline.sources.files import FilesConfig, FilesSource
from pipeline.sources.ingest import ingest
from pipeline.sources.validation import Reason, ValidationConfig, refuse_if_too_many

CONFIG = ValidationConfig()

SAMPLES = [
    {
        "reason": "missing id",
        "column": "user_id",
        "count_all": 8,
        "origin_first": "a.csv",
        "row_first": 3,
        "raw_first": "{}",
    },
    {"reason": "duplicate", "column": "", "count_all": 15, "origin_first": "a.csv", "row_first": 9, "raw_first": "{}"},
]


@pytest.mark.parametrize(
    ("rejected", "match"),
    [
        ({"missing id": 6}, r"6 of 100 rows are rejected \(6.0%, tolerated are 5.0%\); worst: missing id in user_id"),
        ({"duplicate": 21}, r"21 of 100 rows are duplicates \(21.0%, tolerated are 20.0%\); worst: duplicate: 15 rows"),
    ],
)
def test_too_many_rejected_rows_fail_with_the_worst_reasons(rejected, match):
    with pytest.raises(DataError, match=match):
        refuse_if_too_many("watches", 100, rejected, SAMPLES, CONFIG, Path("runs/x/rejected"))


def test_rejected_rows_within_both_shares_are_tolerated():
    refuse_if_too_many("watches", 100, {"missing id": 5, "duplicate": 20}, SAMPLES, CONFIG, Path("x"))


def test_all_rows_rejected_fails_whatever_is_tolerated():
    with pytest.raises(DataError, match="3 of 3 rows are rejected"):
        refuse_if_too_many(
            "watches", 3, {"missing id": 3}, SAMPLES, ValidationConfig(max_rejected_share=1.0), Path("x")
        )


@pytest.mark.parametrize(
    ("reason", "column", "raw", "told"),
    [
        (Reason.FUTURE_TIME, "timestamp", '{"timestamp": "1700000000000"}', "{timestamp: ms}"),
        (Reason.FUTURE_TIME, "timestamp", '{"timestamp": 1700000000000000}', "{timestamp: us}"),
        (Reason.UNPARSABLE_TIME, "timestamp", '{"timestamp": 1700000000000000000}', "{timestamp: ns}"),
        (Reason.EARLY_TIME, "timestamp", '{"timestamp": 1700000000.0}', "{timestamp: s}"),
        (Reason.FUTURE_UPLOAD, "upload_time", '{"upload_time": "1700000000000"}', "{upload_time: ms}"),
        (Reason.UNPARSABLE_TIME, "timestamp", '{"timestamp": "yesterday"}', None),
        (Reason.FUTURE_TIME, "timestamp", '{"timestamp": "99999999999"}', None),  # of no unit
        (Reason.UNPARSABLE_TIME, "timestamp", '{"timestamp": null}', None),
        (Reason.OUT_OF_RANGE, "timestamp", '{"timestamp": "1700000000000"}', None),
    ],
)
def test_times_that_another_unit_would_explain_are_told_with_the_setting(reason, column, raw, told):
    sample = {"reason": reason.value, "column": column, "count_all": 9, "origin_first": "a.csv", "row_first": 1}
    with pytest.raises(DataError, match="9 of 9 rows are rejected") as error:
        refuse_if_too_many("watches", 9, {reason.value: 9}, [{**sample, "raw_first": raw}], CONFIG, Path("x"))
    assert ("units: " in str(error.value)) == (told is not None)
    assert told is None or f"set units: {told}; " in str(error.value)


def test_epoch_milliseconds_without_their_unit_are_told_when_a_file_is_read(tmp_path):
    rows = [f"u,v{i},{1_700_000_000_000 + i}" for i in range(5)]
    (tmp_path / "w.csv").write_text("\n".join(["user_id,video_id,timestamp", *rows]))
    config = FilesConfig(tables={"watches": {"path": str(tmp_path / "w.csv")}})
    with pytest.raises(DataError, match=r"5 of 5 rows are rejected .*: set units: {timestamp: ms}; "):
        ingest(FilesSource(config), tmp_path / "run/tables", tmp_path / "run/rejected")
