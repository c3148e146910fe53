"""History derivations inside a TensorFlow graph: the twin of `features/history.py`, value for value.

That module's text defines every derivation; here each is the same formula over dense windows `[B, n]` of a request
instead of ranges of sorted events. Only here may the request's moment be unknown (`ORDER_ONLY`), which examples never
have: then no event is left out, no watch counts as unfinished, and what is measured from the moment is missing.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from features.event_windows import ORDER_ONLY
from features.history import Derivation

UNKNOWN_VIDEO = -1  # catalogue position of an id that the catalogue does not hold, and of padding
_FARTHEST_US = 4.6e18  # sums and differences of two of them are int64


class RawWindow(NamedTuple):
    """The last events of one kind of each request, oldest first, padded on the right.

    `valid` bool, `video` int32 catalogue positions (-1: not in the catalogue, or padding), `time_us` int64
    (`ORDER_ONLY` where not known, and in padding), `value` float32 (watch time in seconds, or clicked; NaN where not
    known), `index` int32 places in the request's lists, `given` where padded: each `[B, size]`. `given` int32: length
    of the lists as they were sent.
    """

    valid: tf.Tensor
    video: tf.Tensor
    time_us: tf.Tensor
    value: tf.Tensor
    index: tf.Tensor
    given: tf.Tensor

    def of(self, values: tf.Tensor, padding: float | str) -> tf.Tensor:
        """Another list beside the ids, `[B, W]`, in this window: `[B, size]`."""
        return _take(_fitted(values, self.given, padding), self.index, padding)

    def until_next_us(self, now_us: tf.Tensor) -> tf.Tensor:
        """int64 `[B, size]`: the time of the next event, of the last event the request's; where padded any."""
        following = tf.concat([self.time_us[:, 1:], tf.fill([tf.shape(now_us)[0], 1], tf.int64.min)], axis=1)
        is_last = self.valid & ~tf.concat([self.valid[:, 1:], tf.zeros_like(self.valid[:, :1])], axis=1)
        return tf.where(is_last, now_us[:, tf.newaxis], following)


class VideoColumns(NamedTuple):
    """Columns of the catalogue by position, each with one more entry for position -1 (`features.history.VideoTable`).

    `uploader` int32 `[videos + 1]`, `topics` int32 `[videos + 1, most topics]`, `upload_us` int64 `[videos + 1]`; a
    column that the catalogue does not have is all 0, or `ORDER_ONLY`.
    """

    uploader: tf.Tensor
    topics: tf.Tensor
    upload_us: tf.Tensor


def microseconds(seconds: tf.Tensor) -> tf.Tensor:
    """float64 seconds since the epoch as int64 microseconds, `ORDER_ONLY` for NaN.

    Times too far away for int64 are as far as differences of two of them can be.

    Rounded to the nearest: a microsecond of this century survives the way through float64 seconds, whose steps are a
    quarter of it.
    """
    known = ~tf.math.is_nan(seconds)
    return tf.where(known, _whole_microseconds(tf.where(known, seconds, 0.0)), ORDER_ONLY)


def _whole_microseconds(seconds: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(tf.clip_by_value(seconds * 1e6, -_FARTHEST_US, _FARTHEST_US)), tf.int64)


def raw_window(
    ids: tf.Tensor,
    video: tf.Tensor,
    size: int,
    now_us: tf.Tensor,
    time_s: tf.Tensor | None = None,
    value: tf.Tensor | None = None,
) -> RawWindow:
    """The last `size` events of each request that are strictly before it, or of all where its time is not known.

    They are sorted by time, whatever the order in which they were sent; those of unknown time come first, and equal
    times keep the sent order, as in `features/shards.py`.

    Args:
      ids: string `[B, W]`; "" is padding, wherever it stands.
      video: int32 `[B, W]`, the ids' catalogue positions.
      size: of the window.
      now_us: int64 `[B]`, the request's time, `ORDER_ONLY` where not known.
      time_s: float64 `[B, any]` seconds, NaN where not known; None: no event's time is known.
      value: float32 `[B, any]`, watch times or clicks; None, negative or not finite: not known.
    """
    given = tf.shape(ids)[1]
    if time_s is None:
        time_us = tf.fill(tf.shape(ids), tf.constant(ORDER_ONLY, tf.int64))
    else:
        time_us = microseconds(_fitted(time_s, given, np.nan))
    value = tf.fill(tf.shape(ids), np.float32(np.nan)) if value is None else _fitted(value, given, np.nan)
    value = tf.where((value >= 0) & tf.math.is_finite(value), value, np.float32(np.nan))
    valid = (ids != "") & ((time_us < now_us[:, tf.newaxis]) | (now_us == ORDER_ONLY)[:, tf.newaxis])
    # The valid events move to the left, the earliest first (of equals the first one sent), and the last `size` stay.
    order = tf.math.top_k(tf.where(valid, -1 - time_us, tf.int64.min), given).indices  # -1 - t: no -t of ORDER_ONLY
    count = tf.reduce_sum(tf.cast(valid, tf.int32), axis=1)
    step = tf.maximum(count - size, 0)[:, tf.newaxis] + tf.range(size)[tf.newaxis, :]
    inside = step < count[:, tf.newaxis]
    index = tf.gather(tf.pad(order, [[0, 0], [0, 1]]), tf.minimum(step, given), batch_dims=1)
    index = tf.ensure_shape(tf.where(inside, index, given), [None, size])
    return RawWindow(
        valid=tf.ensure_shape(inside, [None, size]),
        video=_take(video, index, UNKNOWN_VIDEO),
        time_us=_take(time_us, index, ORDER_ONLY),
        value=_take(value, index, np.nan),
        index=index,
        given=given,
    )


def _take(values: tf.Tensor, index: tf.Tensor, padding: float | str) -> tf.Tensor:
    """Values `[B, W]` at `index` `[B, n]`, where place W is padding."""
    padded = tf.pad(values, [[0, 0], [0, 1]], constant_values=tf.cast(padding, values.dtype))
    return tf.gather(padded, index, batch_dims=1)


def _fitted(values: tf.Tensor, length: tf.Tensor, padding: float | str) -> tf.Tensor:
    """A list as long as the ids beside it: `[B, any]` -> `[B, length]`; what a shorter list lacks is padding."""
    missing = tf.maximum(length - tf.shape(values)[1], 0)
    return tf.pad(values[:, :length], [[0, 0], [0, missing]], constant_values=tf.cast(padding, values.dtype))


def seconds_between(earlier_us: tf.Tensor, later_us: tf.Tensor) -> tf.Tensor:
    """float32 seconds from `earlier_us` to `later_us`; NaN where one of the times is not known."""
    known = (earlier_us != ORDER_ONLY) & (later_us != ORDER_ONLY)
    seconds = tf.cast(later_us - tf.where(known, earlier_us, 0), tf.float64) / 1e6
    return tf.cast(tf.where(known, seconds, np.nan), tf.float32)


class RawRequests:
    """The windows of a batch of requests and the candidates scored at them.

    Args:
      now_us: int64 `[B]`, the request's time, `ORDER_ONLY` where not known.
      watches, impressions: their windows.
      videos: the catalogue's columns.
      candidate: int32 `[B, C]` catalogue positions.
    """

    def __init__(
        self,
        now_us: tf.Tensor,
        watches: RawWindow,
        impressions: RawWindow,
        videos: VideoColumns,
        candidate: tf.Tensor,
    ) -> None:
        self.now_us = now_us
        self.watches = watches
        self.impressions = impressions
        self.videos = videos
        self.candidate = candidate

    @cached_property
    def same_video_watches(self) -> tf.Tensor:
        return _equal(self.watches.video, self.candidate, nothing=UNKNOWN_VIDEO)

    @cached_property
    def same_video_impressions(self) -> tf.Tensor:
        return _equal(self.impressions.video, self.candidate, nothing=UNKNOWN_VIDEO)

    @cached_property
    def same_uploader_watches(self) -> tf.Tensor:
        return self._same_uploader(self.watches)

    @cached_property
    def same_uploader_impressions(self) -> tf.Tensor:
        return self._same_uploader(self.impressions)

    def _same_uploader(self, window: RawWindow) -> tf.Tensor:
        uploader = self.videos.uploader
        return _equal(gather_videos(uploader, window.video), gather_videos(uploader, self.candidate), nothing=0)

    @cached_property
    def same_topic_watches(self) -> tf.Tensor:
        watched = _longest_list(gather_videos(self.videos.topics, self.watches.video))[:, tf.newaxis]
        candidate = _longest_list(gather_videos(self.videos.topics, self.candidate))
        # A loop over the candidates' topics that this batch has: the graph is the same for any catalogue, and a video
        # with hundreds of topics costs time in its own requests only.
        candidate = tf.where(candidate == 0, -1, candidate)[..., tf.newaxis, tf.newaxis]
        _, same = tf.while_loop(
            lambda place, same: place < tf.shape(candidate)[2],
            lambda place, same: (place + 1, same | tf.reduce_any(watched == candidate[:, :, place], axis=-1)),
            (0, tf.zeros([tf.shape(watched)[0], tf.shape(candidate)[1], self.watches.video.shape[1]], tf.bool)),
        )
        return same

    def seconds_since(self, window: RawWindow, matches: tf.Tensor) -> tf.Tensor:
        """float32 `[B, C]` since the last of the matches, bool `[B, C, n]`: the largest, as events ascend."""
        times = tf.where(matches, window.time_us[:, tf.newaxis, :], ORDER_ONLY)
        return seconds_between(tf.reduce_max(times, axis=-1), self.now_us[:, tf.newaxis])


def gather_videos(column: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Entries of a catalogue column at catalogue positions; position -1 gives the column's last entry."""
    last = tf.shape(column)[0] - 1
    return tf.gather(column, tf.where(position == UNKNOWN_VIDEO, last, position))


def _longest_list(topics: tf.Tensor) -> tf.Tensor:
    """Lists `[B, n, most topics of a video]`, padded with 0, cut to the longest one of them."""
    length = tf.reduce_max(tf.where(topics != 0, tf.range(1, tf.shape(topics)[2] + 1), 0))
    return topics[..., :length]


def _seconds_since_last_watch(requests: RawRequests) -> tf.Tensor:
    return seconds_between(tf.reduce_max(requests.watches.time_us, axis=1), requests.now_us)


def _mean_watch_time_s(requests: RawRequests) -> tf.Tensor:
    window = requests.watches
    counted = window.valid & has_ended(window, requests.now_us[:, tf.newaxis])
    return _ratio(tf.where(counted, tf.cast(window.value, tf.float64), 0.0), counted)


def has_ended(watches: RawWindow, moment_us: tf.Tensor) -> tf.Tensor:
    """bool `[B, size]`: watches of known length that ended at `moment_us` (int64, broadcast), if known, or before."""
    length = tf.cast(watches.value, tf.float64)
    known = ~tf.math.is_nan(length)
    length_us = _whole_microseconds(tf.where(known, length, 0.0))
    return known & ((watches.time_us + length_us <= moment_us) | (moment_us == ORDER_ONLY))


def seconds_to_next_watch(watches: RawWindow, now_us: tf.Tensor) -> tf.Tensor:
    """float32 `[B, size]` seconds to the next watch, from the last to the request; NaN where not known or padded."""
    return seconds_between(watches.time_us, watches.until_next_us(now_us))


def watched_time_s(watches: RawWindow, now_us: tf.Tensor) -> tf.Tensor:
    """float32 `[B, size]` watch times, NaN where not known, not ended when the next watch began, or padded."""
    ended = has_ended(watches, watches.until_next_us(now_us))
    return tf.where(ended, watches.value, np.float32(np.nan))


def _click_rate(requests: RawRequests) -> tf.Tensor:
    clicked = tf.cast(requests.impressions.value, tf.float64)
    known = ~tf.math.is_nan(clicked)
    return _ratio(tf.where(known, clicked, 0.0), known)


def _uploader_click_count(requests: RawRequests) -> tf.Tensor:
    clicked = requests.impressions.value == 1
    return _count(requests.same_uploader_impressions & clicked[:, tf.newaxis, :])


def _video_age_s(requests: RawRequests) -> tf.Tensor:
    upload_us = gather_videos(requests.videos.upload_us, requests.candidate)
    return seconds_between(upload_us, requests.now_us[:, tf.newaxis])


CONTINUOUS: Mapping[Derivation, Callable[[RawRequests], tf.Tensor]] = {
    Derivation.WATCH_COUNT: lambda r: _count(r.watches.valid),
    Derivation.SECONDS_SINCE_LAST_WATCH: _seconds_since_last_watch,
    Derivation.MEAN_WATCH_TIME_S: _mean_watch_time_s,
    Derivation.IMPRESSION_COUNT: lambda r: _count(r.impressions.valid),
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
"""Continuous derivations: requests -> float32 `[B]` (query side) or `[B, C]` (impression side)."""


def _equal(rows: tf.Tensor, candidate: tf.Tensor, nothing: int) -> tf.Tensor:
    """bool `[B, C, n]`: `rows` `[B, n]` equal to `candidate` `[B, C]`, which equals nothing where it is `nothing`."""
    return (rows[:, tf.newaxis, :] == candidate[:, :, tf.newaxis]) & (candidate != nothing)[:, :, tf.newaxis]


def _count(matches: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(matches, tf.float32), axis=-1)


def _ratio(values: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    """float32 mean of float64 `values` `[B, n]` over `counted`, NaN without any."""
    count = tf.reduce_sum(tf.cast(counted, tf.float64), axis=1)
    return tf.cast(tf.where(count > 0, tf.reduce_sum(values, axis=1) / tf.maximum(count, 1.0), np.nan), tf.float32)
