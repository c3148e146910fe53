"""Paragraph vectors: every user a document, every watch a word; then a classifier of user and last watch.

Beutel et al. 2018, section 7.1: "unsupervised embeddings of each user", then these "as well as an embedding of the last
watch as input to a 1-layer feed forward classifier". Here, without demographics:

1. Distributed bag of words (Le and Mikolov 2014): P(v | user) = softmax(W u + log p)_v with p the share of watches of
   each video, u and W of the greatest likelihood of all watches less λ/2 (|u|² + |W|²).
2. A vector of any history, also of users that were not trained on and of moments: the u of the greatest likelihood of
   its watches, W held. That is a concave problem; `infer` goes a fixed number of accelerated steps from u = 0, so that
   an empty history has u = 0. Nothing of a user but the history counts, and no user's vector is kept.
3. P(v | u, last) = softmax(A u + B e(last) + log p)_v, trained by Adagrad on the last watches of the users of training,
   each with the vector of what came before it.

All softmaxes are over all videos, which is what bounds the size of the catalogue.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from features.settings import Settings
from pipeline.evaluation.baselines.interactions import Histories, Interactions

_USERS_AT_ONCE = 512
_EXAMPLES_AT_ONCE = 128


class ParagraphVectorsConfig(Settings):
    """The sizes tried on validation, and how vectors and classifier are trained."""

    dimension: tuple[int, ...] = Field(default=(16, 32), description="of vectors")
    regularisation: tuple[float, ...] = Field(default=(1.0, 10.0), description="λ, in watches")
    passes: int = Field(default=20, ge=1, description="over users, and over the classifier's labels")
    inference_steps: int = Field(default=20, ge=1, description="steps to the vector of a history")
    labels_per_user: int = Field(default=5, ge=1, description="last watches of each user that the classifier predicts")
    learning_rate: float = Field(default=0.1, gt=0, description="of Adagrad")
    max_videos: int = Field(default=5000, ge=1, description="above, paragraph vectors are left out: too slow")
    seed: int = Field(default=0, ge=0, description="of the start and of the order of examples")


@dataclass(frozen=True)
class ParagraphVectors:
    """Vectors of words, and the classifier.

    Args:
      words: W `[videos, d]`.
      of_user, of_last: A and B `[videos, d]`.
      last: e `[videos + 1, d]`, the last row zero: no last watch.
      log_share: log p `[videos]`.
      regularisation: λ.
      steps: of inference.
    """

    words: np.ndarray
    of_user: np.ndarray
    of_last: np.ndarray
    last: np.ndarray
    log_share: np.ndarray
    regularisation: float
    steps: int

    def score(self, histories: Histories) -> np.ndarray:
        """P(v | u, last) `[histories, videos]`: positive, as what weighs scores by popularity expects."""
        example = np.repeat(np.arange(len(histories)), histories.lengths)
        documents = _documents(example, histories.videos, (len(histories), len(self.words)))
        users = infer(documents, self.words, self.log_share, self.regularisation, self.steps)
        return _softmax(users @ self.of_user.T + self.last[histories.last] @ self.of_last.T + self.log_share)


def fit_paragraph_vectors(
    watches: Interactions, dimension: int, regularisation: float, config: ParagraphVectorsConfig
) -> ParagraphVectors:
    """Trains the words, then the classifier."""
    random = np.random.default_rng(config.seed)
    share = (watches.watch_counts + 1) / (watches.watch_counts + 1).sum()
    log_share = np.log(share).astype(np.float32)
    documents = _documents(watches.users, watches.videos, (watches.num_users, watches.num_videos))
    words = _words(documents, log_share, dimension, regularisation, config, random)
    rows = np.flatnonzero(_from_last(watches.users) < config.labels_per_user)
    users = _vectors_before(watches, rows, words, log_share, regularisation, config.inference_steps)
    same_user = np.append(False, watches.users[1:] == watches.users[:-1])
    last = np.where(same_user[rows], watches.videos[rows - 1], watches.num_videos)
    weights = _classifier(users, last, watches.videos[rows], log_share, config, random)
    return ParagraphVectors(words, *weights, log_share, regularisation, config.inference_steps)


def infer(
    documents: sp.csr_matrix, words: np.ndarray, log_share: np.ndarray, regularisation: float, steps: int
) -> np.ndarray:
    """The vectors of documents, words held: `[n, videos]` counts -> float32 `[n, d]`.

    Steps are Nesterov's for the likelihood divided by (number of watches + λ), whose curvature is at most the greatest
    of 1 and |w|² over the words.
    """
    length = 1 / max(1.0, float(np.square(words).sum(axis=1).max(initial=0.0)))
    count = np.asarray(documents.sum(axis=1), np.float32)
    vectors = ahead = np.zeros((documents.shape[0], words.shape[1]), np.float32)
    given = documents @ words
    for step in range(steps):
        expected = _softmax(ahead @ words.T + log_share) @ words
        gradient = (given - count * expected - regularisation * ahead) / (count + regularisation)
        before, vectors = vectors, ahead + length * gradient
        ahead = vectors + step / (step + 3) * (vectors - before)
    return vectors


def _words(
    documents: sp.csr_matrix,
    log_share: np.ndarray,
    dimension: int,
    regularisation: float,
    config: ParagraphVectorsConfig,
    random: np.random.Generator,
) -> np.ndarray:
    """W: in each pass every user's vector is inferred, a few steps, and the words move along their gradient."""
    words = random.normal(0, 1 / np.sqrt(dimension), (documents.shape[1], dimension)).astype(np.float32)
    optimizer = _Adagrad(config.learning_rate)
    for _ in range(config.passes):
        order = random.permutation(documents.shape[0])
        for start in range(0, len(order), _USERS_AT_ONCE):
            chosen = documents[order[start : start + _USERS_AT_ONCE]]
            users = infer(chosen, words, log_share, regularisation, config.inference_steps)
            count = np.asarray(chosen.sum(axis=1), np.float32)
            expected = (count * _softmax(users @ words.T + log_share)).T @ users
            gradient = chosen.T @ users - expected - regularisation * len(users) / documents.shape[0] * words
            words += optimizer.step("words", gradient / max(float(count.sum()), 1.0))
    return words


def _classifier(
    users: np.ndarray,
    last: np.ndarray,
    labels: np.ndarray,
    log_share: np.ndarray,
    config: ParagraphVectorsConfig,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and e of the third step, of users `[n, d]`, last watches and labels `[n]`."""
    videos, dimension = len(log_share), users.shape[1]
    of_user = np.zeros((videos, dimension), np.float32)
    of_last = np.zeros((videos, dimension), np.float32)
    embeddings = random.normal(0, 1 / np.sqrt(dimension), (videos + 1, dimension)).astype(np.float32)
    embeddings[videos] = 0
    optimizer = _Adagrad(config.learning_rate)
    for _ in range(config.passes):
        order = random.permutation(len(labels))
        for start in range(0, len(order), _EXAMPLES_AT_ONCE):
            rows = order[start : start + _EXAMPLES_AT_ONCE]
            user, before = users[rows], embeddings[last[rows]]
            error = _softmax(user @ of_user.T + before @ of_last.T + log_share)
            error[np.arange(len(rows)), labels[rows]] -= 1
            error /= -len(rows)
            moved = np.zeros_like(embeddings)
            np.add.at(moved, last[rows], error @ of_last)
            moved[videos] = 0
            of_user += optimizer.step("user", error.T @ user)
            of_last += optimizer.step("last", error.T @ before)
            embeddings += optimizer.step("embeddings", moved)
    return of_user, of_last, embeddings


class _Adagrad:
    """Steps along gradients, each divided by the root of the squares so far."""

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._squares: dict[str, np.ndarray] = {}

    def step(self, name: str, gradient: np.ndarray) -> np.ndarray:
        squares = self._squares.setdefault(name, np.full_like(gradient, 1e-8))
        squares += np.square(gradient)
        return self._learning_rate * gradient / np.sqrt(squares)


def _vectors_before(
    watches: Interactions, rows: np.ndarray, words: np.ndarray, log_share: np.ndarray, regularisation: float, steps: int
) -> np.ndarray:
    """float32 `[n, d]`: of each watch at `rows` the vector of what its user watched before it."""
    first = np.searchsorted(watches.users, watches.users[rows])
    parts = []
    for start in range(0, len(rows), _USERS_AT_ONCE):
        begin, end = first[start : start + _USERS_AT_ONCE], rows[start : start + _USERS_AT_ONCE]
        lengths = end - begin
        example = np.repeat(np.arange(len(end)), lengths)
        position = np.arange(lengths.sum()) + np.repeat(begin - (np.cumsum(lengths) - lengths), lengths)
        documents = _documents(example, watches.videos[position], (len(end), watches.num_videos))
        parts.append(infer(documents, words, log_share, regularisation, steps))
    return np.concatenate(parts)


def _from_last(users: np.ndarray) -> np.ndarray:
    """int64 `[n]`: how many watches of the same user come after; users ascend."""
    return np.searchsorted(users, users, side="right") - 1 - np.arange(len(users))


def _documents(rows: np.ndarray, videos: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """Counts of words float32 `[documents, videos]`."""
    return sp.coo_matrix((np.ones(len(rows), np.float32), (rows, videos)), shape=shape).tocsr()


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
