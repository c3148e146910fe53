"""Paragraph vectors: the vector of a history, and what the classifier makes of it and of the last watch."""

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize

from pipeline.evaluation.baselines import paragraph_vectors
from pipeline.evaluation.baselines.interactions import Histories, Interactions
from pipeline.evaluation.baselines.paragraph_vectors import (
    ParagraphVectors,
    ParagraphVectorsConfig,
    fit_paragraph_vectors,
    infer,
)
from pipeline.evaluation.baselines.recency_weighting import RecencyWeighted

RANDOM = np.random.default_rng(0)
VIDEOS = 30


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_a_history_has_the_vector_of_the_greatest_likelihood_and_none_the_zero_vector() -> None:
    words = RANDOM.normal(size=(12, 3)).astype(np.float32)
    log_share = log_softmax(RANDOM.normal(size=12)).astype(np.float32)
    counts = np.array([[3, 0, 1, *[0] * 9], [0] * 12, RANDOM.integers(0, 9, 12)], np.float32)
    found = infer(sp.csr_matrix(counts), words, log_share, regularisation=2.0, steps=200)
    np.testing.assert_array_equal(found[1], np.zeros(3))
    for row in (0, 2):

        def cost(u: np.ndarray, row: int = row) -> float:
            return float(u @ u - counts[row] @ log_softmax(words @ u + log_share))  # λ/2 |u|² with λ = 2

        np.testing.assert_allclose(found[row], minimize(cost, np.zeros(3)).x, atol=2e-3)


def test_scores_are_of_the_history_and_the_last_watch() -> None:
    """With one step from zero, u = ((c − n p) W) / (n + λ) where no word is longer than 1; λ = 1, p equal."""
    words = np.array([[1, 0], [0, 1], [0, 0], [0, 0]], np.float32)
    of_user, of_last = (RANDOM.normal(size=(4, 2)).astype(np.float32) for _ in range(2))
    last = np.concatenate([RANDOM.normal(size=(4, 2)), np.zeros((1, 2))]).astype(np.float32)
    log_share = np.log(np.full(4, 0.25, np.float32))
    model = ParagraphVectors(words, of_user, of_last, last, log_share, regularisation=1.0, steps=1)
    scores = model.score(Histories(np.array([0, 0, 3], np.int32), np.array([0, 3, 3])))
    user = np.array([2 - 3 / 4, 0 - 3 / 4]) / (3 + 1)
    told = np.exp(of_user @ user + of_last @ last[3] + log_share)
    np.testing.assert_allclose(scores[0], told / told.sum(), rtol=1e-5)
    np.testing.assert_allclose(scores[1], np.full(4, 0.25), rtol=1e-6)


def test_weighted_by_popularity_the_history_still_counts() -> None:
    """P = 0.6, 0.3, 0.1 times (1 + 3, 1 + 9, 1 + 0)^½: 1.2, 0.949, 0.1, neither's order by popularity alone."""
    of_user, words = np.zeros((3, 1), np.float32), np.zeros((3, 1), np.float32)
    last = np.array([[1], [0], [0], [0]], np.float32)
    of_last = np.log(np.array([[6], [3], [1]], np.float32))
    log_share = np.log(np.full(3, 1 / 3, np.float32))
    model = ParagraphVectors(words, of_user, of_last, last, log_share, regularisation=1.0, steps=1)
    weighted = RecencyWeighted(model, np.array([3.0, 9.0, 0.0]), exponent=0.5)
    scores = weighted.score(Histories(np.array([0], np.int32), np.array([0, 1])))
    np.testing.assert_allclose(scores[0], [1.2, 0.3 * np.sqrt(10), 0.1], rtol=1e-5)


def grouped(users: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Users watch nine of the ten videos of their third of the catalogue, in an order of their own."""
    random = np.random.default_rng(seed)
    group = np.arange(users) % 3
    watched = np.stack([random.permutation(10)[:9] for _ in range(users)]) + 10 * group[:, None]
    return watched.astype(np.int32), group


def test_users_it_was_not_trained_on_are_told_from_their_histories() -> None:
    watched, _ = grouped(120, seed=1)
    users = np.repeat(np.arange(len(watched)), 9)
    watches = Interactions.of(users, watched.ravel(), np.arange(users.size), VIDEOS)
    config = ParagraphVectorsConfig(passes=10, inference_steps=10)
    model = fit_paragraph_vectors(watches, dimension=4, regularisation=1.0, config=config)
    others, group = grouped(30, seed=2)
    scores = model.score(Histories(others[:, :6].ravel(), np.arange(31) * 6))
    best = scores.argsort(axis=1)[:, -10:]
    assert (best // 10 == group[:, None]).mean() > 0.95  # by chance a third


def test_the_classifier_learns_from_what_came_before_each_label_alone(monkeypatch) -> None:
    """User 0 watches 0, 1, 2 and user 1 watches 3: labels are the last two of each, the documents what came before."""
    watches = Interactions.of(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 3]), np.arange(4), 5)
    told = {}

    def classifier(users, last, labels, *others):
        told.update(last=last.tolist(), labels=labels.tolist())
        return np.zeros((5, 2)), np.zeros((5, 2)), np.zeros((6, 2))

    documents = []

    def infer_and_tell(given, *others):
        documents.append(given.toarray().tolist())
        return infer(given, *others)

    monkeypatch.setattr(paragraph_vectors, "_classifier", classifier)
    monkeypatch.setattr(paragraph_vectors, "infer", infer_and_tell)
    config = ParagraphVectorsConfig(passes=1, labels_per_user=2)
    fit_paragraph_vectors(watches, dimension=2, regularisation=1.0, config=config)
    assert told == {"last": [0, 1, 5], "labels": [1, 2, 3]}  # 5: no last watch
    assert documents[-1] == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
