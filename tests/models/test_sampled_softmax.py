"""Sampled softmax: its gradient agrees with the full softmax in expectation, and only with both corrections."""

from itertools import product

import numpy as np
import pytest
import tensorflow as tf

from features.spec import Feature, FeatureSpec, Kind, Side
from models.candidate_generator import CandidateGenerator
from models.co_watched_softmax import CoWatchedSoftmax
from models.hierarchical_softmax import HierarchicalSoftmax
from models.sampled_softmax import (
    FullSoftmax,
    InBatchSoftmax,
    Loss,
    SampledSoftmax,
    sampled_cross_entropy,
    softmax_loss,
)
from models.samplers import LABEL_EXPECTED_COUNT, NEGATIVES, NEGATIVES_EXPECTED_COUNT

SPEC = FeatureSpec((Feature("x", Kind.CATEGORICAL, Side.QUERY, "users.x", "x"),))


class FixedGenerator(CandidateGenerator):
    """Video vectors from a variable; queries are given to the loss directly."""

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__(SPEC, len(vectors), vectors.shape[1], FullSoftmax())
        zero = np.zeros((1, vectors.shape[1]))
        self.table = tf.Variable(np.concatenate([zero, vectors]), dtype=tf.float32)

    def class_embeddings(self, rows: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.gather(self.table, rows)


def oracle(logits: np.ndarray, label: int, sampled: np.ndarray, q: np.ndarray, true_q: np.ndarray) -> np.ndarray:
    """Gradient of the sampled softmax loss with respect to all logits, in NumPy and by definition.

    Args:
      q, true_q: expected counts used for the negatives and for the label.
    """
    candidates = np.array([label, *[c for c in sampled if c != label]])
    corrected = logits[candidates] - np.log(np.where(candidates == label, true_q[candidates], q[candidates]))
    p = np.exp(corrected - corrected.max())
    gradient = np.zeros_like(logits)
    gradient[candidates] = p / p.sum()
    gradient[label] -= 1
    return gradient


def full_gradient(logits: np.ndarray, label: int) -> np.ndarray:
    p = np.exp(logits - logits.max())
    return p / p.sum() - np.eye(len(logits))[label]


def ours(logits: np.ndarray, labels: np.ndarray, sampled: np.ndarray, q: np.ndarray, true_q: np.ndarray) -> np.ndarray:
    """The same gradients from `sampled_cross_entropy`: with unit vectors as videos the logits are the query."""
    queries = tf.constant(np.tile(logits, (len(labels), 1)), tf.float32)
    eye = np.eye(len(logits), dtype=np.float32)
    with tf.GradientTape() as tape:
        tape.watch(queries)
        losses = sampled_cross_entropy(
            queries,
            tf.constant(eye[labels]),
            tf.constant(eye[sampled]),
            tf.constant(true_q[labels], tf.float32),
            tf.constant(q[sampled], tf.float32),
            tf.constant(sampled == labels[:, np.newaxis]),
        )
    return tape.gradient(losses, queries).numpy()


def by_definition(
    logits: np.ndarray, labels: np.ndarray, sampled: np.ndarray, q: np.ndarray, true_q: np.ndarray
) -> np.ndarray:
    return np.stack([oracle(logits, label, sampled, q, true_q) for label in labels])


LABEL_SHARES = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])  # class 0 is a frequent label
INCLUSION = np.array([0.9, 0.7, 0.5, 0.3, 0.2, 0.1])  # and frequent among the negatives
ONES = np.ones(6)


def expected_gradient(gradients, logits: np.ndarray, q: np.ndarray, true_q: np.ndarray) -> np.ndarray:
    """Exact expectation over labels and drawn classes, each drawn by itself with its inclusion probability."""
    total = np.zeros(6)
    for drawn in product([False, True], repeat=6):
        if any(drawn):  # without negatives the gradient is zero
            chance = np.prod(np.where(drawn, INCLUSION, 1 - INCLUSION))
            total += chance * LABEL_SHARES @ gradients(logits, np.arange(6), np.flatnonzero(drawn), q, true_q)
    return total


def test_at_the_true_probabilities_the_expected_gradient_is_zero_as_the_full_softmax_has_it():
    logits = np.log(LABEL_SHARES) + 3
    full = sum(share * full_gradient(logits, label) for label, share in enumerate(LABEL_SHARES))
    np.testing.assert_allclose(full, np.zeros(6), atol=1e-12)
    np.testing.assert_allclose(expected_gradient(ours, logits, INCLUSION, INCLUSION), np.zeros(6), atol=2e-6)


@pytest.mark.parametrize(
    ("q", "true_q"), [(INCLUSION, ONES), (ONES, INCLUSION), (ONES, ONES)], ids=["negatives only", "label only", "none"]
)
def test_without_the_correction_on_either_side_the_optimum_is_another(q: np.ndarray, true_q: np.ndarray):
    logits = np.log(LABEL_SHARES)
    assert np.abs(expected_gradient(by_definition, logits, q, true_q)).max() > 0.02
    # Given the wrong counts the implementation errs as the definition does: it corrects both sides by what it is given.
    arguments = (logits, np.arange(6), np.array([0, 2, 3]), q, true_q)
    np.testing.assert_allclose(ours(*arguments), by_definition(*arguments), atol=1e-6)


def drawn_without_replacement(random: np.random.Generator, p: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes by Bernoulli draws with inclusion 1 - (1 - p)^n, and these inclusion probabilities."""
    inclusion = 1 - (1 - p) ** n
    return np.flatnonzero(random.random(len(p)) < inclusion), inclusion


def test_away_from_the_optimum_sampled_gradients_approach_the_full_ones_only_with_both_corrections():
    random = np.random.default_rng(0)
    classes = 300
    shares = 1 / np.arange(1, classes + 1)
    shares /= shares.sum()
    logits = random.normal(size=classes)
    p = shares**0.5 / (shares**0.5).sum()
    labels = random.choice(classes, p=shares, size=3000)
    full = np.mean([full_gradient(logits, label) for label in labels], axis=0)
    variants = {name: np.zeros(classes) for name in ("both", "negatives only", "label only", "none")}
    ones = np.ones(classes)
    for label in labels:
        sampled, inclusion = drawn_without_replacement(random, p, 400)
        for name, q, true_q in (
            ("both", inclusion, inclusion),
            ("negatives only", inclusion, ones),
            ("label only", ones, inclusion),
            ("none", ones, ones),
        ):
            variants[name] += oracle(logits, label, sampled, q, true_q) / len(labels)
    error = {name: np.linalg.norm(value - full) / np.linalg.norm(full) for name, value in variants.items()}
    assert error["both"] < 0.05, error
    assert min(error["label only"], error["none"]) > 2 * error["both"], error


def batch_of(labels: list[int], negatives: list[int], q: np.ndarray) -> dict[str, tf.Tensor]:
    """Expected counts by row from `q` `[num_classes + 1]`."""
    return {
        "label": tf.constant(labels),
        NEGATIVES: tf.constant(negatives),
        NEGATIVES_EXPECTED_COUNT: tf.constant(q[negatives], tf.float32),
        LABEL_EXPECTED_COUNT: tf.constant(q[labels], tf.float32),
    }


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_losses_and_gradients_of_a_batch_are_those_of_the_oracle(jit_compile: bool):
    random = np.random.default_rng(1)
    vectors, queries = random.normal(size=(7, 4)), tf.constant(random.normal(size=(3, 4)), tf.float32)
    generator = FixedGenerator(vectors)
    q = np.array([1.0, 0.9, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1])
    labels, negatives = [1, 6, 3], [1, 3, 4, 7]  # labels 1 and 3 are drawn too: accidental hits
    upstream = tf.constant([1.0, 2.0, 0.5])

    @tf.function(jit_compile=jit_compile)
    def run(queries: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch(queries)
            losses = SampledSoftmax()(generator, queries, batch_of(labels, negatives, q), training=True)
            total = tf.reduce_sum(losses * upstream)
        gradients = tape.gradient(total, [queries, generator.table])
        return losses, gradients[0], tf.convert_to_tensor(gradients[1])

    losses, query_gradient, table_gradient = run(queries)
    logits = queries.numpy() @ vectors.T
    classes = np.array(negatives) - 1
    by_logit = np.stack(
        [oracle(row, label - 1, classes, q[1:], q[1:]) for row, label in zip(logits, labels, strict=True)]
    )
    by_logit *= upstream.numpy()[:, np.newaxis]
    np.testing.assert_allclose(query_gradient, by_logit @ vectors, atol=1e-5)
    np.testing.assert_allclose(table_gradient[1:], by_logit.T @ queries.numpy(), atol=1e-5)
    corrected = logits - np.log(q[1:])
    for i, label in enumerate(labels):
        kept = sorted({label - 1, *classes})
        expected = np.log(np.exp(corrected[i, kept]).sum()) - corrected[i, label - 1]
        assert float(losses[i]) == pytest.approx(expected, rel=1e-5)


def test_an_only_negative_that_is_the_label_gives_no_loss_and_no_gradient():
    generator = FixedGenerator(np.ones((2, 2)))
    queries = tf.constant([[5.0, -3.0]])
    with tf.GradientTape() as tape:
        loss = SampledSoftmax()(generator, queries, batch_of([2], [2], np.array([1.0, 1.0, 0.5])), training=True)
    assert float(loss[0]) == 0
    np.testing.assert_array_equal(tf.convert_to_tensor(tape.gradient(loss, generator.table)), np.zeros((3, 2)))


def test_very_large_logits_do_not_overflow():
    generator = FixedGenerator(np.array([[1.0], [-1.0], [0.5]]))
    batch = batch_of([1, 2], [2, 3], np.ones(4))
    losses = SampledSoftmax()(generator, tf.constant([[1e4], [1e4]]), batch, training=True)
    np.testing.assert_allclose(losses, [0, 1.5e4])


def test_bfloat16_multiplication_is_close_and_the_losses_stay_float32():
    random = np.random.default_rng(2)
    generator = FixedGenerator(random.normal(size=(50, 16)))
    queries = tf.constant(random.normal(size=(8, 16)), tf.float32)
    batch = batch_of(list(range(1, 9)), list(range(5, 45)), np.full(51, 0.5))
    exact = SampledSoftmax()(generator, queries, batch, training=True)
    half = SampledSoftmax(bfloat16_matmul=True)(generator, queries, batch, training=True)
    assert half.dtype == tf.float32
    np.testing.assert_allclose(half, exact, atol=0.05)
    assert np.abs(half - exact).max() > 0


def test_the_full_softmax_is_the_cross_entropy_over_all_videos():
    vectors = np.array([[1.0, 0], [0, 1], [1, 1]])
    losses = FullSoftmax()(
        FixedGenerator(vectors), tf.constant([[1.0, 2.0], [0.0, 0.0]]), {"label": tf.constant([3, 1])}, training=True
    )
    np.testing.assert_allclose(losses, [np.log(np.exp([1, 2, 3]).sum()) - 3, np.log(3)], rtol=1e-6)


def test_the_in_batch_softmax_corrects_by_label_probability_and_leaves_the_same_label_out():
    vectors = np.array([[1.0, 0], [0, 1], [1, 1]])
    q = np.array([1.0, 1.0, 0.5, 0.25])
    labels = [1, 2, 1]
    batch = {"label": tf.constant(labels), LABEL_EXPECTED_COUNT: tf.constant(q[labels], tf.float32)}
    losses = InBatchSoftmax()(FixedGenerator(vectors), tf.constant([[1.0, 2], [3, 1], [0, 1]]), batch, training=True)
    logits = np.array([[1, 2], [3, 1], [0, 1]]) - np.log(q[1:3])  # by class
    # Class 0 is twice in the batch: once for its own examples (the other copy is left out), twice for the second.
    copies = np.array([[1, 1], [2, 1], [1, 1]])
    expected = np.log((copies * np.exp(logits)).sum(axis=1)) - logits[[0, 1, 2], [0, 1, 0]]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_each_name_gives_its_loss():
    kinds = [type(softmax_loss(loss, num_classes=3, dimension=2)) for loss in Loss]
    assert kinds == [SampledSoftmax, FullSoftmax, InBatchSoftmax, HierarchicalSoftmax, CoWatchedSoftmax]
