"""The last watches' own way into the query vector: a factorized transition matrix.

A tower that averages a bag forgets which watch was the last. Here every watch adds its input vector to the query vector
with a learned weight by its place k from the last watch,

    q = tower(x) + g · Σ_k w_k a_k / √(Σ_k w_k),    w_k > 0, k = 0 the last watch,

so that with output vectors b the score of video j holds Σ_k w_k a_k · b_j: transitions between videos, factorized as in
Rendle et al. 2010 (FPMC) and weighted by place as in He and McAuley 2016 (Fossil), who normalise by a root of the
history's length too (after Kabbur et al. 2013). Beyond Covington et al. 2016.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from features.errors import ConfigError
from features.spec import Feature

_FIRST_DECAY = 0.9  # of the weights before training, from one watch to the one before it


class FactorizedTransitions(tf_keras.layers.Layer):
    """Weights of places, and the scale g.

    Args:
      bag: the feature that holds the last watches.
    """

    def __init__(self, bag: Feature, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.bag = bag
        length = bag.max_length or 1
        decays = tf_keras.initializers.Constant(np.log(_FIRST_DECAY) * np.arange(length))
        self.log_weights = self.add_weight("log_weights", shape=(length,), initializer=decays)
        self.scale = self.add_weight("scale", shape=(), initializer="ones")
        self.built = True

    def call(self, rows: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """The sum over the watches.

        Args:
          rows: `[batch, length]` int32, oldest first; 0 is padding or out of vocabulary, and takes no place.
          vectors: `[batch, length, d]` float32, of the rows.

        Returns:
          `[batch, d]` float32; zeros where nothing known was watched.
        """
        known = tf.cast(rows != 0, tf.float32)
        from_last = tf.cumsum(tf.cast(rows != 0, tf.int32), axis=1, exclusive=True, reverse=True)
        weights = known * tf.gather(tf.exp(self.log_weights), tf.minimum(from_last, self.log_weights.shape[0] - 1))
        total = tf.reduce_sum(weights, axis=1, keepdims=True)
        summed = tf.squeeze(tf.matmul(weights[:, tf.newaxis], vectors), axis=1)
        return self.scale * tf.math.divide_no_nan(summed, tf.sqrt(total))


def longest_history(features: Iterable[Feature]) -> Feature:
    """Of the bags of watched videos.

    Raises:
      ConfigError: there is none.
    """
    bags = [f for f in features if f.source == "history.watched_video_ids" and f.id_space == "video"]
    if not bags:
        raise ConfigError(
            "two-tower model: transitions need a bag of watched videos (source history.watched_video_ids, id space "
            "video), found none in the specification; set transitions to false"
        )
    return max(bags, key=lambda bag: bag.max_length or 1)
