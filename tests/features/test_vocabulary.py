from collections import Counter

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.beam import make_pipeline, run
from features.errors import ArtifactError, ConfigError
from features.spec import Feature, Kind, Side
from features.vocabulary import CountIds, Vocabulary, VocabularyConfig, add_counts, count_values, serving_row

IDS = st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=3), max_size=60)


def counts(**by_id: int) -> pa.Table:
    return pa.table({"id": list(by_id), "count": list(by_id.values())})


def test_rows_go_by_descending_count_then_by_bytes():
    table = pa.table({"id": ["b", "Z", "é", "a", "\U0001f642", "\uff5e"], "count": [3, 3, 3, 9, 3, 3]})
    # UTF-8 order: Z < b < é < U+FF5E < U+1F642 (UTF-16 order would swap the last two).
    assert Vocabulary.from_counts(table, VocabularyConfig()).ids.to_pylist() == [
        "a", "Z", "b", "é", "\uff5e", "\U0001f642",
    ]  # fmt: skip


def test_top_n_and_minimum_count():
    table = counts(a=5, b=4, c=4, d=1)
    assert Vocabulary.from_counts(table, VocabularyConfig(top_n=2)).ids.to_pylist() == ["a", "b"]
    assert Vocabulary.from_counts(table, VocabularyConfig(min_count=4)).counts.tolist() == [5, 4, 4]
    assert Vocabulary.from_counts(table, VocabularyConfig(min_count=6)).size == 0


def test_lookup_gives_row_zero_to_unknown_null_and_empty():
    vocabulary = Vocabulary.of(["x", "y"])
    ids = ["y", None, "z", "x", ""]
    for array in (pa.array(ids), pa.chunked_array([ids[:2], ids[2:]]), pa.array(ids).dictionary_encode()):
        rows = vocabulary.lookup(array)
        assert rows.dtype == np.int32
        assert rows.tolist() == [2, 0, 0, 1, 0]
    assert vocabulary.lookup(np.array(["y", "q"])).tolist() == [2, 0]
    assert Vocabulary.of([]).lookup(pa.array(["a"])).tolist() == [0]
    assert vocabulary.lookup(pa.array([], pa.string())).shape == (0,)


@given(IDS)
def test_counts_are_exact(ids):
    found = count_values(pa.array(ids, pa.string())).to_pydict()
    assert dict(zip(found["id"], found["count"], strict=True)) == Counter(i for i in ids if i)


def test_items_of_lists_and_numbers_are_counted():
    lists = count_values(pa.chunked_array([[["a", "b"], None, ["a"]], [[], ["b", "a"]]])).to_pydict()
    assert dict(zip(lists["id"], lists["count"], strict=True)) == {"a": 3, "b": 2}
    numbers = count_values(pa.array([7, 7, None, 8])).to_pydict()
    assert dict(zip(numbers["id"], numbers["count"], strict=True)) == {"7": 2, "8": 1}


@given(st.lists(IDS, max_size=8), st.randoms(use_true_random=False))
def test_combining_in_any_order_gives_the_counts_of_the_whole(batches, random):
    combine = CountIds()
    accumulators = [combine.create_accumulator() for _ in range(3)]
    for batch in batches:
        index = random.randrange(3)
        accumulators[index] = combine.add_input(accumulators[index], count_values(pa.array(batch, pa.string())))
    found = combine.extract_output(combine.merge_accumulators(accumulators)).to_pydict()
    expected = Counter(i for batch in batches for i in batch if i)
    assert dict(zip(found["id"], found["count"], strict=True)) == expected
    assert len(found["id"]) == len(expected)


def test_partial_counts_are_added_up_before_they_fill_the_memory():
    combine = CountIds()
    accumulator = combine.create_accumulator()
    table = counts(**{f"id{i}": 1 for i in range(1000)})
    for _ in range(600):
        accumulator = combine.add_input(accumulator, table)
        assert accumulator.rows <= 263_000
    assert combine.extract_output(accumulator)["count"].to_pylist() == [600] * 1000


def test_add_counts():
    assert add_counts([counts(a=1, b=2), counts(b=3)]).sort_by("id").equals(counts(a=1, b=5))


def test_counted_in_a_pipeline():
    out = []

    def check(table):
        assert table.sort_by("id").to_pydict() == {"id": ["a", "b"], "count": [3, 1]}
        out.append(table)

    pipeline = make_pipeline()
    tables = [count_values(pa.array(batch)) for batch in (["a", "b"], ["a"], ["a"])]
    _ = pipeline | beam.Create(tables) | beam.CombineGlobally(CountIds()) | beam.Map(check)
    run(pipeline, "counting")


def test_equal_vocabularies_write_equal_bytes(tmp_path):
    table = counts(a=1, b=1, c=2)
    for name, rows in (("one", table), ("two", table.take([2, 1, 0]))):
        Vocabulary.from_counts(rows, VocabularyConfig()).write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    read = Vocabulary.read(tmp_path / "one")
    assert read.ids.to_pylist() == ["c", "a", "b"] and read.counts.tolist() == [2, 1, 1]


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"none\.parquet: expected a vocabulary"):
        Vocabulary.read(tmp_path / "none.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ArtifactError, match="expected columns id, count; found x"):
        Vocabulary.read(tmp_path / "x.parquet")


@pytest.mark.parametrize(("value", "row"), [(2, 1), (2.0, 1), (True, 2), ("tv", 3), ("2", 1), ("", 0)])
def test_a_serving_value_has_the_row_of_its_text(value: bool | int | float | str, row: int) -> None:
    feature = Feature("f", Kind.CATEGORICAL, Side.QUERY, "request.f", "f", serving_value=value)
    assert serving_row(feature, {"f": Vocabulary.of(["2", "true", "tv"])}) == row


def test_a_serving_value_without_a_row_is_refused() -> None:
    feature = Feature("f", Kind.CATEGORICAL, Side.QUERY, "request.f", "g", serving_value=1)
    with pytest.raises(ConfigError, match=r"serving_value 1 is not in .* id space 'g', which begins with 2, true, tv;"):
        serving_row(feature, {"g": Vocabulary.of(["2", "true", "tv"])})
