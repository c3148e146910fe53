"""The retrieval metrics that early stopping watches: over all videos of the vocabulary, ties against the model."""

import numpy as np
import tensorflow as tf

from features.spec import Side
from models.candidate_generator import LABEL, CandidateGenerator
from pipeline.evaluation.retrieval_metrics import SCORE_BYTES
from pipeline.input_pipeline import Arrays, ExampleColumns

MOST_EXAMPLES = 50_000
"""Validation examples scored after an epoch, at most; each is compared with every video."""
_BYTES_OF_A_SCORE = 8  # in single precision, while it is compared


def retrieval_map(
    model: CandidateGenerator, columns: ExampleColumns, k: int = 20, recall_at: int = 100, batch_size: int | None = None
) -> dict[str, float]:
    """MAP@k and recall of the label videos of a part, each example counting once.

    A label outside the vocabulary is a miss. Features with a serving value have it here too.

    Args:
      model: with one relevant video per example, average precision is 1 / rank.
      columns: features and `label`.
      k: cut-off of MAP.
      recall_at: cut-off of recall.
      batch_size: examples scored at once; None: 512, or as many as have a GiB of scores.

    Returns:
      `{"MAP@<k>": ..., "recall@<recall_at>": ...}`.
    """
    return ranked_by(ranks(model, columns, batch_size), k, recall_at)


def ranked_by(label_ranks: np.ndarray, k: int, recall_at: int) -> dict[str, float]:
    """The metrics of `retrieval_map` from ranks (from 1; 0 a miss)."""
    hit = label_ranks > 0
    precision = np.where(hit & (label_ranks <= k), 1 / np.maximum(label_ranks, 1), 0.0)
    return {
        f"MAP@{k}": float(precision.mean()),
        f"recall@{recall_at}": float((hit & (label_ranks <= recall_at)).mean()),
    }


def ranks(model: CandidateGenerator, columns: ExampleColumns, batch_size: int | None = None) -> np.ndarray:
    """Rank from 1 of each label among all videos of the vocabulary, int64 `[rows]`; 0 for a label of row 0."""
    vectors = class_vectors(model)
    batch_size = batch_size or max(min(512, SCORE_BYTES // (_BYTES_OF_A_SCORE * model.num_classes)), 1)
    parts = []
    for batch in columns.ordered(batch_size):
        labels = tf.constant(batch[LABEL])
        features = tower_inputs(model, columns.at_serving(batch))
        scores = model.class_scores(model.embed_queries(features), vectors, features)
        # The label's score is taken from the same product: another order of summation could differ in the last bit.
        own = tf.gather(scores, tf.maximum(labels - 1, 0), axis=1, batch_dims=1)
        rank = tf.where(labels > 0, tf.math.count_nonzero(scores >= own[:, tf.newaxis], axis=1), 0)
        parts.append(rank.numpy())
    return np.concatenate(parts)


def tower_inputs(model: CandidateGenerator, batch: Arrays) -> dict[str, tf.Tensor]:
    """The columns of a batch that the query tower reads."""
    return {feature.name: tf.constant(batch[feature.name]) for feature in model.spec.side(Side.QUERY)}


def class_vectors(model: CandidateGenerator, at_once: int = 65_536) -> tf.Tensor:
    """Vectors of all videos of the vocabulary, `[num_classes, dimension]`."""
    starts = range(1, model.num_classes + 1, at_once)
    ends = [min(start + at_once, model.num_classes + 1) for start in starts]
    return tf.concat([model.class_embeddings(tf.range(s, e)) for s, e in zip(starts, ends, strict=True)], axis=0)
