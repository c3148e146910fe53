"""Recent-popularity weighting of any peer's scores.

With sᵢ a peer's score, p the recent popularity in exponentially decayed watches and α ≥ 0,

    s′ᵢ = max(sᵢ, ε max s) · (1 + pᵢ)^α,          ε = 10⁻⁶,

so videos without evidence (sᵢ ≤ 0) are ordered by recent popularity below the others. α = 0 leaves the order of the
positive scores as it was. The half-life of p and α are chosen on validation.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from features.settings import Settings
from pipeline.evaluation.baselines.interactions import FittedBaseline, Histories

_FLOOR = 1e-6


class RecencyWeightingConfig(Settings):
    """The half-lives and exponents tried on validation, each with each."""

    half_life_days: tuple[float, ...] = Field(default=(0.5, 1.0, 2.0), description="half-lives of p's decay")
    exponent: tuple[float, ...] = Field(default=(0.25, 0.5, 1.0), description="α")


def weigh_by_popularity(scores: np.ndarray, popularity: np.ndarray, exponent: float) -> np.ndarray:
    """Scores `[n, videos]` times (1 + popularity `[videos]`)^exponent; see the module's text."""
    floor = np.maximum(_FLOOR * scores.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.maximum(scores, floor) * np.power(1.0 + popularity, exponent).astype(np.float32)


@dataclass(frozen=True)
class RecencyWeighted:
    """A peer whose scores are weighted.

    Args:
      baseline: the peer.
      popularity: `[videos]` p.
      exponent: α.
    """

    baseline: FittedBaseline
    popularity: np.ndarray
    exponent: float

    def score(self, histories: Histories) -> np.ndarray:
        return weigh_by_popularity(self.baseline.score(histories), self.popularity, self.exponent)
