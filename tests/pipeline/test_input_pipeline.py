"""Example sets as batches of columns: padded, shuffled by seed, the same from memory and from files."""

from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from features.errors import DataError
from features.example_reader import ExampleSet
from features.splits import Part
from pipeline.input_pipeline import ExampleColumns, InputConfig, batches, steps_per_pass, training_dataset
from pipeline.record_files import records_dataset, write_records
from tests.pipeline.synthetic_examples import CANDIDATE_SPEC, DAY_US, T_MAX_US, publish_examples, taste_examples

IN_MEMORY = InputConfig()
STREAMED = InputConfig(cache_gib=0, shuffle_rows=64)
WAYS = pytest.mark.parametrize("config", [IN_MEMORY, STREAMED], ids=["in memory", "streamed"])


def numbered(rows: int) -> pa.Table:
    """Examples whose label is their own number, from 1."""
    return taste_examples(rows, seed=0).set_column(1, "label", pa.array(np.arange(1, rows + 1, dtype=np.int32)))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> ExampleSet:
    folder = tmp_path_factory.mktemp("examples") / "candidate_generation"
    return publish_examples(folder, {Part.TRAIN: numbered(300), Part.VALIDATION: numbered(40)}, files=3)


def columns_of(examples: ExampleSet, **arguments: object) -> ExampleColumns:
    return ExampleColumns(examples, (Part.TRAIN,), ("label", "weight"), **arguments)


def labels(stream, steps: int) -> list[np.ndarray]:
    return [np.asarray(batch["label"]) for batch in islice(stream, steps)]


def test_bags_are_padded_on_the_right_and_the_newest_kept_and_missing_values_stay_missing(tmp_path: Path):
    watched = [[1, 2], None, [], [1, 2, 3, 4, 5, 6, 7, 8], [9]]
    table = pa.table(
        {
            "label": pa.array([1, 2, 3, 4, 5], pa.int32()),
            "clicked": pa.array([True, False, True, False, True]),
            "watched_video_ids": pa.array(watched, pa.list_(pa.int32())),
            "region": pa.array([1, None, 2, 3, 0], pa.int32()),
            "example_age": pa.array([1.0, None, float("nan"), 2.0, 3.0], pa.float32()),
        }
    )
    examples = publish_examples(tmp_path / "examples", {Part.TRAIN: table}, files=1)
    arrays = ExampleColumns(examples, (Part.TRAIN,), ("label", "clicked")).read()
    np.testing.assert_array_equal(
        arrays["watched_video_ids"],
        [[1, 2, 0, 0, 0, 0], [0] * 6, [0] * 6, [3, 4, 5, 6, 7, 8], [9, 0, 0, 0, 0, 0]],
    )
    np.testing.assert_array_equal(arrays["region"], [1, 0, 2, 3, 0])
    np.testing.assert_array_equal(arrays["example_age"], np.array([1, np.nan, np.nan, 2, 3], np.float32))
    np.testing.assert_array_equal(arrays["clicked"], np.array([1, 0, 1, 0, 1], np.float32))
    assert {name: array.dtype for name, array in arrays.items()} == {
        "watched_video_ids": np.int32,
        "region": np.int32,
        "example_age": np.float32,
        "label": np.int32,
        "clicked": np.float32,
    }


@WAYS
def test_a_pass_gives_each_row_at_most_once_in_whole_batches_and_every_row_in_time(
    examples: ExampleSet, config: InputConfig
):
    columns = columns_of(examples)
    assert steps_per_pass(columns.rows, 32) == 9
    stream = batches(columns, 32, seed=1, config=config)
    passes = [np.concatenate(labels(stream, 9)) for _ in range(4)]
    for one in passes:
        assert len(one) == 9 * 32
        assert len(set(one)) == len(one)
    assert set(np.concatenate(passes)) == set(range(1, 301))
    assert not np.array_equal(passes[0], passes[1])


@WAYS
def test_rows_of_different_files_meet_in_a_batch(examples: ExampleSet, config: InputConfig):
    batch = next(batches(columns_of(examples), 32, seed=1, config=config))
    assert set((batch["label"] - 1) % 3) == {0, 1, 2}  # rows were dealt to the three files in turn
    assert np.abs(np.diff(batch["label"])).min() >= 1
    assert (np.diff(batch["label"]) < 0).mean() > 0.3


@WAYS
def test_the_columns_of_a_row_stay_together(examples: ExampleSet, config: InputConfig):
    whole = columns_of(examples).read()
    by_label = {label: row for row, label in enumerate(whole["label"])}
    for batch in islice(batches(columns_of(examples), 32, seed=3, config=config), 12):
        rows = [by_label[label] for label in batch["label"]]
        for name, values in batch.items():
            np.testing.assert_array_equal(values, whole[name][rows])


@WAYS
def test_the_order_follows_from_the_seed_and_goes_on_at_any_step(examples: ExampleSet, config: InputConfig):
    columns = columns_of(examples)
    first = labels(batches(columns, 32, 7, config), 25)
    np.testing.assert_array_equal(first, labels(batches(columns, 32, 7, config), 25))
    for start in (1, 9, 14):
        np.testing.assert_array_equal(first[start:], labels(batches(columns, 32, 7, config, start), 25 - start))
    assert not np.array_equal(first, labels(batches(columns, 32, 8, config), 25))


@WAYS
def test_a_set_smaller_than_a_batch_is_repeated_within_it(examples: ExampleSet, config: InputConfig):
    columns = ExampleColumns(examples, (Part.VALIDATION,), ("label",))
    for batch in labels(batches(columns, 100, 1, config), 3):
        assert len(batch) == 100
        assert set(batch) == set(range(1, 41))


def test_readers_share_the_files_without_overlap(examples: ExampleSet):
    columns = columns_of(examples)
    parts = [columns.for_reader(index, 3).read()["label"] for index in range(3)]
    assert sorted(np.concatenate(parts)) == list(range(1, 301))
    with pytest.raises(DataError, match="more shards"):
        columns.for_reader(3, 4)


def test_ordered_reading_gives_every_row_once(examples: ExampleSet):
    parts = list(columns_of(examples).ordered(70))
    assert [len(part["label"]) for part in parts] == [70, 30] * 3
    np.testing.assert_array_equal(np.sort(np.concatenate([part["label"] for part in parts])), np.arange(1, 301))


def test_of_many_examples_those_of_some_users_are_read_and_no_file_beyond(examples: ExampleSet):
    assert [len(part["label"]) for part in columns_of(examples, at_most=300).ordered(70)] == [70, 30] * 3
    some = columns_of(examples, at_most=120)
    rows = examples.rows_of_some_users(Part.TRAIN, 120)
    assert len(rows) == 120  # each example is of a user of its own
    assert rows.max() < 200  # in the first two files
    np.testing.assert_array_equal(some.read()["label"], columns_of(examples).read()["label"][rows])
    for batch_rows, sizes in ((1000, [120]), (50, [50, 50, 20])):
        parts = list(some.ordered(batch_rows))
        assert [len(part["label"]) for part in parts] == sizes
        np.testing.assert_array_equal(np.concatenate([part["label"] for part in parts]), some.read()["label"])


def test_a_refit_reads_both_parts_with_ages_from_the_later_moment_and_no_unknown_label(tmp_path: Path):
    train, validation = taste_examples(20, seed=0), taste_examples(10, seed=1)
    unknown = validation["label"].to_numpy().copy()
    unknown[:4] = 0
    validation = validation.set_column(1, "label", pa.array(unknown))
    examples = publish_examples(tmp_path / "examples", {Part.TRAIN: train, Part.VALIDATION: validation}, files=1)
    columns = ExampleColumns(examples, (Part.TRAIN, Part.VALIDATION), ("label",), refit=True)
    arrays = columns.read()
    assert columns.rows == 26
    assert (arrays["label"] > 0).all()
    times_us = np.array(train["label_timestamp"].cast(pa.int64()))
    np.testing.assert_allclose(arrays["example_age"][:20], (T_MAX_US + DAY_US // 2 - times_us) / 1e6, rtol=1e-6)
    assert sum(len(batch) for batch in labels(batches(columns, 13, 1, STREAMED), 2)) == 26


def test_the_dataset_has_static_shapes_and_its_transform_applied(examples: ExampleSet):
    dataset = training_dataset(
        columns_of(examples), 16, 1, IN_MEMORY, transform=lambda batch: {**batch, "twice": 2 * batch["label"]}
    )
    assert dataset.element_spec["watched_video_ids"] == tf.TensorSpec((16, 6), tf.int32)
    assert dataset.element_spec["example_age"] == tf.TensorSpec((16,), tf.float32)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    batch = next(iter(dataset))
    np.testing.assert_array_equal(batch["twice"], 2 * batch["label"])
    expected = next(batches(columns_of(examples), 16, 1, IN_MEMORY))
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values)


def test_records_give_the_same_rows_without_python(examples: ExampleSet, tmp_path: Path):
    columns = columns_of(examples)
    length = write_records(columns, tmp_path / "records", files=4, rows_at_once=37)
    assert length == 4 * (6 + 1 + 1 + 1 + 1)
    assert sum(path.stat().st_size for path in (tmp_path / "records").iterdir()) == 300 * length
    whole = columns.read()
    by_label = {label: row for row, label in enumerate(whole["label"])}
    dataset = records_dataset(tmp_path / "records", columns.signature, 50, 3, InputConfig(shuffle_rows=100))
    seen: set[int] = set()
    for batch in dataset.take(12).as_numpy_iterator():
        rows = [by_label[label] for label in batch["label"]]
        seen |= set(batch["label"])
        for name, values in batch.items():
            np.testing.assert_array_equal(values, whole[name][rows])
    assert len(seen) > 250
    readers = [
        records_dataset(tmp_path / "records", columns.signature, 25, 1, IN_MEMORY, shard=(index, 4)).take(2)
        for index in range(4)
    ]
    of_reader = [{int(x) for batch in reader for x in batch["label"]} for reader in readers]
    assert sum(map(len, of_reader)) == len(set.union(*of_reader))  # no row in two readers


def test_mistakes_are_told(examples: ExampleSet, tmp_path: Path):
    with pytest.raises(DataError, match=r"expected column 'lable', found none \(nearest: 'label'\)"):
        ExampleColumns(examples, (Part.TRAIN,), ("lable",))
    with pytest.raises(DataError, match="found 0 rows"):
        ExampleColumns(examples, (Part.TEST,), ("label",))
    long_numbers = taste_examples(4, 0).append_column("group_id", pa.array([1, 2, 3, 4], pa.int64()))
    wide = publish_examples(tmp_path / "wide", {Part.TRAIN: long_numbers}, CANDIDATE_SPEC, files=1)
    with pytest.raises(DataError, match="'group_id': expected 4-byte numbers"):
        write_records(ExampleColumns(wide, (Part.TRAIN,), ("group_id",)), tmp_path / "records", files=1)


def test_records_appear_whole_whatever_a_stopped_process_left(examples: ExampleSet, tmp_path: Path, monkeypatch):
    columns = columns_of(examples)
    once = columns.ordered

    def stopped(rows: int):
        yield next(iter(once(rows)))
        raise KeyboardInterrupt

    monkeypatch.setattr(type(columns), "ordered", lambda self, rows: stopped(rows))
    with pytest.raises(KeyboardInterrupt):
        write_records(columns, tmp_path / "records", files=2, rows_at_once=10)
    assert not (tmp_path / "records").exists()
    monkeypatch.undo()
    length = write_records(columns, tmp_path / "records", files=2, rows_at_once=10)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.records")) == length * columns.rows
