"""Embedding tables: one per id space, row 0 a zero vector that stays zero, bags averaged.

Covington et al. 2016, section 3.2 (averaged bags of watches) and section 4.1 (one table per id space shared by all
its features and fed separately, dimension growing with the logarithm of the vocabulary, out-of-vocabulary values a
zero vector).
"""

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from features.spec import Feature


def embedding_dimension(vocabulary_size: int, per_doubling: float = 1.6, minimum: int = 2) -> int:
    """Dimension that grows with the logarithm of the vocabulary (Covington et al. 2016, section 4.1).

    Args:
      vocabulary_size: number of ids, without row 0.
      per_doubling: dimensions added each time the vocabulary doubles; the default gives 32 for one million ids, the
        paper's example.
      minimum: the least dimension.
    """
    return max(minimum, math.ceil(per_doubling * math.log2(max(vocabulary_size, 1))))


class ZeroFirstRowNormal(tf_keras.initializers.Initializer):
    """Normal initial values with row 0 zero; also for a table that is partitioned by rows over parameter servers.

    Args:
      stddev: standard deviation of the other rows.
      seed: None draws from the global seed.
      mean: of the other rows.
      last_at_mean: the last row is the mean itself.
    """

    def __init__(self, stddev: float, seed: int | None = None, mean: float = 0.0, last_at_mean: bool = False) -> None:
        self.stddev = stddev
        self.seed = seed
        self.mean = mean
        self.last_at_mean = last_at_mean

    def __call__(self, shape: Any, dtype: Any = None, **kwargs: Any) -> tf.Tensor:
        offset = kwargs["partition_offset"][0] if "partition_offset" in kwargs else 0
        last = shape[0] - 1
        shape = kwargs.get("partition_shape", shape)
        dtype = tf.as_dtype(dtype or tf.float32)
        # One partition must not repeat the numbers of another.
        seed = None if self.seed is None else self.seed + offset
        values = tf_keras.initializers.RandomNormal(self.mean, self.stddev, seed)(shape, dtype=dtype)
        rows = tf.range(offset, offset + shape[0])[:, tf.newaxis]
        if self.last_at_mean:
            values = tf.where(rows == last, tf.cast(self.mean, dtype), values)
        return values * tf.cast(rows > 0, dtype)

    def get_config(self) -> dict[str, Any]:
        return {"stddev": self.stddev, "seed": self.seed, "mean": self.mean, "last_at_mean": self.last_at_mean}


class EmbeddingTable(tf_keras.layers.Layer):
    """Learned vectors of one id space.

    Row 0 (padding and out-of-vocabulary) gives zeros and receives no gradient, so that no optimizer moves it. The
    gradient of the table is sparse (`tf.IndexedSlices`). Under mixed precision the table stays float32 and what is
    gathered is cast.

    Args:
      vocabulary_size: number of ids; the table has `vocabulary_size + 1` rows.
      dimension: length of a vector.
      stddev: of the initial values; None is `1 / sqrt(dimension)`.
      mean: of the initial values.
      last_at_mean: the last row starts at the mean: for what training may never meet.
    """

    def __init__(
        self,
        vocabulary_size: int,
        dimension: int,
        stddev: float | None = None,
        mean: float = 0.0,
        last_at_mean: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.dimension = dimension
        self.stddev = stddev
        self.mean = mean
        self.embeddings = self.add_weight(
            "embeddings",
            shape=(vocabulary_size + 1, dimension),
            dtype=tf.float32,
            initializer=ZeroFirstRowNormal(
                1 / math.sqrt(dimension) if stddev is None else stddev, mean=mean, last_at_mean=last_at_mean
            ),
            experimental_autocast=False,  # would cast the whole table before each gather
        )
        self.built = True

    def call(self, rows: tf.Tensor) -> tf.Tensor:
        """The vector of each row: `[...]` int32 -> `[..., dimension]`; row 0 gives zeros."""
        vectors = tf.cast(tf.nn.embedding_lookup(self.embeddings, rows), self.compute_dtype)
        return vectors * tf.cast(rows != 0, self.compute_dtype)[..., tf.newaxis]

    def bag(self, rows: tf.Tensor) -> tf.Tensor:
        """The average over the rows that are in the vocabulary: `[..., length]` int32 -> `[..., dimension]`.

        A bag without any gives zeros.
        """
        # Padding is gathered too and weighs nothing: leaving it out would make shapes dynamic, and XLA then computes
        # wrong sparse gradients without a word.
        return tf.cast(average(rows, tf.nn.embedding_lookup(self.embeddings, rows)), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "dimension": self.dimension,
            "stddev": self.stddev,
            "mean": self.mean,
        }


def average(rows: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
    """Of vectors whose rows are not 0: `[..., length]` int32 and `[..., length, d]` -> `[..., d]`; zeros of none."""
    known = tf.cast(rows != 0, vectors.dtype)
    weights = tf.math.divide_no_nan(known, tf.reduce_sum(known, axis=-1, keepdims=True))
    return tf.squeeze(tf.matmul(weights[..., tf.newaxis, :], vectors), axis=-2)


class SharedEmbeddings(tf_keras.layers.Layer):
    """One table per id space, shared by all features of the space, each feature fed separately.

    Args:
      vocabulary_sizes: id space -> number of ids.
      dimensions: id space -> dimension; names the tables that are made.
      stddev: of the initial values of every table; None is `1 / sqrt(dimension)`.

    Example:
      >>> tables = SharedEmbeddings({"video": 1000}, {"video": 8})
      >>> watched = Feature("watched", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", 50)
      >>> tables(watched, tf.zeros([2, 50], tf.int32)).shape
      TensorShape([2, 8])
    """

    def __init__(
        self,
        vocabulary_sizes: Mapping[str, int],
        dimensions: Mapping[str, int],
        stddev: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tables = {
            space: EmbeddingTable(
                vocabulary_sizes[space], dimension, stddev, name=f"{space}_embeddings", dtype=self.dtype_policy
            )
            for space, dimension in sorted(dimensions.items())
        }
        self.built = True

    def table(self, feature: Feature) -> EmbeddingTable:
        """The table of the feature's id space."""
        return self.tables[str(feature.id_space)]

    def dimension(self, feature: Feature) -> int:
        return self.table(feature).dimension

    def call(self, feature: Feature, rows: tf.Tensor) -> tf.Tensor:
        """The feature's input to the network: `[...]` or, multivalent, `[..., length]` rows -> `[..., dimension]`."""
        table = self.table(feature)
        return table.bag(rows) if feature.multivalent else table(rows)
