"""Kept rows to Parquet by UTC day: no more than a day, or a small share of the table, is in memory at once.

Rows arrive in any order. They are first spilled to a fixed number of buckets (a day is wholly in one bucket), then
each bucket is read back, freed of duplicates, sorted and written. Impressions that have ids are told apart by them on
whatever day, so users and ids are spilled beside the rows, to buckets by their hash.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import DataError
from features.hashing import combine, hash_strings
from features.tables import Table
from pipeline.sources.conversion import mask_of
from pipeline.sources.validation import Reason, raw_json, rejected_table

BUCKETS = 64
PART_ROWS = 1_000_000
DAY_US = 86_400_000_000
_UNKNOWN = -1  # bucket of the rows whose time is not known
_SEQUENCE, _ORIGIN, _ROW = "__sequence", "__origin", "__row"
_OWN_ID = ("user_id", "impression_id")


@dataclass
class _Buckets:
    """Tables on disk, their rows by bucket.

    Args:
      folder: to write to; made when there is something.
    """

    folder: Path
    _writers: dict[tuple[int, str], tuple[Path, pa.ipc.RecordBatchFileWriter]] = field(default_factory=dict)

    def add(self, rows: pa.Table, buckets: np.ndarray) -> None:
        """Adds rows; `buckets` `[rows]` says where to."""
        if not rows.num_rows:
            return
        if (buckets == buckets[0]).all():
            self._write(int(buckets[0]), rows)
            return
        order = np.argsort(buckets, kind="stable")
        rows = rows.take(pa.array(order))
        starts = np.flatnonzero(np.r_[True, np.diff(buckets[order]) != 0])
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            self._write(int(buckets[order[start]]), rows.slice(start, end - start))

    def take(self) -> Iterator[list[pa.Table]]:
        """The tables of each bucket, which are then gone; those of one schema are one."""
        for _, writer in self._writers.values():
            writer.close()
        for bucket in sorted({bucket for bucket, _ in self._writers}):
            paths = [path for (found, _), (path, _) in self._writers.items() if found == bucket]
            yield [_read(path) for path in paths]
            for path in paths:
                path.unlink()

    def _write(self, bucket: int, rows: pa.Table) -> None:
        key = (bucket, str(rows.schema))
        if key not in self._writers:
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f"{len(self._writers)}.arrow"
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers[key] = (path, pa.ipc.new_file(str(path), rows.schema.remove_metadata(), options=options))
        self._writers[key][1].write_table(rows.replace_schema_metadata(None))


class Spill:
    """The rows of one table on their way to day partitions.

    Args:
      folder: an empty scratch folder.
      table: the canonical table.
    """

    def __init__(self, folder: Path, table: Table) -> None:
        self.table = table
        self._schema: pa.Schema | None = None
        self._by_day = _Buckets(folder / "days")
        self._by_id = _Buckets(folder / "ids")
        self._origins: list[str] = []
        self._rows = 0

    def add(self, kept: pa.Table, origin: str, rows: np.ndarray) -> None:
        """Adds canonical rows; `rows` are their numbers within `origin`.

        Raises:
          DataError: a further column has another type than in an earlier chunk, and the two have no common type.
        """
        if not kept.num_rows:
            return
        self._widen(kept.schema, origin)
        if origin not in self._origins:
            self._origins.append(origin)
        bookkeeping = {
            _SEQUENCE: np.arange(self._rows, self._rows + kept.num_rows),
            _ORIGIN: np.full(kept.num_rows, self._origins.index(origin)),
            _ROW: rows,
        }
        self._rows += kept.num_rows
        for name, values in bookkeeping.items():
            kept = kept.append_column(name, pa.array(values, pa.int64()))
        self._by_day.add(kept, self._buckets(kept))
        if self._has_own_ids(kept):
            named = kept.filter(kept["impression_id"].is_valid()).select([*_OWN_ID, _SEQUENCE])
            hashes = combine(*(hash_strings(named[name]) for name in _OWN_ID))
            self._by_id.add(named, (hashes % np.uint64(BUCKETS)).astype(np.int64))

    def finish(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Per bucket: its rows without duplicates, sorted by time, order and source order; and the rejected duplicates.

        The rows have the same columns in every bucket.

        Raises:
          DataError: a value does not fit into the common type of its further column.
        """
        told_again = [_repetitions(pa.concat_tables(tables), _OWN_ID) for tables in self._by_id.take()]
        repeated = np.concatenate([np.zeros(0, np.int64), *told_again])
        for tables in self._by_day.take():
            rows = pa.concat_tables([self._conform(table) for table in tables])
            again = np.isin(rows[_SEQUENCE].to_numpy(), np.union1d(repeated, self._repeated_moments(rows)))
            unique, duplicates = rows.filter(pa.array(~again)), rows.filter(pa.array(again))
            yield self._sorted(unique).drop_columns([_SEQUENCE, _ORIGIN, _ROW]), self._rejected(duplicates)

    def _has_own_ids(self, rows: pa.Table) -> bool:
        return self.table.name == "impressions" and "impression_id" in rows.column_names

    def _repeated_moments(self, rows: pa.Table) -> np.ndarray:
        """Sequence numbers of the rows that tell an earlier one again, of those without an id of their own.

        The key is the id of users and videos; user, video (or query) and moment of events, with `order` where the
        moment is not known. An impression with an `impression_id` is told again by this id alone, on whatever day.
        """
        if self._has_own_ids(rows):
            rows = rows.filter(rows["impression_id"].is_null())
        keys = [name for name in self.table.required.names if name != "clicked"]
        if self.table.partitioned and "order" in rows.column_names:
            order = pc.if_else(rows["timestamp"].is_valid(), None, rows["order"])
            rows = rows.set_column(rows.column_names.index("order"), "order", order)
            keys.append("order")
        return _repetitions(rows, keys)

    def _sorted(self, rows: pa.Table) -> pa.Table:
        keys = (_SEQUENCE, "order", "timestamp") if self.table.partitioned else (_SEQUENCE,)
        present = [rows[name] for name in keys if name in rows.column_names]
        order = np.lexsort([pc.fill_null(column.cast(pa.int64()), 0).to_numpy() for column in present])
        return rows if (np.diff(order) == 1).all() else rows.take(pa.array(order))

    def _buckets(self, rows: pa.Table) -> np.ndarray:
        if not self.table.partitioned:
            return np.zeros(rows.num_rows, np.int64)
        return np.where(mask_of(rows["timestamp"].is_null()), _UNKNOWN, _days(rows) % BUCKETS)

    def _widen(self, schema: pa.Schema, origin: str) -> None:
        schema = schema.remove_metadata()
        if self._schema is None:
            self._schema = schema
            return
        try:
            self._schema = pa.unify_schemas([self._schema, schema], promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{origin}: a column of table {self.table.name!r} has another type than in what was read before "
                f"({' '.join(str(error).split())}); give all files of the table the same type, "
                f"or one to the column in the source's configuration, as extra: {{NAME: string}}"
            ) from error

    def _conform(self, rows: pa.Table) -> pa.Table:
        assert self._schema is not None
        canonical = [name for name in self.table.schema.names if name in self._schema.names]
        further = [name for name in self._schema.names if name not in canonical]
        columns = {}
        for name in (*canonical, *further):
            kind = self._schema.field(name).type
            kind = pa.string() if pa.types.is_null(kind) else kind
            columns[name] = self._cast(rows, name, kind)
        if "time_known" in columns:
            columns["time_known"] = pc.fill_null(columns["time_known"], True)
        for name in (_SEQUENCE, _ORIGIN, _ROW):
            columns[name] = rows[name]
        return pa.table(columns)

    def _cast(self, rows: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray | pa.Array:
        if name not in rows.column_names:
            return pa.nulls(rows.num_rows, kind)
        try:
            return rows[name].cast(kind)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{self.table.name}.{name}: some files have {rows[name].type}, which does not fit into the {kind} of "
                f"the whole table ({' '.join(str(error).split())}); give the column one type in the source's "
                f"configuration, as extra: {{{name}: string}}"
            ) from error

    def _rejected(self, rows: pa.Table) -> pa.Table:
        size = rows.num_rows
        return rejected_table(
            [Reason.DUPLICATE.value] * size,
            [""] * size,
            [self._origins[number] for number in rows[_ORIGIN].to_pylist()],
            rows[_ROW].to_pylist(),
            raw_json(rows.drop_columns([_SEQUENCE, _ORIGIN, _ROW])),
        )


def write_parts(folder: Path, table: Table, rows: pa.Table) -> list[str]:
    """Writes sorted rows as `part-*.parquet`, events by UTC day; returns the days written."""
    if not table.partitioned:
        _write_parquet(folder, rows)
        return []
    days = np.where(mask_of(rows["timestamp"].is_null()), _UNKNOWN, _days(rows))
    starts = np.flatnonzero(np.r_[True, np.diff(days) != 0]) if len(days) else np.array([], int)
    written = []
    for start, end in zip(starts, [*starts[1:], len(days)], strict=True):
        unknown = mask_of(rows["timestamp"].slice(start, 1).is_null())[0]
        name = "unknown" if unknown else str(np.datetime64(int(days[start]), "D"))
        _write_parquet(folder / f"day={name}", rows.slice(start, end - start))
        written.append(name)
    return written


def _days(rows: pa.Table) -> np.ndarray:
    us = pc.fill_null(rows["timestamp"].cast(pa.int64()), 0).to_numpy()
    return us // DAY_US


def _read(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as stream, pa.ipc.open_file(stream) as reader:
        return reader.read_all()


def _repetitions(rows: pa.Table, keys: Sequence[str]) -> np.ndarray:
    """int64: sequence numbers of all rows but the first (in source order) of each key."""
    grouped = rows.select([*keys, _SEQUENCE]).group_by(list(keys), use_threads=False)
    first = grouped.aggregate([(_SEQUENCE, "min")])[f"{_SEQUENCE}_min"].to_numpy()
    if len(first) == rows.num_rows:
        return np.zeros(0, np.int64)
    return np.setdiff1d(rows[_SEQUENCE].to_numpy(), first, assume_unique=True)


def _write_parquet(folder: Path, rows: pa.Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, start in enumerate(range(0, rows.num_rows, PART_ROWS)):
        pq.write_table(rows.slice(start, PART_ROWS), folder / f"part-{part:05d}.parquet", compression="zstd")
