"""Last-watch co-watch: what users watched right after the video that was watched last.

With cᵢⱼ the times j was the next watch after i, and p the share of all watches,

    score(j | last watch i) = (cᵢⱼ + κ pⱼ) / (Σⱼ cᵢⱼ + κ),

so a rare i backs off to popularity. Without a last watch the score is p.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from features.settings import Settings
from pipeline.evaluation.baselines.interactions import Histories, Interactions


class CoWatchConfig(Settings):
    """The back-offs tried on validation."""

    backoff: tuple[float, ...] = Field(default=(10.0, 100.0, 1000.0, 10_000.0), description="κ, in watches")


@dataclass(frozen=True)
class CoWatch:
    """Transition counts with popularity back-off.

    Args:
      transitions: `[videos, videos]` sparse counts: row i, next watch j.
      popularity: `[videos]` shares of all watches.
      backoff: κ.
    """

    transitions: sp.csr_matrix
    popularity: np.ndarray
    backoff: float

    def score(self, histories: Histories) -> np.ndarray:
        last = histories.last
        rows = self.transitions[np.maximum(last, 0)]
        rows = sp.diags((last >= 0).astype(np.float32)) @ rows
        totals = np.asarray(rows.sum(axis=1)).ravel()
        scores = rows.toarray().astype(np.float32)
        scores += (self.backoff * self.popularity).astype(np.float32)
        scores /= (totals + self.backoff).astype(np.float32)[:, None]
        return scores


def fit_co_watch(watches: Interactions, backoff: float) -> CoWatch:
    """Counts the transitions between consecutive watches of the same user (order-only history included)."""
    return CoWatch(transition_counts(watches), watches.watch_counts / watches.watch_counts.sum(), backoff)


def transition_counts(watches: Interactions) -> sp.csr_matrix:
    """`[videos, videos]` how often j came right after i in a user's watches; a repeat of i itself is not counted."""
    before, after = watches.videos[:-1], watches.videos[1:]
    counted = (watches.users[:-1] == watches.users[1:]) & (before != after)
    shape = (watches.num_videos, watches.num_videos)
    ones = np.ones(np.count_nonzero(counted), np.float32)
    return sp.coo_matrix((ones, (before[counted], after[counted])), shape=shape).tocsr()
