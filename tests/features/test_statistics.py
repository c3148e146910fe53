import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.beam import make_pipeline, run
from features.hashing import hash_strings
from features.statistics import (
    SUMMARY_HEADER,
    ColumnSummary,
    DistinctValues,
    FrequentValues,
    StatisticsConfig,
    SummariseColumn,
    summary_rows,
)
from features.vocabulary import count_values


def statistics(*batches, config=None):
    """Of a column that comes in batches, through separate accumulators."""
    combine = SummariseColumn(config or StatisticsConfig())
    accumulators = [combine.add_input(combine.create_accumulator(), batch) for batch in batches]
    result = combine.extract_output(combine.merge_accumulators(accumulators))
    return json.loads(json.dumps(result, allow_nan=False))


def test_a_text_column():
    found = statistics(pa.array(["b", None, "a", "b"]), pa.array(["é", "", "b", "a"]))
    top = [{"value": "b", "count": 3}, {"value": "a", "count": 2}, {"value": "é", "count": 1}]
    assert found == {
        "type": "string", "count": 8, "missing": 2, "distinct": 3, "min": "a", "max": "é", "top": top, "top_error": 0,
    }  # fmt: skip


def test_a_number_column():
    found = statistics(
        pa.array([1.0, None, np.nan, 0.0]), pa.array([-0.0, 2.0, np.inf]), config=StatisticsConfig(quantiles=3)
    )
    assert found["count"] == 7 and found["missing"] == 2 and found["infinite"] == 1
    assert found["distinct"] == 4  # 0, 1, 2, infinity
    assert (found["min"], found["max"], found["quantiles"]) == (0.0, 2.0, [0.0, 1.0, 2.0])


def test_whole_numbers_beyond_float64_stay_apart():
    ids = [2**60 + n for n in range(100)]
    found = statistics(pa.array(ids[50:]), pa.array([*ids[:50], None]))
    assert (found["distinct"], found["min"], found["max"]) == (100, 2**60, 2**60 + 99)
    assert statistics(pa.array([2**63 + 1, 7], pa.uint64()))["max"] == 2**63 + 1


@pytest.mark.parametrize("kind", [pa.decimal128(6, 2), pa.decimal256(60, 30)])
def test_decimals_are_numbers(kind):
    prices = [Decimal(text) for text in ("9.75", "15.00", "0.25")]
    found = statistics(
        pa.array([*prices, None], kind), pa.array([Decimal("9.75")], kind), config=StatisticsConfig(quantiles=3)
    )
    assert (found["type"], found["count"], found["missing"], found["distinct"]) == (str(kind), 5, 1, 3)
    assert (found["min"], found["max"], found["quantiles"]) == (0.25, 15.0, [0.25, 9.75, 15.0])
    assert "top" not in found


def test_a_column_of_structs_is_counted():
    found = statistics(pa.array([{"a": 1}, None]), pa.array([{"a": 2}]))
    assert found == {"type": "struct<a: int64>", "count": 3, "missing": 1}
    assert statistics(pa.array([[[1]], None]))["missing"] == 1
    [row] = summary_rows({"about": found})
    assert row == ("about", "struct<a: int64>", "3", "33.3%", "", "", "", "", "")


def test_whole_numbers_times_and_booleans_keep_their_form():
    assert statistics(pa.array([3, 1, 2]), config=StatisticsConfig(quantiles=2))["quantiles"] == [1, 3]
    moment = datetime(2020, 2, 29, 12, 30, 0, 250, UTC)
    times = statistics(pa.array([moment, None], pa.timestamp("us", "UTC")))
    assert times["min"] == times["max"] == "2020-02-29T12:30:00.000250+00:00" and times["missing"] == 1
    assert statistics(pa.array([True, False, True]))["top"] == [
        {"value": "true", "count": 2},
        {"value": "false", "count": 1},
    ]


def test_a_list_column_is_described_by_its_items():
    found = statistics(pa.array([["x", "y"], None, []]), pa.array([["x", None]]))
    assert found["type"] == "list<string>"
    assert (found["count"], found["missing"], found["items"], found["distinct"]) == (4, 1, 3, 2)
    assert found["top"][0] == {"value": "x", "count": 2}


@pytest.mark.parametrize("dtype", [pa.string(), pa.float32(), pa.bool_(), pa.list_(pa.int64()), pa.null()])
def test_a_column_without_values(dtype):
    found = statistics(pa.nulls(3, dtype), pa.array([], dtype))
    assert (found["count"], found["missing"], found["distinct"]) == (3, 3, 0)
    assert "min" not in found and "quantiles" not in found and "top" not in found


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=30), max_size=6), st.integers(1, 8))
def test_frequent_values_err_by_no_more_than_they_say(batches, capacity):
    total = FrequentValues(capacity)
    for batch in batches:
        part = FrequentValues(capacity)
        part.add(count_values(pa.array(batch, pa.string())))
        total.add(part.counts, part.error)
    exact = Counter(value for batch in batches for value in batch)
    held = {entry["value"]: entry["count"] for entry in total.top(100)}
    assert len(held) <= capacity
    for value, count in exact.items():
        assert count - total.error <= held.get(value, 0) <= count
    assert total.error <= sum(exact.values()) / (capacity + 1)
    if len(exact) <= capacity:
        assert total.error == 0


@pytest.mark.parametrize("n", [1, 16_000, 300_000])
def test_distinct_values(n):
    distinct = DistinctValues()
    hashes = hash_strings(pa.array([f"id {i}" for i in range(n)]))
    for part in np.array_split(np.concatenate([hashes, hashes[::-1]]), 5):
        distinct.add(part)
    assert distinct.estimate == n if n < 16_384 else abs(distinct.estimate / n - 1) < 0.03


@pytest.mark.parametrize("seed", range(8))
def test_no_more_distinct_values_than_values_are_told_and_estimates_are_marked(seed):
    """The estimates of half of these are above the count, as the sketch's error is to both sides."""
    n = 20_000
    ids = pa.array([f"{seed} {i}" for i in range(n)] + [None] * 500)
    found = statistics(ids)
    assert found["distinct"] <= n
    assert abs(found["distinct"] / n - 1) < 0.03
    assert summary_rows({"id": found})[0][4] == f"≈{found['distinct']:,}"
    few = statistics(pa.array(["a", "b", "a"]))
    assert summary_rows({"id": few})[0][4] == "2"


def test_many_different_texts_keep_their_count_within_the_error():
    config = StatisticsConfig(tracked_values=100, top_values=1)
    rare = [f"rare {i}" for i in range(20_000)]
    found = statistics(pa.array(rare + ["often"] * 5000), pa.array(["often"] * 5000), config=config)
    assert found["top"][0]["value"] == "often"
    assert 10_000 - found["top_error"] <= found["top"][0]["count"] <= 10_000
    assert abs(found["distinct"] / 20_001 - 1) < 0.03


def test_in_a_pipeline():
    pipeline = make_pipeline()
    batches = [("n", pa.chunked_array([[1, 2]])), ("n", pa.chunked_array([[3]])), ("t", pa.chunked_array([["a"]]))]

    def check(element):
        name, found = element
        assert (name, found["count"], found["min"], found["max"]) in {("n", 3, 1, 3), ("t", 1, "a", "a")}

    _ = pipeline | beam.Create(batches) | beam.CombinePerKey(SummariseColumn(StatisticsConfig())) | beam.Map(check)
    run(pipeline, "statistics")


def test_summary_rows():
    columns = {
        "region": statistics(pa.array(["DE", "DE", None, "FR"])),
        "age": statistics(pa.array([20.0, 30.0, 40.0]), config=StatisticsConfig(quantiles=3)),
    }
    moments = [datetime(2024, 5, 1, 8, minute, tzinfo=UTC) for minute in (1, 2, 3)]
    columns["time"] = statistics(pa.array(moments, pa.timestamp("us", "UTC")), config=StatisticsConfig(quantiles=3))
    region, age, time = summary_rows(columns)
    assert region == ("region", "string", "4", "25.0%", "2", "DE", "", "FR", "DE (2), FR (1)")
    assert age == ("age", "double", "3", "0.0%", "3", "20", "30", "40", "")
    assert time[5:] == ("2024-05-01T08:01:00", "2024-05-01T08:02:00", "2024-05-01T08:03:00", "")
    assert len(region) == len(SUMMARY_HEADER)


def test_merging_with_nothing_changes_nothing():
    config = StatisticsConfig()
    summary = ColumnSummary.empty(config)
    summary.add(pa.array(["a"]))
    before = summary.statistics(config)
    summary.merge(ColumnSummary.empty(config))
    assert summary.statistics(config) == before
