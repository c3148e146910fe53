"""Recall of an approximate index against exact search, by popularity of the videos that should be found.

An index that loses only rarely watched videos looks fine on average and starves the tail; therefore the floor holds
for each slice alone.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from pydantic import Field

from features.errors import ExportError
from features.settings import Settings
from serving.index import Index

SLICES = ("head", "torso", "tail")
TIE = 1e-5  # products of one vector differ by less when they are added up in another order, in float32


class RecallConfig(Settings):
    """The recall an index must reach to be exported."""

    k: int = Field(default=100, ge=1, description="recall of the k best videos")
    floor: float = Field(default=0.9, ge=0, le=1, description="least recall, of every slice")
    max_queries: int = Field(default=1000, ge=1, description="validation queries used, at most")
    min_hits: int = Field(
        default=100,
        ge=1,
        description="a slice that has fewer videos to be found over all queries is reported, not judged",
    )


@dataclass(frozen=True)
class SliceRecall:
    """Recall in one popularity slice.

    Args:
      videos: available videos in the slice.
      expected: (query, video) pairs of the exact answers whose video is in the slice.
      recall: share of them that the index answered too; None when `expected` is 0.
    """

    videos: int
    expected: int
    recall: float | None


def popularity_slices(counts: np.ndarray) -> np.ndarray:
    """Slice number (0 head, 1 torso, 2 tail) of each video.

    The head is the most watched videos that together have a third of all training watches, the torso has the next
    third, the tail the last third and every video without a watch.

    Args:
      counts: `[N]` training watches.
    """
    counts = np.asarray(counts, np.float64)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    total = counts.sum()
    share = before / total if total else np.ones(len(counts))
    slices = np.empty(len(counts), np.int8)
    slices[order] = np.where(counts[order] == 0, 2, np.minimum(np.floor(share * 3), 2))
    return slices


def rows_to_find(vectors: np.ndarray, queries: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The rows of the k largest dot products `[Q, k]`, unordered; of equal ones those that were found.

    Videos without classes of their own share vectors when they share attributes: which of them an index answers says
    nothing about it. Products count as equal to the k-th within `TIE` of the lengths multiplied.

    Args:
      vectors: `[N, d]` float32.
      queries: `[Q, d]` float32.
      found: `[Q, k]` distinct rows an index answered, -1 where none; k ≤ N.
    """
    block = max(1, 50_000_000 // len(vectors))
    lengths = np.linalg.norm(vectors, axis=1)
    answers = [np.zeros((0, found.shape[1]), np.int64)]
    for start in range(0, len(queries), block):
        part = queries[start : start + block]
        answers.append(_rows_to_find(part @ vectors.T, lengths, part, found[start : start + block]))
    return np.concatenate(answers)


def _rows_to_find(scores: np.ndarray, lengths: np.ndarray, queries: np.ndarray, found: np.ndarray) -> np.ndarray:
    """As `rows_to_find`, of scores `[Q, N]` and the vectors' lengths `[N]`."""
    k = found.shape[1]
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best_scores, found_scores = np.take_along_axis(scores, best, 1), np.take_along_axis(scores, found, 1)
    kth = best_scores.min(axis=1, keepdims=True)
    band = TIE * np.linalg.norm(queries, axis=1, keepdims=True)
    offsets = np.arange(len(scores))[:, None] * (scores.shape[1] + 1)
    found_too = np.isin(best + offsets, found + offsets)
    others = (found >= 0) & ~np.isin(found + offsets, best + offsets)
    # Ranks: 3 better than the k-th, 2 equal and found, 1 equal and not found, 0 worse. The k best of both are kept.
    equal = best_scores <= kth + band * lengths[best]
    ranks = np.where(equal, np.where(found_too, 2, 1), 3)
    other_ranks = np.where(others & (found_scores >= kth - band * lengths[found]), 2, 0)
    rows, ranks = np.concatenate([best, found], axis=1), np.concatenate([ranks, other_ranks], axis=1)
    return np.take_along_axis(rows, np.argpartition(-ranks, k - 1, axis=1)[:, :k], 1)


def recall_by_slice(
    index: Index, vectors: np.ndarray, queries: np.ndarray, counts: np.ndarray, config: RecallConfig
) -> dict[str, SliceRecall]:
    """Recall@k of `index` per popularity slice and over all (key `all`).

    Of videos with equal scores at the k-th place, any counts as found.

    Args:
      index: the index to judge.
      vectors: `[N, d]` the vectors of its rows, in its order.
      queries: `[Q, d]` validation query vectors; the first `max_queries` are used.
      counts: `[N]` training watches of the index's rows.

    Raises:
      ExportError: there is no query to measure an approximate index with.
    """
    if not len(queries) and not index.is_exact:
        raise ExportError(
            "index: expected validation queries to measure its recall with, found none; keep validation_days"
        )
    queries = np.ascontiguousarray(queries[: config.max_queries], np.float32)
    k = min(config.k, index.size)
    parts = np.array_split(queries, max(1, -(-len(queries) // 64)))
    found = np.concatenate(
        [index.search_rows(tf.constant(part), tf.zeros([len(part), 0], tf.int32), k)[0].numpy() for part in parts]
    )
    expected = rows_to_find(np.asarray(vectors, np.float32), queries, found)
    # One number per (query, row), so that a hit is a set membership.
    offsets = np.arange(len(queries))[:, None] * (index.size + 1)
    hit = np.isin(expected + offsets, found + offsets)
    slices = popularity_slices(counts)
    result = {}
    for number, name in [*enumerate(SLICES), (None, "all")]:
        inside = np.ones_like(hit) if number is None else slices[expected] == number
        videos = index.size if number is None else int((slices == number).sum())
        pairs = int(inside.sum())
        result[name] = SliceRecall(videos, pairs, float(hit[inside].mean()) if pairs else None)
    return result


def check_recall(recalls: dict[str, SliceRecall], config: RecallConfig) -> None:
    """Raises ExportError naming the slices below the floor."""
    low = [
        f"{name} {found.recall:.3f} ({found.videos} videos)"
        for name, found in recalls.items()
        if found.recall is not None and found.expected >= config.min_hits and found.recall < config.floor
    ]
    if low:
        raise ExportError(
            f"index: recall@{config.k} of exact search is below the floor of {config.floor:g} in {', '.join(low)}; "
            "raise leaves_to_search or reorder, or lower the floor"
        )
