"""The nearest-neighbour index of the candidate generator (Covington et al. 2016, section 3.1 "serving").

At serving the softmax is not needed: the k best videos are the k largest dot products between the query vector and
the video vectors. Up to a size that is done exactly; above it by ScaNN (anisotropic hashing, above another size with
a partitioning tree), always with exact reordering of what it found.

The index has rows of its own. They are not softmax classes: a new video has a vector but no class.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf
from pydantic import Field
from scann.scann_ops.py import scann_ops

from features.errors import ExportError
from features.settings import Settings

NO_VIDEO = ""  # fills the columns for which no video is left
NO_SCORE = -math.inf


class IndexConfig(Settings):
    """How an index is built.

    Sizes are numbers of available videos; the defaults follow ScaNN's own advice (exact under 20 thousand vectors,
    hashing without a tree under 100 thousand).
    """

    exact_below: int = Field(default=20_000, ge=0, description="with fewer videos the search is exact")
    tree_from: int = Field(default=100_000, ge=1, description="from this many videos on a partitioning tree is used")
    num_leaves: int | None = Field(default=None, ge=2, description="leaves of the tree; default 2·√videos")
    leaves_to_search: int | None = Field(
        default=None, ge=1, description="leaves searched per query; default a twentieth"
    )
    dimensions_per_block: int = Field(default=2, ge=1, description="dimensions hashed together")
    anisotropic_threshold: float = Field(
        default=0.2,
        ge=0,
        description="T of anisotropic vector quantization (Guo et al. 2020, there for vectors of length one) in units "
        "of the vectors' root mean square length",
    )
    reorder: int = Field(
        default=500, ge=1, description="neighbours scored exactly, at least; never fewer than twice the answer"
    )
    training_sample: int = Field(
        default=100_000, ge=1, description="vectors from which leaves and codebooks are learned"
    )


class Searcher(Protocol):
    """Finds the rows with the largest dot products."""

    def search(self, query: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Rows int32 and scores float32, `[B, c]` in descending order with c ≤ count; row -1, any score, where none."""


class ExactSearcher(tf.Module):
    """All dot products, then the largest; of equal scores the lower row comes first."""

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__()
        self.vectors = tf.Variable(vectors, trainable=False, name="video_vectors")

    def search(self, query: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        scores = tf.linalg.matmul(query, self.vectors, transpose_b=True)
        found = tf.math.top_k(scores, tf.minimum(count, tf.shape(scores)[1]))
        return found.indices, found.values


class ScannSearcher(tf.Module):
    """ScaNN's TensorFlow ops, so that the index travels inside the SavedModel.

    Built with `scann_ops.builder` and not with the TFRS layer, which always makes a tree, fixes the number of leaves
    searched and passes on what ScaNN fills short answers with (row 0, score NaN) as if video 0 had been found.
    """

    def __init__(self, vectors: np.ndarray, config: IndexConfig) -> None:
        super().__init__()
        size = len(vectors)
        sample = min(config.training_sample, size)
        length = float(np.sqrt(np.mean(np.sum(np.square(vectors), axis=1))))
        builder = scann_ops.builder(vectors, 1, "dot_product")
        self.num_leaves = 0
        if size >= config.tree_from:
            self.num_leaves = min(config.num_leaves or round(2 * math.sqrt(size)), size)
            searched = min(config.leaves_to_search or math.ceil(self.num_leaves / 20), self.num_leaves)
            builder = builder.tree(self.num_leaves, searched, training_sample_size=sample)
        builder = builder.score_ah(
            config.dimensions_per_block,
            anisotropic_quantization_threshold=config.anisotropic_threshold * length,
            training_sample_size=sample,
        ).reorder(min(config.reorder, size))
        self.state = builder.build().serialize_to_module()
        self.size = size
        self.reorder = config.reorder

    def search(self, query: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        searcher = scann_ops.searcher_from_module(self.state)
        count = tf.minimum(count, self.size)
        # Reordering no more than what is returned would return hashing errors.
        reordered = tf.minimum(tf.maximum(2 * count, self.reorder), self.size)
        parallel = tf.shape(query)[0] >= 8

        def search(leaves: int) -> tuple[tf.Tensor, tf.Tensor]:
            found = scann_ops.scann_search_batched(searcher.searcher_handle, query, count, reordered, leaves, parallel)
            # A query that found fewer than another one of its batch is filled with row 0 and NaN.
            scores = found[1]
            rows = tf.where(tf.math.is_nan(scores), -1, found[0])
            rows.set_shape([None, None])
            scores.set_shape([None, None])
            return rows, scores

        rows, scores = search(-1)
        if not self.num_leaves:
            return rows, scores
        # The leaves searched may hold fewer videos than asked for: for such queries all leaves are searched.
        short = tf.reduce_sum(tf.cast(rows >= 0, tf.int32), axis=1) < count

        def complete() -> tuple[tf.Tensor, tf.Tensor]:
            all_rows, all_scores = search(self.num_leaves)
            # Wherever not short, `rows` has `count` columns already; elsewhere its values are not read.
            return (
                tf.where(short[:, None], all_rows, _widen(rows, count, -1)),
                tf.where(short[:, None], all_scores, _widen(scores, count, NO_SCORE)),
            )

        return tf.cond(tf.reduce_any(short), complete, lambda: (rows, scores))


def _widen(values: tf.Tensor, width: tf.Tensor, padding: float) -> tf.Tensor:
    """`[B, n]` with columns of padding added up to `width`."""
    return tf.pad(values, [[0, 0], [0, tf.maximum(width - tf.shape(values)[1], 0)]], constant_values=padding)


class Index(tf.Module):
    """Video vectors with their ids, searched by dot product.

    Args:
      vectors: `[N, d]` float32, one row per video.
      video_ids: the `N` ids, distinct and not empty.
      config: how to build.
      available: `[N]` bool; a video marked False is not indexed and never answered. Default all.
      exact: search exactly whatever the size.

    Raises:
      ExportError: a vector that is not finite (the video is named), repeated or empty ids, no available video,
        or lengths that differ.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        video_ids: Sequence[str] | np.ndarray,
        config: IndexConfig,
        available: np.ndarray | None = None,
        exact: bool = False,
    ) -> None:
        super().__init__(name="index")
        vectors = np.ascontiguousarray(vectors, np.float32)
        ids = np.asarray(video_ids, dtype=object)
        _check_ids(vectors, ids, available)
        if available is not None:
            vectors, ids = np.ascontiguousarray(vectors[available]), ids[available]
        _check_finite(vectors, ids)
        self.video_ids = ids
        self.is_exact = exact or len(ids) < config.exact_below
        self.searcher: Searcher = ExactSearcher(vectors) if self.is_exact else ScannSearcher(vectors, config)
        # Row -1 (no video) reads the first entry.
        self._id_table = tf.Variable([NO_VIDEO, *ids], trainable=False, dtype=tf.string, name="index_video_ids")
        keys, rows = tf.constant(ids.tolist(), tf.string), tf.range(len(ids), dtype=tf.int32)
        self._row_table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, rows), -1)

    @property
    def size(self) -> int:
        """Number of videos that can be answered."""
        return len(self.video_ids)

    def rows_of(self, video_ids: tf.Tensor) -> tf.Tensor:
        """Index rows of video ids: string `[...]` -> int32 `[...]`, -1 for an id that is not indexed."""
        return self._row_table.lookup(video_ids)

    def search_rows(self, query: tf.Tensor, excluded_rows: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
        """As `search`, with index rows (int32 `[B, k]`, -1 where no video is left) instead of ids."""
        excluded_rows = tf.cast(excluded_rows, tf.int32)
        # The k best that are not excluded are among the k + |excluded| best.
        excluded_count = tf.reduce_max(tf.reduce_sum(tf.cast(excluded_rows >= 0, tf.int32), axis=1))
        rows, scores = self.searcher.search(query, k + tf.maximum(excluded_count, 0))
        # A row is excluded where it has places in the sorted list: no comparison of each with each. The raw operations
        # are those of tf.searchsorted, whose reshaping costs a small request more than the search.
        ascending = tf.sort(excluded_rows, axis=1)
        first = tf.raw_ops.LowerBound(sorted_inputs=ascending, values=rows)
        removed = (tf.raw_ops.UpperBound(sorted_inputs=ascending, values=rows) > first) | (rows < 0)
        # Fewer than k may be left: k columns of padding, whose size needs no computing, cost a small graph least.
        padding = [[0, 0], [0, k]]
        scores = tf.where(removed, tf.constant(NO_SCORE, tf.float32), scores)
        # top_k takes the first of equal scores first, so the order found is kept.
        best = tf.math.top_k(tf.pad(scores, padding, constant_values=NO_SCORE), k)
        rows = tf.pad(tf.where(removed, -1, rows), padding, constant_values=-1)
        rows = tf.gather(rows, best.indices, batch_dims=1)
        rows.set_shape([None, k])
        best.values.set_shape([None, k])
        return rows, best.values

    def search(self, query: tf.Tensor, excluded_rows: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The k best videos of each query, without the excluded ones.

        Args:
          query: `[B, d]` float32, B ≥ 1.
          excluded_rows: `[B, X]` int32 index rows that must not be answered; negative entries are padding. They are
            removed before the cut: an exact index returns the k best of the others.
          k: number of columns, fixed when the graph is built.

        Returns:
          ids string `[B, k]` and scores float32 `[B, k]` in descending order. Where fewer than k videos remain the
          last columns hold "" and -inf.
        """
        rows, scores = self.search_rows(query, excluded_rows, k)
        return tf.gather(self._id_table, rows + 1), scores


def _check_ids(vectors: np.ndarray, ids: np.ndarray, available: np.ndarray | None) -> None:
    if vectors.ndim != 2 or len(vectors) != len(ids) or (available is not None and len(available) != len(ids)):
        lengths = f"vectors {list(vectors.shape)}, {len(ids)} ids"
        lengths += "" if available is None else f", {len(available)} availability flags"
        raise ExportError(f"index: expected one vector [d], id and availability flag per video, found {lengths}")
    if not len(ids) or (available is not None and not np.any(available)):
        raise ExportError(
            "index: expected videos that are available and about which the generator knows something, found none among "
            f"{len(ids)}: all are unavailable or have zero vectors; the index would answer nothing"
        )
    distinct = set(ids)
    if NO_VIDEO in distinct or len(distinct) != len(ids):
        values, counts = np.unique(np.asarray(ids, object), return_counts=True)
        bad = values[(counts > 1) | (values == NO_VIDEO)][0]
        raise ExportError(f"index: video ids must be distinct and not empty, found {bad!r} twice or empty")


def _check_finite(vectors: np.ndarray, ids: np.ndarray) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        bad = ids[np.argmin(finite)]
        raise ExportError(
            f"index: the vector of video {bad!r} is not finite ({(~finite).sum()} such of {len(ids)}); "
            "a search would answer it silently wrong: check the model's attributes and its training loss"
        )
