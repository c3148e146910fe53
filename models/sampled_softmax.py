"""The softmax over videos: sampled with importance correction, full, or over the batch.

Covington et al. 2016, section 3.1: "we rely on a technique to sample negative classes from the background distribution
('candidate sampling') and then correct for this sampling via importance weighting". After Jean et al. 2014
(arXiv:1412.2007): with Q(y) the expected count of class y among the negatives S, the loss of an example with label t is

    -log softmax(o_y - log Q(y)) at t, over y in {t} and S without t.

The correction stands on the true logit and on the sampled ones alike. Then the corrected softmax is the probability
that y is the label among the candidates seen, and its optimum is that of the full softmax; on one side only, frequent
or rare videos would be favoured. A negative that is the example's own label (accidental hit) is left out.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from models.candidate_generator import LABEL, CandidateGenerator, SoftmaxLoss
from models.co_watched_softmax import CO_WATCHED, CoWatchedSoftmax, CoWatchedVideos
from models.hierarchical_softmax import CLUSTER, ClassTree, HierarchicalSoftmax
from models.samplers import LABEL_EXPECTED_COUNT, NEGATIVES, NEGATIVES_EXPECTED_COUNT


class Loss(StrEnum):
    """Which softmax a generator is trained with."""

    SAMPLED = "sampled"
    FULL = "full"
    IN_BATCH = "in_batch"
    HIERARCHICAL = "hierarchical"
    CO_WATCHED = "co_watched"


def sampled_cross_entropy(
    queries: tf.Tensor,
    true_vectors: tf.Tensor,
    sampled_vectors: tf.Tensor,
    true_expected_count: tf.Tensor,
    sampled_expected_count: tf.Tensor,
    hits: tf.Tensor,
    bfloat16_matmul: bool = False,
) -> tf.Tensor:
    """Sampled softmax cross-entropy of each example, with a gradient of its own.

    It is log(1 + exp(x)) with x = log(sum of the negatives' exponentials) - the label's corrected logit. Automatic
    differentiation would keep and walk several `[batch, sampled]` matrices; the gradient below needs one.

    Args:
      queries: `[batch, d]` float32.
      true_vectors: `[batch, d]` float32, the labels' vectors.
      sampled_vectors: `[sampled, d]` float32.
      true_expected_count: `[batch]` float32, positive.
      sampled_expected_count: `[sampled]` float32, positive.
      hits: `[batch, sampled]` bool, where the negative is the example's own label.
      bfloat16_matmul: multiply in bfloat16; sums of exponentials stay float32.

    Returns:
      `[batch]` float32.
    """
    matmul_dtype = tf.bfloat16 if bfloat16_matmul else tf.float32
    true_offset = -tf.math.log(true_expected_count)
    sampled_offset = -tf.math.log(sampled_expected_count)

    def multiply(a: tf.Tensor, b: tf.Tensor, **transpose: bool) -> tf.Tensor:
        return tf.cast(tf.matmul(tf.cast(a, matmul_dtype), tf.cast(b, matmul_dtype), **transpose), tf.float32)

    @tf.custom_gradient
    def loss(queries: tf.Tensor, true_vectors: tf.Tensor, sampled_vectors: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        true_logits = tf.reduce_sum(queries * true_vectors, axis=1) + true_offset
        # Fused with the product, which an addition is not: passes over this matrix take as long as the products.
        logits = tf.nn.bias_add(multiply(queries, sampled_vectors, transpose_b=True), sampled_offset)
        logits = tf.where(hits, logits.dtype.min, logits)
        among_sampled = tf.nn.softmax(logits)
        # Of any column log(sum of exponentials) is logit - log(probability); the likeliest has no underflow.
        log_sampled = tf.reduce_max(logits, axis=1) - tf.math.log(tf.reduce_max(among_sampled, axis=1))
        against = log_sampled - true_logits  # the log-odds that the label is a sampled one

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            shift = (upstream * tf.sigmoid(against))[:, tf.newaxis]
            return (
                shift * (multiply(among_sampled, sampled_vectors) - true_vectors),
                -shift * queries,
                multiply(among_sampled, shift * queries, transpose_a=True),
            )

        return tf.math.softplus(against), gradient

    return loss(queries, true_vectors, sampled_vectors)


class SampledSoftmax(SoftmaxLoss):
    """Softmax over the label and the negatives that the input pipeline attached (`models/samplers.py`).

    Args:
      bfloat16_matmul: see `sampled_cross_entropy`.
    """

    def __init__(self, bfloat16_matmul: bool = False) -> None:
        self.bfloat16_matmul = bfloat16_matmul

    def __call__(
        self, generator: CandidateGenerator, queries: tf.Tensor, inputs: Mapping[str, tf.Tensor], training: bool
    ) -> tf.Tensor:
        labels, negatives = inputs[LABEL], inputs[NEGATIVES]
        # One gather for both: the table's sparse gradient is then made once.
        vectors = generator.class_embeddings(tf.concat([labels, negatives], axis=0), training=training)
        true_vectors, sampled_vectors = tf.split(vectors, [tf.shape(labels)[0], tf.shape(negatives)[0]])
        return sampled_cross_entropy(
            queries,
            true_vectors,
            sampled_vectors,
            inputs[LABEL_EXPECTED_COUNT],
            inputs[NEGATIVES_EXPECTED_COUNT],
            labels[:, tf.newaxis] == negatives[tf.newaxis, :],
            bfloat16_matmul=self.bfloat16_matmul,
        )


class FullSoftmax(SoftmaxLoss):
    """Softmax over every video of the vocabulary: exact, and affordable up to some ten thousand videos."""

    def __call__(
        self, generator: CandidateGenerator, queries: tf.Tensor, inputs: Mapping[str, tf.Tensor], training: bool
    ) -> tf.Tensor:
        vectors = generator.class_embeddings(tf.range(1, generator.num_classes + 1), training=training)
        logits = tf.matmul(queries, vectors, transpose_b=True)
        classes = tf.maximum(inputs[LABEL] - 1, 0)  # an unknown label has no weight
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=logits)


class InBatchSoftmax(SoftmaxLoss):
    """Softmax over the labels of the batch, by TensorFlow Recommenders' `Retrieval` task.

    `label_expected_count` (see `models/samplers.py: attach_label_probability`) corrects for popular videos being
    negatives more often.
    """

    def __init__(self) -> None:
        self.task = tfrs.tasks.Retrieval(
            loss=tf_keras.losses.CategoricalCrossentropy(from_logits=True, reduction=tf_keras.losses.Reduction.NONE),
            remove_accidental_hits=True,
        )

    def __call__(
        self, generator: CandidateGenerator, queries: tf.Tensor, inputs: Mapping[str, tf.Tensor], training: bool
    ) -> tf.Tensor:
        return self.task(
            queries,
            generator.class_embeddings(inputs[LABEL], training=training),
            candidate_sampling_probability=inputs[LABEL_EXPECTED_COUNT],
            candidate_ids=inputs[LABEL],
            compute_metrics=False,
            compute_batch_metrics=False,
        )


def softmax_loss(
    loss: Loss,
    num_classes: int,
    dimension: int,
    bfloat16_matmul: bool = False,
    class_attributes: Mapping[str, np.ndarray] | None = None,
) -> SoftmaxLoss:
    """The loss part of that name.

    Args:
      loss: which.
      num_classes, dimension: of the generator.
      bfloat16_matmul: of the sampled softmax.
      class_attributes: of the generator; its `softmax_cluster` is the tree of the hierarchical softmax,
        `co_watched` the candidates of the softmax over co-watched videos.
    """
    if loss == Loss.SAMPLED:
        return SampledSoftmax(bfloat16_matmul)
    if loss == Loss.HIERARCHICAL:
        return HierarchicalSoftmax(ClassTree(num_classes, dimension, (class_attributes or {}).get(CLUSTER)))
    if loss == Loss.CO_WATCHED:
        return CoWatchedSoftmax(CoWatchedVideos(num_classes, (class_attributes or {}).get(CO_WATCHED)))
    return FullSoftmax() if loss == Loss.FULL else InBatchSoftmax()
