"""Sampled examples made again from logs that end at the example's moment, in two ways; see `features/leakage.py`."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
    reference_hour,
    reference_time_of_week,
    reference_value,
)
from features.shards import make_shard, read_rows, times_us
from features.spec import Feature
from features.splits import Part

_EVENTS = ("watches", "impressions", "searches")


class Sample:
    """Some examples of one shard and part, and the logs of their users.

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
        self._stored, self._part, self._sample, self._encoder = stored, part, sample, encoder
        self._ranks = stored.model == "ranker"
        self._features = stored.spec.features if self._ranks else query_features(stored.spec)
        self._lists = FeatureListConfig.model_validate(stored.manifest["feature_lists"])
        self._users = sample["user_id"].to_pylist()
        self._videos = sample["video_id" if self._ranks else "label_video_id"].to_pylist()
        self._times = sample["timestamp" if self._ranks else "label_timestamp"].cast(pa.int64()).to_pylist()
        needed = {table for feature in self._features for table, _ in source_columns(feature, stored.model)}
        needed.add(request_table(stored.model))
        names = [name for name in (*_EVENTS, "users") if name in needed]
        logs = {name: self._log(shards, shard, name) for name in names}
        self._logs = {name: log for name, log in logs.items() if log is not None}
        self._rows: dict[str, dict[str, list[tuple[int, Row]]]] = {
            name: _by_user(log) for name, log in self._logs.items()
        }
        self._lookups = lookups

    def _log(self, shards: Path, shard: int, name: str) -> pa.Table | None:
        rows = read_rows(shards, name, shard)
        if rows is None:
            return None
        rows = rows.filter(pc.is_in(rows["user_id"], pa.array(sorted(set(self._users)), pa.string())))
        return rows if name == "users" else rows.append_column("time_us", _nullable_times(rows))

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
        again = self._made_again(requests)
        plain = [self._plain_request(i, *request) for i, request in enumerate(requests)]
        for feature in self._features:
            stored = self._sample[feature.name].to_pylist()
            recomputed = again[feature.name].to_pylist()
            for i in range(len(self._sample)):
                if self._held_out(feature):
                    self._check_held_out(i, feature, stored[i])
                    continue
                self._compare(i, feature, stored[i], recomputed[i], "by the same code from the log")
                self._compare(i, feature, stored[i], self._plainly(feature, plain[i]), "one by one from the log")
        if "seen_video_ids" in self._sample.column_names:
            self._check_seen(snapshots_us)
        return len(self._features) * len(self._sample)

    def _request(self, i: int) -> tuple[int, int, Row]:
        """Snapshot, number of the request's own row in the log, and the row without its outcome."""
        name = "impressions" if self._ranks else "watches"
        rows = self._rows[name].get(self._users[i], [])
        own = [(n, r) for n, r in rows if r["video_id"] == self._videos[i] and r["time_us"] == self._times[i]]
        if "impression_id" in self._sample.column_names:
            told = self._sample["impression_id"][i].as_py()
            own = [(n, r) for n, r in own if r["impression_id"] == told] or own
        if not own:
            raise self._leak(i, "timestamp", readable(self._times[i]), "no such row", "from the log")
        number, row = own[0]
        snapshot_us = self._times[i] if not self._ranks else self._request_start(row, [r for _, r in rows])
        return snapshot_us, number, {k: None if k in OUTCOMES else v for k, v in row.items()}

    def _request_start(self, row: Row, rows: Sequence[Row]) -> int:
        """The first moment of the row's request, the plain way."""
        offset_us = round(self._stored.split.utc_offset_s * 1e6)

        def request(of: Row) -> tuple:
            if of.get("request_id") is not None:
                return ("request", of["request_id"])
            return ("page", (of["time_us"] + offset_us) // 86_400_000_000, of.get("page") or "")

        return min(r["time_us"] for r in rows if r["time_us"] is not None and request(r) == request(row))

    def _made_again(self, requests: Sequence[tuple[int, int, Row]]) -> Mapping[str, pa.Array]:
        """The features by the code that made the set: every example is a user whose log ends at the snapshot."""
        tables = {}
        ids = pa.array([f"{i:09d}" for i in range(len(requests))])
        for name, log in self._logs.items():
            numbers: list[int] = []
            owners: list[int] = []
            for i, (end_us, _, _) in enumerate(requests):
                known = [n for n, r in self._rows[name].get(self._users[i], []) if _before(r, end_us)]
                numbers += known
                owners += [i] * len(known)
            owner = ids.take(pa.array(owners, pa.int64()))
            tables[name] = log.take(pa.array(numbers, pa.int64())).set_column(
                log.column_names.index("user_id"), "user_id", owner
            )
        shard = make_shard(tables, ids)
        own = self._logs["impressions" if self._ranks else "watches"]
        table = own.take(pa.array([number for _, number, _ in requests]))
        for outcome in OUTCOMES:
            if outcome in table.column_names:
                nothing = pa.nulls(len(table), table[outcome].type)
                table = table.set_column(table.column_names.index(outcome), outcome, nothing)
        snapshot_us = np.array([snapshot for snapshot, _, _ in requests], np.int64)
        each = np.arange(len(requests))
        rows = RequestRows(table, each, snapshot_us, np.array([self._age(i) for i in range(len(requests))], np.float32))
        offset_s = self._stored.split.utc_offset_s
        watches = shard.events.get("watches")
        of_watches = watches.table if watches else None
        columns = FeatureColumns(self._features, self._encoder, shard.users, rows, offset_s, of_watches)
        candidates = self._encoder.positions(table["video_id"].combine_chunks())
        requests_again = Histories(shard, self._encoder, self._lists).at(each, snapshot_us, candidates)
        return columns.of(requests_again, each)

    def _plain_request(self, i: int, snapshot_us: int, number: int, row: Row) -> PlainRequest:
        known = {
            name: [r for _, r in self._rows.get(name, {}).get(self._users[i], []) if _before(r, snapshot_us)]
            for name in _EVENTS
        }
        user = self._rows.get("users", {}).get(self._users[i])
        return PlainRequest(
            snapshot_us,
            self._videos[i],
            **known,
            user=user[0][1] if user else None,
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
        pool = [
            self._lookups.of_video(r["video_id"], str(feature.id_space)) or 0
            for _, r in self._rows["watches"][self._users[i]]
            if r["time_us"] is None or (r["time_us"] < end_us and r["time_us"] != self._times[i])
        ]
        for row in stored:
            if row not in pool:
                raise self._leak(
                    i, feature.name, stored, pool, "from the other watches of the training part in the log"
                )
            pool.remove(row)

    def _check_seen(self, snapshots_us: Sequence[int]) -> None:
        for i, stored in enumerate(self._sample["seen_video_ids"].to_pylist()):
            rows = self._rows["watches"].get(self._users[i], [])
            watched = {self._lookups.of_video(r["video_id"], "video") for _, r in rows if _before(r, snapshots_us[i])}
            expected = sorted(watched - {None, 0})
            if stored != expected:
                raise self._leak(i, "seen_video_ids", stored, expected, "from the log")

    def _leak(self, i: int, column: str, stored: Any, recomputed: Any, how: str) -> LeakageError:
        return LeakageError(
            f"{self._part.folder} example of user {self._users[i]!r}, video {self._videos[i]!r} at "
            f"{readable(self._times[i])}: column {column!r} stored {stored}, recomputed {recomputed} {how} before it"
        )


def _nullable_times(rows: pa.Table) -> pa.Array:
    time_us = times_us(rows)
    return pa.array(time_us, mask=time_us == ORDER_ONLY)


def _by_user(log: pa.Table) -> dict[str, list[tuple[int, Row]]]:
    """User → (number in the log, row), in the order of the log."""
    rows: dict[str, list[tuple[int, Row]]] = {}
    for number, row in enumerate(log.to_pylist()):
        rows.setdefault(row["user_id"], []).append((number, row))
    return rows


def _before(row: Row, snapshot_us: int) -> bool:
    time_us = row.get("time_us")
    return time_us is None or time_us < snapshot_us


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
