"""Feature columns of examples: history derivations, and columns of users, requests and videos taken by row."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features import history
from features.encoding import Encoder
from features.errors import ConfigError
from features.feature_lists import FeatureListConfig
from features.history import Bags, Derivation, Requests, derivation_of
from features.shards import Shard
from features.spec import Feature, Side

_DAY_US = 86_400_000_000
_OF_VIDEOS = (Derivation.WATCHED_VIDEO_IDS, Derivation.SHOWN_VIDEO_IDS, Derivation.LAST_WATCHED_VIDEO_ID)
_OF_TOKENS = (Derivation.SEARCH_TOKENS, Derivation.LAST_SEARCH_TOKENS)
_TOKENS = ("search_token",)
"""The id space of the words of searches."""


class Histories:
    """The events of one shard's users, by kind.

    Args:
      shard: its events.
      encoder: looks up ids.
      lists: lengths of the windows.
    """

    def __init__(self, shard: Shard, encoder: Encoder, lists: FeatureListConfig) -> None:
        users = len(shard.user_ids)
        self.watches = encoder.events(shard.events.get("watches"), users)
        self.impressions = encoder.events(shard.events.get("impressions"), users)
        self.searches = encoder.events(shard.events.get("searches"), users)
        self._videos = encoder.videos
        self._lists = lists

    def at(
        self,
        user: np.ndarray,
        snapshot_us: np.ndarray,
        candidate: np.ndarray,
        request: np.ndarray | None = None,
    ) -> Requests:
        """What is known at snapshots.

        Args:
          user, snapshot_us: int64 `[R]`.
          candidate: int32 `[B]`, catalogue positions.
          request: int64 `[B]`, the snapshot of each candidate; None: candidate `i` is scored at snapshot `i`.
        """
        return Requests(
            snapshot_us,
            self.watches.window(user, snapshot_us, self._lists.watch_window),
            self.impressions.window(user, snapshot_us, self._lists.impression_window),
            self.searches.window(user, snapshot_us, self._lists.search_window),
            self._videos,
            np.arange(len(user)) if request is None else request,
            candidate,
        )


@dataclass(frozen=True)
class RequestRows:
    """The rows of one shard that requests are made of: impressions, or label watches.

    Args:
      table: the rows.
      user: int64 `[rows]`, the shard's user.
      snapshot_us: int64 `[rows]`.
      example_age_s: float32 `[rows]` or None.
    """

    table: pa.Table
    user: np.ndarray
    snapshot_us: np.ndarray
    example_age_s: np.ndarray | None = None


class FeatureColumns:
    """The feature columns of the examples of one shard; every raw column is encoded once.

    Args:
      features: the model's features that examples hold.
      encoder: looks up ids.
      users: the shard's users table aligned with its users, or None.
      rows: what requests are made of.
      utc_offset_s: local time, for the hour.
      watches: the shard's watches, in the order of their history, for features `watches.<column>`.

    Raises:
      ConfigError: a feature's column is absent.
    """

    def __init__(
        self,
        features: tuple[Feature, ...],
        encoder: Encoder,
        users: pa.Table | None,
        rows: RequestRows,
        utc_offset_s: float,
        watches: pa.Table | None = None,
    ) -> None:
        self._features = features
        self._rows = rows
        self._encoded: dict[str, pa.Array] = {}
        self._of_watches: dict[str, np.ndarray] = {}
        for feature in features:
            room, name = feature.source.split(".", 1)
            if room == "watches":
                values = encoder.column(feature.of_one_watch, _column(watches, name, feature))
                self._of_watches[feature.name] = values.to_numpy()
            elif room == "users":
                self._encoded[feature.name] = encoder.column(feature, _column(users, name, feature))
            elif room == "videos":
                self._encoded[feature.name] = encoder.video_column(feature)
            elif feature.source == "request.hour":
                self._encoded[feature.name] = _hours(feature, encoder, rows.snapshot_us, utc_offset_s)
            elif feature.source == "request.time_of_week":
                self._encoded[feature.name] = pa.array(times_of_week(rows.snapshot_us, utc_offset_s))
            elif feature.source == "request.example_age":
                self._encoded[feature.name] = pa.array(_required(rows.example_age_s))
            elif room == "request":
                self._encoded[feature.name] = encoder.column(feature, _column(rows.table, name, feature))

    def of(self, requests: Requests, row: np.ndarray) -> dict[str, pa.Array]:
        """Feature name → `[B]` values of the candidates of `requests`, made of the rows `row` `[B]`."""
        index: Mapping[str, pa.Array] = {
            "users": pa.array(self._rows.user[row]),
            "request": pa.array(row),
            "videos": pa.array(np.where(requests.candidate < 0, len(requests.videos) - 1, requests.candidate)),
        }
        columns = {}
        for feature in self._features:
            if feature.name in self._of_watches:
                length = int(feature.max_length or 0)
                found = history.last_events(requests.watches, self._of_watches[feature.name], length)
                columns[feature.name] = _of_candidates(list_array(found), feature, requests)
            elif feature.name in self._encoded:
                columns[feature.name] = self._encoded[feature.name].take(index[feature.source.split(".", 1)[0]])
            else:
                columns[feature.name] = history_column(feature, requests)
        return columns


def history_column(feature: Feature, requests: Requests) -> pa.Array:
    """`[B]` values of a feature whose source is `history.<derivation>`."""
    derivation = derivation_of(feature.source)
    need = history.REQUIREMENTS[derivation]
    if need.side != feature.side or need.kind != feature.kind or need.bag != feature.multivalent:
        raise ConfigError(
            f"feature {feature.name!r}: {feature.source} is {need.kind}, side {need.side}, "
            f"{'a list (set max_length)' if need.bag else 'one value (no max_length)'}"
        )
    length = int(feature.max_length or 0)
    space = str(feature.id_space)
    known = tuple(requests.videos.rows) if derivation in _OF_VIDEOS else _TOKENS if derivation in _OF_TOKENS else None
    if known is not None and space not in known:
        raise ConfigError(
            f"feature {feature.name!r}: expected the id space {' or '.join(known)} for {feature.source}, found "
            f"{space!r}; set its id_space"
        )
    values: np.ndarray | Bags
    if derivation == Derivation.WATCHED_VIDEO_IDS:
        values = history.watched_video_ids(requests, space, length)
    elif derivation == Derivation.WATCHED_UPLOADER_IDS:
        values = history.watched_uploader_ids(requests, length)
    elif derivation == Derivation.SECONDS_TO_NEXT_WATCH:
        values = history.seconds_to_next_watch(requests, length)
    elif derivation == Derivation.WATCHED_TIME_S:
        values = history.watched_time_s(requests, length)
    elif derivation == Derivation.SHOWN_VIDEO_IDS:
        values = history.shown_video_ids(requests, space, length)
    elif derivation == Derivation.LAST_WATCHED_VIDEO_ID:
        values = history.last_watched_video_id(requests, space)
    elif derivation == Derivation.SEARCH_TOKENS:
        values = history.search_tokens(requests, length)
    elif derivation == Derivation.LAST_SEARCH_TOKENS:
        values = history.last_search_tokens(requests, length)
    else:
        values = history.CONTINUOUS[derivation](requests)
    column = list_array(values) if isinstance(values, Bags) else pa.array(values)
    return _of_candidates(column, feature, requests)


def _of_candidates(column: pa.Array, feature: Feature, requests: Requests) -> pa.Array:
    """A feature's column with one entry for each candidate; of the query side it has one for each request."""
    if feature.side == Side.IMPRESSION or requests.one_candidate_each:
        return column
    return column.take(pa.array(requests.request))


def list_array(bags: Bags) -> pa.ListArray:
    """Bags as an Arrow array: list<float32> of numbers, list<int32> of rows."""
    offsets = pa.array(bags.offsets.astype(np.int32))
    dtype = np.float32 if bags.values.dtype.kind == "f" else np.int32
    return pa.ListArray.from_arrays(offsets, pa.array(bags.values.astype(dtype, copy=False)))


def _column(table: pa.Table | None, name: str, feature: Feature) -> pa.ChunkedArray:
    if table is None or name not in table.column_names:
        raise ConfigError(f"feature {feature.name!r}: {feature.source} is not a column of the tables; leave it out")
    return table[name]


def _hours(feature: Feature, encoder: Encoder, snapshot_us: np.ndarray, utc_offset_s: float) -> pa.Array:
    """Rows of the local hour of every snapshot, ids "0" to "23"."""
    rows = encoder.vocabularies[str(feature.id_space)].lookup(pa.array([str(hour) for hour in range(24)]))
    local_us = snapshot_us + round(utc_offset_s * 1e6)
    return pa.array(rows[(local_us // 3_600_000_000) % 24])


def times_of_week(snapshot_us: np.ndarray, utc_offset_s: float) -> np.ndarray:
    """float32 seconds since the local week began, on Monday at midnight: int64 `[n]` microseconds -> `[n]`."""
    local_us = snapshot_us + round(utc_offset_s * 1e6)
    # The epoch was a Thursday, three days into its week.
    return (((local_us + 3 * _DAY_US) % (7 * _DAY_US)) / 1e6).astype(np.float32)


def _required(values: np.ndarray | None) -> np.ndarray:
    if values is None:
        raise ConfigError("request.example_age is a feature of the candidate generator only")
    return values
