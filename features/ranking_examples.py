"""Ranking examples: one per impression, with what was known when its page was requested.

Covington et al. 2016, section 4. All impressions of one request share one snapshot of the user's history, taken at the
request's first moment: taken per impression instead, the later of two impressions would see the outcome of the earlier
one it is compared with. Where an impression has no `request_id`, its request is its evaluation group (user, local day,
page), in training and in evaluation alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import Field

from features.encoding import Encoder, numbers
from features.event_windows import ORDER_ONLY
from features.example_features import FeatureColumns, Histories, RequestRows
from features.feature_lists import FeatureListConfig
from features.hashing import combine, hash_strings
from features.settings import Settings
from features.shards import EventRows, Shard, codes
from features.spec import FeatureSpec
from features.splits import IN_GAP, PARTS, Part, Split
from features.tables import TIMESTAMP

_CHUNK = 8192  # examples joined at a time: their windows fit in the processor's cache
_DAY_US = 24 * 3_600_000_000


class RankingExamplesConfig(Settings):
    """Which impressions become ranking examples."""

    missing_watch_time_s: float | None = Field(default=None, ge=0)
    """Watch time (seconds) of clicked impressions without one; None: these are left out and counted."""


@dataclass(frozen=True)
class RankingLabels:
    """The impressions of one shard that become examples.

    Args:
      row: int64 `[B]`, rows of the shard's impressions, ascending.
      part: int8 `[B]` of `Part`.
      watch_time_s: float32 `[B]`, 0 where not clicked.
      group_id: int64 `[rows]` of **all** impressions.
      snapshot_us: int64 `[rows]` of **all** impressions.
      left_out: reason → impressions that become no example.
    """

    row: np.ndarray
    part: np.ndarray
    watch_time_s: np.ndarray
    group_id: np.ndarray
    snapshot_us: np.ndarray
    left_out: dict[str, int]


def page_requests(rows: EventRows, user_ids: pa.Array, utc_offset_s: float) -> tuple[np.ndarray, np.ndarray]:
    """The request of every impression: group ids, int64 `[rows]`, and snapshots, int64 microseconds `[rows]`.

    The group is the `request_id` (of one user) or, where that is absent or null, (user, local day, page). The snapshot
    is the group's earliest time. Order-only rows have the snapshot `ORDER_ONLY`.
    """
    table = rows.table
    user = hash_strings(user_ids)[rows.user]
    day = (rows.time_us + round(utc_offset_s * 1e6)) // _DAY_US
    group = combine(combine(user, day), _hash_column(table, "page"))
    if "request_id" in table.column_names:
        named = table["request_id"].is_valid().combine_chunks().to_numpy(zero_copy_only=False)
        group = np.where(named, combine(user ^ np.uint64(1), _hash_column(table, "request_id")), group)
    group_id = (group >> np.uint64(1)).astype(np.int64)
    timed = np.flatnonzero(rows.time_us != ORDER_ONLY)
    snapshot_us = np.full(len(table), ORDER_ONLY, np.int64)
    if len(timed):
        by_group = timed[np.argsort(group_id[timed], kind="stable")]
        starts = np.flatnonzero(np.diff(group_id[by_group], prepend=-1))
        earliest = np.minimum.reduceat(rows.time_us[by_group], starts)
        snapshot_us[by_group] = np.repeat(earliest, np.diff(starts, append=len(by_group)))
    return group_id, snapshot_us


def _hash_column(table: pa.Table, name: str) -> np.ndarray:
    return hash_strings(table[name]) if name in table.column_names else np.zeros(len(table), np.uint64)


def ranking_labels(shard: Shard, split: Split, config: RankingExamplesConfig) -> RankingLabels:
    """Chooses and labels the impressions of a shard.

    Left out, by reason: the time is not known; whether it was clicked is not known; it was clicked and its watch time
    is not known; it lies in the gap after t0; it belongs to no other part of the split.
    """
    rows = shard.events["impressions"]
    group_id, snapshot_us = page_requests(rows, shard.user_ids, split.utc_offset_s)
    clicked = numbers(rows.table["clicked"])
    watch_time_s = impression_watch_times(shard)
    if config.missing_watch_time_s is not None:
        watch_time_s = np.where(np.isnan(watch_time_s), np.float32(config.missing_watch_time_s), watch_time_s)
    watch_time_s = np.where(clicked == 1, watch_time_s, np.float32(0))
    group = split.groups(shard.user_ids)[rows.user]
    part = split.part_of_group(rows.time_us, group)
    left_out = {"told_twice": rows.told_twice} if rows.told_twice else {}
    kept = np.ones(len(part), bool)
    for reason, drop in (
        ("time_not_known", rows.time_us == ORDER_ONLY),
        ("click_not_known", np.isnan(clicked)),
        ("clicked_but_watch_time_not_known", np.isnan(watch_time_s)),
        (IN_GAP, split.in_gap(rows.time_us, group)),
        ("in_no_part_of_the_split", part == Part.NONE),
    ):
        if count := int((kept & drop).sum()):
            left_out[reason] = count
        kept &= ~drop
    row = np.flatnonzero(kept)
    return RankingLabels(row, part[row], watch_time_s[row].astype(np.float32), group_id, snapshot_us, left_out)


def impression_watch_times(shard: Shard) -> np.ndarray:
    """float32 `[rows]` seconds watched of every clicked impression, NaN where not known.

    The impressions' own `watch_time_s` or, where that is absent or null, the one of the watch it led to: of the same
    `impression_id` or, where one of the two has none, the same user, video and moment.
    """
    rows = shard.events["impressions"]
    own = np.full(len(rows.table), np.nan, np.float32)
    if "watch_time_s" in rows.table.column_names:
        own = numbers(rows.table["watch_time_s"])
    watches = shard.events.get("watches")
    if watches is None or "watch_time_s" not in watches.table.column_names:
        return own
    clicked = numbers(rows.table["clicked"]) == 1
    times = numbers(watches.table["watch_time_s"])
    for watch_of in (_watch_by_impression_id, _watch_by_moment):
        unknown = np.isnan(own) & clicked
        if unknown.any():
            match = watch_of(rows, watches)
            found = unknown & (match >= 0)
            own[found] = times[match[found]]
    return own


def _watch_by_impression_id(rows: EventRows, watches: EventRows) -> np.ndarray:
    """int64 `[rows]`: the watch of the same user and `impression_id`, -1 without one."""
    if "impression_id" not in rows.table.column_names or "impression_id" not in watches.table.column_names:
        return np.full(len(rows.table), -1, np.int64)
    match = _watch_of_same(rows, watches, [_codes(watches, rows, "impression_id")])
    return np.where(_named(rows.table), match, -1)


def _watch_by_moment(rows: EventRows, watches: EventRows) -> np.ndarray:
    """int64 `[rows]`: the watch of the same user, video and time, -1 without one or where both name an impression."""
    times = np.concatenate([watches.time_us, rows.time_us])
    match = _watch_of_same(rows, watches, [times, _codes(watches, rows, "video_id")])
    known = (match >= 0) & (rows.time_us != ORDER_ONLY)
    both_named = _named(watches.table)[match] & _named(rows.table) if len(watches.time_us) else False
    return np.where(known & ~both_named, match, -1)


def _watch_of_same(rows: EventRows, watches: EventRows, keys: Sequence[np.ndarray]) -> np.ndarray:
    """int64 `[rows]`: the first watch of the same user and keys (of watches, then of rows), -1 without one."""
    user = np.concatenate([watches.user, rows.user])
    order = np.lexsort((np.arange(len(user)), *keys, user))
    sorted_keys = np.stack([user, *keys])[:, order]
    first = np.concatenate([[True], (sorted_keys[:, 1:] != sorted_keys[:, :-1]).any(axis=0)])
    leader = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))]
    match = np.empty(len(user), np.int64)
    match[order] = np.where(leader < len(watches.user), leader, -1)
    return match[len(watches.user) :]


def _codes(watches: EventRows, rows: EventRows, name: str) -> np.ndarray:
    """int64 codes of a text column of watches, then of rows; -1 where null."""
    columns = [table[name].cast(pa.string()) for table in (watches.table, rows.table)]
    return codes(pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()))


def _named(table: pa.Table) -> np.ndarray:
    if "impression_id" not in table.column_names:
        return np.zeros(len(table), bool)
    return table["impression_id"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)


def ranking_schema(spec: FeatureSpec, impression_ids: bool) -> pa.Schema:
    """The columns of a ranking example set."""
    fields: list[tuple[str, pa.DataType]] = [
        ("user_id", pa.string()),
        ("video_id", pa.string()),
        ("timestamp", TIMESTAMP),
        ("snapshot_timestamp", TIMESTAMP),
        ("group_id", pa.int64()),
        ("clicked", pa.float32()),
        ("watch_time_s", pa.float32()),
        ("weight", pa.float32()),
    ]
    if impression_ids:
        fields.append(("impression_id", pa.string()))
    return pa.schema([*[pa.field(*field) for field in fields], *spec.arrow_schema])


def ranking_examples(
    shard: Shard,
    labels: RankingLabels,
    spec: FeatureSpec,
    encoder: Encoder,
    lists: FeatureListConfig,
    utc_offset_s: float,
) -> Iterator[tuple[Part, pa.Table]]:
    """The examples of a shard.

    Args:
      shard: with the tables watches, impressions, searches and users, where the run has them.
      labels: which of its impressions become examples.
      spec: the ranker's features.
      encoder: looks up ids.
      lists: lengths of the history windows.
      utc_offset_s: local time, for the hour.

    Yields:
      A part and rows of `ranking_schema`, some thousand at a time, in the shard's order.
    """
    impressions = shard.events["impressions"]
    table = impressions.table
    rows = RequestRows(table, impressions.user, labels.snapshot_us)
    watches = shard.events.get("watches")
    of_watches = watches.table if watches else None
    columns = FeatureColumns(spec.features, encoder, shard.users, rows, utc_offset_s, of_watches)
    history = Histories(shard, encoder, lists)
    clicked = numbers(table["clicked"])
    schema = ranking_schema(spec, "impression_id" in table.column_names)
    taken_columns = [name for name in ("user_id", "video_id", "impression_id") if name in schema.names]
    chunks = [
        (part, of_part[start : start + _CHUNK])
        for part in PARTS
        for of_part in [np.flatnonzero(labels.part == part)]
        for start in range(0, len(of_part), _CHUNK)
    ]
    for part, chosen in chunks:
        row = labels.row[chosen]
        _, first, request = np.unique(labels.group_id[row], return_index=True, return_inverse=True)
        user, snapshot_us = rows.user[row[first]], labels.snapshot_us[row[first]]
        requests = history.at(user, snapshot_us, history.impressions.video[row], request)
        taken = table.select(taken_columns).take(pa.array(row))
        examples: dict[str, pa.Array | pa.ChunkedArray] = {
            **{name: taken[name] for name in taken_columns},
            "timestamp": pa.array(impressions.time_us[row]).cast(TIMESTAMP),
            "snapshot_timestamp": pa.array(labels.snapshot_us[row]).cast(TIMESTAMP),
            "group_id": pa.array(labels.group_id[row]),
            "clicked": pa.array(clicked[row]),
            "watch_time_s": pa.array(labels.watch_time_s[chosen]),
            "weight": pa.array(np.ones(len(row), np.float32)),
            **columns.of(requests, row),
        }
        yield part, pa.table([examples[name] for name in schema.names], schema)
