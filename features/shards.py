"""User shards: the events of a share of the users, so that histories are joined one shard at a time.

One Beam pass reads the canonical tables in columnar blocks and writes each block with its rows grouped by shard, one
record batch per shard. A later pass maps over shards: it picks the shard's record batch out of every block. No
GroupByKey is involved, and memory per worker is bounded by a block in the first pass and by a shard in the second.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from features.artifacts import publish, read_manifest
from features.beam import make_pipeline, run
from features.errors import ArtifactError
from features.event_windows import ORDER_ONLY
from features.hashing import combine, hash_strings
from features.settings import Settings
from features.tables import table_files
from features.work_units import WorkUnit, work_units

SHARDED_TABLES = ("watches", "impressions", "searches", "users")
_EVENTS_PER_SHARD = 312_500
_LEAST_SHARDS, _MOST_SHARDS = 16, 100_000
_SHARD_SEED = 0x5A4D  # apart from the hash that splits users
_IPC = pa.ipc.IpcWriteOptions(compression="lz4")


class ShardConfig(Settings):
    """How users are spread over shards."""

    num_shards: int | None = Field(default=None, ge=1, le=_MOST_SHARDS)
    """Shards; a worker holds one at a time, so more shards need less memory. None: one for 312,500 events, at least 16,
    so that the memory does not grow with the log."""
    block_rows: int = Field(default=1 << 20, ge=1)
    """Rows of a table that a worker holds while it groups them by shard (whole row groups)."""


DEFAULTS = ShardConfig()


def shard_of(user_ids: pa.Array, num_shards: int) -> np.ndarray:
    """int64 `[n]`: the shard of every user, the same in every process."""
    return (combine(hash_strings(user_ids), np.asarray(_SHARD_SEED)) % np.uint64(num_shards)).astype(np.int64)


def shards_for(events: int) -> int:
    """Number of shards of a log of as many events where none is configured."""
    return min(max(round(events / _EVENTS_PER_SHARD), _LEAST_SHARDS), _MOST_SHARDS)


def write_shards(tables: Path, output: Path, config: ShardConfig = DEFAULTS, beam_args: Sequence[str] = ()) -> None:
    """Publishes the events and users of `tables` at `output`, grouped by shard.

    Args:
      tables: the run's `tables` folder.
      output: the folder to publish.
      config: number of shards.
      beam_args: Beam pipeline options.
    """
    blocks = [block for name in SHARDED_TABLES for block in _blocks(tables, name, config)]
    if not blocks:
        raise ArtifactError(f"{tables}: expected tables {', '.join(SHARDED_TABLES)}, found none; run the ingest stage")
    shards = config.num_shards or shards_for(sum(unit.rows for table, _, unit in blocks if table != "users"))
    manifest: dict[str, Any] = {"kind": "shards", "num_shards": shards, "rows": {}}
    with publish(output, manifest) as folder:
        pipeline = make_pipeline(beam_args)
        _ = (
            pipeline
            | "blocks" >> beam.Create(blocks)
            | "spread blocks" >> beam.Reshuffle()
            | "group by shard" >> beam.ParDo(_GroupByShard(str(folder), shards))
        )
        run(pipeline, "grouping logs by user")
        for table, _, unit in blocks:
            manifest["rows"][table] = manifest["rows"].get(table, 0) + unit.rows


_Block = tuple[str, int, WorkUnit]
"""Table, number of the block, what it holds."""


def _blocks(tables: Path, name: str, config: ShardConfig) -> Iterator[_Block]:
    files = ((str(file), _row_groups(pq.read_metadata(file))) for file in table_files(tables, name))
    for number, unit in enumerate(work_units(files, config.block_rows)):
        yield name, number, unit


def _row_groups(metadata: pq.FileMetaData) -> list[int]:
    """Rows of every row group."""
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _read(unit: WorkUnit) -> pa.Table:
    return pa.concat_tables(
        [pq.ParquetFile(file).read_row_groups(list(groups), use_threads=False) for file, groups in unit.parts]
    )


class _GroupByShard(beam.DoFn):
    """Writes a block as an Arrow file of one record batch per shard."""

    def __init__(self, folder: str, num_shards: int) -> None:
        self._folder = folder
        self._num_shards = num_shards

    def process(self, block: _Block) -> None:
        name, number, unit = block
        table = _read(unit)
        shard = shard_of(table["user_id"], self._num_shards)
        grouped = table.take(pa.array(np.argsort(shard, kind="stable"))).combine_chunks()
        ends = np.cumsum(np.bincount(shard, minlength=self._num_shards))
        path = Path(self._folder) / name / f"block-{number:06d}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=_IPC) as writer:
            for start, end in zip([0, *ends[:-1]], ends, strict=True):
                rows = grouped.slice(start, end - start).to_batches()
                writer.write_batch(rows[0] if rows else pa.RecordBatch.from_pylist([], schema=table.schema))


@dataclass(frozen=True)
class EventRows:
    """One shard's rows of one event table, by user and, inside a user, oldest first.

    Args:
      table: the rows with all their columns.
      offsets: int64 `[users + 1]`: user `u` has the rows `offsets[u]:offsets[u + 1]`.
      time_us: int64 `[rows]`, `ORDER_ONLY` where the time is not known.
      told_twice: rows left out because they tell an event of the table again.
    """

    table: pa.Table
    offsets: np.ndarray
    time_us: np.ndarray
    told_twice: int = 0

    @property
    def user(self) -> np.ndarray:
        """int64 `[rows]`."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class Shard:
    """The users of one shard, ascending by id, and what they did.

    Args:
      user_ids: string `[users]`.
      events: table name → its rows; only tables that the run has.
      users: the users table's columns aligned with `user_ids` (null where it does not hold the user), or None.
    """

    user_ids: pa.Array
    events: dict[str, EventRows]
    users: pa.Table | None = None


def num_shards(folder: Path) -> int:
    """Number of shards published at `folder`."""
    return int(read_manifest(folder)["num_shards"])


def read_rows(folder: Path, name: str, shard: int, columns: Sequence[str] | None = None) -> pa.Table | None:
    """One shard's rows of a table in the order of the table; None where the run has no such table."""
    batches = []
    for file in sorted((Path(folder) / name).glob("block-*.arrow")):
        with pa.memory_map(str(file)) as source:
            reader = pa.ipc.open_file(source)
            batch = reader.get_batch(shard)
            batches.append(batch if columns is None else batch.select(list(columns)))
    return pa.Table.from_batches(batches) if batches else None


def read_shard(folder: Path, shard: int, tables: Collection[str] = SHARDED_TABLES) -> Shard:
    """Reads one shard, its events sorted and events told twice removed.

    Args:
      folder: what `write_shards` published.
      shard: in 0 to `num_shards(folder) - 1`.
      tables: the tables to read.
    """
    rows = {name: read_rows(folder, name, shard) for name in tables}
    return make_shard({name: table for name, table in rows.items() if table is not None})


def make_shard(tables: dict[str, pa.Table], user_ids: pa.Array | None = None) -> Shard:
    """A shard of these rows of the canonical tables.

    Args:
      tables: name → rows.
      user_ids: string `[users]`, ascending; None: the users of the events.
    """
    events = {name: table for name, table in tables.items() if name != "users"}
    if user_ids is None:
        user_ids = _users_of(events)
    rows = {name: sort_events(table, user_ids) for name, table in events.items()}
    return Shard(user_ids, rows, _align_users(tables.get("users"), user_ids))


def _users_of(events: dict[str, pa.Table]) -> pa.Array:
    ids = [table["user_id"] for table in events.values()]
    chunks = [chunk for column in ids for chunk in column.chunks]
    unique = pc.unique(pa.chunked_array(chunks, pa.string()))
    return unique.take(pc.array_sort_indices(unique))


def sort_events(table: pa.Table, user_ids: pa.Array) -> EventRows:
    """Rows of one event table by user (as in `user_ids`), then oldest first; events told twice are removed.

    Order-only rows come first by `order`; then (timestamp, order); rows equal in all of it keep the table's order.
    """
    user = pc.index_in(table["user_id"], user_ids).combine_chunks().to_numpy()
    time_us = times_us(table)
    order = _order(table)
    by_user = np.lexsort((order, time_us, user))
    user, time_us, order = user[by_user], time_us[by_user], order[by_user]
    table = table.take(pa.array(by_user)).combine_chunks()
    again = _told_again(table, user, time_us, order if "order" in table.column_names else None)
    if again.any():
        table, user, time_us = table.filter(pa.array(~again)), user[~again], time_us[~again]
    offsets = np.searchsorted(user, np.arange(len(user_ids) + 1)).astype(np.int64)
    return EventRows(table, offsets, time_us, int(again.sum()))


def times_us(table: pa.Table) -> np.ndarray:
    """int64 microseconds of a table's `timestamp`; `ORDER_ONLY` where null or `time_known` is false."""
    times = table["timestamp"].combine_chunks().cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    known = times.is_valid()
    if "time_known" in table.column_names:
        known = pc.and_(known, pc.fill_null(table["time_known"].combine_chunks(), True))
    return pc.if_else(known, times, ORDER_ONLY).to_numpy(zero_copy_only=False)


def _order(table: pa.Table) -> np.ndarray:
    if "order" not in table.column_names:
        return np.zeros(len(table), np.int64)
    return pc.fill_null(table["order"].combine_chunks(), 0).to_numpy(zero_copy_only=False)


def _told_again(table: pa.Table, user: np.ndarray, time_us: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """bool `[rows]`: rows that tell an earlier row's event again, for rows sorted by user and time.

    The same `impression_id` of a user or, where one of two rows has none, the same user, video and moment; the moment
    of an order-only row is its order.
    """
    again = np.zeros(len(table), bool)
    if len(table) < 2 or "video_id" not in table.column_names:
        return again
    impression = np.full(len(table), -1, np.int64)
    if "impression_id" in table.column_names:
        impression = codes(table["impression_id"])
        rows = np.flatnonzero(impression >= 0)
        rows = rows[np.lexsort((rows, impression[rows], user[rows]))]
        same = (impression[rows][1:] == impression[rows][:-1]) & (user[rows][1:] == user[rows][:-1])
        again[rows[1:][same]] = True
    moment = (user[1:] == user[:-1]) & (time_us[1:] == time_us[:-1])
    if order is None:
        moment &= time_us[1:] != ORDER_ONLY
        order = np.zeros(len(table), np.int64)
    beside = np.zeros(len(table), bool)
    beside[1:] |= moment
    beside[:-1] |= moment
    rows = np.flatnonzero(beside)
    if len(rows) == 0:
        return again
    video = codes(table["video_id"].take(pa.array(rows)))
    order = np.where(time_us[rows] == ORDER_ONLY, order[rows], 0)
    # Rows without an impression id come last in their group, so they tell again whatever is before them.
    anonymous = impression[rows] < 0
    by_moment = np.lexsort((rows, anonymous, order, video, time_us[rows], user[rows]))
    keys = np.stack([user[rows], time_us[rows], video, order])[:, by_moment]
    same = (keys[:, 1:] == keys[:, :-1]).all(axis=0) & anonymous[by_moment][1:]
    again[rows[by_moment[1:][same]]] = True
    return again


def codes(ids: pa.ChunkedArray) -> np.ndarray:
    """int64 codes of equal ids; -1 for null."""
    encoded = ids.combine_chunks().dictionary_encode().indices
    return pc.fill_null(encoded, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _align_users(users: pa.Table | None, user_ids: pa.Array) -> pa.Table | None:
    if users is None:
        return None
    return users.take(pc.index_in(user_ids, users["user_id"].combine_chunks())).set_column(
        users.column_names.index("user_id"), "user_id", user_ids
    )


def shard_columns(folder: Path) -> dict[str, list[str]]:
    """Table name → its columns, of the tables published at `folder`."""
    columns = {}
    for name in read_manifest(folder)["rows"]:
        with pa.memory_map(str(Path(folder) / name / "block-000000.arrow")) as source:
            columns[name] = pa.ipc.open_file(source).schema.names
    return columns
