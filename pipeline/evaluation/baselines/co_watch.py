"""Co-watch: what users watched right after the videos that were watched last.

With cᵢⱼ the times j was the next watch after i, and p the share of all watches,

    score(j | last watch i) = (cᵢⱼ + κ pⱼ) / (Σⱼ cᵢⱼ + κ),

so a rare i backs off to popularity. Without a last watch the score is p. Over the recent history, i₀ the last watch and
i₁, i₂, ... those before it, what each of them says counts less by γ:

    score(j | i₀, i₁, ...) = Σₖ γᵏ score(j | iₖ) / Σₖ γᵏ.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from features.settings import Settings
from pipeline.evaluation.baselines.interactions import Histories, Interactions, prefer_popular


class CoWatchConfig(Settings):
    """The back-offs tried on validation."""

    backoff: tuple[float, ...] = Field(default=(10.0, 100.0, 1000.0, 10_000.0), description="κ, in watches")


class RecentCoWatchConfig(Settings):
    """The decays and back-offs tried on validation, each with each."""

    decay: tuple[float, ...] = Field(default=(0.5, 0.8, 0.9), description="γ, from one watch to the one before it")
    backoff: tuple[float, ...] = Field(default=(10.0, 100.0, 1000.0), description="κ, in watches")


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
    return CoWatch(next_watch_counts(watches), watches.watch_counts / watches.watch_counts.sum(), backoff)


@dataclass(frozen=True)
class RecentCoWatch:
    """Transition counts from every watch of the history, the older the less.

    Args:
      co_watch: of one watch.
      decay: γ, above 0 and below 1.
    """

    co_watch: CoWatch
    decay: float

    def score(self, histories: Histories) -> np.ndarray:
        transitions, popularity, backoff = self.co_watch.transitions, self.co_watch.popularity, self.co_watch.backoff
        weights = decayed_watches(histories, len(popularity), self.decay)
        damped = weights @ sp.diags(1 / (np.asarray(transitions.sum(axis=1)).ravel() + backoff))
        total = np.asarray(weights.sum(axis=1))
        scores = (damped @ transitions).toarray()
        scores += backoff * np.asarray(damped.sum(axis=1)) * popularity
        np.divide(scores, total, out=scores, where=total > 0)
        return prefer_popular(scores.astype(np.float32), histories, popularity)


def fit_recent_co_watch(watches: Interactions, decay: float, backoff: float) -> RecentCoWatch:
    """Counts transitions as `fit_co_watch` does."""
    return RecentCoWatch(fit_co_watch(watches, backoff), decay)


def decayed_watches(histories: Histories, num_videos: int, decay: float) -> sp.csr_matrix:
    """`[n, num_videos]`: decay^k of the k-th watch from the last, k from 0, added up over the watches of a video."""
    age = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(histories.videos))
    example = np.repeat(np.arange(len(histories)), histories.lengths)
    entries = (np.power(decay, age), (example, histories.videos))
    return sp.coo_matrix(entries, shape=(len(histories), num_videos)).tocsr()


def next_watch_counts(watches: Interactions) -> sp.csr_matrix:
    """`[videos, videos]` how often j came right after i in a user's watches; i itself too, where watched again."""
    before, after = watches.videos[:-1], watches.videos[1:]
    counted = watches.users[:-1] == watches.users[1:]
    shape = (watches.num_videos, watches.num_videos)
    ones = np.ones(np.count_nonzero(counted), np.float32)
    return sp.coo_matrix((ones, (before[counted], after[counted])), shape=shape).tocsr()
