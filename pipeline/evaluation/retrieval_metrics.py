"""Metrics of candidate generation over the whole catalogue.

One example has one relevant video: the next watch. With r its rank among all videos,

- precision@1 = [r = 1], recall@k = [r ≤ k];
- MAP@k = 1/r if r ≤ k, else 0 (average precision with a single relevant video);
- NDCG@k = 1/log2(1 + r) if r ≤ k, else 0 (the ideal list has the video first, gain 1).

Each is averaged over a user's examples and then over users, so that heavy users count as much as others.

The rank is pessimistic: r = 1 + the number of *other* videos with a score at least the target's, so a constant score
ranks every target last. A target outside the catalogue's columns, or with a score of −inf (no candidate) or NaN, is a
miss. Every metric is given twice: among all videos, and with the videos watched before removed ("unwatched"); there, a
target that was itself watched before cannot be recommended and is a miss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from features.errors import DataError
from features.settings import Settings
from pipeline.evaluation.bootstrap import BootstrapConfig, Measurement, UserBootstrap

Scorer = Callable[[slice], np.ndarray]
"""Scores `[examples of the slice, videos]`, the higher the better."""

MISS = np.iinfo(np.int64).max
"""The rank of a target that cannot be recommended."""

SCORE_BYTES = 1 << 30
"""Memory for scores, whatever the number of videos."""

_BYTES_OF_A_SCORE = 32  # in double precision, while it is changed and compared

UNWATCHED = "unwatched"
"""Suffix of the metrics with watched videos removed: `MAP@20 unwatched`."""


class RetrievalMetricsConfig(Settings):
    """The cut-offs reported and the memory used."""

    map_at: tuple[int, ...] = Field(default=(20,), description="k of MAP@k")
    recall_at: tuple[int, ...] = Field(default=(20, 100), description="k of recall@k")
    ndcg_at: tuple[int, ...] = Field(default=(20,), description="k of NDCG@k")
    chunk_size: int = Field(
        default=512,
        ge=1,
        description="examples scored at once, at most: fewer where their scores would take over a GiB",
    )
    max_examples: int | None = Field(
        default=50_000, ge=1, description="test examples scored, at most, all of a user or none; null: all examples"
    )
    bootstrap: BootstrapConfig = BootstrapConfig()

    def rows_at_once(self, num_videos: int) -> int:
        """Examples to score at once over so many videos: `chunk_size`, or as many as a GiB holds, and at least one."""
        return max(min(self.chunk_size, SCORE_BYTES // (_BYTES_OF_A_SCORE * max(num_videos, 1))), 1)


@dataclass(frozen=True)
class RetrievalTargets:
    """What is to be retrieved, example by example.

    Args:
      users: `[n]` the user of each example, any sortable type.
      targets: `[n]` column of the label video in the scores, or −1 outside the catalogue (a miss).
      watched: `[n, videos]` sparse; non-zero where the user watched the video before the label.
    """

    users: np.ndarray
    targets: np.ndarray
    watched: sp.csr_matrix = field(repr=False)

    def __post_init__(self) -> None:
        n, videos = self.watched.shape
        if len(self.users) != n or len(self.targets) != n:
            raise DataError(
                f"retrieval targets: {len(self.users)} users, {len(self.targets)} targets and {n} rows of watched "
                "videos; expected one of each per example"
            )
        if n and (self.targets.max() >= videos or self.targets.min() < -1):
            raise DataError(
                f"retrieval targets: columns from {self.targets.min()} to {self.targets.max()}; expected −1 (outside "
                f"the catalogue) to {videos - 1}"
            )

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_videos(self) -> int:
        return int(self.watched.shape[1])

    def take(self, rows: np.ndarray) -> "RetrievalTargets":
        """The examples at `rows`."""
        return RetrievalTargets(self.users[rows], self.targets[rows], self.watched[rows])


@dataclass(frozen=True)
class Ranks:
    """Ranks of the targets from 1, or `MISS`.

    Args:
      among_all: `[n]` among all videos.
      among_unwatched: `[n]` with watched videos removed.
    """

    among_all: np.ndarray
    among_unwatched: np.ndarray


def target_ranks(scores: np.ndarray, examples: RetrievalTargets) -> Ranks:
    """Ranks of the targets given the scores `[n, videos]` of all examples."""
    n, videos = len(examples), examples.num_videos
    if scores.shape != (n, videos):
        raise DataError(f"retrieval scores: shape {scores.shape}; expected {(n, videos)} (examples, videos)")
    target_columns = np.maximum(examples.targets, 0)
    target_scores = scores[np.arange(n), target_columns]
    known = (examples.targets >= 0) & (target_scores > -np.inf)
    # The target's own score is among those counted, which is the 1 of "1 + others". NaN of others is never.
    counted = (np.count_nonzero(row) for row in scores >= target_scores[:, None])  # by axis it takes ten times as long
    among_all = np.fromiter(counted, np.int64, n)

    watched = examples.watched.tocoo()
    of_example, columns = watched.coords
    present = watched.data != 0
    of_example, columns = of_example[present], columns[present]
    not_below = scores[of_example, columns] >= target_scores[of_example]
    removed = np.bincount(of_example[not_below], minlength=n)
    rewatched = np.zeros(n, bool)
    rewatched[of_example[columns == target_columns[of_example]]] = True
    return Ranks(
        np.where(known, among_all, MISS),
        np.where(known & ~rewatched, among_all - removed, MISS),
    )


def rank_examples(scorer: Scorer, examples: RetrievalTargets, chunk_size: int | None = None) -> Ranks:
    """Ranks of all targets, scoring `chunk_size` examples at a time (None: as the settings' defaults say)."""
    chunk_size = chunk_size or RetrievalMetricsConfig().rows_at_once(examples.num_videos)
    parts = []
    for start in range(0, len(examples), chunk_size):
        rows = slice(start, min(start + chunk_size, len(examples)))
        parts.append(target_ranks(np.asarray(scorer(rows)), examples.take(np.arange(rows.start, rows.stop))))
    return concatenate_ranks(parts)


def concatenate_ranks(parts: Sequence[Ranks]) -> Ranks:
    """Ranks of consecutive examples as one."""
    return Ranks(
        np.concatenate([part.among_all for part in parts]), np.concatenate([part.among_unwatched for part in parts])
    )


def reciprocal_rank(ranks: np.ndarray, k: int) -> np.ndarray:
    """MAP@k of each example: 1/rank within the first k, else 0."""
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


def recall(ranks: np.ndarray, k: int) -> np.ndarray:
    """recall@k of each example; precision@1 is recall@1."""
    return (ranks <= k).astype(np.float64)


def discounted_gain(ranks: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k of each example: 1/log2(1 + rank) within the first k, else 0."""
    within = ranks <= k
    return np.where(within, 1.0 / np.log2(1.0 + np.where(within, ranks, 1)), 0.0)


def metric_names(config: RetrievalMetricsConfig) -> list[str]:
    """Names of the metrics among all videos, in the order of `metric_values`."""
    return [
        *(f"MAP@{k}" for k in config.map_at),
        "precision@1",
        *(f"recall@{k}" for k in config.recall_at),
        *(f"NDCG@{k}" for k in config.ndcg_at),
    ]


def all_metric_names(config: RetrievalMetricsConfig) -> list[str]:
    """Names of all metrics: those among all videos, then the same with " unwatched" added."""
    names = metric_names(config)
    return [*names, *(f"{name} {UNWATCHED}" for name in names)]


def metric_values(ranks: np.ndarray, config: RetrievalMetricsConfig) -> np.ndarray:
    """Metrics `[examples, metrics]` from ranks `[examples]`."""
    columns = [
        *(reciprocal_rank(ranks, k) for k in config.map_at),
        recall(ranks, 1),
        *(recall(ranks, k) for k in config.recall_at),
        *(discounted_gain(ranks, k) for k in config.ndcg_at),
    ]
    return np.stack(columns, axis=1)


def evaluate_ranks(ranks: Ranks, users: np.ndarray, config: RetrievalMetricsConfig) -> list[Measurement]:
    """All metrics with bootstrap samples: among all videos, then the same names with " unwatched" added."""
    names, values = _both(ranks, config)
    return UserBootstrap(users, config.bootstrap).means_of_users(names, values)


def mean_metrics(ranks: Ranks, users: np.ndarray, config: RetrievalMetricsConfig) -> dict[str, float]:
    """The values of `evaluate_ranks` without its intervals, by name; for choosing hyper-parameters."""
    names, values = _both(ranks, config)
    _, user_of_row, rows = np.unique(users, return_inverse=True, return_counts=True)
    weights = 1.0 / (rows[user_of_row] * len(rows))
    return dict(zip(names, (weights @ values).tolist(), strict=True))


def _both(ranks: Ranks, config: RetrievalMetricsConfig) -> tuple[list[str], np.ndarray]:
    values = [metric_values(ranks.among_all, config), metric_values(ranks.among_unwatched, config)]
    return all_metric_names(config), np.concatenate(values, axis=1)


def evaluate_retrieval(
    scorer: Scorer, examples: RetrievalTargets, config: RetrievalMetricsConfig | None = None
) -> list[Measurement]:
    """All retrieval metrics of a scorer; see the module's text.

    Args:
      scorer: gives the scores of a slice of the examples.
      examples: targets and watched videos, over the same columns as the scores.
      config: cut-offs, chunk size and bootstrap.
    """
    config = config or RetrievalMetricsConfig()
    if not len(examples):
        raise DataError("retrieval metrics: no examples; expected at least one; check the split's dates")
    return evaluate_ranks(
        rank_examples(scorer, examples, config.rows_at_once(examples.num_videos)), examples.users, config
    )
