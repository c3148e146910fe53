"""Hierarchical softmax over a pre-determined tree of two levels (Beutel et al. 2018, section 7.1).

Videos are split into clusters before training. With u the query, v the video vectors and a those of clusters,

    log P(v | u) = log softmax(a · u) at the video's cluster + log softmax(v · u) among the cluster's videos,

which costs about 2 √V dot products an example in place of V. The paper does not tell its tree. Here all clusters hold
⌈√V⌉ videos, the last one what is left, so that no example costs more than another. `clusters_by_frequency` puts videos
of like frequency together and needs nothing but the vocabulary; `clusters_by_co_watch` puts together what is watched
by the same users, which makes both choices easier to learn.

Queries are answered by the tree too: the probabilities over all videos are exact, and cost what a dot product with
every video costs. They are no dot products: the logarithm of each cluster's sum of exponentials stands between them,
and it is not linear in u. What is more, adding a vector to all videos of a cluster changes no probability, so v · u
says nothing across clusters. An index of vectors can therefore not answer for such a model, and it has none:
its `video_embeddings` are an error, its `class_scores` log-probabilities. It is for comparison with other losses.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras

from features.errors import ConfigError
from models.candidate_generator import LABEL, CandidateGenerator, SoftmaxLoss

CLUSTER = "softmax_cluster"  # class attribute: the cluster of each video, from 1; row 0 has 0

CHUNK = 32  # examples of one cluster that are multiplied together


def cluster_size(num_classes: int) -> int:
    """Greatest number of videos in a cluster, ⌈√V⌉."""
    return max(1, math.isqrt(num_classes - 1) + 1)


def clusters_by_frequency(num_classes: int) -> np.ndarray:
    """Clusters of neighbouring rows, which descend in frequency: int32 `[num_classes + 1]`, row 0 has 0."""
    rows = np.arange(num_classes + 1)
    return np.where(rows > 0, (rows - 1) // cluster_size(num_classes) + 1, 0).astype(np.int32)


def clusters_by_co_watch(vectors: np.ndarray) -> np.ndarray:
    """Clusters of videos whose vectors are close, by halving along the direction of greatest variance.

    Args:
      vectors: float32 `[num_classes + 1, d]`, for example of `models/co_watch_embeddings.py`; row 0 is not looked at.

    Returns:
      int32 `[num_classes + 1]`, from 1; row 0 has 0.
    """
    num_classes = len(vectors) - 1
    size = cluster_size(num_classes)
    clusters = np.zeros(num_classes + 1, np.int32)
    waiting, done = [np.arange(1, num_classes + 1)], 0
    while waiting:
        rows = waiting.pop()
        if len(rows) <= size:
            done += 1
            clusters[rows] = done
            continue
        centred = vectors[rows] - vectors[rows].mean(axis=0)
        direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
        order = rows[np.argsort(centred @ direction, kind="stable")]
        # Whole clusters to the left, so that one alone is smaller than the others.
        left = -(-len(rows) // size) // 2 * size
        waiting += [order[left:], order[:left]]
    return clusters


class ClassTree(tf_keras.layers.Layer):
    """Which cluster each video is in, and the vectors of clusters.

    Args:
      num_classes: number of videos.
      dimension: of query vectors.
      clusters: int32 `[num_classes + 1]`, from 1; None is `clusters_by_frequency`.

    Raises:
      ConfigError: clusters of another number of videos, or one with more than `cluster_size` of them.
    """

    def __init__(self, num_classes: int, dimension: int, clusters: np.ndarray | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = cluster_size(num_classes)
        self.num_clusters = -(-num_classes // self.size)
        slots, members = self._layout(clusters_by_frequency(num_classes) if clusters is None else clusters, num_classes)
        self.cluster_vectors = self.add_weight(
            "cluster_vectors",
            shape=(self.num_clusters, dimension),
            dtype=tf.float32,
            initializer=tf_keras.initializers.RandomNormal(stddev=1 / math.sqrt(dimension)),
            experimental_autocast=False,
        )
        self.slots = self._constant("slots", slots)  # of each row: cluster * size + place in it
        self.members = self._constant("members", members)  # of each slot: its row, 0 for none
        self.built = True

    def _constant(self, name: str, values: np.ndarray) -> tf.Variable:
        weight = self.add_weight(name, shape=values.shape, dtype=tf.int32, initializer="zeros", trainable=False)
        weight.assign(values)
        return weight

    def _layout(self, clusters: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        counts = np.bincount(clusters[1:], minlength=1) if len(clusters) == num_classes + 1 else np.array([1])
        if counts[0] or len(counts) > self.num_clusters + 1 or counts.max() > self.size:
            raise ConfigError(
                f"hierarchical softmax: expected clusters 1 to {self.num_clusters} of at most {self.size} videos for "
                f"{num_classes} videos, found {len(clusters) - 1} videos in {len(np.unique(clusters[1:]))} clusters; "
                "make them from the vocabulary of the same run"
            )
        order = np.argsort(clusters[1:], kind="stable") + 1
        cluster = clusters[order] - 1
        starts = np.cumsum(counts)[cluster]
        slots, members = np.zeros(num_classes + 1, np.int32), np.zeros(self.num_clusters * self.size, np.int32)
        slots[order] = cluster * self.size + np.arange(num_classes) - starts
        members[slots[order]] = order
        return slots, members

    def call(self, queries: tf.Tensor) -> tf.Tensor:
        """Log-probability of each cluster: `[n, dimension]` -> `[n, clusters]` float32."""
        return tf.nn.log_softmax(tf.matmul(queries, self.cluster_vectors, transpose_b=True))


class Chunks(NamedTuple):
    """Examples laid out by cluster, at most `CHUNK` to a row.

    `cluster`: `[chunks]` of each row; `slots`: `[n]` place of each example, row * CHUNK + column.
    """

    cluster: tf.Tensor
    slots: tf.Tensor


def chunks_of(clusters: tf.Tensor) -> Chunks:
    """Lays examples out by their cluster, `[n]` int32, so that a cluster's videos are multiplied with many at once."""
    unique, index, counts = tf.unique_with_counts(clusters)
    order = tf.argsort(index, stable=True)
    ordered = tf.gather(index, order)
    place = tf.range(tf.size(index)) - tf.gather(tf.cumsum(counts, exclusive=True), ordered)
    rows = (counts + CHUNK - 1) // CHUNK
    slots = tf.gather(tf.cumsum(rows, exclusive=True), ordered) * CHUNK + place
    return Chunks(tf.repeat(unique, rows), tf.scatter_nd(order[:, tf.newaxis], slots, tf.shape(index)))


class HierarchicalSoftmax(SoftmaxLoss):
    """The loss part of a generator: see the module's text.

    Args:
      tree: of the generator's videos; the generator keeps its weights.
    """

    dot_products = False

    def __init__(self, tree: ClassTree) -> None:
        self.tree = self.layer = tree

    def __call__(
        self, generator: CandidateGenerator, queries: tf.Tensor, inputs: Mapping[str, tf.Tensor], training: bool
    ) -> tf.Tensor:
        tree = self.tree
        slots = tf.gather(tree.slots, inputs[LABEL])  # an unknown label has no weight
        clusters, places = slots // tree.size, slots % tree.size
        chunks = chunks_of(clusters)
        members = tf.gather(tf.reshape(tree.members, [-1, tree.size]), chunks.cluster)
        vectors = generator.class_embeddings(tf.reshape(members, [-1]), training=training)
        vectors = tf.reshape(vectors, [-1, tree.size, generator.dimension])
        laid_out = tf.scatter_nd(
            chunks.slots[:, tf.newaxis], queries, [tf.size(chunks.cluster) * CHUNK, generator.dimension]
        )
        logits = tf.matmul(tf.reshape(laid_out, [-1, CHUNK, generator.dimension]), vectors, transpose_b=True)
        logits = tf.where(members[:, tf.newaxis] > 0, logits, logits.dtype.min)
        own = tf.gather(tf.reshape(logits, [-1, tree.size]), chunks.slots)
        within = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=places, logits=own)
        return within - tf.gather(tree(queries), clusters, batch_dims=1)

    def class_scores(
        self, queries: tf.Tensor, vectors: tf.Tensor, features: Mapping[str, tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Log-probability of every video, `[n, num_classes]`."""
        tree = self.tree
        logits = tf.gather(tf.matmul(queries, vectors, transpose_b=True), tf.maximum(tree.members - 1, 0), axis=1)
        logits = tf.where(tree.members > 0, logits, logits.dtype.min)
        within = tf.nn.log_softmax(tf.reshape(logits, [-1, tree.num_clusters, tree.size]))
        by_slot = tf.reshape(within + tree(queries)[..., tf.newaxis], tf.shape(logits))
        return tf.gather(by_slot, tree.slots[1:], axis=1)
