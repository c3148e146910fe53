"""Negative samplers of the sampled softmax, run in the input pipeline.

A sampler draws `num_sampled` distinct classes for a whole batch and says, for the drawn classes and for the labels
alike, the expected number of times that class is among the drawn ones. Sampled softmax subtracts the logarithm of that
number from each logit (the "importance weighting" of Covington et al. 2016, section 3.1).

Classes are drawn one after another with probability p(class) until `num_sampled` distinct ones are found; when that
took T draws, the expected count of a class is its chance to be among them, 1 - (1 - p)^T (T varies from batch to batch
with what is drawn, so for a handful of classes this is a rough figure, for hundreds an exact one). TensorFlow's
candidate samplers do the drawing. They do not compile under XLA, and here they do not have to.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum

import numpy as np
import tensorflow as tf
from pydantic import Field

from features.errors import ConfigError
from features.settings import Settings
from models.candidate_generator import LABEL, STEP_LABELS

NEGATIVES = "negatives"  # [num_sampled] int32: rows of the drawn videos
NEGATIVES_EXPECTED_COUNT = "negatives_expected_count"  # [num_sampled] float32
LABEL_EXPECTED_COUNT = "label_expected_count"  # [batch] float32, of sequence models [batch, steps]

MAX_DRAWS_PER_NEGATIVE = 50


class Distribution(StrEnum):
    """What p(class) is."""

    LOG_UNIFORM = "log_uniform"  # Zipf's law over ranks: log((class + 2) / (class + 1)) / log(classes + 1)
    BY_FREQUENCY = "by_frequency"  # proportional to count^distortion
    UNIFORM = "uniform"


class NegativeSamplerConfig(Settings):
    """Which negatives are drawn for each batch."""

    distribution: Distribution = Distribution.BY_FREQUENCY
    num_sampled: int = Field(
        default=4000, ge=1, description="negatives per batch, shared by its examples ('several thousand', section 3.1)"
    )
    distortion: float = Field(
        default=0.75, ge=0.0, le=1.0, description="power of the counts in by_frequency: 1 as they are, 0 uniform"
    )


Sampler = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


def class_probabilities(config: NegativeSamplerConfig, counts: np.ndarray) -> np.ndarray:
    """p(class) of one draw, float64 `[classes]`.

    Args:
      config: of the sampler.
      counts: `[classes]` how often each class (row - 1) is watched.
    """
    classes = len(counts)
    if config.distribution == Distribution.LOG_UNIFORM:
        ranks = np.arange(classes)
        return np.log((ranks + 2.0) / (ranks + 1.0)) / np.log(classes + 1.0)
    if config.distribution == Distribution.UNIFORM:
        return np.full(classes, 1 / classes)
    # A class that was counted zero times must still be drawn now and then, or its logit would never be pushed down.
    weights = np.maximum(counts, 1).astype(np.float64) ** config.distortion
    return weights / weights.sum()


def make_sampler(config: NegativeSamplerConfig, counts: np.ndarray, seed: int) -> Sampler:
    """A function from labels (rows `[batch]` or `[batch, steps]`) to negatives and the expected counts of both.

    At most half of the classes are drawn, and no more than `MAX_DRAWS_PER_NEGATIVE * num_sampled` draws are expected to
    give, so that a small or very skewed vocabulary does not make the search for distinct classes long.

    Args:
      config: of the sampler.
      counts: `[classes]` how often each class is watched; descending for `log_uniform`.
      seed: of the draws.

    Returns:
      A function for use in `tf.data.Dataset.map`: `[batch, ...]` int32 rows -> (`[num_sampled]` int32 rows,
      `[num_sampled]` float32, `[batch, ...]` float32). A label of row 0 has expected count 1.

    Raises:
      ConfigError: there is no class, or `log_uniform` where the counts do not descend.
    """
    classes = len(counts)
    if not classes:
        raise ConfigError("negative sampler: expected at least one video in the vocabulary, found none")
    if config.distribution == Distribution.LOG_UNIFORM and np.any(np.diff(counts) > 0):
        raise ConfigError(
            "negative sampler: log_uniform expects classes in descending frequency, found counts that rise; "
            "use by_frequency, or a vocabulary sorted by count"
        )
    probabilities = class_probabilities(config, counts)
    distinct = -np.expm1(MAX_DRAWS_PER_NEGATIVE * config.num_sampled * np.log1p(-np.minimum(probabilities, 1 - 1e-12)))
    num_sampled = max(1, min(config.num_sampled, classes // 2, int(distinct.sum())))
    unigrams = probabilities.tolist() if config.distribution == Distribution.BY_FREQUENCY else []

    def sample(labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        flat = tf.reshape(labels, [-1])
        true_classes = tf.cast(tf.maximum(flat - 1, 0), tf.int64)[:, tf.newaxis]
        arguments = {
            "true_classes": true_classes,
            "num_true": 1,
            "num_sampled": num_sampled,
            "unique": True,
            "range_max": classes,
            "seed": seed,
        }
        if config.distribution == Distribution.LOG_UNIFORM:
            drawn = tf.random.log_uniform_candidate_sampler(**arguments)
        elif config.distribution == Distribution.UNIFORM:
            drawn = tf.random.uniform_candidate_sampler(**arguments)
        else:
            drawn = tf.random.fixed_unigram_candidate_sampler(**arguments, unigrams=unigrams)
        rows = tf.cast(drawn.sampled_candidates, tf.int32) + 1
        true_counts = tf.where(flat > 0, tf.squeeze(drawn.true_expected_count, 1), 1.0)
        true_counts = tf.ensure_shape(tf.reshape(true_counts, tf.shape(labels)), labels.shape)
        return rows, drawn.sampled_expected_count, true_counts

    return sample


def attach_negatives(sampler: Sampler) -> Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """For `tf.data.Dataset.map`: adds negatives and expected counts to a batch that has `label` or `step_labels`."""

    def attach(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        rows, sampled_count, true_count = sampler(_labels(batch))
        return {
            **batch,
            NEGATIVES: rows,
            NEGATIVES_EXPECTED_COUNT: sampled_count,
            LABEL_EXPECTED_COUNT: true_count,
        }

    return attach


def attach_label_probability(counts: np.ndarray) -> Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """For the in-batch softmax: adds each label's expected count, up to a factor, as `label_expected_count`.

    Labels of the batch are its negatives, so a video is a negative in proportion to how often it is a label.

    Args:
      counts: `[classes]` how often each class is a label of the training set.
    """
    by_row = np.concatenate([[1.0], np.maximum(counts, 1) / max(counts.max(initial=1), 1)]).astype(np.float32)

    def attach(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {**batch, LABEL_EXPECTED_COUNT: tf.gather(by_row, _labels(batch))}

    return attach


def _labels(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """What is predicted: at every step, in the batches of sequence models."""
    return batch[STEP_LABELS] if STEP_LABELS in batch else batch[LABEL]
