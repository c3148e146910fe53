"""Statistics of every column of a table, from one pass over its batches.

Count, missing, minimum and maximum are exact. The rest is sketched, so that memory does not grow with the data:

- distinct values: the smallest 16,384 hashes (bottom-k; Bar-Yossef et al. 2002): exact below that number, relative
  standard error 0.8% above it;
- quantiles of numbers and times: KLL, see `features/quantiles.py`;
- top values of text and booleans: a mergeable Misra-Gries summary (Agarwal et al. 2012), whose counts are exact or too
  low by at most the stated error.

Null, NaN and empty text are missing. Decimals are numbers, as float64. A list column is described by its items, a
column of structs, maps or lists of lists by count and missing alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.hashing import hash_strings, mix
from features.quantiles import QuantileSketch
from features.settings import Settings
from features.vocabulary import COUNTS, add_counts, count_values

_HASHES = 1 << 14
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StatisticsConfig(Settings):
    """What is found out about every column."""

    quantiles: int = Field(default=11, ge=2)
    """Boundaries of numbers and times, minimum and maximum included; 11 gives deciles."""
    quantiles_k: int = Field(default=200, ge=8, le=65535)
    """Size of their KLL sketch; 200: rank error 0.013."""
    top_values: int = Field(default=10, ge=0)
    """Most frequent values of text columns to report."""
    tracked_values: int = Field(default=4096, ge=1)
    """Values of a text column whose counts are held; with more distinct values the counts have an error."""


@dataclass
class DistinctValues:
    """How many distinct values there are, from the smallest of their hashes.

    Args:
      hashes: uint64, ascending, distinct, at most 16,384.
    """

    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def add(self, hashes: np.ndarray) -> None:
        """Adds hashes (uint64 `[n]`, uniform) of values; adding one again changes nothing."""
        if len(self.hashes) == _HASHES:
            hashes = hashes[hashes < self.hashes[-1]]
        self.hashes = np.union1d(self.hashes, _smallest(hashes))[:_HASHES]

    @property
    def is_exact(self) -> bool:
        return len(self.hashes) < _HASHES

    @property
    def estimate(self) -> int:
        if self.is_exact:
            return len(self.hashes)
        return round((_HASHES - 1) / (float(self.hashes[-1]) / 2.0**64))


def _smallest(hashes: np.ndarray) -> np.ndarray:
    """The distinct hashes, or at least the smallest 16,384 of them without sorting all."""
    if len(hashes) > 4 * _HASHES:
        few = np.unique(hashes[hashes < np.uint64(2**64 // len(hashes) * 2 * _HASHES)])
        if len(few) >= _HASHES:
            return few
    return hashes


@dataclass
class FrequentValues:
    """Counts of at most `capacity` values, each too low by at most `error`; a value counted more often is among them.

    Args:
      capacity: values held; with no more distinct values than this the error is 0.
      counts: of schema `COUNTS`.
    """

    capacity: int
    counts: pa.Table = field(default_factory=COUNTS.empty_table)
    error: int = 0

    def add(self, counts: pa.Table, error: int = 0) -> None:
        """Adds counts (schema `COUNTS`) that are too low by at most `error`."""
        self.error += error
        # Most values of a batch are rare: they go before the tables are joined, not after.
        self.counts = self._pruned(add_counts([self.counts, self._pruned(counts)]))

    def _pruned(self, counts: pa.Table) -> pa.Table:
        """Takes what the (capacity + 1)th value has off every value: so many of each go unheld."""
        if counts.num_rows <= self.capacity:
            return counts
        rank = counts.num_rows - self.capacity - 1
        excess = int(np.partition(counts["count"].to_numpy(), rank)[rank])
        self.error += excess
        left = pc.subtract(counts["count"], excess)
        return counts.set_column(1, COUNTS.field(1), left).filter(pc.greater(left, 0))

    def top(self, n: int) -> list[dict[str, Any]]:
        """The n largest counts, ties by value."""
        rows = self.counts.sort_by([("count", "descending"), ("id", "ascending")])[:n]
        return [{"value": row["id"], "count": row["count"]} for row in rows.to_pylist()]


@dataclass
class ColumnSummary:
    """What is known of a column so far; times are microseconds since the epoch.

    Args:
      type: Arrow type of the column; of its items for a list.
      rows: rows seen; missing: those without a value; values: values seen (items for a list).
    """

    numbers: QuantileSketch
    frequent: FrequentValues
    distinct: DistinctValues = field(default_factory=DistinctValues)
    type: pa.DataType = field(default_factory=pa.null)
    is_list: bool = False
    rows: int = 0
    missing: int = 0
    values: int = 0
    first: str | None = None  # of text, by UTF-8 bytes
    last: str | None = None
    least: int | None = None  # of integers and times, whose sketch holds them as float64
    greatest: int | None = None

    @staticmethod
    def empty(config: StatisticsConfig) -> "ColumnSummary":
        return ColumnSummary(QuantileSketch(config.quantiles_k), FrequentValues(config.tracked_values))

    def add(self, column: pa.ChunkedArray | pa.Array) -> None:
        """Adds a batch of the column."""
        self.rows += len(column)
        self.is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if self.is_list:
            self.missing += column.null_count
            column = pc.list_flatten(column)
        self.type = column.type
        values = _present(column)
        self.values += len(values)
        if not self.is_list:
            self.missing += len(column) - len(values)
        if _is_numeric(self.type):
            self._add_numbers(values)
        elif not pa.types.is_nested(self.type):
            self._add_text(count_values(values))

    def _add_numbers(self, values: pa.ChunkedArray | pa.Array) -> None:
        if pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("us", values.type.tz)).cast(pa.int64())
        elif pa.types.is_decimal(values.type):
            values = values.cast(pa.float64(), safe=False)
        numbers = values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()
        self.numbers.update(numbers)
        if pa.types.is_integer(values.type):
            self.distinct.add(mix(numbers.astype(np.int64).view(np.uint64)))
            ends = pc.min_max(values)
            self._reach(ends["min"].as_py(), ends["max"].as_py())
        else:
            # Adding zero makes -0.0 and 0.0 one value.
            self.distinct.add(mix((numbers.astype(np.float64) + 0.0).view(np.uint64)))

    def _add_text(self, counts: pa.Table) -> None:
        if counts.num_rows == 0:
            return
        self.frequent.add(counts)
        self.distinct.add(hash_strings(counts["id"]))
        ends = pc.min_max(counts["id"])
        self._extend(ends["min"].as_py(), ends["max"].as_py())

    def _extend(self, first: str | None, last: str | None) -> None:
        firsts = [text for text in (self.first, first) if text is not None]
        lasts = [text for text in (self.last, last) if text is not None]
        self.first = min(firsts, key=str.encode, default=None)
        self.last = max(lasts, key=str.encode, default=None)

    def _reach(self, least: int | None, greatest: int | None) -> None:
        self.least = min((n for n in (self.least, least) if n is not None), default=None)
        self.greatest = max((n for n in (self.greatest, greatest) if n is not None), default=None)

    def merge(self, other: "ColumnSummary") -> None:
        """Adds what `other` holds."""
        if other.rows == 0:
            return
        self.type, self.is_list = other.type, other.is_list
        self.rows += other.rows
        self.missing += other.missing
        self.values += other.values
        self.numbers.merge(other.numbers)
        self.frequent.add(other.frequent.counts, other.frequent.error)
        self.distinct.add(other.distinct.hashes)
        self._extend(other.first, other.last)
        self._reach(other.least, other.greatest)

    def statistics(self, config: StatisticsConfig) -> dict[str, Any]:
        """The column's statistics as JSON values; what its type does not have is absent."""
        result: dict[str, Any] = {
            "type": f"list<{self.type}>" if self.is_list else str(self.type),
            "count": self.rows,
            "missing": self.missing,
        }
        if pa.types.is_nested(self.type):
            return result
        result["distinct"] = min(self.distinct.estimate, self.values)
        if not self.distinct.is_exact:
            result["distinct_is_estimated"] = True
        if self.is_list:
            result["items"] = self.values
        if self.values == 0:
            return result
        if not _is_numeric(self.type):
            top = {"top": self.frequent.top(config.top_values), "top_error": self.frequent.error}
            return {**result, "min": self.first, "max": self.last, **top}
        if self.numbers.infinite:
            result["infinite"] = self.numbers.infinite
        if self.numbers.count == 0:
            return result
        quantiles = self.numbers.quantiles(config.quantiles)
        shown = [_shown(value, self.type) for value in quantiles.boundaries.tolist()]
        error = {"quantiles": shown, "rank_error": quantiles.rank_error}
        if self.least is not None and self.greatest is not None:
            shown[0], shown[-1] = _shown(self.least, self.type), _shown(self.greatest, self.type)
        return {**result, "min": shown[0], "max": shown[-1], **error}


def _is_numeric(dtype: pa.DataType) -> bool:
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_timestamp)
    return any(test(dtype) for test in is_number)


def _present(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    if pa.types.is_floating(column.type):
        return column.filter(pc.invert(pc.is_nan(column)))  # a null is neither, and left out
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.filter(pc.not_equal(column, ""))
    return column.drop_null()


def _shown(value: float, dtype: pa.DataType) -> float | int | str:
    if pa.types.is_timestamp(dtype):
        return (_EPOCH + timedelta(microseconds=value)).isoformat()
    return int(value) if pa.types.is_integer(dtype) else value


class SummariseColumn(beam.CombineFn):
    """Combines batches of one column into its statistics (a dict that JSON can hold).

    Args:
      config: what is found out.
    """

    def __init__(self, config: StatisticsConfig) -> None:
        super().__init__()
        self._config = config

    def create_accumulator(self) -> ColumnSummary:
        return ColumnSummary.empty(self._config)

    def add_input(self, mutable_accumulator: ColumnSummary, element: pa.ChunkedArray) -> ColumnSummary:
        mutable_accumulator.add(element)
        return mutable_accumulator

    def merge_accumulators(self, accumulators: Iterable[ColumnSummary]) -> ColumnSummary:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: ColumnSummary) -> dict[str, Any]:
        return accumulator.statistics(self._config)


def summary_rows(statistics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of a table for people: column, type, count, missing, distinct, from, median, to, most frequent.

    Args:
      statistics: column -> its statistics, as in `<table>.json`.
    """
    return [(name, *_summary_cells(statistics[name])) for name in statistics]


SUMMARY_HEADER = ("column", "type", "count", "missing", "distinct", "min", "median", "max", "most frequent")


def _summary_cells(column: Mapping[str, Any]) -> tuple[str, ...]:
    share = column["missing"] / column["count"] if column["count"] else 0.0
    quantiles = column.get("quantiles", [])
    of_values: tuple[Any, ...] = (
        column.get("min"),
        quantiles[len(quantiles) // 2] if quantiles else None,
        column.get("max"),
    )
    if column["type"].startswith("timestamp"):
        of_values = tuple(str(value or "")[:19] for value in of_values)  # to the second
    top = ", ".join(f"{entry['value']} ({entry['count']:,})" for entry in column.get("top", [])[:3])
    return (
        column["type"],
        f"{column['count']:,}",
        f"{share:.1%}",
        f"{'≈' * column.get('distinct_is_estimated', False)}{column['distinct']:,}" if "distinct" in column else "",
        *map(_cell, of_values),
        top,
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:,.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 32 else text[:31] + "…"
