"""A slow and obvious second way to the features, one example at a time in plain Python.

The leakage check and the tests compare the vectorised joins with it. It shares no code with them but the vocabularies,
the catalogue and the tokens of a query.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from features.encoding import Encoder
from features.feature_lists import FeatureListConfig
from features.search_tokens import search_tokens
from features.spec import Feature, Kind
from features.tables import TIMESTAMP

Row = Mapping[str, Any]
"""A row of a table, column → value; event rows hold `time_us`, None where only the order is known."""


@dataclass(frozen=True)
class PlainRequest:
    """One example: what is asked, and everything that was known.

    Args:
      snapshot_us: microseconds since the epoch.
      video_id: the candidate.
      watches, impressions, searches: the user's raw rows strictly before the snapshot, in any order but that of the
        table where times and orders are equal.
      user: the user's row or None.
      row: the request's row without its outcome.
      example_age_s: seconds or None.
    """

    snapshot_us: int
    video_id: str
    watches: Sequence[Row] = ()
    impressions: Sequence[Row] = ()
    searches: Sequence[Row] = ()
    user: Row | None = None
    row: Row = field(default_factory=dict)
    example_age_s: float | None = None

    @cached_property
    def watch_history(self) -> list[Row]:
        return oldest_first(self.watches)

    @cached_property
    def impression_history(self) -> list[Row]:
        return oldest_first(self.impressions)

    @cached_property
    def search_history(self) -> list[Row]:
        return oldest_first(self.searches)


class Lookups:
    """The encoder's tables as dictionaries."""

    def __init__(self, encoder: Encoder) -> None:
        self.rows = {
            space: {value: row for row, value in enumerate(vocabulary.ids.to_pylist(), 1)}
            for space, vocabulary in encoder.vocabularies.items()
        }
        videos = encoder.catalogue["video_id"].to_pylist()
        self._position = {video: position for position, video in enumerate(videos)}
        self._catalogue = encoder.catalogue.combine_chunks()
        self._tokens: dict[str | None, list[int]] = {}
        self._found: dict[tuple[str, str], Any] = {}

    def row(self, space: str | None, value: Any) -> int:
        if value is not None and not isinstance(value, str):
            value = pa.scalar(value).cast(pa.string()).as_py()  # 1.0 is "1", as in vocabularies
        return self.rows[str(space)].get(value, 0)

    def token_rows(self, query: str | None) -> list[int]:
        """Rows of a query's tokens."""
        if query not in self._tokens:
            tokens = search_tokens(pa.array([query], pa.string()))[0].as_py()
            self._tokens[query] = [self.row("search_token", token) for token in tokens]
        return self._tokens[query]

    def column_of_numbers(self, name: str) -> str:
        """The catalogue's column that has the values and not their rows."""
        return f"{name}_raw" if f"{name}_raw" in self._catalogue.column_names else name

    def position(self, video: str) -> int | None:
        """Of a video in the catalogue, None where it does not hold it."""
        return self._position.get(video)

    def of_video(self, video: str, column: str) -> Any:
        """The catalogue's entry, None where it does not hold the video."""
        if video not in self._position:
            return None
        if (video, column) not in self._found:
            value = self._catalogue[column][self._position[video]]
            is_time = pa.types.is_timestamp(value.type)
            self._found[video, column] = value.cast(TIMESTAMP).value if is_time else value.as_py()
        return self._found[video, column]


def oldest_first(rows: Sequence[Row]) -> list[Row]:
    """Event rows in the order of history, without those that tell an event again."""
    ordered = sorted(rows, key=lambda row: (row["time_us"] is not None, row["time_us"] or 0, row.get("order") or 0))
    same_moment: dict[tuple | None, list[Row]] = {}
    for row in ordered:
        same_moment.setdefault(_moment(row), []).append(row)
    kept: list[Row] = []
    told: set[str] = set()
    for row in ordered:
        name = row.get("impression_id")
        if name is not None:
            if name in told:
                continue
            told.add(name)
        elif _moment(row) is not None:
            same = same_moment[_moment(row)]
            if any(other.get("impression_id") is not None for other in same) or same[0] is not row:
                continue
        kept.append(row)
    return kept


def _moment(row: Row) -> tuple | None:
    """Video and moment; None for searches and where the moment is not known."""
    if "video_id" not in row:
        return None
    if row["time_us"] is not None:
        return row["video_id"], row["time_us"]
    return None if "order" not in row else (row["video_id"], None, row["order"] or 0)


def reference_value(feature: Feature, request: PlainRequest, lookups: Lookups, lists: FeatureListConfig) -> Any:
    """The feature's value: a row, a list of rows, or a float (NaN where missing)."""
    room, name = feature.source.split(".", 1)
    if room == "history":
        return _history(feature, name, request, lookups, lists)
    if room == "watches":
        watches = request.watch_history[-lists.watch_window :][-int(feature.max_length or 0) :]
        return [_encode(feature.of_one_watch, watch.get(name), lookups) for watch in watches]
    if feature.source == "request.example_age":
        return request.example_age_s
    if room == "videos":
        if name == "video_id":
            return lookups.of_video(request.video_id, str(feature.id_space)) or 0
        if feature.kind == Kind.CONTINUOUS:
            value = lookups.of_video(request.video_id, lookups.column_of_numbers(name))
            return math.nan if value is None else float(value)
        value = lookups.of_video(request.video_id, name)
        return (value or [])[: feature.max_length] if feature.multivalent else value or 0
    value = request.row.get(name) if room == "request" else (request.user or {}).get(name)
    return _encode(feature, value, lookups)


def reference_hour(feature: Feature, snapshot_us: int, utc_offset_s: float, lookups: Lookups) -> int:
    """The row of the local hour."""
    return lookups.row(feature.id_space, math.floor((snapshot_us / 1e6 + utc_offset_s) / 3600) % 24)


def reference_time_of_week(snapshot_us: int, utc_offset_s: float) -> float:
    """Seconds since Monday, local midnight."""
    moment = datetime(1970, 1, 1) + timedelta(microseconds=snapshot_us, seconds=utc_offset_s)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return (moment - midnight + timedelta(days=moment.weekday())).total_seconds()


def _encode(feature: Feature, value: Any, lookups: Lookups) -> Any:
    if feature.kind == Kind.CONTINUOUS:
        values = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
        return max((float(v) for v in values), default=math.nan)
    if feature.multivalent:
        values = value if isinstance(value, list) else [value] * (value is not None)
        return [lookups.row(feature.id_space, v) for v in values][: feature.max_length]
    return lookups.row(feature.id_space, value)


def _history(
    feature: Feature, name: str, request: PlainRequest, lookups: Lookups, lists: FeatureListConfig
) -> float | int | list[int] | list[float]:
    watches = request.watch_history[-lists.watch_window :]
    shown = request.impression_history[-lists.impression_window :]
    searches = request.search_history[-lists.search_window :]
    length = feature.max_length or 0
    match name:
        case "watched_video_ids" | "shown_video_ids":
            events = watches if name == "watched_video_ids" else shown
            rows = [lookups.of_video(event["video_id"], str(feature.id_space)) or 0 for event in events]
            return rows[-length:]
        case "watched_uploader_ids":
            return [lookups.of_video(watch["video_id"], "uploader_id") or 0 for watch in watches][-length:]
        case "seconds_to_next_watch":
            return [_gap(*pair) for pair in _with_next(watches, request.snapshot_us)][-length:]
        case "watched_time_s":
            pairs = _with_next(watches, request.snapshot_us)
            return [float(np.float32(w["watch_time_s"])) if _ended(w, end) else math.nan for w, end in pairs][-length:]
        case "last_watched_video_id":
            return (lookups.of_video(watches[-1]["video_id"], str(feature.id_space)) or 0) if watches else 0
        case "search_tokens" | "last_search_tokens":
            queries = [search["query"] for search in (searches if name == "search_tokens" else searches[-1:])]
            tokens = [token for query in queries for token in lookups.token_rows(query)]
            return sorted(tokens[-length:])
        case "watch_count":
            return len(watches)
        case "impression_count":
            return len(shown)
        case "seconds_since_last_watch":
            return _since(watches, request.snapshot_us)
        case "mean_watch_time_s":
            times = [np.float32(w["watch_time_s"]) for w in watches if _ended(w, request.snapshot_us)]
            return math.fsum(times) / len(times) if times else math.nan
        case "click_rate":
            known = [row["clicked"] for row in shown if row["clicked"] is not None]
            return sum(known) / len(known) if known else math.nan
        case "video_age_s":
            upload = lookups.of_video(request.video_id, "upload_time")
            return math.nan if upload is None else (request.snapshot_us - upload) / 1e6
    events = shown if "impression" in name or "click" in name else watches
    matching = [row for row in events if _similar(name, row["video_id"], request.video_id, lookups)]
    if name.startswith("seconds_since"):
        return _since(matching, request.snapshot_us)
    if name == "uploader_click_count":
        matching = [row for row in matching if row["clicked"]]
    return len(matching)


def _similar(name: str, video: str, candidate: str, lookups: Lookups) -> bool:
    if "uploader" in name:
        uploader = lookups.of_video(candidate, "uploader_id") or 0
        return uploader != 0 and lookups.of_video(video, "uploader_id") == uploader
    if "topic" in name:
        topics = set(lookups.of_video(candidate, "topics") or []) - {0}
        return bool(topics & set(lookups.of_video(video, "topics") or []))
    return video == candidate and lookups.of_video(video, "video_id") is not None


def _since(rows: Sequence[Row], snapshot_us: int) -> float:
    if not rows or rows[-1]["time_us"] is None:
        return math.nan
    return (snapshot_us - rows[-1]["time_us"]) / 1e6


def _with_next(watches: Sequence[Row], snapshot_us: int) -> list[tuple[Row, int]]:
    """Every watch and the moment of the next one; 0 where that is not known, and then its own is not known either."""
    moments = [*[watch["time_us"] or 0 for watch in watches[1:]], snapshot_us]
    return list(zip(watches, moments, strict=True)) if watches else []


def _gap(watch: Row, next_us: int) -> float:
    return math.nan if watch["time_us"] is None else float(np.float32((next_us - watch["time_us"]) / 1e6))


def _ended(watch: Row, snapshot_us: int) -> bool:
    length = watch.get("watch_time_s")
    if length is None or math.isnan(length):
        return False
    return watch["time_us"] is None or watch["time_us"] + round(float(np.float32(length)) * 1e6) <= snapshot_us
