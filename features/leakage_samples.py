"""Sampled examples made again from logs that end at the example's moment, in two ways; see `features/leakage.py`."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.candidate_examples import LabelChoice, query_features
from features.encoding import Encoder
from features.errors import LeakageError
from features.event_windows import ORDER_ONLY
from features.example_features import FeatureColumns, Histories, RequestRows
from features.example_reader import ExampleSet
from features.feature_columns import OUTCOMES, request_table, source_columns
from features.feature_lists import FeatureListConfig
from features.leakage_reference import (
    Lookups,
    PlainRequest,
    Row,
    oldest_first,
    reference_hour,
    reference_time_of_week,
    reference_value,
)
from features.shards import make_shard, read_rows, times_us
from features.spec import Feature
from features.splits import Part

_EVENTS = ("watches", "impressions", "searches")
_MOST_ROWS_OF_A_USER = 1_000_000
_MOST_ROWS_AT_ONCE = 250_000


class Sample:
    """Some examples of one shard and part, and the logs of their users.

    Time and memory are bounded for a user with very many events, a shared id say. Of the user's examples so many are
    kept, evenly spread, that their logs have a million rows in all, and at least one. They are made again in batches.
    The second way is given the end of a long history, and what tells whether an event of it was told before.

    Args:
      stored: the example set.
      part: of the examples.
      shards: the user shards.
      shard: the number of the shard.
      sample: rows of the set.
      encoder: looks up ids.
      lookups: the same as dictionaries.
    """

    def __init__(
        self,
        stored: ExampleSet,
        part: Part,
        shards: Path,
        shard: int,
        sample: pa.Table,
        encoder: Encoder,
        lookups: Lookups,
    ) -> None:
        self._stored, self._part, self._encoder, self._lookups = stored, part, encoder, lookups
        self._ranks = stored.model == "ranker"
        self._features = stored.spec.features if self._ranks else query_features(stored.spec)
        self._lists = FeatureListConfig.model_validate(stored.manifest["feature_lists"])
        needed = {table for feature in self._features for table, _ in source_columns(feature, stored.model)}
        needed.add(request_table(stored.model))
        users = pa.array(sorted(set(sample["user_id"].to_pylist())), pa.string())
        self._logs: dict[str, UserLog] = {}
        for name in (*_EVENTS, "users"):
            if name in needed and (rows := read_rows(shards, name, shard)) is not None:
                self._logs[name] = UserLog(rows, users)
        self._sample = sample.take(pa.array(self._affordable(sample["user_id"].to_pylist())))
        self._users = self._sample["user_id"].to_pylist()
        self._videos = self._sample["video_id" if self._ranks else "label_video_id"].to_pylist()
        time = self._sample["timestamp" if self._ranks else "label_timestamp"]
        self._times = time.cast(pa.int64()).to_pylist()
        self._own = self._logs["impressions" if self._ranks else "watches"]

    def __len__(self) -> int:
        """Examples that are made again."""
        return len(self._sample)

    def _affordable(self, users: Sequence[str]) -> list[int]:
        """The examples of all users, but not all of those with very long histories."""
        of_user: dict[str, list[int]] = {}
        for i, user in enumerate(users):
            of_user.setdefault(user, []).append(i)
        kept = []
        for user, examples in of_user.items():
            rows = sum(log.size(user) for log in self._logs.values())
            most = min(len(examples), max(_MOST_ROWS_OF_A_USER // max(rows, 1), 1))
            kept += [examples[k] for k in np.linspace(0, len(examples) - 1, most).astype(int)]
        return sorted(kept)

    def check(self) -> int:
        """Compares every feature of every example.

        Returns:
          The number of values compared.

        Raises:
          LeakageError: a stored value differs from the one made again.
        """
        requests = [self._request(i) for i in range(len(self._sample))]
        snapshots_us = [snapshot for snapshot, _, _ in requests]
        if self._ranks:
            stored_us = self._sample["snapshot_timestamp"].cast(pa.int64()).to_pylist()
            for i, (found, expected) in enumerate(zip(stored_us, snapshots_us, strict=True)):
                if found != expected:
                    raise self._leak(
                        i, "snapshot_timestamp", readable(found), readable(expected), "as of the request's start"
                    )
        for batch in self._batches(snapshots_us):
            self._check_features(batch, [requests[i] for i in batch])
        if "seen_video_ids" in self._sample.column_names:
            self._check_seen(snapshots_us)
        return len(self._features) * len(self._sample)

    def _batches(self, snapshots_us: Sequence[int]) -> Iterator[range]:
        """Runs of examples whose histories are short enough in all to be copied at once."""
        start, rows = 0, 0
        for i, snapshot_us in enumerate(snapshots_us):
            history = sum(len(log.before(self._users[i], snapshot_us)) for log in self._logs.values())
            if i > start and rows + history > _MOST_ROWS_AT_ONCE:
                yield range(start, i)
                start, rows = i, 0
            rows += history
        if snapshots_us:
            yield range(start, len(snapshots_us))

    def _check_features(self, batch: range, requests: Sequence[tuple[int, int, Row]]) -> None:
        again = self._made_again(batch, requests)
        plain = [self._plain_request(i, *request) for i, request in zip(batch, requests, strict=True)]
        for feature in self._features:
            stored = self._sample[feature.name].slice(batch.start, len(batch)).to_pylist()
            recomputed = again[feature.name].to_pylist()
            for k, i in enumerate(batch):
                if self._held_out(feature):
                    self._check_held_out(i, feature, stored[k])
                    continue
                self._compare(i, feature, stored[k], recomputed[k], "by the same code from the log")
                self._compare(i, feature, stored[k], self._plainly(feature, plain[k]), "one by one from the log")

    def _request(self, i: int) -> tuple[int, int, Row]:
        """Snapshot, number of the request's own row in the log, and the row without its outcome."""
        at = self._own.at(self._users[i], self._times[i])
        own = [(n, r) for n, r in zip(at, self._own.rows(at), strict=True) if r["video_id"] == self._videos[i]]
        if "impression_id" in self._sample.column_names:
            told = self._sample["impression_id"][i].as_py()
            own = [(n, r) for n, r in own if r["impression_id"] == told] or own
        if not own:
            raise self._leak(i, "timestamp", readable(self._times[i]), "no such row", "from the log")
        number, row = own[0]
        snapshot_us = self._request_start(i, row) if self._ranks else self._times[i]
        return snapshot_us, number, {k: None if k in OUTCOMES else v for k, v in row.items()}

    def _request_start(self, i: int, row: Row) -> int:
        """The first moment of the row's request."""
        rows = self._own.slice(self._own.of(self._users[i]))
        time_us = self._own.slice_times(self._own.of(self._users[i]))
        named = rows["request_id"] if "request_id" in rows.column_names else pa.nulls(len(rows), pa.string())
        if row.get("request_id") is not None:
            same = np.asarray(pc.fill_null(pc.equal(named, row["request_id"]), False))
            return int(time_us[same & (time_us != ORDER_ONLY)].min())
        day_us, offset_us = 86_400_000_000, round(self._stored.split.utc_offset_s * 1e6)
        first_us = (row["time_us"] + offset_us) // day_us * day_us - offset_us
        same = (time_us >= first_us) & (time_us < first_us + day_us) & np.asarray(pc.is_null(named))
        if "page" in rows.column_names:
            same &= np.asarray(pc.equal(pc.fill_null(rows["page"], ""), row.get("page") or ""))
        return int(time_us[same].min())

    def _made_again(self, batch: range, requests: Sequence[tuple[int, int, Row]]) -> Mapping[str, pa.Array]:
        """The features by the code that made the set: every example is a user whose log ends at the snapshot."""
        tables = {}
        ids = pa.array([f"{i:09d}" for i in range(len(requests))])
        for name, log in self._logs.items():
            known = [log.before(self._users[i], end_us) for i, (end_us, _, _) in zip(batch, requests, strict=True)]
            owner = ids.take(pa.array(np.repeat(np.arange(len(ids)), [len(rows) for rows in known])))
            rows = pa.concat_tables([log.slice(rows) for rows in known])
            tables[name] = rows.set_column(rows.column_names.index("user_id"), "user_id", owner)
        shard = make_shard(tables, ids)
        table = self._own.table.take(pa.array([number for _, number, _ in requests]))
        for outcome in OUTCOMES:
            if outcome in table.column_names:
                nothing = pa.nulls(len(table), table[outcome].type)
                table = table.set_column(table.column_names.index(outcome), outcome, nothing)
        snapshot_us = np.array([snapshot for snapshot, _, _ in requests], np.int64)
        each = np.arange(len(requests))
        rows = RequestRows(table, each, snapshot_us, np.array([self._age(i) for i in batch], np.float32))
        offset_s = self._stored.split.utc_offset_s
        watches = shard.events.get("watches")
        of_watches = watches.table if watches else None
        columns = FeatureColumns(self._features, self._encoder, shard.users, rows, offset_s, of_watches)
        candidates = self._encoder.positions(table["video_id"].combine_chunks())
        requests_again = Histories(shard, self._encoder, self._lists).at(each, snapshot_us, candidates)
        return columns.of(requests_again, each)

    def _plain_request(self, i: int, snapshot_us: int, number: int, row: Row) -> PlainRequest:
        windows = (self._lists.watch_window, self._lists.impression_window, self._lists.search_window)
        known = {
            name: self._logs[name].last_before(self._users[i], snapshot_us, window) if name in self._logs else []
            for name, window in zip(_EVENTS, windows, strict=True)
        }
        people = self._logs.get("users")
        user = people.rows(people.of(self._users[i])[:1]) if people else []
        return PlainRequest(
            snapshot_us,
            self._videos[i],
            **known,
            user=user[0] if user else None,
            row=row,
            example_age_s=self._age(i),
        )

    def _plainly(self, feature: Feature, request: PlainRequest) -> Any:
        if feature.source == "request.hour":
            return reference_hour(feature, request.snapshot_us, self._stored.split.utc_offset_s, self._lookups)
        if feature.source == "request.time_of_week":
            return reference_time_of_week(request.snapshot_us, self._stored.split.utc_offset_s)
        return reference_value(feature, request, self._lookups, self._lists)

    def _age(self, i: int) -> float:
        if self._ranks or self._part != Part.TRAIN:
            return 0.0
        return (self._stored.manifest["t_max_us"] - self._times[i]) / 1e6

    def _compare(self, i: int, feature: Feature, stored: Any, recomputed: Any, how: str) -> None:
        if not _same(stored, recomputed):
            raise self._leak(i, feature.name, stored, recomputed, how)

    def _held_out(self, feature: Feature) -> bool:
        config = self._stored.manifest["config"]
        return (
            self._part == Part.TRAIN
            and config.get("label_choice") == LabelChoice.RANDOM_HOLD_OUT
            and feature.source == "history.watched_video_ids"
        )

    def _check_held_out(self, i: int, feature: Feature, stored: list[int]) -> None:
        """Figure 5a: any watch of the training part but those of the label's moment."""
        end_us = self._stored.split.validation_start_us
        watches = self._own.of(self._users[i])
        time_us = self._own.slice_times(watches)
        others = (time_us < end_us) & (time_us != self._times[i])
        videos = self._own.slice(watches)["video_id"].filter(pa.array(others)).to_pylist()
        pool = Counter(self._lookups.of_video(video, str(feature.id_space)) or 0 for video in videos)
        for row, count in Counter(stored).items():
            if count > pool[row]:
                raise self._leak(
                    i, feature.name, stored, sorted(pool), "from the other watches of the training part in the log"
                )

    def _check_seen(self, snapshots_us: Sequence[int]) -> None:
        for i, stored in enumerate(self._sample["seen_video_ids"].to_pylist()):
            rows = self._own.slice(self._own.before(self._users[i], snapshots_us[i]))
            watched = {self._lookups.position(video) for video in rows["video_id"].unique().to_pylist()}
            expected = sorted(position + 1 for position in watched if position is not None)
            if stored != expected:
                raise self._leak(i, "seen_video_ids", stored, expected, "from the log")

    def _leak(self, i: int, column: str, stored: Any, recomputed: Any, how: str) -> LeakageError:
        return LeakageError(
            f"{self._part.folder} example of user {self._users[i]!r}, video {self._videos[i]!r} at "
            f"{readable(self._times[i])}: column {column!r} stored {stored}, recomputed {recomputed} {how} before it"
        )


class UserLog:
    """A table's rows of some users: by user, then by time; rows of equal time keep their order.

    Order-only rows come first by their order. Where the table has times, a column `time_us` is added, null where the
    time is not known.

    Args:
      rows: of the table.
      users: string `[users]`, ascending.
    """

    def __init__(self, rows: pa.Table, users: pa.Array) -> None:
        rows = rows.filter(pc.is_in(rows["user_id"], users))
        user = pc.index_in(rows["user_id"], users).combine_chunks().to_numpy()
        times = times_us(rows) if "timestamp" in rows.column_names else np.full(len(rows), ORDER_ONLY)
        order = np.zeros(len(rows), np.int64)
        if "order" in rows.column_names:
            order = pc.fill_null(rows["order"].combine_chunks(), 0).to_numpy(zero_copy_only=False)
            order = np.where(times == ORDER_ONLY, order, 0)
        by_user = np.lexsort((order, times, user))
        self.table = rows.take(pa.array(by_user)).combine_chunks()
        self._times, self._order = times[by_user], order[by_user]
        if "timestamp" in rows.column_names:
            self.table = self.table.append_column("time_us", pa.array(self._times, mask=self._times == ORDER_ONLY))
        ends = np.searchsorted(user[by_user], np.arange(len(users)), side="right").tolist()
        self._of = {name: range(*ends) for name, *ends in zip(users.to_pylist(), [0, *ends[:-1]], ends, strict=True)}

    def of(self, user: str) -> range:
        """The rows of a user."""
        return self._of[user]

    def size(self, user: str) -> int:
        return len(self._of[user])

    def before(self, user: str, snapshot_us: int) -> range:
        """The user's rows strictly before a moment, those of unknown time among them."""
        return self._up_to(user, snapshot_us, "left")

    def at(self, user: str, time_us: int) -> range:
        """The user's rows of a moment."""
        return range(self._up_to(user, time_us, "left").stop, self._up_to(user, time_us, "right").stop)

    def _up_to(self, user: str, time_us: int, side: Literal["left", "right"]) -> range:
        rows = self._of[user]
        return rows[: int(np.searchsorted(self.slice_times(rows), time_us, side))]

    def slice(self, rows: range) -> pa.Table:
        """Consecutive rows."""
        return self.table.slice(rows.start, len(rows))

    def slice_times(self, rows: range) -> np.ndarray:
        """Their times, int64 `[rows]`, `ORDER_ONLY` where not known."""
        return self._times[rows.start : rows.stop]

    def rows(self, rows: range) -> list[Row]:
        """Consecutive rows, one by one."""
        return self.slice(rows).to_pylist()

    def last_before(self, user: str, snapshot_us: int, events: int) -> list[Row]:
        """Rows before a moment that have the last events of the whole history.

        All of a short history. Of a long one its end, and from before that end the rows that share an impression with
        it: a row that tells an event again is none, wherever it was told first.
        """
        known = self.before(user, snapshot_us)
        taken = 4 * events + 100
        while taken < len(known):
            end = known[self._start_of_moment(known, len(known) - taken) :]
            told = self._sharing_impressions(known[: end.start - known.start], end)
            rows = [*told, *self.rows(end)]
            if len(oldest_first(rows)) - len(told) >= events:
                return rows
            taken *= 4
        return self.rows(known)

    def _start_of_moment(self, known: range, place: int) -> int:
        """The first place in `known` of the rows with the same moment as the row at `place`."""
        row = known[place]
        same = slice(known.start, row + 1)
        differs = (self._times[same] != self._times[row]) | (self._order[same] != self._order[row])
        return int(np.flatnonzero(differs).max(initial=-1)) + 1

    def _sharing_impressions(self, earlier: range, end: range) -> list[Row]:
        if "impression_id" not in self.table.column_names:
            return []
        ids = self.slice(end)["impression_id"].unique().drop_null()
        rows = self.slice(earlier)
        return rows.filter(pc.is_in(rows["impression_id"], ids)).to_pylist()


def _same(stored: Any, recomputed: Any) -> bool:
    if isinstance(stored, list) and isinstance(recomputed, list):
        return len(stored) == len(recomputed) and all(map(_same, stored, recomputed))
    if isinstance(stored, float):
        if math.isnan(stored) or math.isnan(recomputed):
            return math.isnan(stored) and math.isnan(recomputed)
        return math.isclose(stored, recomputed, rel_tol=1e-6)
    return stored == recomputed


def readable(time_us: int | None) -> str:
    """A time in ISO 8601."""
    if time_us is None or time_us == ORDER_ONLY:
        return "no time"
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()
