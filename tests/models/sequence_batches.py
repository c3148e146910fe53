"""Histories of known content for the tests of sequence models."""

import numpy as np
import tensorflow as tf

from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from models.sequence_generator import attach_step_labels

LENGTH = 5
SIZES = {"video": 7, "uploader": 3, "page": 2, "device": 2}
DAY = 86_400.0
NAN = np.nan


def rows_of(name: str, source: str, space: str, length: int | None = None) -> Feature:
    return Feature(name, Kind.CATEGORICAL, Side.QUERY, source, space, length)


def number(name: str, source: str, length: int | None = None, high: float = 1.0) -> Feature:
    scale = Normaliser.SCALE
    return Feature(name, Kind.CONTINUOUS, Side.QUERY, source, max_length=length, normaliser=scale, high=high)


SPEC = FeatureSpec(
    (
        rows_of("watched_video_ids", "history.watched_video_ids", "video", LENGTH),
        rows_of("watched_uploader_ids", "history.watched_uploader_ids", "uploader", LENGTH),
        rows_of("watched_page", "watches.page", "page", LENGTH),
        rows_of("watched_device", "watches.device", "device", LENGTH),
        number("watched_share", "watches.share", LENGTH, high=10.0),
        number("seconds_to_next_watch", "history.seconds_to_next_watch", LENGTH, high=DAY),
        number("watched_time_s", "history.watched_time_s", LENGTH, high=1000.0),
        number("watch_count", "history.watch_count", high=100.0),
        rows_of("page", "request.page", "page"),
        rows_of("device", "request.device", "device"),
        number("share", "request.share", high=10.0),
        number("example_age", "request.example_age", high=DAY),
        number("time_of_week", "request.time_of_week", high=7 * DAY),
    )
)


def batch() -> dict[str, np.ndarray]:
    """Four requests: after three watches (the second one out of the vocabulary), none, one, and more than fit."""
    return {
        "watched_video_ids": np.array([[1, 0, 3, 0, 0], [0, 0, 0, 0, 0], [2, 0, 0, 0, 0], [4, 5, 6, 7, 1]], np.int32),
        "watched_uploader_ids": np.array(
            [[1, 0, 2, 0, 0], [0, 0, 0, 0, 0], [3, 0, 0, 0, 0], [1, 2, 3, 1, 2]], np.int32
        ),
        "watched_page": np.array([[1, 2, 1, 0, 0], [0, 0, 0, 0, 0], [2, 0, 0, 0, 0], [1, 1, 2, 2, 1]], np.int32),
        "watched_device": np.array([[1, 1, 2, 0, 0], [0, 0, 0, 0, 0], [2, 0, 0, 0, 0], [2, 1, 2, 1, 2]], np.int32),
        "watched_share": np.array(
            [[1, 9, 5, NAN, NAN], [NAN] * 5, [NAN, NAN, NAN, NAN, NAN], [0, 2, 4, 6, 8]], np.float32
        ),
        "seconds_to_next_watch": np.array(
            [[60, 0, 3600, NAN, NAN], [NAN] * 5, [1e9, NAN, NAN, NAN, NAN], [30, NAN, 5, 7, 100]], np.float32
        ),
        "watched_time_s": np.array(
            [[20, NAN, 300, NAN, NAN], [NAN] * 5, [15, NAN, NAN, NAN, NAN], [10, 20, 2, 7, NAN]], np.float32
        ),
        "watch_count": np.array([3, 0, 1, 90], np.float32),
        "page": np.array([2, 1, 0, 1], np.int32),
        "device": np.array([1, 2, 2, 0], np.int32),
        "share": np.array([5, 1, NAN, 3], np.float32),
        "example_age": np.array([0, 10, 20, 30], np.float32),
        "time_of_week": np.array([1800, NAN, 7 * DAY - 1, 50 * 3600], np.float32),
        "label": np.array([5, 6, 0, 2], np.int32),
        "weight": np.array([1, 2, 1, 0.5], np.float32),
        "label_weights": np.array([[0, 1, 0.25, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 1, 3]], np.float32),
    }


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in arrays.items()}


def training_batch(arrays: dict[str, np.ndarray] | None = None) -> dict[str, tf.Tensor]:
    """A batch with the labels of its steps."""
    return attach_step_labels(tensors(batch() if arrays is None else arrays))


def changed(name: str, row: int, position: int | None, value: float) -> dict[str, np.ndarray]:
    """The batch with one value replaced: of an event, or of the request where the position is None."""
    arrays = batch()
    arrays[name][(row, position) if position is not None else row] = value
    return arrays


def cut(arrays: dict[str, np.ndarray], row: int, length: int) -> dict[str, np.ndarray]:
    """One request, with its lists cut to the given length."""
    return {
        name: values[row : row + 1, :length] if values.ndim == 2 else values[row : row + 1]
        for name, values in arrays.items()
    }
