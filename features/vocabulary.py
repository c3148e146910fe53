"""Vocabularies: the rows of an id space (Covington et al. 2016, section 4.1, "Embedding Categorical Features").

A space keeps its top N ids by frequency; all others share the zero embedding. Counts are exact. Row 0 is padding and
out-of-vocabulary; rows 1 to `size` go by descending count, ties by the id's UTF-8 bytes, so two runs
over the same data write the same bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from features.errors import ArtifactError, ConfigError
from features.settings import Settings
from features.spec import Feature, FeatureSpec, Kind

COUNTS = pa.schema([("id", pa.string()), ("count", pa.int64())])
"""Counts of ids, also the schema of a vocabulary's file."""


class VocabularyConfig(Settings):
    """Which ids of a space get a row."""

    top_n: int | None = Field(default=None, ge=1)
    """Keep the N most frequent ids; None keeps all."""
    min_count: int = Field(default=0, ge=0)
    """Keep ids counted at least this often in the training part. `clicked_video` counts clicks, attributes of videos
    watches: of these 0 keeps what was shown and never chosen."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The ids of one space: `ids[i]` has row i + 1 (and class i).

    Args:
      ids: string `[size]`, distinct, by descending count, then by bytes.
      counts: int64 `[size]`.
    """

    ids: pa.StringArray
    counts: np.ndarray

    @property
    def size(self) -> int:
        """Number of ids; the rows are 1 to `size`."""
        return len(self.ids)

    def lookup(self, ids: pa.Array | pa.ChunkedArray | np.ndarray) -> np.ndarray:
        """Rows of `ids` `[n]`: int32 `[n]`, 0 where null or not in the vocabulary."""
        if not isinstance(ids, (pa.Array, pa.ChunkedArray)):
            ids = pa.array(ids, pa.string())
        if isinstance(ids, pa.ChunkedArray):
            ids = ids.combine_chunks()
        found = pc.index_in(ids.cast(pa.string()), value_set=self.ids)
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False) + np.int32(1)

    @staticmethod
    def from_counts(counts: pa.Table, config: VocabularyConfig) -> "Vocabulary":
        """The vocabulary of distinct ids with their counts (schema `COUNTS`, any order)."""
        counts = counts.filter(pc.greater_equal(counts["count"], config.min_count))
        counts = counts.sort_by([("count", "descending"), ("id", "ascending")])[: config.top_n]
        return Vocabulary(counts["id"].combine_chunks(), counts["count"].to_numpy())

    @staticmethod
    def of(ids: Iterable[str]) -> "Vocabulary":
        """A fixed vocabulary: these ids in this order, counts of zero."""
        array = pa.array(ids, pa.string())
        return Vocabulary(array, np.zeros(len(array), np.int64))

    def write(self, path: Path) -> None:
        """Writes Parquet of schema `COUNTS`."""
        pq.write_table(pa.Table.from_arrays([self.ids, pa.array(self.counts, pa.int64())], schema=COUNTS), path)

    @staticmethod
    def read(path: Path) -> "Vocabulary":
        """Reads what `write` wrote.

        Raises:
          ArtifactError: the file is missing, damaged, or of another schema.
        """
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"{path}: expected a vocabulary: {reason}; run the analysis again") from error
        if not table.schema.equals(COUNTS):
            found = ", ".join(table.schema.names)
            raise ArtifactError(f"{path}: expected columns id, count; found {found}; run the analysis again")
        return Vocabulary(table["id"].combine_chunks(), table["count"].to_numpy())


def serving_row(feature: Feature, vocabularies: Mapping[str, Vocabulary]) -> int:
    """The row of a categorical feature's serving value, which is written as the example jobs write it; of "" it is 0.

    Raises:
      ConfigError: the vocabulary does not hold it.
    """
    vocabulary = vocabularies[str(feature.id_space)]
    row = int(vocabulary.lookup(pa.array([feature.serving_value]))[0])
    if row == 0 and feature.serving_value != "":
        first = ", ".join(vocabulary.ids[:5].to_pylist())
        raise ConfigError(
            f"feature {feature.name!r}: serving_value {feature.serving_value!r} is not in the vocabulary of id space "
            f"{feature.id_space!r}, which begins with {first}; set one of its ids, or '' for a value that is missing"
        )
    return row


def serving_rows(spec: FeatureSpec, vocabularies: Mapping[str, Vocabulary]) -> dict[str, int]:
    """The rows of all categorical features that have a serving value, by name; raises as `serving_row`."""
    fixed = [feature for feature in spec.kind(Kind.CATEGORICAL) if feature.serving_value is not None]
    return {feature.name: serving_row(feature, vocabularies) for feature in fixed}


def count_values(values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Exact counts of a column's values: schema `COUNTS`; nulls and empty strings are not counted.

    Args:
      values: ids of any type with a text form, or lists of them (each item counts once).
    """
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = pc.list_flatten(values)
    counts = pc.value_counts(values)
    table = pa.Table.from_arrays([pc.cast(counts.field(0), pa.string()), counts.field(1)], schema=COUNTS)
    return table.filter(pc.and_(pc.is_valid(table["id"]), pc.not_equal(table["id"], "")))


class CountIds(beam.CombineFn):
    """Adds up tables of counts (schema `COUNTS`): the result has every id once, in no fixed order.

    Partial counts are gathered and added up when there are twice as many rows as distinct ids, so that every row is
    touched a small number of times and memory is bound by the distinct ids.
    """

    def create_accumulator(self) -> "_PartialCounts":
        return _PartialCounts([], 0, 0)

    def add_input(self, mutable_accumulator: "_PartialCounts", element: pa.Table) -> "_PartialCounts":
        return mutable_accumulator.add(element)

    def merge_accumulators(self, accumulators: Iterable["_PartialCounts"]) -> "_PartialCounts":
        merged = self.create_accumulator()
        for accumulator in accumulators:
            for table in accumulator.tables:
                merged = merged.add(table)
        return merged

    def compact(self, accumulator: "_PartialCounts") -> "_PartialCounts":
        return accumulator.compact()

    def extract_output(self, accumulator: "_PartialCounts") -> pa.Table:
        return accumulator.compact().tables[0] if accumulator.tables else COUNTS.empty_table()


@dataclass
class _PartialCounts:
    tables: list[pa.Table]
    rows: int
    distinct: int  # at the last compaction

    _SMALLEST = 1 << 18

    def add(self, table: pa.Table) -> "_PartialCounts":
        self.tables.append(table)
        self.rows += table.num_rows
        return self.compact() if self.rows > max(self._SMALLEST, 2 * self.distinct) else self

    def compact(self) -> "_PartialCounts":
        if len(self.tables) < 2:
            return self
        total = add_counts(self.tables)
        return _PartialCounts([total], total.num_rows, total.num_rows)


def add_counts(tables: Iterable[pa.Table]) -> pa.Table:
    """One table of counts (schema `COUNTS`) from several: every id once."""
    grouped = pa.TableGroupBy(pa.concat_tables(tables), "id", use_threads=False).aggregate([("count", "sum")])
    return pa.Table.from_arrays([grouped["id"], grouped["count_sum"]], schema=COUNTS).combine_chunks()
