"""Continuous features of `Normaliser.SCALE`: linear from [low, high] to [0, 1], as the candidate generator's
demographic inputs are ("real values normalized to [0, 1]", Covington et al. 2016, section 3.3).
"""

import tensorflow as tf

from features.spec import Feature

MISSING = 0.5  # what a missing (NaN) value becomes: the middle of the range


def scale(feature: Feature, values: tf.Tensor) -> tf.Tensor:
    """Maps raw float32 values of any shape linearly from `[feature.low, feature.high]` to [0, 1].

    Values outside the range are clipped, except that a serving value below `low` stays below zero: the example age may
    be set slightly negative at serving (section 3.3). Missing values become 0.5.
    """
    span = feature.high - feature.low
    least = 0.0
    if isinstance(feature.serving_value, int | float):
        least = min(0.0, (feature.serving_value - feature.low) / span)
    scaled = tf.clip_by_value((values - feature.low) / span, least, 1.0)
    return tf.where(tf.math.is_nan(values), MISSING, scaled)


def powers(scaled: tf.Tensor) -> list[tf.Tensor]:
    """x, x² and √x of a scaled value (section 4.1), with √x zero below zero."""
    # The gradient of a square root is infinite at zero, so it is kept from the inputs' zeros.
    positive = scaled > 0
    root = tf.where(positive, tf.sqrt(tf.where(positive, scaled, 1.0)), 0.0)
    return [scaled, tf.square(scaled), root]
