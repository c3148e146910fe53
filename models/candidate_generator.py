"""What every candidate generator has in common: a query tower, video vectors, and a softmax over videos.

Covington et al. 2016, section 3.1: P(watch i | U, C) = exp(v_i · u) / Σ_j exp(v_j · u). Evaluation, export, index and
funnel are written against this interface once; the two-tower model is one generator, sequence models are others.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Protocol

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from features.errors import ExportError
from features.spec import Feature, FeatureSpec, Kind, Side

LABEL = "label"  # row of the label's video; 0 (out of vocabulary) counts for nothing in the loss
WEIGHT = "weight"  # of an example in the loss
LAST_WATCH = "last_watch"  # row of the video watched before each label; of generators of sequences
STEP_LABELS = "step_labels"  # of sequence models, [batch, L + 1]: row of what each step predicts, 0 for nothing
STEP_WEIGHTS = "step_weights"  # [batch, L + 1] float32: of each step in the loss


class SoftmaxLoss(Protocol):
    """The loss part of a generator: sampled, full, in-batch (`models/sampled_softmax.py`), hierarchical softmax, or one
    over the videos co-watched with the last watch.

    `layer` holds weights of the loss's own, None without any; the generator keeps it. `dot_products` says whether what
    orders videos is their dot product with the query, as an index of vectors needs.
    """

    layer: tf_keras.layers.Layer | None = None
    dot_products: bool = True

    def __call__(
        self, generator: "CandidateGenerator", queries: tf.Tensor, inputs: Mapping[str, tf.Tensor], training: bool
    ) -> tf.Tensor:
        """The loss of each example: queries `[batch, dimension]` and the whole batch of inputs -> `[batch]` float32."""
        ...

    def class_scores(
        self, queries: tf.Tensor, vectors: tf.Tensor, features: Mapping[str, tf.Tensor] | None = None
    ) -> tf.Tensor:
        """See `CandidateGenerator.class_scores`."""
        return tf.matmul(queries, vectors, transpose_b=True)


class TrainedModel(tfrs.models.Model):
    """Base of all models: their training step is traced once.

    What makes variables while it is traced is traced a second time, so the optimizer makes its own before.
    """

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As Keras's, for a model that has all its weights."""
        super().compile(*args, **kwargs)
        self.optimizer.build(self.trainable_variables)


class CandidateGenerator(TrainedModel):
    """Base of the candidate generators. Query vector and video vector meet in a dot product, without bias.

    A batch is a dict: for each query feature of the spec its tensor (univalent rows `[batch]` int32, multivalent rows
    `[batch, max_length]` int32 padded with 0 on the right, continuous `[batch]` float32 with NaN for missing), `label`
    `[batch]` int32, optional `weight` `[batch]` float32, and what the loss needs (negatives drawn in the input
    pipeline, see `models/samplers.py`).

    Args:
      spec: the features of the model.
      num_classes: number of videos in the vocabulary; row r in 1..num_classes is class r - 1.
      dimension: length d of query and video vectors.
      softmax: the loss part.
    """

    def __init__(self, spec: FeatureSpec, num_classes: int, dimension: int, softmax: SoftmaxLoss) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes
        self.dimension = dimension
        self.softmax = softmax
        self.softmax_layer = softmax.layer
        self.cross_entropy = tf_keras.metrics.Mean("cross_entropy")

    def query_embeddings(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The query tower: a batch of query features -> `[batch, dimension]` float32."""
        raise NotImplementedError

    @cached_property
    def embed_queries(self) -> Callable[[Mapping[str, Any]], tf.Tensor]:
        """`query_embeddings` of the present weights as a graph, which is traced once for batches of any size."""
        features = self.spec.side(Side.QUERY)
        return tf.function(lambda batch: self.query_embeddings(batch), [batch_signature(features)], autograph=False)

    def class_embeddings(self, rows: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Vectors of videos of the vocabulary: `[n]` rows in 1..num_classes -> `[n, dimension]` float32."""
        raise NotImplementedError

    def video_embeddings(self, columns: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Vectors of any videos, in the vocabulary or not.

        Args:
          columns: `video` `[n]` int32 (row, 0 for a video without a class) and the rows of each feature that
            `video_attributes` names, `[n]` or `[n, length]` int32 padded with 0.

        Returns:
          `[n, dimension]` float32; zeros for a video about which the generator knows nothing.

        Raises:
          ExportError: the generator's scores are not dot products with such vectors.
        """
        raise NotImplementedError

    def class_scores(
        self, queries: tf.Tensor, vectors: tf.Tensor, features: Mapping[str, tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Scores that order the videos of the vocabulary: dot products, or what the loss has in their place.

        Args:
          queries: `[n, dimension]` float32.
          vectors: `[num_classes, dimension]` float32, `class_embeddings` of all videos in the order of their rows.
          features: the batch that the queries are of, for a loss whose scores depend on it.

        Returns:
          `[n, num_classes]` float32.
        """
        return self.softmax.class_scores(queries, vectors, features)

    def require_dot_products(self) -> None:
        """Raises `ExportError` where the model's scores are not dot products, so that no index can answer for it."""
        if not self.softmax.dot_products:
            raise ExportError(
                f"{type(self).__name__}: expected a loss whose scores are dot products, found "
                f"{type(self.softmax).__name__}, for whose scores there is no index; train with loss sampled or full"
            )

    @property
    def query_inputs(self) -> tuple[Feature, ...]:
        """The features that the query tower reads; an exported model asks a client for what these need."""
        return self.spec.side(Side.QUERY)

    @property
    def video_attributes(self) -> tuple[str, ...]:
        """The features of videos, besides `video`, that vectors of videos without a class are made of."""
        return tuple(feature.name for feature in self.spec.side(Side.IMPRESSION))

    def call(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The query tower, as `query_embeddings`."""
        return self.query_embeddings(features, training=training)

    def compute_loss(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Weighted mean of the softmax cross-entropy over the batch."""
        labels = inputs[LABEL]
        weights = tf.cast(inputs[WEIGHT], tf.float32) if WEIGHT in inputs else tf.ones_like(labels, tf.float32)
        weights = tf.where(labels > 0, weights, 0.0)
        losses = self.softmax(self, self.query_embeddings(inputs, training=training), inputs, training)
        self.cross_entropy.update_state(losses, sample_weight=weights)
        return replica_mean(losses, weights)


def batch_signature(features: Iterable[Feature]) -> dict[str, tf.TensorSpec]:
    """Shape and dtype of each feature in a batch of any size; see `CandidateGenerator`."""
    return {
        feature.name: tf.TensorSpec(
            [None, feature.max_length] if feature.multivalent else [None],
            tf.int32 if feature.kind == Kind.CATEGORICAL else tf.float32,
        )
        for feature in features
    }


def replica_mean(losses: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Weighted mean over this replica's batch, divided by the number of replicas.

    Optimizers add the gradients of all replicas up, so the sum of these is the mean over them.

    Args:
      losses: `[batch]` float32.
      weights: `[batch]` float32, not negative; all zero gives 0.
    """
    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights)) / replicas()


def replicas() -> int:
    """How many the strategy in force has."""
    return tf.distribute.get_strategy().num_replicas_in_sync
