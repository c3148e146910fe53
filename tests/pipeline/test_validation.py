"""Every row is kept in canonical form or rejected with the right reason, whatever is in it."""

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.errors import DataError
from features.tables import IMPRESSIONS, SEARCHES, USERS, VIDEOS, WATCHES
from pipeline.sources.conversion import convert, finite, plain
from pipeline.sources.source import RawChunk
from pipeline.sources.validation import Reason, ValidationConfig, check_chunk

NOW = datetime(2024, 6, 1, tzinfo=UTC)
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
CONFIG = ValidationConfig()


def chunk(columns: dict, **more) -> RawChunk:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    return RawChunk(table, "log.csv", np.arange(1, table.num_rows + 1), **more)


def watch_rows(*changes: dict) -> pa.Table:
    """A good watch per change, with the change applied; all values as text, as a CSV has them."""
    good = {"user_id": "u", "video_id": "v", "timestamp": "2024-05-01T12:00:00Z", "watch_time_s": "30"}
    rows = [{**good, **change} for change in changes]
    return pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in good})


def test_each_reason_is_given_to_the_row_that_deserves_it():
    rows = watch_rows(
        {},
        {"user_id": None},
        {"user_id": "   "},
        {"video_id": "a\nb"},
        {"video_id": "x" * 257},
        {"watch_time_s": "long"},
        {"timestamp": "yesterday"},
        {"timestamp": None},
        {"timestamp": "2024-02-30"},
        {"timestamp": "2024-06-02T00:00:01Z"},  # a second later than tolerated
        {"timestamp": "1714564800000"},  # milliseconds read as seconds
        {"timestamp": "1000"},
        {"watch_time_s": "-0.5"},
        {"watch_time_s": "86400.5"},
        {"watch_time_s": "inf"},
    )
    checked = check_chunk(chunk(rows), WATCHES, CONFIG, NOW)
    assert checked.rows.tolist() == [1]
    found = list(zip(*(checked.rejected[c].to_pylist() for c in ("row", "reason", "column")), strict=True))
    assert found == [
        (2, Reason.MISSING_ID, "user_id"),
        (3, Reason.MISSING_ID, "user_id"),
        (4, Reason.UNUSABLE_ID, "video_id"),
        (5, Reason.UNUSABLE_ID, "video_id"),
        (6, Reason.WRONG_TYPE, "watch_time_s"),
        (7, Reason.UNPARSABLE_TIME, "timestamp"),
        (8, Reason.UNPARSABLE_TIME, "timestamp"),
        (9, Reason.UNPARSABLE_TIME, "timestamp"),
        (10, Reason.FUTURE_TIME, "timestamp"),
        (11, Reason.FUTURE_TIME, "timestamp"),
        (12, Reason.EARLY_TIME, "timestamp"),
        (13, Reason.NEGATIVE_WATCH_TIME, "watch_time_s"),
        (14, Reason.ABSURD_WATCH_TIME, "watch_time_s"),
        (15, Reason.WRONG_TYPE, "watch_time_s"),
    ]
    assert json.loads(checked.rejected["raw"][4].as_py())["watch_time_s"] == "long"
    assert set(checked.rejected["origin"].to_pylist()) == {"log.csv"}


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (pa.array([1714564800500000999], pa.timestamp("ns")), "2024-05-01 12:00:00.500000999"),
        (pa.array([2**40], pa.timestamp("s", "Mars/Olympus")), "<value out of range: 1099511627776>"),
        (pa.array([253402300800], pa.timestamp("s")), "10000-01-01 00:00:00"),
        (pa.array([1714564800], pa.timestamp("s", "Europe/Berlin")), "2024-05-01 12:00:00"),
        (pa.array([19844, None], pa.date32()), "2024-05-01"),
        (pa.array([1001], pa.time64("ns")), "00:00:00.000001001"),
        (pa.array([1001], pa.duration("ns")), "1001"),
        (pa.array([[1714564800500000999]], pa.list_(pa.timestamp("ns"))), ["2024-05-01 12:00:00.500000999"]),
        (pa.array([{"a": [1001]}], pa.struct([("a", pa.large_list(pa.duration("ns")))])), {"a": ["1001"]}),
        (pa.array([Decimal("1.50")]), "1.50"),
    ],
)
def test_rejected_rows_are_written_down_whatever_they_hold(values, shown):
    rows = pa.table({"user_id": [None] * len(values), "further": values})
    rejected = check_chunk(chunk(rows), USERS, CONFIG, NOW).rejected
    assert json.loads(rejected["raw"][0].as_py()) == {"user_id": None, "further": shown}


def test_uploads_far_in_the_future_are_most_often_a_wrong_unit():
    latest = NOW + timedelta(days=1)
    uploads = [NOON, NOW + timedelta(days=60), latest + timedelta(days=400), latest + timedelta(days=400, seconds=1)]
    videos = pa.table({"video_id": ["a", "b", "c", "d"], "upload_time": uploads})
    checked = check_chunk(chunk(videos), VIDEOS, CONFIG, NOW)
    assert checked.kept["video_id"].to_pylist() == ["a", "b", "c"]
    assert checked.rejected["reason"].to_pylist() == [Reason.FUTURE_UPLOAD]
    assert "most often a wrong unit" in Reason.FUTURE_UPLOAD
    milliseconds = pa.table({"video_id": ["a"], "upload_time": ["1714564800000"]})
    assert check_chunk(chunk(milliseconds), VIDEOS, CONFIG, NOW).rejected["column"].to_pylist() == ["upload_time"]
    # Logs cut off in the past may stand beside the videos of today; those that are simulated ahead, beside theirs.
    cut, ahead = (ValidationConfig(latest=NOW + timedelta(days=days)) for days in (-1_000, 1_000))
    assert check_chunk(chunk(videos), VIDEOS, cut, NOW).kept.num_rows == 3
    assert check_chunk(chunk(videos), VIDEOS, ahead, NOW).kept.num_rows == 4


def test_a_row_with_several_faults_has_the_first_reason():
    rows = watch_rows({"user_id": "", "timestamp": "?", "watch_time_s": "-1"})
    assert check_chunk(chunk(rows), WATCHES, CONFIG, NOW).rejected["reason"].to_pylist() == [Reason.MISSING_ID]


def test_unicode_and_spaces_are_good_ids_and_kept_as_they_are():
    ids = ["Ünï cödé", " leading", "日本語 動画", "👩‍👩‍👧", "a/b\\c,d;e", "null?"]
    rows = watch_rows(*({"user_id": i, "video_id": i} for i in ids))
    checked = check_chunk(chunk(rows), WATCHES, CONFIG, NOW)
    assert checked.kept["user_id"].to_pylist() == ids
    assert checked.kept["video_id"].to_pylist() == ids


def test_text_that_is_not_utf8_is_an_unusable_id():
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 2, 3], np.int32)), pa.py_buffer(b"\xff\xfeu")]
    )
    rows = {"user_id": broken, "video_id": ["v", "v"], "timestamp": [NOON, NOON]}
    checked = check_chunk(chunk(rows), WATCHES, CONFIG, NOW)
    assert checked.kept["user_id"].to_pylist() == ["u"]
    assert checked.rejected["reason"].to_pylist() == [Reason.UNUSABLE_ID]


def test_numbers_as_ids_become_their_text_and_floats_lose_the_point():
    rows = {"user_id": [7, 8], "video_id": [12.0, 3.0], "timestamp": [NOON, NOON]}
    kept = check_chunk(chunk(rows), WATCHES, CONFIG, NOW).kept
    assert kept["user_id"].to_pylist() == ["7", "8"]
    assert kept["video_id"].to_pylist() == ["12", "3"]


def test_nan_is_missing_and_infinity_is_rejected():
    rows = {
        "user_id": ["a", "b", "c"],
        "age": [np.nan, 30.0, 40.0],
        "score": [np.nan, 1.5, np.inf],
    }
    checked = check_chunk(chunk(rows), USERS, CONFIG, NOW)
    assert checked.kept.to_pylist() == [
        {"user_id": "a", "age": None, "score": None},
        {"user_id": "b", "age": 30.0, "score": 1.5},
    ]
    assert checked.rejected["column"].to_pylist() == ["score"]


def test_values_out_of_range_name_their_column():
    users = check_chunk(
        chunk({"user_id": ["a", "b", "c"], "gender": [0.0, 2.0, 1.0], "age": [20, 20, -1]}), USERS, CONFIG, NOW
    )
    assert users.rejected["column"].to_pylist() == ["gender", "age"]
    videos = check_chunk(chunk({"video_id": ["a", "b"], "duration_s": [-1.0, 5.0]}), VIDEOS, CONFIG, NOW)
    assert videos.rejected["reason"].to_pylist() == [Reason.OUT_OF_RANGE]


def test_order_only_rows_need_an_order_and_have_no_time_and_no_click():
    rows = {
        "user_id": ["u"] * 4,
        "video_id": ["v"] * 4,
        "time_known": [False, False, True, None],
        "order": [3, None, None, None],
        "timestamp": [NOON, None, NOON, NOON],
        "clicked": [None, None, None, True],
    }
    checked = check_chunk(chunk(rows), IMPRESSIONS, CONFIG, NOW)
    assert checked.kept.select(["time_known", "order", "timestamp", "clicked"]).to_pylist() == [
        {"time_known": False, "order": 3, "timestamp": None, "clicked": None},
        {"time_known": True, "order": None, "timestamp": NOON, "clicked": True},
    ]
    assert checked.rejected["reason"].to_pylist() == [Reason.MISSING_VALUE] * 2
    assert checked.rejected["column"].to_pylist() == ["order", "clicked"]


def test_a_search_without_a_query_is_rejected():
    rows = {"user_id": ["u", "u"], "timestamp": [NOON, NOON], "query": ["cats", " "]}
    checked = check_chunk(chunk(rows), SEARCHES, CONFIG, NOW)
    assert checked.rejected["reason"].to_pylist() == [Reason.MISSING_VALUE]


def test_lists_come_from_text_and_from_lists():
    text = chunk({"video_id": ["a", "b", "c"], "topics": ["x| y ||z", None, ""]}, separators={"topics": "|"})
    assert check_chunk(text, VIDEOS, CONFIG, NOW).kept["topics"].to_pylist() == [["x", "y", "z"], None, []]
    lists = chunk({"video_id": ["a", "b", "c"], "topics": pa.array([[1, 2], None, []], pa.large_list(pa.int64()))})
    assert check_chunk(lists, VIDEOS, CONFIG, NOW).kept["topics"].to_pylist() == [["1", "2"], None, []]
    scores = {
        "user_id": ["u"],
        "video_id": ["v"],
        "timestamp": [NOON],
        "clicked": ["true"],
        "candidate_scores": [[0.5, float("nan")]],
    }
    assert check_chunk(chunk(scores), IMPRESSIONS, CONFIG, NOW).kept["candidate_scores"].to_pylist() == [[0.5, None]]


def test_dictionary_columns_are_read_like_plain_ones():
    rows = watch_rows({}, {"user_id": "w"})
    encoded = rows.set_column(0, "user_id", rows["user_id"].dictionary_encode())
    assert check_chunk(chunk(encoded), WATCHES, CONFIG, NOW).kept["user_id"].to_pylist() == ["u", "w"]


def test_an_absent_required_column_names_the_nearest():
    rows = pa.table({"userid": ["u"], "video_id": ["v"], "timestamp": [NOON]})
    with pytest.raises(DataError, match=r"'watches' needs column 'user_id', did you mean 'userid'\?"):
        check_chunk(chunk(rows), WATCHES, CONFIG, NOW)


@pytest.mark.parametrize(
    ("raw", "unit"),
    [
        ([1714564800.5], "s"),
        ([1714564800500], "ms"),
        ([1714564800500000], "us"),
        ([1714564800500000999], "ns"),
        (["1714564800.5"], None),
        (["1714564800500"], "ms"),
        (["2024-05-01 12:00:00.5"], None),
        (["2024-05-01T14:00:00,500+02:00"], "iso"),
        (["2024-05-01T06:30:00.5-0530"], None),
        ([datetime(2024, 5, 1, 12, 0, 0, 500000)], None),
        ([datetime(2024, 5, 1, 14, 0, 0, 500000, tzinfo=timezone(timedelta(hours=2)))], None),
    ],
)
def test_times_in_every_unit_are_the_same_moment(raw, unit):
    times, bad = convert(pa.array(raw), WATCHES.schema.field("timestamp").type, unit)
    assert times.to_pylist() == [datetime(2024, 5, 1, 12, 0, 0, 500000, tzinfo=UTC)]
    assert not bad.any()


@given(st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 28)), st.integers(-14 * 60, 14 * 60))
@settings(max_examples=100)
def test_iso_times_equal_those_of_the_standard_library(moment, offset_minutes):
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    times, bad = convert(pa.array([aware.isoformat()]), WATCHES.schema.field("timestamp").type)
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    assert not bad.any()
    assert times.cast(pa.int64()).to_pylist() == [since // timedelta(microseconds=1)]


@given(st.integers(0, 9999), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
@settings(max_examples=100)
def test_only_dates_of_the_calendar_are_times(year, month, day, hour):
    text = f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:00"
    try:
        expected = [datetime(year, month, day, hour, tzinfo=UTC)]
    except ValueError:
        expected = [None]
    times, bad = convert(pa.array([text]), WATCHES.schema.field("timestamp").type)
    if year:  # the standard library has no year 0
        known = times.cast(pa.int64()).to_pylist()[0]
        assert (known is None) == (expected == [None])
        assert bad.tolist() == [expected == [None]]


numbers = st.one_of(
    st.floats().map(repr), st.integers().map(str), st.text(max_size=6), st.sampled_from(["1e400", "0x1", "1_0", "+3"])
)


@given(st.lists(numbers, max_size=20))
@example(["1e400", "-1e400", ".", "+", "1e", ".5", "5.", "\u0663"])
@settings(max_examples=100)
def test_text_is_a_number_exactly_when_it_reads_as_a_finite_one(texts):
    values, bad = convert(pa.array(texts, pa.string()), pa.float64())
    for text, value, wrong in zip(texts, values.to_pylist(), bad, strict=True):
        if value is not None:
            assert value == float(text)
            assert not wrong
        elif not wrong:
            assert text.strip().lower() in {"", "nan", "null", "none"}
    integers, wrong_integers = convert(pa.array(texts, pa.string()), pa.int64())
    for text, value in zip(texts, integers.to_pylist(), strict=True):
        assert value is None or float(value) == float(text)
    assert not (wrong_integers & np.array([v is not None for v in integers.to_pylist()], bool)).any()


wild_ids = st.one_of(st.none(), st.text(max_size=8), st.sampled_from(["", " ", "a\u2028b", "u" * 300, "ü 1", "\x00"]))
wild_times = st.one_of(
    st.none(), st.integers(-(2**70), 2**70).map(str), st.floats().map(repr), st.text(max_size=12), st.just("2024-05-01")
)
wild_seconds = st.one_of(st.none(), st.floats(), st.sampled_from([1e308, -0.0, 86_400.0, 86_400.1]))
wild_rows = st.lists(st.tuples(wild_ids, wild_ids, wild_times, wild_seconds, wild_seconds), max_size=30)


@given(wild_rows)
@settings(max_examples=100)
def test_wild_rows_are_kept_or_rejected_and_what_is_kept_obeys_the_contract(rows):
    columns = list(zip(*rows, strict=True)) or [(), (), (), (), ()]
    kinds = [pa.string(), pa.string(), pa.string(), pa.float64(), pa.float64()]
    names = ["user_id", "video_id", "timestamp", "watch_time_s", "further"]
    table = pa.table({n: pa.array(c, k) for n, c, k in zip(names, columns, kinds, strict=True)})
    checked = check_chunk(chunk(table), WATCHES, CONFIG, NOW)
    assert checked.kept.num_rows + checked.rejected.num_rows == len(rows)
    assert sorted([*checked.rows.tolist(), *checked.rejected["row"].to_pylist()]) == list(range(1, len(rows) + 1))
    for row in checked.kept.to_pylist():
        for name in ("user_id", "video_id"):
            assert row[name].strip()
            assert len(row[name]) <= 256
            assert not set(row[name]) & set("\n\r\x00\x85\u2028\u2029")
        assert CONFIG.earliest <= row["timestamp"] <= NOW + timedelta(days=1)
        assert row["watch_time_s"] is None or 0 <= row["watch_time_s"] <= 86_400
        assert row["further"] is None or np.isfinite(row["further"])
    for reason, raw in zip(checked.rejected["reason"].to_pylist(), checked.rejected["raw"].to_pylist(), strict=True):
        assert reason in set(Reason)
        json.loads(raw)


@given(
    st.sampled_from([pa.int8(), pa.uint64(), pa.float32(), pa.bool_(), pa.date32(), pa.binary(), pa.list_(pa.int64())]),
    st.sampled_from(
        [pa.string(), pa.float64(), pa.int64(), pa.bool_(), pa.timestamp("us", "UTC"), pa.list_(pa.string())]
    ),
    st.booleans(),
)
@settings(max_examples=84)
def test_any_column_type_converts_or_is_marked(raw_type, target, missing):
    samples = {
        pa.int8(): -5,
        pa.uint64(): 2**64 - 1,
        pa.float32(): 0.5,
        pa.bool_(): True,
        pa.date32(): 19_000,
        pa.binary(): b"\xff",
        pa.list_(pa.int64()): [1],
    }
    values, _ = plain(pa.chunked_array([pa.array([None if missing else samples[raw_type]], raw_type)]))
    converted, bad = convert(values, target)
    assert converted.type == target
    assert len(converted) == len(bad) == 1
    assert not (missing and bad[0])
    assert missing or bad[0] or converted.is_valid()[0].as_py()


def test_a_column_without_type_is_missing_everywhere():
    converted, bad = convert(pa.nulls(3), pa.float64())
    assert converted.null_count == 3
    assert not bad.any()
    assert finite(pa.array([1, 2]))[0].to_pylist() == [1, 2]
