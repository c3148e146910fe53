"""Hierarchical softmax: probabilities over a tree of two levels, its clusters, what it costs."""

import json

import numpy as np
import pytest
import tensorflow as tf

from features.errors import ConfigError, ExportError
from models.candidate_generator import CandidateGenerator
from models.hierarchical_softmax import (
    CHUNK,
    CLUSTER,
    ClassTree,
    HierarchicalSoftmax,
    chunks_of,
    cluster_size,
    clusters_by_co_watch,
    clusters_by_frequency,
)
from models.latent_cross import LatentCross, LatentCrossConfig
from models.sampled_softmax import Loss
from tests.models.sequence_batches import SIZES, SPEC, batch, tensors, training_batch

RANDOM = np.random.default_rng(3)
CLUSTERS = np.array([0, 2, 1, 3, 2, 1, 2, 1])  # of seven videos, at most three in each


class FixedGenerator(CandidateGenerator):
    """Video vectors from a variable; queries are given to the loss directly."""

    def __init__(self, vectors: np.ndarray, clusters: np.ndarray | None) -> None:
        softmax = HierarchicalSoftmax(ClassTree(len(vectors), vectors.shape[1], clusters))
        super().__init__(SPEC, len(vectors), vectors.shape[1], softmax)
        zero = np.zeros((1, vectors.shape[1]))
        self.table = tf.Variable(np.concatenate([zero, vectors]), dtype=tf.float32)

    def class_embeddings(self, rows: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.gather(self.table, rows)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def by_definition(queries: np.ndarray, vectors: np.ndarray, cluster_vectors: np.ndarray, clusters: np.ndarray):
    """Log-probability of every video, `[n, videos]`: its cluster's, and its own among the cluster's."""
    scores = np.zeros((len(queries), len(vectors)))
    of_clusters = log_softmax(queries @ cluster_vectors.T)
    for cluster in np.unique(clusters[1:]):
        members = np.flatnonzero(clusters == cluster) - 1
        scores[:, members] = of_clusters[:, cluster - 1, np.newaxis] + log_softmax(queries @ vectors[members].T)
    return scores


@pytest.mark.parametrize("clusters", [CLUSTERS, None])
def test_losses_and_scores_are_the_log_probabilities_of_the_tree(clusters: np.ndarray | None):
    vectors, queries = RANDOM.normal(size=(7, 4)), RANDOM.normal(size=(90, 4)).astype(np.float32)
    generator = FixedGenerator(vectors, clusters)
    used = np.array([0, 1, 1, 1, 2, 2, 2, 3]) if clusters is None else clusters
    expected = by_definition(queries, vectors, generator.softmax.tree.cluster_vectors.numpy(), used)
    np.testing.assert_allclose(np.exp(expected).sum(axis=1), np.ones(90), rtol=1e-5)
    scores = generator.class_scores(tf.constant(queries), generator.class_embeddings(tf.range(1, 8)))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    labels = RANDOM.integers(1, 8, 90).astype(np.int32)
    losses = generator.softmax(generator, tf.constant(queries), {"label": tf.constant(labels)}, training=True)
    np.testing.assert_allclose(losses, -expected[np.arange(90), labels - 1], rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_definition():
    vectors, queries = RANDOM.normal(size=(7, 4)), tf.constant(RANDOM.normal(size=(40, 4)), tf.float32)
    labels = tf.constant(RANDOM.integers(1, 8, 40), tf.int32)
    generator = FixedGenerator(vectors, CLUSTERS)
    gradients = []
    for whole in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(queries)
            if whole:
                scores = generator.class_scores(queries, generator.class_embeddings(tf.range(1, 8)))
                losses = -tf.gather(scores, labels - 1, batch_dims=1)
            else:
                losses = generator.softmax(generator, queries, {"label": labels}, training=True)
        found = tape.gradient(losses, [queries, generator.table, generator.softmax.tree.cluster_vectors])
        gradients.append([tf.convert_to_tensor(gradient).numpy() for gradient in found])
    for by_cluster, by_all in zip(*gradients, strict=True):
        np.testing.assert_allclose(by_cluster, by_all, rtol=1e-4, atol=1e-5)


def test_examples_are_laid_out_by_cluster_and_never_beyond_a_chunk_of_their_own():
    clusters = np.array([5] * 70 + [2] + [9] * 32 + [5] * 3)[RANDOM.permutation(106)]
    chunks = chunks_of(tf.constant(clusters, tf.int32))
    assert sorted(chunks.cluster.numpy()) == [2, 5, 5, 5, 9]  # 73 examples of cluster 5 need three rows of 32
    slots = chunks.slots.numpy()
    assert len(np.unique(slots)) == 106
    np.testing.assert_array_equal(chunks.cluster.numpy()[slots // CHUNK], clusters)


@pytest.mark.parametrize(("videos", "size"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4), (1_000_000, 1000)])
def test_a_cluster_holds_at_most_the_root_of_the_vocabulary(videos: int, size: int):
    assert cluster_size(videos) == size


def test_clusters_by_frequency_are_neighbouring_rows():
    np.testing.assert_array_equal(clusters_by_frequency(7), [0, 1, 1, 1, 2, 2, 2, 3])


def test_clusters_by_co_watch_hold_what_is_close_and_are_full_but_one():
    # Four blobs of four videos each, in mixed order.
    blob = RANDOM.permutation(np.repeat(np.arange(4), 4))
    vectors = np.concatenate([np.zeros((1, 2)), np.array([[0, 0], [0, 9], [5, 0], [5, 9]])[blob]])
    vectors += RANDOM.normal(size=vectors.shape, scale=0.1)
    clusters = clusters_by_co_watch(vectors)
    assert clusters[0] == 0
    for number in range(4):
        assert len(set(clusters[1:][blob == number])) == 1
    uneven = clusters_by_co_watch(RANDOM.normal(size=(24, 3)))  # 23 videos: four clusters of 5 and one of 3
    assert sorted(np.bincount(uneven[1:])[1:]) == [3, 5, 5, 5, 5]
    ClassTree(23, 4, uneven)


def test_a_sequence_model_learns_with_it_and_keeps_its_tree():
    config = LatentCrossConfig(dimension=4, units=4, loss=Loss.HIERARCHICAL)
    model = LatentCross(config, SPEC, SIZES, {CLUSTER: CLUSTERS})
    queries, vectors = model.query_embeddings(tensors(batch())), model.class_embeddings(tf.range(1, 8))
    tree = model.softmax.tree
    expected = by_definition(queries.numpy(), vectors.numpy(), tree.cluster_vectors.numpy(), CLUSTERS)
    np.testing.assert_allclose(model.class_scores(queries, vectors), expected, rtol=1e-4, atol=1e-5)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(training_batch(), training=True)
    assert all(gradient is not None for gradient in tape.gradient(loss, model.trainable_variables))

    again = LatentCross.from_description(json.loads(json.dumps(model.description())), SPEC)
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again.class_scores(queries, vectors), model.class_scores(queries, vectors))


def test_labels_that_are_all_unknown_give_loss_zero_and_finite_gradients():
    model = LatentCross(LatentCrossConfig(dimension=4, units=4, loss=Loss.HIERARCHICAL), SPEC, SIZES)
    arrays = batch() | {"label": np.zeros(4, np.int32), "label_weights": np.zeros((4, 5), np.float32)}
    with tf.GradientTape() as tape:
        loss = model.compute_loss(training_batch(arrays), training=True)
    assert float(loss) == 0
    for gradient in tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero"):
        assert np.isfinite(tf.convert_to_tensor(gradient)).all()


def test_mistakes_are_told():
    model = LatentCross(LatentCrossConfig(dimension=4, units=4, loss=Loss.HIERARCHICAL), SPEC, SIZES)
    with pytest.raises(ExportError, match="LatentCross: expected a loss whose scores are dot products"):
        model.video_embeddings({"video": tf.constant([1])})
    too_full = np.array([0, 1, 1, 1, 1, 2, 2, 3])
    with_unknown = np.array([0, 1, 1, 1, 0, 2, 2, 2])
    for clusters in (too_full, with_unknown, CLUSTERS[:-1]):
        with pytest.raises(ConfigError, match="clusters 1 to 3 of at most 3 videos for 7 videos"):
            ClassTree(7, 4, clusters)
