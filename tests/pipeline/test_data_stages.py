"""What the stages from logs to examples tell people, and refuse."""

import io
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from features.errors import DataError
from features.spec import Feature, FeatureSpec, Kind, Side
from features.splits import Part, SplitConfig
from pipeline.config import RunConfig
from pipeline.data_stages import (
    analyze,
    few_labels,
    ingest_tables,
    make_examples,
    require_what_the_ranker_needs,
    statistics_markdown,
    statistics_table,
)
from pipeline.run import Run
from tests.pipeline.synthetic_examples import publish_examples

STATISTICS = {
    "users": {
        "rows": {"read": 1_200, "used": 1_000},
        "columns": {
            "region": {
                "type": "string",
                "count": 1_000,
                "missing": 250,
                "distinct": 2,
                "min": "A|B",
                "max": "[C]",
                "top": [{"value": "[C]", "count": 600}, {"value": "A|B", "count": 150}],
            },
            "age": {
                "type": "double",
                "count": 1_000,
                "missing": 0,
                "distinct": 3,
                "min": 18.0,
                "max": 60.5,
                "quantiles": [18.0, 33.0, 60.5],
            },
        },
    },
}


def printed(width: int) -> list[list[str]]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(statistics_table(STATISTICS))
    return [line.split() for line in capture.get().splitlines()]


def test_every_column_has_a_line_with_its_figures() -> None:
    _, header, region, age = printed(120)
    assert header == ["column", "count", "missing", "distinct", "min", "median", "max", "most", "frequent"]
    assert region == ["users.region", "1,000", "25.0%", "2", "A|B", "[C]", "[C]", "(600),", "A|B", "(150)"]
    assert age == ["users.age", "1,000", "0.0%", "3", "18", "33", "60.5"]


def test_names_and_counts_are_whole_where_the_terminal_is_narrow() -> None:
    assert printed(60)[2][:4] == ["users.region", "1,000", "25.0%", "2"]


def test_the_report_escapes_what_would_end_a_cell() -> None:
    lines = statistics_markdown(STATISTICS).splitlines()
    assert "1,000 of 1,200 rows are in the training part." in lines
    assert r"| region | string | 1,000 | 25.0% | 2 | A\|B |  | [C] | [C] (600), A\|B (150) |" in lines


PAGE = FeatureSpec((Feature("page", Kind.CATEGORICAL, Side.QUERY, "request.page", "page"),))


def shown(*clicked: float) -> pa.Table:
    return pa.table({"clicked": pa.array(clicked, pa.float32()), "page": pa.array([1] * len(clicked), pa.int32())})


@pytest.mark.parametrize(
    ("train", "test", "left_out", "message"),
    [
        ([0, 0], [1], {}, r"found 0 clicked and 2 unclicked, 1 in the test part; without a ranker .* ranker: null"),
        ([1, 1], [1], {}, r"found 2 clicked and 0 unclicked, 1 in the test part; without"),
        ([1, 0], [], {}, r"found 1 clicked and 1 unclicked, 0 in the test part; without"),
        (
            [0],
            [0],
            {"clicked_but_watch_time_not_known": 2_000},
            r"of 2,000 clicked ones the watch time is not known: set ranking_examples.missing_watch_time_s",
        ),
    ],
)
def test_impressions_that_cannot_train_a_ranker_are_refused_before_any_training(
    tmp_path: Path, train: list[float], test: list[float], left_out: dict[str, int], message: str
) -> None:
    parts = {Part.TRAIN: shown(*train), Part.TEST: shown(*test)}
    examples = publish_examples(tmp_path / "ranking", parts, PAGE, "ranker", left_out=left_out)
    with pytest.raises(DataError, match=message):
        require_what_the_ranker_needs(examples)


def test_impressions_that_can_train_a_ranker_are_taken(tmp_path: Path) -> None:
    parts = {Part.TRAIN: shown(1, 0), Part.TEST: shown(0)}
    require_what_the_ranker_needs(publish_examples(tmp_path / "ranking", parts, PAGE, "ranker"))


@pytest.mark.parametrize(
    ("kept", "split", "labels_per_user", "lines"),
    [
        ((100, 100), {}, 16, []),
        ((0, 100), {"validation_days": 0}, 16, []),
        (
            (99, 100),
            {},
            16,
            [
                "bags: 99 validation labels, fewer than 100: early stopping and the peers' settings rest on noise; "
                "more come from a greater split.validation_days or split.validation_user_share or "
                "candidate_examples.evaluation_labels_per_user"
            ],
        ),
        (
            (0, 7),
            {"test_days": None, "test_user_share": 0.1, "validation_user_share": 0.1},
            None,
            [
                "bags: 0 validation labels, fewer than 100: early stopping and the peers' settings have nothing to go "
                "by; more come from a greater split.validation_user_share",
                "bags: 7 test labels, fewer than 100: differences between methods are noise; more come from a greater "
                "split.test_user_share",
            ],
        ),
    ],
)
def test_few_labels_are_told_with_the_settings_that_give_more(
    kept: tuple[int, int], split: dict, labels_per_user: int | None, lines: list[str]
) -> None:
    counts = {"train": 1_000, "validation": kept[0], "test": kept[1]}
    assert few_labels("bags", counts, SplitConfig(**split), labels_per_user) == lines


def test_the_examples_of_a_small_log_end_with_remarks_on_its_labels(tmp_path: Path) -> None:
    """One user a watch every 6 hours of 10 days: 32 before the validation day, 4 in it, 8 - 1 (at t0) in the test."""
    rows = [f"u,v{i % 7},{1_700_006_400 + i * 21_600}" for i in range(40)]
    (tmp_path / "watches.csv").write_text("\n".join(["user_id,video_id,timestamp", *rows]))
    tables = {"watches": {"path": str(tmp_path / "watches.csv")}}
    config = RunConfig.model_validate({"source": {"kind": "files", "tables": tables}, "ranker": None})
    console = Console(width=60, record=True, file=io.StringIO())
    run = Run(tmp_path / "run", config, (), console)
    for stage in (ingest_tables, analyze, make_examples):
        stage(run)
    remarks = console.export_text().splitlines()[-2:]
    assert remarks[0].startswith("candidate_generation: 4 validation labels, fewer than 100: ")
    assert remarks[1].startswith("candidate_generation: 7 test labels, fewer than 100: ")
