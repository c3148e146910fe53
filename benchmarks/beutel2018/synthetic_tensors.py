"""Tensors of known rank, to see which models can represent products of embeddings (Beutel et al. 2018, 4.1 and 8.1).

A tensor is kept as a matrix `[columns, size]`: its first axis along rows, all others, the last fastest, along columns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SyntheticTensors:
    """One tensor per seed, all of one shape.

    Args:
      values: float32 `[seeds, size^(axes − 1), size]`, see above.
      size: length of each axis.
      axes: how many.
    """

    values: np.ndarray
    size: int
    axes: int

    def first(self, count: int) -> "SyntheticTensors":
        """The tensors of the first `count` seeds."""
        return replace(self, values=self.values[:count])

    def indices(self, columns: np.ndarray) -> np.ndarray:
        """int32 `[n, axes − 1]`: where columns `[n]` lie on the axes after the first."""
        shape = (self.size,) * (self.axes - 1)
        return np.stack(np.unravel_index(columns, shape), axis=1).astype(np.int32)


def low_rank_tensors(seeds: Sequence[int], size: int, axes: int, rank: int) -> SyntheticTensors:
    """Σ_r Π_axes u_r with u ~ N(0, σ² I), σ = rank^(−1 / 2m) for m axes (Equation 2).

    The equation writes `1 / r^(1/2m) I` in the place of a variance; read so, entries would have variance √rank. Read as
    a standard deviation it gives rank · σ^2m = 1, the "variance close to 1" of the text. At rank 1 both are one.

    Args:
      seeds: one tensor for each.
      size, axes, rank: of the tensor.
    """
    stddev = rank ** (-1 / (2 * axes))
    values = []
    for seed in seeds:
        factors = np.random.default_rng(seed).normal(0, stddev, (axes, size, rank))
        columns = factors[1]
        for factor in factors[2:]:
            columns = np.einsum("cr,nr->cnr", columns, factor).reshape(-1, rank)
        values.append((columns @ factors[0].T).astype(np.float32))
    return SyntheticTensors(np.stack(values), size, axes)


def discrete_cross_tensors(seeds: Sequence[int], size: int) -> SyntheticTensors:
    """X_jia = u_(i,a) v_j with u in R^(size²) and v in R^size standard normal (section 8.1); axes j, i, a.

    As a matrix of j and pairs (i, a) it has rank 1; as a tensor of j, i and a its rank is that of u as a matrix.

    Args:
      seeds: one tensor for each.
      size: length of each axis.
    """
    values = []
    for seed in seeds:
        random = np.random.default_rng(seed)
        pairs, rows = random.normal(size=size * size), random.normal(size=size)
        values.append(np.outer(pairs, rows).astype(np.float32))
    return SyntheticTensors(np.stack(values), size, 3)


def balanced_batches(
    tensors: SyntheticTensors, columns: int, rows: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches without end, of `columns` · `rows` cells: random columns crossed with random rows.

    Columns of a batch lie on a random diagonal of the axes after the first, so that no index comes twice where another
    has not come once, and an epoch of the diagonals meets every column once.

    Args:
      tensors: what is drawn from.
      columns, rows: of a batch, at most `size` each.
      seed: of the order.

    Yields:
      int32 `[columns]` and `[rows]`.
    """
    random = np.random.default_rng(seed)
    size, others = tensors.size, tensors.axes - 2
    while True:
        orders = [random.permutation(size) for _ in range(others + 1)]
        for shift in random.permutation(size**others):
            shifts = np.unravel_index(shift, (size,) * others) if others else ()
            places = [np.arange(size), *(np.arange(size) + by for by in shifts)]
            diagonal = np.zeros(size, np.int64)
            for order, place in zip(orders, places, strict=True):
                diagonal = diagonal * size + order[place % size]
            for start in range(0, size - columns + 1, columns):
                chosen = diagonal[start : start + columns]
                yield chosen.astype(np.int32), random.permutation(size)[:rows].astype(np.int32)


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two arrays of the same shape, in double precision; 0 where one is constant."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (first, second))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else 0.0
