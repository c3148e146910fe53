"""Softmax over the videos most co-watched with the last watch (Beutel et al. 2018, section 7.1, bag of words + time).

"The model is trained with a softmax over the 50 videos most co-watched with the last watch." Co-watched are here the
videos that users of the training part watched right after it, by how often; of equal counts the more frequent video
comes first, and a repeat of the video itself is not counted. After a watch out of vocabulary, and before the first
watch, the candidates are the 50 most frequent videos.

The paper does not tell what becomes of the other videos. Here a label that is no candidate adds nothing to the loss,
and where videos are ordered, the candidates come first in the order of their scores, then all others by frequency:

    score(v | u, last) = u · v − min over the candidates c of u · c   for a candidate,      −row of v   for another.

That order depends on the last watch and is no dot product, so no index of vectors answers for such a model: its
`video_embeddings` are an error. It is for comparison.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from features.errors import ConfigError
from models.candidate_generator import LABEL, LAST_WATCH, CandidateGenerator, SoftmaxLoss
from models.sequence_steps import WATCHED_VIDEOS, at_request, history_lengths, of_last_event

CO_WATCHED = "co_watched"  # class attribute: rows of the candidates after each video, 0 where there are fewer
CANDIDATES = 50


def co_watched_videos(
    last: np.ndarray, following: np.ndarray, num_videos: int, candidates: int = CANDIDATES
) -> np.ndarray:
    """The videos most often watched right after each video.

    Args:
      last, following: int32 `[n]` rows of consecutive watches; pairs with row 0 or of one video count for nothing.
      num_videos: size of the vocabulary.
      candidates: kept of each video, at most the vocabulary.

    Returns:
      int32 `[num_videos + 1, candidates]`, most often first, 0 where there are fewer; row 0 has the most frequent ones.
    """
    candidates = min(candidates, num_videos)
    counted = (last > 0) & (following > 0) & (last != following)
    keys = last[counted].astype(np.int64) * (num_videos + 1) + following[counted]
    pairs, counts = np.unique(keys, return_counts=True)
    before, after = np.divmod(pairs, num_videos + 1)
    order = np.lexsort((after, -counts, before))  # rows of more frequent videos are smaller
    before, after = before[order], after[order]
    place = np.arange(len(before)) - np.searchsorted(before, before)
    found = np.zeros((num_videos + 1, candidates), np.int32)
    kept = place < candidates
    found[before[kept], place[kept]] = after[kept]
    found[0] = np.arange(1, candidates + 1)
    return found


class CoWatchedVideos(tf_keras.layers.Layer):
    """The candidates after each video.

    Args:
      num_classes: number of videos.
      videos: int32 `[num_classes + 1, candidates]` of `co_watched_videos`; None: the most frequent videos after each,
        for a model whose weights are loaded afterwards.

    Raises:
      ConfigError: candidates of another number of videos.
    """

    def __init__(self, num_classes: int, videos: np.ndarray | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if videos is None:
            most_frequent = np.arange(1, min(CANDIDATES, num_classes) + 1, dtype=np.int32)
            videos = np.broadcast_to(most_frequent, (num_classes + 1, len(most_frequent)))
        if len(videos) != num_classes + 1:
            raise ConfigError(
                f"softmax over co-watched videos: expected candidates of {num_classes} videos, found {len(videos) - 1} "
                "videos; make them from the vocabulary of the same run"
            )
        self.videos = self.add_weight(
            "videos", shape=videos.shape, dtype=tf.int32, initializer="zeros", trainable=False
        )
        self.videos.assign(videos)
        self.built = True

    def call(self, last: tf.Tensor) -> tf.Tensor:
        """Candidates after the videos of rows `[n]` int32: `[n, candidates]` int32, 0 for none."""
        return tf.gather(self.videos, last)


class CoWatchedSoftmax(SoftmaxLoss):
    """The loss part of a generator of sequences: see the module's text.

    Args:
      videos: the candidates; the generator keeps them.
    """

    dot_products = False

    def __init__(self, videos: CoWatchedVideos) -> None:
        self.videos = self.layer = videos

    def __call__(
        self, generator: CandidateGenerator, queries: tf.Tensor, inputs: Mapping[str, tf.Tensor], training: bool
    ) -> tf.Tensor:
        candidates = self.videos(inputs[LAST_WATCH])
        vectors = generator.class_embeddings(tf.reshape(candidates, [-1]), training=training)
        vectors = tf.reshape(vectors, [-1, candidates.shape[1], generator.dimension])
        logits = tf.squeeze(tf.matmul(vectors, queries[:, :, tf.newaxis]), axis=-1)
        logits = tf.where(candidates > 0, logits, logits.dtype.min)
        own = (candidates == inputs[LABEL][:, tf.newaxis]) & (candidates > 0)
        log_probability = tf.reduce_sum(tf.where(own, tf.nn.log_softmax(logits), 0.0), axis=1)
        return -log_probability

    def class_scores(
        self, queries: tf.Tensor, vectors: tf.Tensor, features: Mapping[str, tf.Tensor] | None = None
    ) -> tf.Tensor:
        """Scores of every video after the last watch of `features`, `[n, num_classes]`."""
        if features is None:
            raise ConfigError("softmax over co-watched videos: expected features with the last watch, found none")
        last = at_request(of_last_event(features[WATCHED_VIDEOS]), history_lengths(features))
        candidates = self.videos(last)
        known = candidates > 0
        logits = tf.gather(tf.matmul(queries, vectors, transpose_b=True), tf.maximum(candidates - 1, 0), batch_dims=1)
        least = tf.reduce_min(tf.where(known, logits, logits.dtype.max), axis=1, keepdims=True)
        by_frequency = -tf.cast(tf.range(1, tf.shape(vectors)[0] + 1), tf.float32)
        scores = tf.repeat(by_frequency[tf.newaxis], tf.shape(queries)[0], axis=0)
        places = tf.where(known)
        columns = tf.stack([tf.cast(places[:, 0], tf.int32), tf.boolean_mask(candidates, known) - 1], axis=1)
        return tf.tensor_scatter_nd_update(scores, columns, tf.boolean_mask(logits - least, known))
