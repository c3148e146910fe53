"""Quantile normalization inside the graph: the twin of `features.quantiles.normalise`.

Covington et al. 2016, section 4.1: x̃ = ∫_{-∞}^{x} df, by linear interpolation on the quantiles of the training data.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras

from features.errors import ConfigError
from features.quantiles import LARGEST_BELOW_ONE, Quantiles


class QuantileNormalization(tf_keras.layers.Layer):
    """Maps raw values of several features to [0, 1), each by its own distribution.

    Computed in float64 by the formula and the conventions of `features.quantiles.normalise` (repeated boundaries,
    values outside the range, NaN), all features at once.

    Args:
      quantiles: feature name -> its quantiles, in the order of the inputs' last axis; at least one feature, all with
        the same number of boundaries.

    Example:
      >>> layer = QuantileNormalization({"age": Quantiles(np.array([0.0, 2.0, 6.0]), 3, 0, 0.0)})
      >>> layer(tf.constant([[1.0], [4.0], [np.nan]])).numpy().tolist()
      [[0.25], [0.75], [0.0]]
    """

    def __init__(self, quantiles: Mapping[str, Quantiles]) -> None:
        # float64: inputs must reach the comparison unrounded whatever the global precision policy is.
        super().__init__(name="quantile_normalization", trainable=False, dtype="float64")
        lengths = {len(q.boundaries) for q in quantiles.values()}
        if len(lengths) != 1:
            raise ConfigError(
                "quantile normalization needs one or more features of equally many boundaries; found "
                f"{sorted(lengths)} for {', '.join(quantiles) or 'no features'}; fit the quantiles again"
            )
        self._boundaries = np.stack([q.boundaries for q in quantiles.values()]).astype(np.float64)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Raw values `[..., features]` -> float32 `[..., features]` in [0, 1); NaN gives 0."""
        boundaries = tf.constant(self._boundaries)
        last = self._boundaries.shape[1] - 1
        missing = tf.math.is_nan(inputs)
        # One row of values per feature, beside its row of boundaries.
        x = tf.transpose(tf.reshape(tf.where(missing, tf.zeros_like(inputs), inputs), [-1, len(self._boundaries)]))
        below = tf.searchsorted(boundaries, x, side="left")
        upto = tf.searchsorted(boundaries, x, side="right")
        low = tf.gather(boundaries, tf.clip_by_value(below - 1, 0, last), batch_dims=1)
        high = tf.gather(boundaries, tf.clip_by_value(below, 0, last), batch_dims=1)
        inside = (upto == below) & (below > 0) & (below <= last)
        step = tf.where(inside, x - low, 0.0) / tf.where(inside, high - low, 1.0)
        below_rank, upto_rank = tf.cast(below, tf.float64), tf.cast(upto, tf.float64)
        rank = tf.where(upto > below, (below_rank + upto_rank - 1.0) / 2.0, below_rank - 1.0 + step)
        normalised = tf.clip_by_value(rank / last, 0.0, LARGEST_BELOW_ONE)
        normalised = tf.reshape(tf.transpose(normalised), tf.shape(inputs))
        return tf.cast(tf.where(missing, tf.zeros_like(normalised), normalised), tf.float32)
