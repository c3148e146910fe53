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

_PAIRS_AT_ONCE = 1 << 24  # of some 40 bytes while they are compared


class ItemKnnConfig(Settings):
    """The neighbourhoods tried on validation."""

    neighbours: tuple[int, ...] = Field(default=(100, 1000), description="most similar videos kept of each video")
    shrinkage: tuple[float, ...] = Field(default=(0.0, 10.0), description="damping of rare videos, in users")
    max_videos: int = Field(default=50_000, ge=1, description="above, item-kNN is left out: it takes too long")


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
    """Similarities from the user × video matrix of training; co-watched pairs are counted for some videos at a time."""
    matrix = watches.matrix
    of_videos = matrix.T.tocsr()
    users = np.asarray(matrix.sum(axis=0), np.float64).ravel()
    parts = [_nearest(of_videos, matrix, rows, users, neighbours, shrinkage) for rows in _blocks(of_videos, matrix)]
    nearest = sp.vstack(parts, format="csr")
    return ItemKnn(nearest, watches.watch_counts / watches.watch_counts.sum())


def _blocks(of_videos: sp.csr_matrix, matrix: sp.csr_matrix) -> list[slice]:
    """Runs of videos with few enough co-watched pairs; a video with more is a run of its own."""
    # A video has at most a pair with each video that each of its users watched, and with each video.
    most = np.minimum(of_videos @ np.diff(matrix.indptr), matrix.shape[1]).astype(np.int64)
    starts, held = [0], 0
    for video, found in enumerate(most.tolist()):
        if held and held + found > _PAIRS_AT_ONCE:
            starts.append(video)
            held = 0
        held += found
    return [slice(*ends) for ends in zip(starts, [*starts[1:], len(most)], strict=True)]


def _nearest(
    of_videos: sp.csr_matrix, matrix: sp.csr_matrix, rows: slice, users: np.ndarray, neighbours: int, shrinkage: float
) -> sp.csr_matrix:
    """`[rows, videos]`: similarities of a run of videos to those nearest to each of them, not itself."""
    both = (of_videos[rows] @ matrix).tocsr()
    both.sort_indices()
    i, j = np.repeat(np.arange(rows.start, rows.stop), np.diff(both.indptr)), both.indices
    others = i != j
    i, j, counts = i[others], j[others], both.data[others]
    similarity = counts / (np.sqrt(users[i] * users[j]) + shrinkage)
    starts = np.searchsorted(i, np.arange(rows.start, rows.stop + 1))
    kept = _largest_of_each_row(starts, similarity, neighbours)
    return sp.csr_matrix((similarity[kept].astype(np.float32), (i[kept] - rows.start, j[kept])), shape=both.shape)


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
