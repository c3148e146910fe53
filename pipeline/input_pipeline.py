"""Example sets -> `tf.data`: batches of columns, never single examples.

Parquet files are read a batch of rows at a time, bags are padded to their greatest length by one vectorised write,
shuffling is a permutation drawn from (seed, pass). A set that fits the memory budget is read once and served by
indexing; a larger one is streamed: files in a drawn order, rows permuted within a buffer. Both give an endless stream
of batches that continues exactly at any step, so that a resumed training run sees what an uninterrupted one would.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf
from pydantic import Field

from features.candidate_examples import SEQUENCE
from features.errors import DataError
from features.example_reader import ExampleSet
from features.settings import Settings
from features.spec import Feature, FeatureSpec, Kind
from features.splits import Part

Arrays = dict[str, np.ndarray]
Signature = Mapping[str, tuple[tuple[int, ...], np.dtype]]
Transform = Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]


OPEN_FILES = 8  # read in turn when a set is streamed


class InputConfig(Settings):
    """How example sets are read."""

    cache_gib: float = Field(
        default=4.0, ge=0, description="a set of at most this size (GiB, padded) is kept in memory"
    )
    shuffle_rows: int = Field(default=262_144, ge=1, description="rows permuted together when a set is streamed")
    prefetch_batches: int = Field(default=4, ge=1, description="batches made ahead of the training step")


@dataclass(frozen=True)
class ExampleColumns:
    """Which rows and columns of an example set are read: one or more parts, features and labels.

    Args:
      examples: the published set.
      parts: read one after another.
      extra: further numeric columns (label, weight, ...), as they are in the file.
      refit: the parts are trained on together; see `features/example_reader.py`.
      reader: (index, count): which of the files, of several readers.
      at_most: of one part, read in order: as many examples of whole users at most (`ExampleSet.rows_of_some_users`).

    Raises:
      DataError: there is no row, a column is missing, or there are fewer files than readers.
    """

    examples: ExampleSet
    parts: tuple[Part, ...]
    extra: tuple[str, ...]
    refit: bool = False
    reader: tuple[int, int] = (0, 1)
    at_most: int | None = None

    def __post_init__(self) -> None:
        where = f"{self.examples.folder} ({', '.join(part.folder for part in self.parts)})"
        if not self.paths:
            raise DataError(
                f"{where}: expected a file for each of {self.reader[1]} readers, found too few; "
                "build the examples with more shards"
            )
        names = pq.read_schema(self.paths[0]).names
        for name in self.column_names:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f" (nearest: {near[0]!r})" if near else ""
                raise DataError(f"{where}: expected column {name!r}, found none{hint}; build the examples again")
        if not self.rows:
            raise DataError(f"{where}: expected examples, found 0 rows; look at the split and the label filters")

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        paths = [path for part in self.parts for path in self.examples.files(part)]
        return tuple(paths[self.reader[0] :: self.reader[1]])

    @property
    def spec(self) -> FeatureSpec:
        return self.examples.spec

    @property
    def column_names(self) -> list[str]:
        return [*(feature.name for feature in self.examples.features), *self.extra]

    @cached_property
    def rows(self) -> int:
        if self.refit:  # leaves rows out
            column = self.column_names[-1:]
            return sum(batch.num_rows for batch in self.examples.batches(self.paths, column, refit=True))
        return sum(pq.read_metadata(path).num_rows for path in self.paths)

    @cached_property
    def signature(self) -> Signature:
        """Column -> shape of one row and dtype, as `arrays` gives them."""
        empty = self.arrays(pq.read_schema(self.paths[0]).empty_table())
        return {name: (values.shape[1:], values.dtype) for name, values in empty.items()}

    @property
    def bytes(self) -> int:
        """Size in memory, padded."""
        row = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self.signature.values())
        return row * self.rows

    def for_reader(self, index: int, count: int) -> Self:
        """The files of one of `count` readers."""
        return replace(self, reader=(index, count))

    def read(self) -> Arrays:
        """All rows, in the order of the files."""
        parts = list(self.ordered(1 << 16))
        return {name: np.concatenate([part[name] for part in parts]) for name in self.column_names}

    @cached_property
    def _chosen_rows(self) -> np.ndarray | None:
        return self.examples.rows_of_some_users(self.parts[0], self.at_most)

    def ordered(self, batch_rows: int, paths: Sequence[Path] | None = None) -> Iterator[Arrays]:
        """Every row once, in the order of the files (all, or those given), at most `batch_rows` at a time."""
        chosen = self.paths if paths is None else paths
        batches = self.examples.batches(chosen, self.column_names, batch_rows, refit=self.refit)
        for batch in batches if self._chosen_rows is None else _at_rows(batches, self._chosen_rows, batch_rows):
            if batch.num_rows:
                yield self.arrays(pa.Table.from_batches([batch]))

    def at_serving(self, batch: Arrays) -> Arrays:
        """A batch with the fixed serving value in place of the logged ones, where a feature has one."""
        served = dict(batch)
        for name, value in self.examples.serving_values.items():
            served[name] = np.full_like(batch[name], value)
            if self.spec[name].multivalent:
                served[name][:, 1:] = 0
        return served

    def arrays(self, table: pa.Table) -> Arrays:
        """Columns as NumPy arrays: lists padded on the right to `max_length`, with 0 or NaN; missing numbers NaN.

        A further column of lists is padded with 0 to the length of the sequence `watched_video_ids`.
        """
        columns = {feature.name: _feature_array(table[feature.name], feature) for feature in self.examples.features}
        for name in self.extra:
            lists = pa.types.is_list(table.schema.field(name).type)
            columns[name] = _padded(table[name], columns[SEQUENCE].shape[1], 0) if lists else _number_array(table[name])
        return columns


def _at_rows(batches: Iterator[pa.RecordBatch], rows: np.ndarray, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """What the batches have of `rows` (ascending), `batch_rows` at a time; nothing is read after the last of them."""
    start, taken = 0, 0
    waiting: list[pa.RecordBatch] = []
    while taken < len(rows):
        batch = next(batches)
        end = int(np.searchsorted(rows, start + len(batch)))
        waiting.append(batch.take(pa.array(rows[taken:end] - start)))
        start, taken = start + len(batch), end
        if taken == len(rows) or sum(map(len, waiting)) >= batch_rows:
            table = pa.Table.from_batches(waiting).combine_chunks()
            whole = len(table) if taken == len(rows) else len(table) // batch_rows * batch_rows
            yield from table.slice(0, whole).to_batches(max_chunksize=batch_rows)
            waiting = table.slice(whole).to_batches()


def _feature_array(column: pa.ChunkedArray, feature: Feature) -> np.ndarray:
    if feature.multivalent:
        return _padded(column, int(feature.max_length or 0), np.nan if feature.kind == Kind.CONTINUOUS else 0)
    if feature.kind == Kind.CATEGORICAL:
        return pc.fill_null(column, 0).to_numpy()
    return column.to_numpy()  # null becomes NaN


def _padded(column: pa.ChunkedArray, length: int, padding: float) -> np.ndarray:
    """A list column as `[rows, length]`; of a longer list the last `length` items (the newest) are kept."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    values = pc.list_flatten(column).to_numpy()
    ends = np.cumsum(lengths)
    kept = np.minimum(lengths, length)
    padded = np.full((len(lengths), length), padding, values.dtype)
    filled = np.arange(length) < kept[:, np.newaxis]
    if kept.sum() == len(values):
        padded[filled] = values
    else:
        position = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
        padded[filled] = values[np.repeat(ends - kept, kept) + position]
    return padded


def _number_array(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_boolean(column.type) or pa.types.is_floating(column.type):
        column = column.cast(pa.float32())
    return column.to_numpy()


def batches(
    columns: ExampleColumns, batch_size: int, seed: int, config: InputConfig, first_step: int = 0
) -> Iterator[Arrays]:
    """An endless stream of shuffled batches of exactly `batch_size` rows.

    Each pass over the data gives `steps_per_pass` batches in an order of its own; rows that do not fill a last batch
    are left out of that pass (others each time). A set smaller than a batch is repeated within it.

    Args:
      columns: what is read.
      batch_size: rows per batch.
      seed: of the order of rows.
      config: memory budget and buffer.
      first_step: batches of the stream to pass over, without reading them where the set is in memory.
    """
    steps = steps_per_pass(columns.rows, batch_size)
    in_memory = columns.bytes <= config.cache_gib * 2**30
    cache = columns.read() if in_memory else {}
    skipped = first_step % steps
    for epoch in count(first_step // steps):
        random = np.random.default_rng([seed, epoch])
        if in_memory:
            order = np.resize(random.permutation(columns.rows), max(columns.rows, batch_size))
            for step in range(skipped, steps):
                rows = order[step * batch_size : (step + 1) * batch_size]
                yield {name: values[rows] for name, values in cache.items()}
        else:
            yield from islice(_streamed(columns, batch_size, random, config), skipped, steps)
        skipped = 0


def steps_per_pass(rows: int, batch_size: int) -> int:
    """Whole batches in one pass over `rows` examples, at least one."""
    return max(1, rows // batch_size)


def _streamed(
    columns: ExampleColumns, batch_size: int, random: np.random.Generator, config: InputConfig
) -> Iterator[Arrays]:
    """One pass: files in a drawn order, several open at once, rows permuted within a buffer of `shuffle_rows` rows."""
    read_rows = max(1, min(config.shuffle_rows // OPEN_FILES, 1 << 14))
    order = [columns.paths[index] for index in random.permutation(len(columns.paths))]
    reads = _round_robin([columns.ordered(read_rows, [path]) for path in order])
    buffered: list[Arrays] = []
    waiting = 0
    for part in reads:
        buffered.append(part)
        waiting += _length(part)
        if waiting < max(config.shuffle_rows, batch_size):
            continue
        # Half of the buffer stays, so that rows of later reads meet it.
        used = max(1, waiting // 2 // batch_size) * batch_size
        merged = _permuted(buffered, random)
        yield from _cut(merged, batch_size, used)
        buffered = [{name: values[used:] for name, values in merged.items()}]
        waiting -= used
    if waiting:
        merged = _permuted(buffered, random)
        if columns.rows < batch_size:
            merged = {name: np.resize(values, (batch_size, *values.shape[1:])) for name, values in merged.items()}
        yield from _cut(merged, batch_size, _length(merged) // batch_size * batch_size)


def _round_robin(streams: Iterable[Iterator[Arrays]]) -> Iterator[Arrays]:
    """Items of `OPEN_FILES` streams in turn; the next stream takes the place of one that ended."""
    waiting = iter(streams)
    opened = list(islice(waiting, OPEN_FILES))
    while opened:
        still_open = []
        for stream in opened:
            item = next(stream, None)
            if item is not None:
                yield item
                still_open.append(stream)
            else:
                still_open.extend(islice(waiting, 1))
        opened = still_open


def _permuted(parts: Sequence[Arrays], random: np.random.Generator) -> Arrays:
    order = random.permutation(sum(_length(part) for part in parts))
    return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}


def _cut(arrays: Arrays, batch_size: int, end: int) -> Iterator[Arrays]:
    for start in range(0, end, batch_size):
        yield {name: values[start : start + batch_size] for name, values in arrays.items()}


def _length(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def training_dataset(
    columns: ExampleColumns,
    batch_size: int,
    seed: int,
    config: InputConfig,
    transform: Transform | None = None,
    first_step: int = 0,
) -> tf.data.Dataset:
    """The endless stream of `batches` as a dataset of static shapes.

    Args:
      columns, batch_size, seed, config, first_step: as in `batches`.
      transform: adds to each batch, such as the negatives (`models/samplers.py`).
    """
    signature = {
        name: tf.TensorSpec((batch_size, *shape), tf.as_dtype(dtype))
        for name, (shape, dtype) in columns.signature.items()
    }
    dataset = tf.data.Dataset.from_generator(
        lambda: batches(columns, batch_size, seed, config, first_step), output_signature=signature
    )
    return finished(dataset, config, transform)


def finished(dataset: tf.data.Dataset, config: InputConfig, transform: Transform | None) -> tf.data.Dataset:
    """An endless dataset of batches, transformed and made ahead of the training step."""
    if transform is not None:
        dataset = dataset.map(transform)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return dataset.prefetch(config.prefetch_batches).with_options(dataset_options())


def dataset_options() -> tf.data.Options:
    """Options of every dataset of ours.

    Autotuning is off: one generator makes the batches and prefetching is bounded, so there is nothing to tune, and a
    finished `fit` need not wait for its background thread. Sharding is done by `ExampleColumns.for_reader`.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
