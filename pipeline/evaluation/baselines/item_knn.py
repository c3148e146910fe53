"""Item-kNN: videos watched by the same users as the videos of the history.

With nᵢ the users who watched i and nᵢⱼ those who watched both,

    similarity(i, j) = nᵢⱼ / (√(nᵢ nⱼ) + shrinkage),      score(j) = Σ over the history's i of similarity(i, j),

where only the k most similar j of each i count. Videos without any similarity follow in the order of popularity.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from features.settings import Settings
from pipeline.evaluation.baselines.interactions import Histories, Interactions, prefer_popular


class ItemKnnConfig(Settings):
    """The neighbourhoods tried on validation."""

    neighbours: tuple[int, ...] = Field(default=(100, 1000), description="most similar videos kept of each video")
    shrinkage: tuple[float, ...] = Field(default=(0.0, 10.0), description="damping of rare videos, in users")
    max_videos: int = Field(default=50_000, ge=1, description="above, item-kNN is left out: its pairs do not fit")


@dataclass(frozen=True)
class ItemKnn:
    """Similarities to the nearest videos.

    Args:
      similarity: `[videos, videos]` sparse float32; row i holds the videos nearest to i.
      popularity: `[videos]` shares of all watches.
    """

    similarity: sp.csr_matrix
    popularity: np.ndarray

    def score(self, histories: Histories) -> np.ndarray:
        scores = (histories.matrix(len(self.popularity)) @ self.similarity).toarray()
        scores = np.where(scores > 0, scores, (self.popularity - 1.0).astype(np.float32))
        return prefer_popular(scores, histories, self.popularity)


def fit_item_knn(watches: Interactions, neighbours: int, shrinkage: float) -> ItemKnn:
    """Similarities from the user × video matrix of training."""
    matrix = watches.matrix
    both = (matrix.T @ matrix).tocsr()
    both.setdiag(0.0)
    both.eliminate_zeros()
    both.sort_indices()
    users = np.asarray(matrix.sum(axis=0), np.float64).ravel()
    i, j = np.repeat(np.arange(len(users)), np.diff(both.indptr)), both.indices
    similarity = both.data / (np.sqrt(users[i] * users[j]) + shrinkage)
    kept = _largest_of_each_row(both.indptr, similarity, neighbours)
    shape = (watches.num_videos, watches.num_videos)
    nearest = sp.csr_matrix((similarity[kept].astype(np.float32), (i[kept], j[kept])), shape=shape)
    return ItemKnn(nearest, watches.watch_counts / watches.watch_counts.sum())


def _largest_of_each_row(starts: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    """bool `[n]`: the k largest values of each row; of equal ones the first.

    Args:
      starts: `[rows + 1]`, row r is `values[starts[r]:starts[r + 1]]`.
      values: `[n]`.
      k: at least 1.
    """
    kept = np.ones(len(values), bool)
    # Sorting all rows at once would cost several times as much: only long rows are looked into, and not sorted.
    for row in np.flatnonzero(np.diff(starts) > k):
        of_row = values[starts[row] : starts[row + 1]]
        least = np.partition(of_row, len(of_row) - k)[len(of_row) - k]
        chosen = of_row > least
        chosen[np.flatnonzero(of_row == least)[: k - np.count_nonzero(chosen)]] = True
        kept[starts[row] : starts[row + 1]] = chosen
    return kept
