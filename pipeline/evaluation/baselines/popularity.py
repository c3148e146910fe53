"""Popularity: the most watched videos for everybody, of all training or of its last days.

Recent popularity is counted back from the end of training t₁, in a window or with exponential decay:

    pᵢ = Σ over watches of i with t > t₁ − window of 1          or          pᵢ = Σ 2^(−(t₁ − t) / half-life).
"""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from features.settings import Settings
from pipeline.evaluation.baselines.interactions import US_PER_DAY, Histories, Interactions


class PopularityConfig(Settings):
    """The recent popularities tried on validation."""

    window_days: tuple[float, ...] = Field(default=(1.0, 2.0, 3.0, 7.0), description="last days counted")
    half_life_days: tuple[float, ...] = Field(default=(0.25, 0.5, 1.0, 2.0), description="half-lives of the decay")


@dataclass(frozen=True)
class Popularity:
    """Scores every example with the same counts `[videos]`."""

    counts: np.ndarray

    def score(self, histories: Histories) -> np.ndarray:
        return np.broadcast_to(self.counts.astype(np.float32), (len(histories), len(self.counts)))


def total_counts(watches: Interactions) -> np.ndarray:
    """Watches of each video in all training, float64 `[videos]`."""
    return watches.watch_counts


def window_counts(watches: Interactions, days: float) -> np.ndarray:
    """Watches of each video in the last `days` of training, float64 `[videos]`; only watches of known time."""
    recent = watches.time_known & (watches.times_us > watches.last_time_us - days * US_PER_DAY)
    return np.bincount(watches.videos[recent], minlength=watches.num_videos).astype(np.float64)


def decayed_counts(watches: Interactions, half_life_days: float) -> np.ndarray:
    """Watches of each video, each halved per half-life of its age, float64 `[videos]`; only watches of known time."""
    known = watches.time_known
    age_days = (watches.last_time_us - watches.times_us[known]) / US_PER_DAY
    return np.bincount(watches.videos[known], np.exp2(-age_days / half_life_days), minlength=watches.num_videos)


def recent_popularities(watches: Interactions, config: PopularityConfig) -> dict[str, np.ndarray]:
    """Every configured recent popularity by a name that says what it is."""
    return {
        **{f"last {days:g} days": window_counts(watches, days) for days in config.window_days},
        **{f"half-life {days:g} days": decayed_counts(watches, days) for days in config.half_life_days},
    }
