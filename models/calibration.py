"""Calibration of expected watch time: a monotone function fitted on impressions the ranker was not trained on.

Impressions are sorted by the raw expectation and cut into bins of equally many watched impressions, so that all bins'
mean watch times are about equally certain; the means are made to ascend by isotonic regression, and the function is
linear between the bins' means and proportional outside them. One bin is a single multiplicative factor. The fit is
NumPy; the function is a layer, so that its points are saved with the weights and it runs inside the exported graph.
Being monotone, it never reorders two impressions by their expected watch time; the `score` that orders the list does
not pass through it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras
from pydantic import Field
from scipy.optimize import isotonic_regression

from features.errors import ConfigError, DataError
from features.settings import Settings


class CalibrationConfig(Settings):
    """How finely expected watch time is calibrated."""

    # Bins of equally many watched impressions; 1 is one factor for all. More bins follow the curve closer and are less
    # certain, each.
    bins: int = Field(default=10, ge=1)
    # Fewer bins are used where one would hold less than this many watched impressions: a bin's mean watch time is as
    # uncertain as its few watches are different.
    min_watched_per_bin: int = Field(default=250, ge=1)


class Expectations(NamedTuple):
    """Raw expectations beside what happened, float `[n]` each.

    `raw_s`: expected watch time before calibration; `watch_time_s`: what was watched, 0 where not clicked; `weight`:
    what each impression counts, `1 / keep rate` for down-sampled negatives.
    """

    raw_s: np.ndarray
    watch_time_s: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class CalibrationPoints:
    """The corners of the calibration function.

    Args:
      raw_s: float64 `[n]`, positive, strictly ascending: mean raw expectations in seconds.
      calibrated_s: float64 `[n]`, positive, ascending: what they become.
    """

    raw_s: np.ndarray
    calibrated_s: np.ndarray

    def __post_init__(self) -> None:
        raw, calibrated = self.raw_s, self.calibrated_s
        if (
            raw.ndim != 1
            or raw.shape != calibrated.shape
            or not len(raw)
            or not (raw > 0).all()
            or not (calibrated > 0).all()
            or not (np.diff(raw) > 0).all()
            or not (np.diff(calibrated) >= 0).all()
        ):
            raise ConfigError(
                "calibration needs positive ascending points of one length; found "
                f"raw_s={raw.tolist()}, calibrated_s={calibrated.tolist()}; fit it again"
            )

    def apply(self, expected_watch_time_s: np.ndarray) -> np.ndarray:
        """The function, in NumPy: float64 like its input."""
        x = np.asarray(expected_watch_time_s, np.float64)
        ends = np.where(x < self.raw_s[0], 0, -1)
        outside = x * (self.calibrated_s[ends] / self.raw_s[ends])
        inside = np.interp(x, self.raw_s, self.calibrated_s)
        return np.where((x < self.raw_s[0]) | (x > self.raw_s[-1]), outside, inside)

    def padded(self, size: int) -> "CalibrationPoints":
        """The same function with `size` points: the added ones lie on the proportional part above the last."""
        powers = np.concatenate([np.zeros(len(self.raw_s)), np.arange(1, size - len(self.raw_s) + 1)])
        index = np.minimum(np.arange(size), len(self.raw_s) - 1)
        return CalibrationPoints(self.raw_s[index] * 2.0**powers, self.calibrated_s[index] * 2.0**powers)


def fit_watch_time_calibration(
    expected_watch_time_s: np.ndarray,
    watch_time_s: np.ndarray,
    config: CalibrationConfig,
    weight: np.ndarray | None = None,
) -> CalibrationPoints:
    """Fits the calibration so that the total expectation of these impressions is their total watch time.

    Args:
      expected_watch_time_s: float `[n]`, the ranker's raw expectations of impressions it was not trained on.
      watch_time_s: float `[n]`, what was watched in seconds; 0 where the impression was not clicked.
      config: see `CalibrationConfig`.
      weight: float `[n]`, what each impression counts, default one; `1 / keep rate` for down-sampled negatives.

    Raises:
      DataError: there are no impressions, no watch time, or an expectation is not finite and positive.
    """
    x = np.asarray(expected_watch_time_s, np.float64)
    y = np.asarray(watch_time_s, np.float64)
    w = np.ones_like(x) if weight is None else np.asarray(weight, np.float64)
    if not len(x) or not np.sum(w * y) > 0:
        raise DataError(f"calibration needs impressions with watch time; found {len(x)} impressions, {y.sum():g} s")
    usable = np.isfinite(x) & (x > 0)
    if not usable.all():
        raise DataError(
            f"calibration needs finite positive expectations; {np.sum(~usable)} of {len(x)} are not: "
            "the ranker's training diverged, lower its learning rate"
        )
    order = np.argsort(x, kind="stable")
    x, y, w = x[order], y[order], w[order]
    starts = _starts_of_bins(y > 0, config)
    # Bins of equal float32 expectation are one: the layer could not tell them apart.
    means = (np.add.reduceat(w * x, starts) / np.add.reduceat(w, starts)).astype(np.float32)
    starts = starts[np.concatenate([[True], np.diff(means) > 0])]
    weights = np.add.reduceat(w, starts)
    fitted = isotonic_regression(np.add.reduceat(w * y, starts) / weights, weights=weights)
    starts = starts[fitted.blocks[:-1]]
    weights = np.add.reduceat(w, starts)
    raw = np.add.reduceat(w * x, starts) / weights
    actual = np.add.reduceat(w * y, starts) / weights
    actual = np.maximum(actual, 1e-6 * actual.max())  # where a whole bin watched nothing
    # Interpolation between the bins' means does not keep the total; one factor restores it.
    factor = np.sum(w * y) / np.sum(w * CalibrationPoints(raw, actual).apply(x))
    return CalibrationPoints(raw, actual * factor)


def _starts_of_bins(watched: np.ndarray, config: CalibrationConfig) -> np.ndarray:
    """First rows of bins of equally many watched rows, cut midway between two of them."""
    at = np.flatnonzero(watched)
    bins = max(1, min(config.bins, len(at) // config.min_watched_per_bin))
    after = np.arange(1, bins) * len(at) // bins
    return np.concatenate([[0], (at[after - 1] + at[after] + 2) // 2])


def at_equal_rank(before: np.ndarray, after: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """For each expectation of one ranker, that of another ranker at the same rank.

    A ranker trained anew on more data, the calibration's impressions among it, has expectations of another level (two
    trainings differ by several percent), and its own of impressions it was trained on follow their labels too closely
    to be calibrated on. The distribution of its expectations is hardly touched by that: who is ranked where comes
    from the ranker that had not seen these impressions, how large the expectation at that rank is from the new one.

    Args:
      before: float `[n]`, expectations of the ranker that was not trained on these impressions.
      after: float `[n]`, those of the other ranker for the same impressions.
      weight: float `[n]`, what each impression counts, default one.

    Returns:
      float64 `[n]`, ascending where `before` ascends, with the distribution of `after`.
    """
    w = np.ones(len(before)) if weight is None else np.asarray(weight, np.float64)
    order, order_after = np.argsort(before, kind="stable"), np.argsort(after, kind="stable")
    rank = np.cumsum(w[order]) - w[order] / 2
    rank_after = np.cumsum(w[order_after]) - w[order_after] / 2
    found = np.empty(len(before))
    found[order] = np.interp(rank, rank_after, np.asarray(after, np.float64)[order_after])
    return found


class WatchTimeCalibration(tf_keras.layers.Layer):
    """Applies `CalibrationPoints` inside the graph; the identity until `assign` is called.

    Args:
      num_points: the most points it can hold, `CalibrationConfig.bins`.
    """

    def __init__(self, num_points: int) -> None:
        super().__init__(name="watch_time_calibration", trainable=False, dtype="float32")
        self._num_points = max(2, num_points)
        identity = CalibrationPoints(np.ones(1), np.ones(1)).padded(self._num_points).raw_s
        self.raw_s = self.add_weight(
            "raw_s", [self._num_points], initializer=tf_keras.initializers.Constant(identity), trainable=False
        )
        self.calibrated_s = self.add_weight(
            "calibrated_s", [self._num_points], initializer=tf_keras.initializers.Constant(identity), trainable=False
        )
        self.built = True

    def assign(self, points: CalibrationPoints) -> None:
        """Takes fitted points over."""
        padded = points.padded(self._num_points)
        self.raw_s.assign(padded.raw_s.astype(np.float32))
        self.calibrated_s.assign(padded.calibrated_s.astype(np.float32))

    def call(self, expected_watch_time_s: tf.Tensor) -> tf.Tensor:
        """Calibrated expected watch time in seconds, `[...]` like its input."""
        x = tf.cast(expected_watch_time_s, tf.float32)
        raw, calibrated = tf.convert_to_tensor(self.raw_s), tf.convert_to_tensor(self.calibrated_s)
        right = tf.reshape(tf.searchsorted(raw, tf.reshape(x, [-1]), side="right"), tf.shape(x))
        right = tf.clip_by_value(right, 1, self._num_points - 1)
        raw_left, raw_right = tf.gather(raw, right - 1), tf.gather(raw, right)
        left = tf.gather(calibrated, right - 1)
        inside = left + (x - raw_left) * (tf.gather(calibrated, right) - left) / (raw_right - raw_left)
        below = x * (calibrated[0] / raw[0])
        above = x * (calibrated[-1] / raw[-1])
        return tf.where(x < raw[0], below, tf.where(x > raw[-1], above, inside))
