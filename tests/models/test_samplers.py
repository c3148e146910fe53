"""Negatives: distinct classes, with expected counts that simulation confirms."""

import numpy as np
import pytest
import tensorflow as tf

from features.errors import ConfigError
from models.samplers import (
    LABEL_EXPECTED_COUNT,
    NEGATIVES,
    NEGATIVES_EXPECTED_COUNT,
    Distribution,
    NegativeSamplerConfig,
    attach_label_probability,
    attach_negatives,
    class_probabilities,
    make_sampler,
)

COUNTS = np.array([500, 200, 100, 50, 30, 20, 10, 5, 2, 1])


def test_log_uniform_follows_zipfs_law_over_ranks():
    p = class_probabilities(NegativeSamplerConfig(distribution=Distribution.LOG_UNIFORM), COUNTS)
    assert p[0] == pytest.approx(np.log(2) / np.log(11))
    assert p[9] == pytest.approx(np.log(11 / 10) / np.log(11))
    assert p.sum() == pytest.approx(1)


def test_by_frequency_takes_counts_to_the_power_of_the_distortion_and_leaves_no_class_out():
    config = NegativeSamplerConfig(distribution=Distribution.BY_FREQUENCY, distortion=0.5)
    np.testing.assert_allclose(class_probabilities(config, np.array([16, 4, 0])), [4 / 7, 2 / 7, 1 / 7])


@pytest.mark.parametrize("distribution", list(Distribution))
def test_negatives_are_distinct_and_counted_as_a_label_of_the_same_row_is(distribution: Distribution):
    sampler = make_sampler(NegativeSamplerConfig(distribution=distribution, num_sampled=4), COUNTS, seed=5)
    dataset = tf.data.Dataset.range(300).map(lambda _: sampler(tf.range(1, 11))).batch(300)
    drawn, drawn_counts, true_counts = (part.numpy() for part in next(iter(dataset)))
    assert all(len(set(rows)) == 4 for rows in drawn)
    assert set(drawn.ravel()) == set(range(1, 11))
    np.testing.assert_allclose(np.take_along_axis(true_counts, drawn - 1, axis=1), drawn_counts, rtol=1e-5)
    # 1 - (1 - p)^T, by hand from the first batch: the T of one class is the T of all.
    p = class_probabilities(NegativeSamplerConfig(distribution=distribution), COUNTS)
    draws = np.log1p(-true_counts[0]) / np.log1p(-p)
    np.testing.assert_allclose(draws, np.full(10, draws[9]), rtol=1e-3)


@pytest.mark.parametrize("distribution", list(Distribution))
def test_expected_counts_are_inclusion_probabilities_as_simulation_has_them(distribution: Distribution):
    counts = (20_000 / np.arange(1, 2001)).astype(int)
    config = NegativeSamplerConfig(distribution=distribution, num_sampled=200)
    labels = tf.range(1, 2001)
    draws = 1500
    sampler = make_sampler(config, counts, seed=5)
    dataset = tf.data.Dataset.range(draws).map(lambda _: sampler(labels))
    included, expected = np.zeros(2001), np.zeros(2000)
    for drawn, _, true_counts in dataset.as_numpy_iterator():
        included[drawn] += 1
        expected += true_counts
    deviation = (included[1:] - expected) / np.sqrt(np.maximum(expected * (1 - expected / draws), 1e-9) + 1)
    assert np.abs(deviation).max() < 5
    assert deviation.std() < 1.1
    # Frequent classes are nearly always there, and the counts say so; uniform knows no frequent ones.
    assert (expected[0] / draws > 0.98) == (distribution != Distribution.UNIFORM)


def test_the_same_seed_draws_the_same_negatives():
    def first(seed: int) -> np.ndarray:
        sampler = make_sampler(NegativeSamplerConfig(num_sampled=4), COUNTS, seed)
        dataset = tf.data.Dataset.from_tensors({"label": tf.constant([1, 2])}).repeat(3).map(attach_negatives(sampler))
        return np.array([batch[NEGATIVES] for batch in dataset.as_numpy_iterator()])

    np.testing.assert_array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))


def test_negatives_and_counts_are_attached_with_static_shapes():
    sampler = make_sampler(NegativeSamplerConfig(num_sampled=3), COUNTS, seed=1)
    dataset = tf.data.Dataset.from_tensors({"label": tf.constant([1, 0]), "x": tf.constant([1.0, 2.0])})
    dataset = dataset.map(attach_negatives(sampler))
    assert dataset.element_spec[NEGATIVES].shape == [3]
    assert dataset.element_spec[NEGATIVES_EXPECTED_COUNT].shape == [3]
    batch = next(iter(dataset))
    assert batch[LABEL_EXPECTED_COUNT].shape == [2]
    assert float(batch[LABEL_EXPECTED_COUNT][1]) == 1  # no video
    assert float(batch["x"][1]) == 2


def test_a_small_or_very_skewed_vocabulary_gives_fewer_negatives_instead_of_a_long_search():
    config = NegativeSamplerConfig(num_sampled=1000, distribution=Distribution.BY_FREQUENCY, distortion=1.0)
    assert make_sampler(config, COUNTS, 1)(tf.constant([1]))[0].shape == [5]
    assert make_sampler(config, np.array([7]), 1)(tf.constant([1]))[0].shape == [1]
    skewed = np.concatenate([[10**12], np.ones(9999)])
    assert len(make_sampler(config, skewed, 1)(tf.constant([1]))[0]) < 10


def test_errors_say_what_is_wrong():
    with pytest.raises(ConfigError, match="at least one video"):
        make_sampler(NegativeSamplerConfig(), np.array([]), 1)
    with pytest.raises(ConfigError, match="descending"):
        make_sampler(NegativeSamplerConfig(distribution=Distribution.LOG_UNIFORM), COUNTS[::-1], 1)


def test_in_batch_probabilities_are_proportional_to_label_counts():
    batch = attach_label_probability(np.array([8, 2, 0]))({"label": tf.constant([1, 2, 3, 0])})
    np.testing.assert_allclose(batch[LABEL_EXPECTED_COUNT], [1, 0.25, 0.125, 1])
