"""What the ranker's first layer reads of one side, query or impression (Covington et al. 2016, section 4, Figure 7)."""

from collections.abc import Mapping

import tensorflow as tf
import tf_keras

from features.quantiles import Quantiles
from features.spec import Feature, Kind, Normaliser
from models.candidate_generator import replicas
from models.embeddings import SharedEmbeddings
from models.quantile_normalization import QuantileNormalization
from models.scaling import powers as with_powers
from models.scaling import scale


class SideInputs(tf_keras.layers.Layer):
    """Features of one side as one vector: embeddings, then x̃, x̃², √x̃ and "is missing" of the continuous ones.

    Missing is told apart from the least value by an input of its own, 1 where the value is NaN.

    Args:
      features: of one side, in the order of the concatenation.
      embeddings: the tables shared by both sides.
      quantiles: feature name -> its quantiles, for the features of `Normaliser.QUANTILE`.
      powers: feed x̃² and √x̃ of normalised features too.
      id_dropout: share of ids that training replaces by out-of-vocabulary.
      embedding_l2: weight of the mean squared length of the batch's embeddings in the training loss.
    """

    def __init__(
        self,
        features: tuple[Feature, ...],
        embeddings: SharedEmbeddings,
        quantiles: Mapping[str, Quantiles],
        powers: bool,
        id_dropout: float,
        embedding_l2: float,
        name: str,
    ) -> None:
        # The inputs are raw values; half precision would round them before they are normalised.
        super().__init__(name=name, autocast=False)
        self._categorical = tuple(f for f in features if f.kind == Kind.CATEGORICAL)
        self._scaled = tuple(f for f in features if f.normaliser == Normaliser.SCALE)
        self._quantile = tuple(f for f in features if f.normaliser == Normaliser.QUANTILE)
        self._embeddings = embeddings
        self._powers, self._id_dropout, self._embedding_l2 = powers, id_dropout, embedding_l2
        self._normalise = (
            QuantileNormalization({f.name: quantiles[f.name] for f in self._quantile}) if self._quantile else None
        )
        per_value = 3 if powers else 1
        continuous = len(self._scaled) + len(self._quantile)
        self.width = sum(embeddings.dimension(f) for f in self._categorical)
        self.width += per_value * len(self._quantile) + len(self._scaled) + continuous
        self.width = max(self.width, 1)

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Tensors by feature name, `[...]` or bags `[..., max_length]` -> `[..., width]`."""
        parts = [self._embed(feature, inputs[feature.name], training) for feature in self._categorical]
        if self._scaled or self._quantile:
            raw = [tf.cast(inputs[f.name], tf.float32) for f in (*self._scaled, *self._quantile)]
            stacked = tf.stack(raw, axis=-1)
            parts += [scale(f, value)[..., tf.newaxis] for f, value in zip(self._scaled, raw, strict=False)]
            if self._normalise is not None:
                normalised = self._normalise(stacked[..., len(self._scaled) :])
                parts += with_powers(normalised) if self._powers else [normalised]
            parts.append(tf.cast(tf.math.is_nan(stacked), tf.float32))
        if not parts:  # no query features: one row for all requests; TensorFlow's fused dense layer needs a column
            return tf.zeros([1, 1], self.compute_dtype)
        return tf.concat([tf.cast(part, self.compute_dtype) for part in parts], axis=-1)

    def _embed(self, feature: Feature, rows: tf.Tensor, training: bool) -> tf.Tensor:
        if training and self._id_dropout:
            rows = tf.where(tf.random.uniform(tf.shape(rows)) < self._id_dropout, 0, rows)
        vector = self._embeddings(feature, rows)
        if training and self._embedding_l2:
            squares = tf.reduce_sum(tf.square(tf.cast(vector, tf.float32)), axis=-1)
            self.add_loss(self._embedding_l2 * tf.reduce_mean(squares) / replicas())
        return vector
