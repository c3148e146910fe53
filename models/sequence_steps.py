"""The steps of a sequence: which tensor of a batch belongs to which of them.

A history is a list of n events, oldest first, padded on the right to L. Step s in 0..L is the moment after s events:
the state there has seen events 0..s-1, and what is predicted is event s (for s < n) or the request's watch (for s = n).
Steps after n mean nothing and count for nothing. Lengths come from `watch_count`, never from an id that is zero, so
that an out-of-vocabulary watch is a step like any other.
"""

from collections.abc import Mapping

import tensorflow as tf

WATCHED_VIDEOS = "watched_video_ids"  # [batch, L] int32 rows
WATCH_COUNT = "watch_count"  # [batch] float32, watches in the `watch_window`; it may exceed L


def history_lengths(features: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The number n of events in each list: `watch_count`, at most L; a missing count (NaN) is 0. `[batch]` int32."""
    watched, counts = features[WATCHED_VIDEOS], features[WATCH_COUNT]
    known = tf.where(tf.math.is_nan(counts), 0.0, counts)
    return tf.cast(tf.clip_by_value(known, 0.0, tf.cast(tf.shape(watched)[1], tf.float32)), tf.int32)


def of_next_event(events: tf.Tensor, request: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """What each step predicts, or its context: of event s for s < n, of the request for s = n.

    Args:
      events: `[batch, L]`.
      request: `[batch]`, of the same type.
      lengths: `[batch]` int32, n.

    Returns:
      `[batch, L + 1]`.
    """
    request = request[:, tf.newaxis]
    padded = tf.concat([events, request], axis=1)
    at_request = tf.range(tf.shape(padded)[1])[tf.newaxis] == lengths[:, tf.newaxis]
    return tf.where(at_request, request, padded)


def of_last_event(events: tf.Tensor, none: int | float = 0) -> tf.Tensor:
    """What each step has seen last: of event s - 1, and `none` for s = 0.

    Args:
      events: `[batch, L]` or `[batch, L, width]`.
      none: the value where nothing happened yet.

    Returns:
      `[batch, L + 1]` or `[batch, L + 1, width]`.
    """
    before = [[0, 0], [1, 0], *[[0, 0]] * (events.shape.rank - 2)]
    return tf.pad(events, before, constant_values=none)


def at_request(steps: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Step n of each history: `[batch, L + 1, ...]` -> `[batch, ...]`."""
    return tf.gather(steps, lengths, axis=1, batch_dims=1)
