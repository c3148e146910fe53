"""Vectors of videos uploaded too late for training, from those of the videos with the same attributes.

Beyond the papers. A sequence model has vectors of the videos of its vocabulary alone. In the two-tower model v =
E_out[video] + Σ over attributes of the average of E_attribute[rows], how much of a topic, or of the level that all
watched videos share, comes to lie in E_out is left to the optimizer; a new video, which has the second part alone, is
outscored by all others. Its vector is rather, in all generators, what a regression of the trained vectors on their
attributes, each video weighing as many labels as it was, lets expect.

That is right for a video that had no time to be watched. One that had it and was not is no average video: were the many
videos of a catalogue that nobody watches expected to be, they would fill the lists (on a simulated platform with one of
them for each of the others, 47 of 100 places).
"""

from collections.abc import Mapping

import numpy as np
from scipy.sparse import csr_matrix, diags, hstack, identity, vstack
from scipy.sparse.linalg import lsmr

NEW_DAYS = 1
"""Uploaded that many days before the end of the training data or later, a video without a watch is new. Of the next
watches that were new videos on two simulated platforms 99% were of such."""

SHRINKAGE = 100.0
"""In labels. On the validation days of two simulated platforms 10 to 300 were level: recall@100 of next watches that
were new videos rose from 0 to about 0.62 and 0.32, of all by 0.032 and 0.011."""

_TOLERANCE = 1e-7  # relative; vectors are single precision
_STEPS = 300  # at most; twenty are usual


def attribute_design(rows: Mapping[str, np.ndarray], spaces: Mapping[str, str], sizes: Mapping[str, int]) -> csr_matrix:
    """The averages over a video's attributes as a matrix: `design @ tables` is Σ of the averages of tables[rows].

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


def expected_vectors(
    vectors: np.ndarray, design: csr_matrix, labels: np.ndarray, new: csr_matrix, shrinkage: float = SHRINKAGE
) -> np.ndarray:
    """The vectors that the attributes of new videos let expect: level + new @ effects.

    The level is the mean of the vectors over labels; the effects minimise
    Σ_v labels[v] · |vectors[v] − level − design[v] @ effects|² + shrinkage · |effects|².

    Args:
      vectors: `[videos, dimension]` of trained videos.
      design: `[videos, attributes]`, theirs.
      labels: `[videos]`, how often each of them was a label, not all 0.
      new: `[new videos, attributes]`.
      shrinkage: labels that each attribute is supposed to have had at the level, besides its own.

    Returns:
      `[new videos, dimension]` float32, zeros for a video that shares no attribute with a trained one.
    """
    level = np.average(vectors, axis=0, weights=labels)
    videos, attributes = design.shape
    root = np.sqrt(labels)
    matrix = vstack([diags(root) @ design, np.sqrt(shrinkage) * identity(attributes)], "csr")
    # Columns of length one: attributes with a million watches and with one are then solved in as few steps.
    scale = 1 / np.sqrt(matrix.multiply(matrix).sum(axis=0).A1)
    scaled = matrix @ diags(scale)
    effects = np.empty((attributes, vectors.shape[1]))
    target = np.zeros(videos + attributes)
    for column in range(vectors.shape[1]):
        target[:videos] = root * (vectors[:, column] - level[column])
        effects[:, column] = scale * lsmr(scaled, target, atol=_TOLERANCE, btol=_TOLERANCE, maxiter=_STEPS)[0]
    met = design.T @ labels > 0
    known = new @ met > 0
    return np.where(known[:, np.newaxis], level + new @ effects, 0).astype(np.float32)
