"""Output vectors of videos that training never met, from those of the videos with the same attributes.

Beyond the papers. In v = E_out[video] + Σ over attributes of the average of E_attribute[rows], nothing but habit of the
optimizer decides what of a topic, or of the level that all watched videos share, comes to lie in E_out and what in
E_attribute; a new video has the second part alone, and is outscored by all others. So after training E_out is regressed
on the attributes, each video weighing as many labels as it had, and what they explain is moved into E_attribute: no
vector of a video of the vocabulary changes by it, while a new video gets what is to be expected of its attributes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, diags, hstack, identity, vstack
from scipy.sparse.linalg import lsmr

SHRINKAGE = 300.0
"""In labels. On the validation days of two simulated platforms 100 to 1000 were level: recall@100 of the labels of new
videos rose from 0 to about 0.63 and 0.30. On KuaiRand, whose attributes say little, no figure changed."""

_TOLERANCE = 1e-7  # relative; vectors are single precision
_STEPS = 300  # at most; twenty are usual


class Explained(NamedTuple):
    """What attributes explain of output vectors.

    `level`: `[dimension]`, the mean over labels. `effects`: `[columns of the design, dimension]`, what each attribute
    adds to it.
    """

    level: np.ndarray
    effects: np.ndarray


def attribute_design(rows: Mapping[str, np.ndarray], spaces: Mapping[str, str], sizes: Mapping[str, int]) -> csr_matrix:
    """The averages over a video's attributes as a matrix: `design @ tables` is Σ of the averages of E_attribute[rows].

    Args:
      rows: name of an attribute -> int32 `[videos]` or `[videos, length]`, 0 where absent.
      spaces: name of an attribute -> its id space.
      sizes: id space -> number of ids; the columns are those of the spaces in this order, without row 0.

    Returns:
      `[videos, sum of sizes]` float32.
    """
    return csr_matrix(hstack([_of_space(space, size, rows, spaces) for space, size in sizes.items()], dtype=np.float32))


def _of_space(space: str, size: int, rows: Mapping[str, np.ndarray], spaces: Mapping[str, str]) -> csr_matrix:
    return sum(
        (_averages(of_attribute, size) for name, of_attribute in rows.items() if spaces[name] == space),
        start=csr_matrix((len(next(iter(rows.values()))), size), dtype=np.float32),
    )


def _averages(rows: np.ndarray, size: int) -> csr_matrix:
    rows = rows.reshape(len(rows), -1)
    video, place = np.nonzero(rows)
    share = 1 / np.bincount(video, minlength=len(rows))[video]
    return csr_matrix((share.astype(np.float32), (video, rows[video, place] - 1)), (len(rows), size))


def explain(vectors: np.ndarray, design: csr_matrix, labels: np.ndarray, shrinkage: float = SHRINKAGE) -> Explained:
    """Ridge regression of output vectors on attributes.

    Minimises Σ_v labels[v] · |vectors[v] − level − design[v] @ effects|² + shrinkage · |effects|², where the level is
    the mean over labels.

    Args:
      vectors: `[videos, dimension]`.
      design: `[videos, columns]`.
      labels: `[videos]`, how many labels each video had; not all zero.
      shrinkage: labels that each attribute is supposed to have had at the level, besides its own.
    """
    level = np.average(vectors, axis=0, weights=labels)
    videos, columns = design.shape
    root = np.sqrt(labels)
    matrix = vstack([diags(root) @ design, np.sqrt(shrinkage) * identity(columns)], "csr")
    # Columns of length one: attributes with a million labels and with one are then solved in as few steps.
    scale = 1 / np.sqrt(matrix.multiply(matrix).sum(axis=0).A1)
    scaled = matrix @ diags(scale)
    effects = np.empty((columns, vectors.shape[1]), np.float32)
    target = np.zeros(videos + columns)
    for column in range(vectors.shape[1]):
        target[:videos] = root * (vectors[:, column] - level[column])
        effects[:, column] = scale * lsmr(scaled, target, atol=_TOLERANCE, btol=_TOLERANCE, maxiter=_STEPS)[0]
    return Explained(level.astype(np.float32), effects)


def by_space(effects: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """The effects of each id space with a row 0 of zeros, as its table has: `[size + 1, dimension]`."""
    parts = np.split(effects, np.cumsum(sizes)[:-1])
    return [np.pad(part, [(1, 0), (0, 0)]) for part in parts]
