"""Kept rows to Parquet by UTC day: no more than a day, or a small share of the table, is in memory at once.

Rows arrive in any order. They are first spilled to a fixed number of buckets (a day is wholly in one bucket), then
each bucket is read back, freed of duplicates, sorted and written.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import DataError
from features.tables import Table
from pipeline.sources.conversion import mask_of
from pipeline.sources.validation import Reason, raw_json, rejected_table

BUCKETS = 64
PART_ROWS = 1_000_000
DAY_US = 86_400_000_000
_UNKNOWN = -1  # bucket of the rows whose time is not known
_SEQUENCE, _ORIGIN, _ROW = "__sequence", "__origin", "__row"


@dataclass
class Spill:
    """The rows of one table on their way to day partitions.

    Args:
      folder: an empty scratch folder.
      table: the canonical table.
    """

    folder: Path
    table: Table
    _schema: pa.Schema | None = None
    _writers: dict[tuple[int, str], tuple[Path, pa.ipc.RecordBatchFileWriter]] = field(default_factory=dict)
    _origins: list[str] = field(default_factory=list)
    _rows: int = 0

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
        buckets = self._buckets(kept)
        if (buckets == buckets[0]).all():
            self._write(int(buckets[0]), kept)
            return
        order = np.argsort(buckets, kind="stable")
        kept = kept.take(pa.array(order))
        starts = np.flatnonzero(np.r_[True, np.diff(buckets[order]) != 0])
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            self._write(int(buckets[order[start]]), kept.slice(start, end - start))

    def finish(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Per bucket: its rows without duplicates, sorted by time, order and source order; and the rejected duplicates.

        The rows have the same columns in every bucket.
        """
        for _, writer in self._writers.values():
            writer.close()
        for bucket in sorted({bucket for bucket, _ in self._writers}):
            paths = [path for (found, _), (path, _) in self._writers.items() if found == bucket]
            rows = pa.concat_tables([self._conform(_read(path)) for path in paths])
            unique, repeated = _split_duplicates(rows, self.table)
            yield _sorted(unique).drop_columns([_SEQUENCE, _ORIGIN, _ROW]), self._rejected(repeated)
            for path in paths:
                path.unlink()

    def _buckets(self, rows: pa.Table) -> np.ndarray:
        if not self.table.partitioned:
            return np.zeros(rows.num_rows, np.int64)
        return np.where(mask_of(rows["timestamp"].is_null()), _UNKNOWN, _days(rows) % BUCKETS)

    def _write(self, bucket: int, rows: pa.Table) -> None:
        key = (bucket, str(rows.schema))
        if key not in self._writers:
            path = self.folder / f"{len(self._writers)}.arrow"
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers[key] = (path, pa.ipc.new_file(str(path), rows.schema.remove_metadata(), options=options))
        self._writers[key][1].write_table(rows.replace_schema_metadata(None))

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
                f"({' '.join(str(error).split())}); give all files of the table the same type"
            ) from error

    def _conform(self, rows: pa.Table) -> pa.Table:
        assert self._schema is not None
        canonical = [name for name in self.table.schema.names if name in self._schema.names]
        further = [name for name in self._schema.names if name not in canonical]
        columns = {}
        for name in (*canonical, *further):
            kind = self._schema.field(name).type
            kind = pa.string() if pa.types.is_null(kind) else kind
            columns[name] = rows[name].cast(kind) if name in rows.column_names else pa.nulls(rows.num_rows, kind)
        if "time_known" in columns:
            columns["time_known"] = pc.fill_null(columns["time_known"], True)
        for name in (_SEQUENCE, _ORIGIN, _ROW):
            columns[name] = rows[name]
        return pa.table(columns)

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


def _split_duplicates(rows: pa.Table, table: Table) -> tuple[pa.Table, pa.Table]:
    """Separates the first row (in source order) of each key from its repetitions.

    The key is the id of users and videos; user, video (or query) and moment of events, with `order` where the moment
    is not known; and user and `impression_id` where an impression has one.
    """
    keys: dict[str, pa.ChunkedArray] = {name: rows[name] for name in table.required.names if name != "clicked"}
    if table.partitioned and "order" in rows.column_names:
        keys["order"] = pc.if_else(rows["timestamp"].is_valid(), None, rows["order"])
    if table.name == "impressions" and "impression_id" in rows.column_names:
        named = rows["impression_id"].is_valid()
        keys = {n: column if n == "user_id" else pc.if_else(named, None, column) for n, column in keys.items()}
        keys["impression_id"] = rows["impression_id"]
    grouped = pa.table({**keys, _SEQUENCE: rows[_SEQUENCE]}).group_by(list(keys), use_threads=False)
    first = grouped.aggregate([(_SEQUENCE, "min")])[f"{_SEQUENCE}_min"]
    if len(first) == rows.num_rows:
        return rows, rows.slice(0, 0)
    kept = np.isin(rows[_SEQUENCE].to_numpy(), first.to_numpy(), assume_unique=True)
    return rows.filter(pa.array(kept)), rows.filter(pa.array(~kept))


def _sorted(rows: pa.Table) -> pa.Table:
    keys = [name for name in (_SEQUENCE, "order", "timestamp") if name in rows.column_names]
    order = np.lexsort([pc.fill_null(rows[name].cast(pa.int64()), 0).to_numpy() for name in keys])
    return rows if (np.diff(order) == 1).all() else rows.take(pa.array(order))


def _write_parquet(folder: Path, rows: pa.Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, start in enumerate(range(0, rows.num_rows, PART_ROWS)):
        pq.write_table(rows.slice(start, PART_ROWS), folder / f"part-{part:05d}.parquet", compression="zstd")
