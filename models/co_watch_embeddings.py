"""Initial video embeddings from co-watches: a truncated factorization of the user × video matrix.

The system that Covington et al. 2016 replaced was a matrix factorization, and they view their network as "a nonlinear
generalization of factorization techniques" (section 2). Where logs are small, most videos have too few labels for
their vectors to be learned from random values. What was watched by the same users is known also where its time is
not, so input and output vectors start from the leading right singular vectors of

    D_u^(-1/2) · X · D_v^(-power),    X[u, v] = 1 where user u's history holds video v

with D_u the number of videos of each user and D_v = (number of users of each video) + shrinkage; `power` 1/2 is the
cosine of item-based collaborative filtering. Labels train the vectors from there on. Bags are those of the
examples that are trained on: no label of the test enters, those of validation enter the refit alone.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import svds

from features.settings import Settings


class StartVectors(NamedTuple):
    """Of all videos, float32 `[num_videos + 1, dimension]` each, row 0 zero."""

    watched: np.ndarray
    """Input vectors, of what was watched."""
    following: np.ndarray
    """Output vectors, of what may come next."""


class CoWatchConfig(Settings):
    """How co-watches become vectors."""

    power: float = Field(default=0.5, ge=0, le=1, description="how strongly frequent videos are damped")
    shrinkage: float = Field(default=10.0, ge=0, description="users added to every video's count; damps rare videos")
    scale: float = Field(default=0.3, gt=0, description="root mean square of the values of the vectors")
    seed: int = Field(default=0, ge=0, description="of the iteration's start")
    max_examples: int = Field(
        default=2_000_000, ge=1, description="training examples whose watches are counted, at most"
    )


def co_watch_embeddings(
    users: np.ndarray, rows: np.ndarray, num_videos: int, dimension: int, config: CoWatchConfig
) -> StartVectors:
    """Vectors whose dot products rise with the number of users two videos share.

    Args:
      users: int64 `[n]`, which user each entry is of, from 0.
      rows: int32 `[n]`, video rows in 1..num_videos; 0 (out of vocabulary) and repeated pairs count for nothing.
      num_videos: size of the vocabulary.
      dimension: length of a vector.
      config: normalisation and scale.

    Returns:
      The same vectors for both sides; those of videos without an entry are zero. So are the last dimensions where there
      are no more users or videos than dimensions.
    """
    kept = rows > 0
    pairs = np.unique(np.stack([users[kept], rows[kept] - 1]), axis=1)
    _, user = np.unique(pairs[0], return_inverse=True)
    num_users = int(user.max(initial=-1)) + 1
    embeddings = np.zeros((num_videos + 1, dimension), np.float32)
    rank = min(dimension, num_users - 1, num_videos - 1)  # svds finds no more
    if rank < 1:
        return StartVectors(embeddings, embeddings)
    matrix = csr_matrix((np.ones(len(user)), (user, pairs[1])), shape=(num_users, num_videos))
    videos_of_user = np.asarray(matrix.sum(axis=1)).ravel()
    users_of_video = np.asarray(matrix.sum(axis=0)).ravel()
    damping = (users_of_video + max(config.shrinkage, np.finfo(float).tiny)) ** -config.power
    normalised = diags(videos_of_user**-0.5) @ matrix @ diags(damping)
    start = np.random.default_rng(config.seed).standard_normal(min(matrix.shape))
    _, _, components = svds(normalised, k=rank, v0=start)
    vectors = components[::-1].T  # the leading one first
    vectors *= np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(rank)] < 0, -1, 1)  # signs are arbitrary
    embeddings[1:, :rank] = vectors * config.scale * np.sqrt(num_videos)
    return StartVectors(embeddings, embeddings)


def entries_of_bags(
    user_ids: np.ndarray, bags: Iterable[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """The (user, row) entries of examples.

    Args:
      user_ids: `[examples]`, any type that sorts.
      bags: (values int32 `[m]`, lengths int64 `[examples]`) for every bag of the examples, the label among them.

    Returns:
      users int64 and rows int32, both `[sum of m]`.
    """
    _, user = np.unique(user_ids, return_inverse=True)
    parts = [(np.repeat(user, lengths), values) for values, lengths in bags]
    return np.concatenate([users for users, _ in parts]), np.concatenate([values for _, values in parts])
