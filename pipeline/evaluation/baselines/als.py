"""ALS: matrix factorisation of implicit feedback (Hu, Koren, Volinsky 2008), by the `implicit` library.

A history that is not a training user's is folded in: its user factors are solved for with the video factors fixed.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from pydantic import Field
from threadpoolctl import threadpool_limits

from features.settings import Settings
from pipeline.evaluation.baselines.interactions import Histories, Interactions, prefer_popular


class AlsConfig(Settings):
    """The factorisations tried on validation."""

    factors: tuple[int, ...] = Field(default=(32, 64), description="dimensions")
    regularisation: tuple[float, ...] = Field(default=(1.0,), description="weight of the L2 penalty")
    confidence: tuple[float, ...] = Field(
        default=(4.0, 16.0, 64.0), description="confidence of a watch; an unwatched video has 1"
    )
    iterations: int = Field(default=10, ge=1, description="sweeps over users and videos")
    threads: int = Field(default=2, ge=1, description="threads of the solver")
    seed: int = Field(default=0, ge=0, description="seed of the first factors")


@dataclass(frozen=True)
class Als:
    """A fitted factorisation and popularity `[videos]` for examples without history."""

    model: Any = field(repr=False)
    popularity: np.ndarray

    def score(self, histories: Histories) -> np.ndarray:
        watched = histories.matrix(len(self.popularity))
        with threadpool_limits(1, "blas"):
            users = self.model.recalculate_user(np.arange(len(histories)), watched)
        return prefer_popular(users @ self.model.item_factors.T, histories, self.popularity)


def fit_als(watches: Interactions, factors: int, regularisation: float, confidence: float, config: AlsConfig) -> Als:
    """Factorises the user × video matrix of training."""
    # implicit's own threads and those of the BLAS library would compete for the same cores.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=factors,
            regularization=regularisation,
            alpha=confidence,
            iterations=config.iterations,
            num_threads=config.threads,
            random_state=config.seed,
        )
        model.fit(watches.matrix, show_progress=False)
    return Als(model, watches.watch_counts / watches.watch_counts.sum())
