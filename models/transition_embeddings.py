"""Initial video embeddings from transitions: a truncated factorization of what is watched after what.

As `models/co_watch_embeddings.py`, but in order. Input vectors a and output vectors b start from the leading singular
vectors of damped counts of transitions,

    D_from^(-power) · C · D_to^(-power) ≈ A · Bᵀ,    C[i, j] = Σ γ^(k-1) over the times j was the k-th watch after i,

with D = (the sums of C by row, by column) + shrinkage on the diagonal. Unlike "watched by the same users", what comes
next is not what came before, and a video follows itself only as often as it is watched again. The lengths of the
vectors are damped, or the most frequent videos would outshine all others where popularity is steep. Labels train the
vectors from there on. Histories are those of the examples that are trained on: no label of the test enters, those of
validation enter the refit alone.
"""

import numpy as np
from pydantic import Field
from scipy.sparse import coo_matrix, csr_matrix, dia_matrix, diags
from scipy.sparse.linalg import svds

from features.settings import Settings
from models.co_watch_embeddings import StartVectors

_FAINTEST = 0.01  # γ^(k-1) below it counts for nothing
_NOTHING = 1e-6  # of the typical length: what the iteration leaves where there is no transition


class TransitionStartConfig(Settings):
    """How transitions become vectors."""

    decay: float = Field(default=0.8, gt=0, lt=1, description="γ, from one watch after a video to the next one")
    power: float = Field(default=0.5, ge=0, le=1, description="how strongly frequent videos are damped")
    shrinkage: float = Field(default=10.0, ge=0, description="added to the sums of every video; damps rare videos")
    length: float = Field(default=1.5, gt=0, description="of a typical vector; dot products begin around its square")
    damping: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="of lengths: 0 leaves them in proportion, where popularity is not steep; 1 makes all equal",
    )
    seed: int = Field(default=0, ge=0, description="of the iteration's start")
    max_examples: int = Field(
        default=2_000_000, ge=1, description="training examples whose watches are counted, at most"
    )


def transition_counts(
    rows: np.ndarray, lengths: np.ndarray, counted: np.ndarray, num_videos: int, decay: float
) -> csr_matrix:
    """C of the module's text.

    Args:
      rows: int32 `[n]`, the watches of all sequences one after the other, oldest first, as rows in 1..num_videos; 0
        (out of vocabulary) has a place, but is no transition.
      lengths: int `[sequences]`, which add up to n.
      counted: bool `[n]`, the watches that transitions to are counted of.
      num_videos: size of the vocabulary.
      decay: γ, in (0, 1).

    Returns:
      float64 `[num_videos, num_videos]`, row and column v - 1 of video v.
    """
    starts = np.cumsum(lengths) - lengths
    at = np.flatnonzero(counted & (rows > 0))
    place = at - starts[np.searchsorted(starts, at, side="right") - 1]
    total = csr_matrix((num_videos, num_videos))
    furthest = int(np.log(_FAINTEST) / np.log(decay)) + 1
    for steps in range(1, min(furthest, int(place.max(initial=0))) + 1):
        at, place = at[place >= steps], place[place >= steps]
        before, after = rows[at - steps], rows[at]
        kept = before > 0
        weight = np.full(np.count_nonzero(kept), decay ** (steps - 1))
        total += coo_matrix((weight, (before[kept] - 1, after[kept] - 1)), shape=total.shape).tocsr()
    return total


def transition_embeddings(transitions: csr_matrix, dimension: int, config: TransitionStartConfig) -> StartVectors:
    """Vectors whose dot products rise with how often the second video is watched after the first.

    Args:
      transitions: `[num_videos, num_videos]` counts, see `transition_counts`.
      dimension: length of a vector.
      config: normalisation and lengths.

    Returns:
      The vectors; those of videos without a transition are zero. So are the last dimensions where there are no more
      videos than dimensions.
    """
    num_videos = transitions.shape[0]
    start = StartVectors(*(np.zeros((num_videos + 1, dimension), np.float32) for _ in StartVectors._fields))
    rank = min(dimension, num_videos - 1)  # svds finds no more
    if rank < 1 or not transitions.nnz:
        return start
    normalised = _shrunk(transitions, 1, config) @ transitions @ _shrunk(transitions, 0, config)
    first = np.random.default_rng(config.seed).standard_normal(num_videos)
    left, strengths, right = svds(normalised, k=rank, v0=first)
    left, strengths, right = left[:, ::-1], strengths[::-1], right[::-1].T  # the leading one first
    signs = np.where(left[np.abs(left).argmax(axis=0), np.arange(rank)] < 0, -1, 1)  # svds' are arbitrary
    for vectors, side in zip(start, (left, right), strict=True):
        vectors[1:, :rank] = side * signs * np.sqrt(strengths)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        typical = np.sqrt(np.mean(lengths[1:] ** 2))
        own = lengths > _NOTHING * typical
        damped = lengths**config.damping * typical ** (1 - config.damping)
        vectors *= np.divide(config.length, damped, out=np.zeros_like(lengths), where=own)
    return start


def _shrunk(transitions: csr_matrix, axis: int, config: TransitionStartConfig) -> dia_matrix:
    """D^(-power) of the module's text; axis 1 adds up rows, axis 0 columns."""
    sums = np.asarray(transitions.sum(axis=axis)).ravel()
    return diags((sums + max(config.shrinkage, np.finfo(float).tiny)) ** -config.power)
