"""EASE: a linear model from watched videos to videos, in closed form (Steck 2019, arXiv:1905.03375).

With X the binary user × video matrix and P = (XᵀX + λI)⁻¹, the weights of the ridge regression with a zero diagonal
are Bᵢⱼ = −Pᵢⱼ / Pⱼⱼ for i ≠ j and Bᵢᵢ = 0 (equation 8); a history x scores xᵀB.

With fewer users than videos P comes from a system of the users (Woodbury): P = (I − Xᵀ(XXᵀ + λI)⁻¹X) / λ.
"""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from pydantic import Field
from scipy.linalg import lapack

from features.errors import DataError
from features.settings import Settings
from pipeline.evaluation.baselines.interactions import Histories, Interactions, prefer_popular


class EaseConfig(Settings):
    """The regularisations tried on validation."""

    regularisation: tuple[float, ...] = Field(default=(200.0, 600.0, 2000.0), description="λ, in watches")
    max_videos: int = Field(default=12_000, ge=1, description="above, EASE is left out: it needs 12 bytes × videos²")


@dataclass(frozen=True)
class Ease:
    """Weights `[videos, videos]` float32 and popularity `[videos]` for examples without history."""

    weights: np.ndarray
    popularity: np.ndarray

    def score(self, histories: Histories) -> np.ndarray:
        scores = np.asarray(histories.matrix(len(self.weights)) @ self.weights)
        return prefer_popular(scores, histories, self.popularity)


def fit_ease(watches: Interactions, regularisation: float) -> Ease:
    """Solves for the weights in single precision: videos² × 4 bytes, twice."""
    matrix = watches.matrix
    if matrix.shape[0] < matrix.shape[1]:
        weights = matrix.T @ -(_ridge_inverse(matrix @ matrix.T, regularisation) @ matrix)
        weights[np.diag_indices_from(weights)] += np.float32(1.0)
    else:
        weights = _ridge_inverse(matrix.T @ matrix, regularisation)
    # Whatever P is multiplied by goes out here.
    weights /= -np.diag(weights).copy()
    weights[np.diag_indices_from(weights)] = 0.0
    return Ease(np.ascontiguousarray(weights), watches.watch_counts / watches.watch_counts.sum())


def _ridge_inverse(gram: sp.csr_matrix, regularisation: float) -> np.ndarray:
    """(G + λI)⁻¹ of a positive semi-definite G, by Cholesky."""
    # Fortran order lets LAPACK work in place; it reads and writes the lower triangle only.
    dense = np.asfortranarray(gram.toarray(), np.float32)
    dense[np.diag_indices_from(dense)] += np.float32(regularisation)
    factor, failed = lapack.spotrf(dense, lower=1, overwrite_a=1, clean=0)
    if not failed:
        inverse, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise DataError(f"EASE: XᵀX + λI is not positive definite at λ = {regularisation:g}; use a larger λ")
    whole = np.tril(inverse)
    whole += np.tril(inverse, -1).T
    return whole
