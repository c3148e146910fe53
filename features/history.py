"""History: what a user did before a moment, joined as of that moment, and the numbers derived from it.

Covington et al. 2016, section 3.4 ("rollback") and section 4.1 (features of past interactions with the video scored
and with similar ones).

**Events.** A user's events of one kind (watches, impressions, searches) are held oldest first: order-only events first
by their order, then timed events by (time, order). A row told twice was removed when the shard was read.

**Snapshot.** An example sees the events strictly before its snapshot (microseconds); events of equal time are excluded
and order-only events are always before. It sees only the last `watch_window` watches, the last `impression_window`
impressions and the last `search_window` searches before the snapshot: the lists that a client sends at serving.
All derivations use these windows alone, so serving and training compute the same values.

**Derivations.** `B` examples, windows `W` (watches) and `I` (impressions), oldest first. Every continuous value is
float32; NaN means missing. With `t` the snapshot and `s` an event's time in integer microseconds,
"seconds since" is `float32(float64(t - s) / 1e6)` of the **last** matching event in the window, and NaN when no event
matches or the last matching one is order-only (then all are, as these come first).

| name | side | value |
| --- | --- | --- |
| watched_video_ids | query, bag | rows of the last `max_length` watches, oldest first; 0 where out of vocabulary |
| watched_uploader_ids | query, list | rows of their uploaders, in the same order; 0 where not known |
| seconds_to_next_watch | query, list | seconds from each of them to the next watch, from the last to the snapshot |
| watched_time_s | query, list | their watch times; NaN where not known or not ended when the next watch began |
| shown_video_ids | query, bag | the same of the last `max_length` impressions |
| last_watched_video_id | query, one | row of the last watch; 0 where there is none or it is out of vocabulary |
| search_tokens | query, bag | rows of the last `max_length` tokens of the searches, sorted by row: an unordered bag |
| last_search_tokens | query, bag | the same of the last search alone |
| watch_count | query | watches in the window (0 without any) |
| seconds_since_last_watch | query | seconds since the last watch |
| mean_watch_time_s | query | mean of the known watch times of ended watches; NaN without any |
| impression_count | query | impressions in the window (0 without any) |
| click_rate | query | clicked / known over the impressions whose `clicked` is known; NaN without any |
| uploader_watch_count | impression | watches of a video of the candidate's uploader |
| seconds_since_uploader_watch | impression | seconds since the last of these |
| topic_watch_count | impression | watches of a video sharing at least one topic with the candidate, each counted once |
| seconds_since_topic_watch | impression | seconds since the last of these |
| video_watch_count | impression | watches of the candidate itself |
| video_impression_count | impression | impressions of the candidate itself (churn) |
| seconds_since_video_impression | impression | seconds since the last of these |
| uploader_impression_count | impression | impressions of a video of the candidate's uploader |
| uploader_click_count | impression | those of them known to be clicked |
| video_age_s | impression | `float32(float64(t - upload time) / 1e6)`; NaN where the upload time is not known |

Matching: "of the candidate itself" compares video ids (catalogue positions; a video that the catalogue does not hold
equals nothing). Uploaders and topics compare rows of their vocabularies through the catalogue; row 0 (unknown or out
of vocabulary) equals nothing. Counts include order-only events.

Tokens: the tokens of the window's searches (oldest search first, each query's tokens in the order of
`features.search_tokens`) are written one after another, rows looked up (0 where out of vocabulary, and kept), the last
`max_length` taken, then sorted ascending.

Watch times: a watch's length is known only after it ended. With the length as float32 seconds, a timed watch has ended
when `start + rint(float64(length) * 1e6) <= t` in integer microseconds; an order-only watch has ended. The mean is the
float64 sum over the window divided by the count, then float32. In `watched_time_s` the moment t of a watch is the start
of the next one (of the last watch: the snapshot), so that a sequence model may use it from the next step on.

Lists are beside each other: entry i of `watched_video_ids`, `watched_uploader_ids`, `seconds_to_next_watch`,
`watched_time_s` and of every `watches.<column>` is of the same watch where their `max_length` is the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from features.errors import ConfigError
from features.event_windows import ORDER_ONLY, Bags, Window
from features.shared_topics import TopicLists
from features.spec import Kind, Side


class Derivation(StrEnum):
    """The sources `history.<name>`; see the module's table."""

    WATCHED_VIDEO_IDS = "watched_video_ids"
    WATCHED_UPLOADER_IDS = "watched_uploader_ids"
    SECONDS_TO_NEXT_WATCH = "seconds_to_next_watch"
    WATCHED_TIME_S = "watched_time_s"
    SHOWN_VIDEO_IDS = "shown_video_ids"
    LAST_WATCHED_VIDEO_ID = "last_watched_video_id"
    SEARCH_TOKENS = "search_tokens"
    LAST_SEARCH_TOKENS = "last_search_tokens"
    WATCH_COUNT = "watch_count"
    SECONDS_SINCE_LAST_WATCH = "seconds_since_last_watch"
    MEAN_WATCH_TIME_S = "mean_watch_time_s"
    IMPRESSION_COUNT = "impression_count"
    CLICK_RATE = "click_rate"
    UPLOADER_WATCH_COUNT = "uploader_watch_count"
    SECONDS_SINCE_UPLOADER_WATCH = "seconds_since_uploader_watch"
    TOPIC_WATCH_COUNT = "topic_watch_count"
    SECONDS_SINCE_TOPIC_WATCH = "seconds_since_topic_watch"
    VIDEO_WATCH_COUNT = "video_watch_count"
    VIDEO_IMPRESSION_COUNT = "video_impression_count"
    SECONDS_SINCE_VIDEO_IMPRESSION = "seconds_since_video_impression"
    UPLOADER_IMPRESSION_COUNT = "uploader_impression_count"
    UPLOADER_CLICK_COUNT = "uploader_click_count"
    VIDEO_AGE_S = "video_age_s"


@dataclass(frozen=True)
class Requirement:
    """What a derivation is and what it needs: (table, column) pairs that must be present; `bag`: a list of values."""

    kind: Kind
    side: Side
    columns: tuple[tuple[str, str], ...]
    bag: bool = False


_WATCH = ("watches", "video_id")
_SHOWN = ("impressions", "video_id")
_UPLOADER = ("videos", "uploader_id")
_TOPICS = ("videos", "topics")
_QUERY = ("searches", "query")

REQUIREMENTS: Mapping[Derivation, Requirement] = {
    Derivation.WATCHED_VIDEO_IDS: Requirement(Kind.CATEGORICAL, Side.QUERY, (_WATCH,), bag=True),
    Derivation.WATCHED_UPLOADER_IDS: Requirement(Kind.CATEGORICAL, Side.QUERY, (_WATCH, _UPLOADER), bag=True),
    Derivation.SECONDS_TO_NEXT_WATCH: Requirement(Kind.CONTINUOUS, Side.QUERY, (_WATCH,), bag=True),
    Derivation.WATCHED_TIME_S: Requirement(Kind.CONTINUOUS, Side.QUERY, (("watches", "watch_time_s"),), bag=True),
    Derivation.SHOWN_VIDEO_IDS: Requirement(Kind.CATEGORICAL, Side.QUERY, (_SHOWN,), bag=True),
    Derivation.LAST_WATCHED_VIDEO_ID: Requirement(Kind.CATEGORICAL, Side.QUERY, (_WATCH,)),
    Derivation.SEARCH_TOKENS: Requirement(Kind.CATEGORICAL, Side.QUERY, (_QUERY,), bag=True),
    Derivation.LAST_SEARCH_TOKENS: Requirement(Kind.CATEGORICAL, Side.QUERY, (_QUERY,), bag=True),
    Derivation.WATCH_COUNT: Requirement(Kind.CONTINUOUS, Side.QUERY, (_WATCH,)),
    Derivation.SECONDS_SINCE_LAST_WATCH: Requirement(Kind.CONTINUOUS, Side.QUERY, (_WATCH,)),
    Derivation.MEAN_WATCH_TIME_S: Requirement(Kind.CONTINUOUS, Side.QUERY, (("watches", "watch_time_s"),)),
    Derivation.IMPRESSION_COUNT: Requirement(Kind.CONTINUOUS, Side.QUERY, (_SHOWN,)),
    Derivation.CLICK_RATE: Requirement(Kind.CONTINUOUS, Side.QUERY, (("impressions", "clicked"),)),
    Derivation.UPLOADER_WATCH_COUNT: Requirement(Kind.CONTINUOUS, Side.IMPRESSION, (_WATCH, _UPLOADER)),
    Derivation.SECONDS_SINCE_UPLOADER_WATCH: Requirement(Kind.CONTINUOUS, Side.IMPRESSION, (_WATCH, _UPLOADER)),
    Derivation.TOPIC_WATCH_COUNT: Requirement(Kind.CONTINUOUS, Side.IMPRESSION, (_WATCH, _TOPICS)),
    Derivation.SECONDS_SINCE_TOPIC_WATCH: Requirement(Kind.CONTINUOUS, Side.IMPRESSION, (_WATCH, _TOPICS)),
    Derivation.VIDEO_WATCH_COUNT: Requirement(Kind.CONTINUOUS, Side.IMPRESSION, (_WATCH,)),
    Derivation.VIDEO_IMPRESSION_COUNT: Requirement(Kind.CONTINUOUS, Side.IMPRESSION, (_SHOWN,)),
    Derivation.SECONDS_SINCE_VIDEO_IMPRESSION: Requirement(Kind.CONTINUOUS, Side.IMPRESSION, (_SHOWN,)),
    Derivation.UPLOADER_IMPRESSION_COUNT: Requirement(Kind.CONTINUOUS, Side.IMPRESSION, (_SHOWN, _UPLOADER)),
    Derivation.UPLOADER_CLICK_COUNT: Requirement(
        Kind.CONTINUOUS, Side.IMPRESSION, (("impressions", "clicked"), _UPLOADER)
    ),
    Derivation.VIDEO_AGE_S: Requirement(Kind.CONTINUOUS, Side.IMPRESSION, (("videos", "upload_time"),)),
}


def derivation_of(source: str) -> Derivation:
    """The derivation that a feature's source `history.<name>` names."""
    name = source.removeprefix("history.")
    if name not in set(Derivation):
        raise ConfigError(f"history.{name}: no such derivation; there are {', '.join(Derivation)}")
    return Derivation(name)


@dataclass(frozen=True)
class VideoTable:
    """What history needs of the catalogue, by catalogue position; each array has one more entry, for position -1.

    Args:
      rows: id space of videos (`video`, `clicked_video`) → int32 `[videos + 1]`, 0 where out of vocabulary.
      uploader: int32 `[videos + 1]` rows of `uploader` or None.
      topics: int32 `[videos + 1, most topics of a video]` rows of `topic`, 0 padded, or None.
      upload_us: int64 `[videos + 1]`, `ORDER_ONLY` where not known, or None.
    """

    rows: Mapping[str, np.ndarray]
    uploader: np.ndarray | None = None
    topics: np.ndarray | None = None
    upload_us: np.ndarray | None = None

    @cached_property
    def topic_lists(self) -> TopicLists:
        return TopicLists(_present(self.topics, "topics"))

    def __len__(self) -> int:
        """Videos, and one for no video."""
        return len(next(iter(self.rows.values())))


@dataclass(frozen=True)
class Requests:
    """The history windows of `R` snapshots and the `B` candidates scored at them.

    Args:
      snapshot_us: int64 `[R]`.
      watches, impressions, searches: their windows.
      videos: the catalogue's columns.
      request: int64 `[B]`, the snapshot of each candidate.
      candidate: int32 `[B]`, catalogue position of each candidate, -1 where it holds no such video.
    """

    snapshot_us: np.ndarray
    watches: Window
    impressions: Window
    searches: Window
    videos: VideoTable
    request: np.ndarray
    candidate: np.ndarray

    @cached_property
    def one_candidate_each(self) -> bool:
        """Whether candidate `i` is the only one of snapshot `i`."""
        return len(self.request) == len(self.snapshot_us) and bool((self.request == np.arange(len(self.request))).all())

    @cached_property
    def same_video_watches(self) -> np.ndarray:
        return _equal(self.watches.video[self.request], self.candidate, nothing=-1)

    @cached_property
    def same_video_impressions(self) -> np.ndarray:
        return _equal(self.impressions.video[self.request], self.candidate, nothing=-1)

    @cached_property
    def same_uploader_watches(self) -> np.ndarray:
        return self._same_uploader(self.watches)

    @cached_property
    def same_uploader_impressions(self) -> np.ndarray:
        return self._same_uploader(self.impressions)

    def _same_uploader(self, window: Window) -> np.ndarray:
        uploader = _present(self.videos.uploader, "uploader_id")
        return _equal(uploader[window.video][self.request], uploader[self.candidate], nothing=0)

    @cached_property
    def same_topic_watches(self) -> np.ndarray:
        return self.videos.topic_lists.shared(self.watches.video, self.request, self.candidate)

    def seconds_since(self, window: Window, matches: np.ndarray) -> np.ndarray:
        """float32 `[B]` since the last of the matches, bool `[B, size]`, in the candidates' windows."""
        if matches.shape[1] == 0:
            return np.full(len(matches), np.nan, np.float32)
        last = matches.shape[1] - 1 - matches[:, ::-1].argmax(axis=1)
        found = matches[np.arange(len(matches)), last]
        time_us = np.where(found, window.time_us[self.request, last], ORDER_ONLY)
        return seconds_between(time_us, self.snapshot_us[self.request])


def seconds_between(earlier_us: np.ndarray, later_us: np.ndarray) -> np.ndarray:
    """float32 seconds from `earlier_us` to `later_us`; NaN where the earlier time is not known."""
    known = earlier_us != ORDER_ONLY
    return np.where(known, (later_us - np.where(known, earlier_us, 0)) / 1e6, np.nan).astype(np.float32)


def watched_video_ids(requests: Requests, id_space: str, max_length: int) -> Bags:
    """Rows of the last `max_length` watches, oldest first."""
    return _last_videos(requests.watches, requests.videos.rows[id_space], max_length)


def shown_video_ids(requests: Requests, id_space: str, max_length: int) -> Bags:
    """Rows of the last `max_length` impressions, oldest first."""
    return _last_videos(requests.impressions, requests.videos.rows[id_space], max_length)


def _last_videos(window: Window, rows: np.ndarray, max_length: int) -> Bags:
    videos = last_events(window, window.events.video, max_length)
    return Bags(rows[videos.values], videos.offsets)


def last_events(window: Window, values: np.ndarray, max_length: int) -> Bags:
    """`values` `[events]` of the last `max_length` events of each window, oldest first."""
    return Bags.of_ranges(values, np.maximum(window.first, window.last - max_length), window.last)


def watched_uploader_ids(requests: Requests, max_length: int) -> Bags:
    """Rows of the uploaders of the last `max_length` watches, oldest first."""
    return _last_videos(requests.watches, _present(requests.videos.uploader, "uploader_id"), max_length)


def seconds_to_next_watch(requests: Requests, max_length: int) -> Bags:
    """float32 seconds from each of the last `max_length` watches to the next, from the last to the snapshot."""
    times = last_events(requests.watches, requests.watches.events.time_us, max_length)
    return Bags(seconds_between(times.values, _next_us(times, requests.snapshot_us)), times.offsets)


def watched_time_s(requests: Requests, max_length: int) -> Bags:
    """float32 watch times of the last `max_length` watches, NaN where a watch had not ended when the next began."""
    window = requests.watches
    times = last_events(window, window.events.time_us, max_length)
    lengths = last_events(window, _present(window.events.watch_time_s, "watch_time_s"), max_length)
    ended = _has_ended(times.values, lengths.values, _next_us(times, requests.snapshot_us))
    return Bags(np.where(ended, lengths.values, np.float32(np.nan)), times.offsets)


def _next_us(times: Bags, snapshot_us: np.ndarray) -> np.ndarray:
    """int64 `[values]`: the time of the next event of the same list, of a list's last event the snapshot."""
    following = np.append(times.values[1:], np.int64(0))[: len(times.values)]
    lengths = np.diff(times.offsets)
    following[times.offsets[1:][lengths > 0] - 1] = snapshot_us[lengths > 0]
    return following


def _has_ended(start_us: np.ndarray, length_s: np.ndarray, moment_us: np.ndarray) -> np.ndarray:
    """bool: watches of known length that ended at the moment or before; one of which only the order is known did."""
    known = ~np.isnan(length_s)
    length_us = np.rint(np.where(known, length_s, 0).astype(np.float64) * 1e6).astype(np.int64)
    return known & ((start_us == ORDER_ONLY) | (start_us + length_us <= moment_us))


def last_watched_video_id(requests: Requests, id_space: str) -> np.ndarray:
    """int32 `[R]`: row of the last watch."""
    return requests.videos.rows[id_space][requests.watches.last_of(requests.watches.events.video, -1)]


def search_tokens(requests: Requests, max_length: int) -> Bags:
    """Rows of the last `max_length` tokens of the searches, sorted: an unordered bag."""
    return _tokens(requests.searches, requests.searches.first, max_length)


def last_search_tokens(requests: Requests, max_length: int) -> Bags:
    """Rows of the last `max_length` tokens of the last search, sorted."""
    window = requests.searches
    return _tokens(window, np.maximum(window.first, window.last - 1), max_length)


def _tokens(window: Window, first_search: np.ndarray, max_length: int) -> Bags:
    offsets = _present(window.events.token_offsets, "query")
    first, last = offsets[first_search], offsets[window.last]
    return Bags.of_ranges(_present(window.events.tokens, "query"), np.maximum(first, last - max_length), last).sorted()


def _watch_count(requests: Requests) -> np.ndarray:
    return requests.watches.lengths.astype(np.float32)


def _seconds_since_last_watch(requests: Requests) -> np.ndarray:
    last_us = requests.watches.last_of(requests.watches.events.time_us, ORDER_ONLY)
    return seconds_between(last_us, requests.snapshot_us)


def _mean_watch_time_s(requests: Requests) -> np.ndarray:
    window = requests.watches
    length = window.gather(_present(window.events.watch_time_s, "watch_time_s"), np.nan)
    counted = window.valid & _has_ended(window.time_us, length, requests.snapshot_us[:, None])
    total = np.where(counted, length, 0).sum(axis=1, dtype=np.float64)
    return _ratio(np.asarray(total), np.count_nonzero(counted, axis=1))


def _impression_count(requests: Requests) -> np.ndarray:
    return requests.impressions.lengths.astype(np.float32)


def _click_rate(requests: Requests) -> np.ndarray:
    window = requests.impressions
    clicked = window.gather(_present(window.events.clicked, "clicked"), np.nan)
    return _ratio(np.count_nonzero(clicked == 1, axis=1), np.count_nonzero(~np.isnan(clicked), axis=1))


def _uploader_click_count(requests: Requests) -> np.ndarray:
    window = requests.impressions
    clicked = window.gather(_present(window.events.clicked, "clicked"), np.nan) == 1
    return _count(requests.same_uploader_impressions & clicked[requests.request])


def _video_age_s(requests: Requests) -> np.ndarray:
    upload_us = _present(requests.videos.upload_us, "upload_time")[requests.candidate]
    return seconds_between(upload_us, requests.snapshot_us[requests.request])


CONTINUOUS: Mapping[Derivation, Callable[[Requests], np.ndarray]] = {
    Derivation.WATCH_COUNT: _watch_count,
    Derivation.SECONDS_SINCE_LAST_WATCH: _seconds_since_last_watch,
    Derivation.MEAN_WATCH_TIME_S: _mean_watch_time_s,
    Derivation.IMPRESSION_COUNT: _impression_count,
    Derivation.CLICK_RATE: _click_rate,
    Derivation.UPLOADER_WATCH_COUNT: lambda r: _count(r.same_uploader_watches),
    Derivation.SECONDS_SINCE_UPLOADER_WATCH: lambda r: r.seconds_since(r.watches, r.same_uploader_watches),
    Derivation.TOPIC_WATCH_COUNT: lambda r: _count(r.same_topic_watches),
    Derivation.SECONDS_SINCE_TOPIC_WATCH: lambda r: r.seconds_since(r.watches, r.same_topic_watches),
    Derivation.VIDEO_WATCH_COUNT: lambda r: _count(r.same_video_watches),
    Derivation.VIDEO_IMPRESSION_COUNT: lambda r: _count(r.same_video_impressions),
    Derivation.SECONDS_SINCE_VIDEO_IMPRESSION: lambda r: r.seconds_since(r.impressions, r.same_video_impressions),
    Derivation.UPLOADER_IMPRESSION_COUNT: lambda r: _count(r.same_uploader_impressions),
    Derivation.UPLOADER_CLICK_COUNT: _uploader_click_count,
    Derivation.VIDEO_AGE_S: _video_age_s,
}
"""Continuous derivations: `Requests` → float32 `[R]` (query side) or `[B]` (impression side)."""


def _equal(rows: np.ndarray, candidate: np.ndarray, nothing: int) -> np.ndarray:
    """bool `[B, size]`: `rows` `[B, size]` equal to `candidate` `[B]`, which equals nothing where it is `nothing`."""
    return rows == np.where(candidate == nothing, np.int32(-2), candidate)[:, None]


def _count(matches: np.ndarray) -> np.ndarray:
    return np.count_nonzero(matches, axis=1).astype(np.float32)


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _present(values: np.ndarray | None, column: str) -> np.ndarray:
    if values is None:
        raise ConfigError(f"a history feature needs the column {column!r}, which the tables do not have")
    return values
