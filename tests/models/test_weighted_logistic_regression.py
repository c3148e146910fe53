"""Expected values are arithmetic on three or five impressions."""

import numpy as np
import pytest
import tensorflow as tf

from features.errors import DataError
from models.weighted_logistic_regression import (
    LabelStatistics,
    Objective,
    click_loss,
    example_weights,
    expected_watch_time,
    weighted_logistic_loss,
)

# Five impressions, two clicked: N = 5, k = 2, Σ T = 36 s.
CLICKED = np.array([1, 0, 1, 0, 0], np.float32)
WATCH_TIME_S = np.array([30, 0, 6, 0, 0], np.float32)


def fitted_logit(objective: Objective, clicked=CLICKED, watch_time_s=WATCH_TIME_S, keep_rate: float = 1.0) -> float:
    """The constant logit with the least total loss, by Newton's method."""
    logit = tf.Variable(0.0, dtype=tf.float64)
    for _ in range(50):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                logits = tf.fill([len(clicked)], logit)
                loss = tf.reduce_sum(
                    weighted_logistic_loss(
                        logits, clicked.astype(np.float64), watch_time_s.astype(np.float64), objective, keep_rate
                    )
                )
            slope = inner.gradient(loss, logit)
        logit.assign_sub(tf.clip_by_value(slope / outer.gradient(slope, logit), -1.0, 1.0))
    return float(logit.numpy())


def test_weighted_loss_of_three_impressions_by_hand():
    # odds e^0 = 1: p = 1/2, so a click of 10 s costs 10 ln 2 and no click costs ln 2;
    # odds e^ln3 = 3: p = 3/4, so no click costs -ln(1/4) = ln 4.
    loss = weighted_logistic_loss(
        tf.constant([0.0, 0.0, np.log(3.0)], tf.float32),
        tf.constant([1.0, 0.0, 0.0]),
        tf.constant([10.0, 0.0, 0.0]),
    )
    np.testing.assert_allclose(loss, [10 * np.log(2), np.log(2), np.log(4)], rtol=1e-6)


def test_exact_odds_add_a_unit_negative_to_each_positive():
    loss = weighted_logistic_loss(
        tf.constant([np.log(3.0)], tf.float32), tf.constant([1.0]), tf.constant([10.0]), Objective.EXACT_ODDS
    )
    np.testing.assert_allclose(loss, [10 * np.log(4 / 3) + np.log(4)], rtol=1e-6)


def test_learned_odds_on_constant_features_are_the_papers():
    assert np.exp(fitted_logit(Objective.WEIGHTED)) == pytest.approx(36 / (5 - 2), rel=1e-6)


def test_learned_exact_odds_are_the_mean_watch_time():
    assert np.exp(fitted_logit(Objective.EXACT_ODDS)) == pytest.approx(36 / 5, rel=1e-6)


def test_learned_unweighted_odds_are_those_of_a_click():
    assert np.exp(fitted_logit(Objective.UNWEIGHTED)) == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize("objective", list(Objective))
def test_prior_logit_is_the_optimum_on_constant_features(objective):
    prior = LabelStatistics.of(CLICKED, WATCH_TIME_S).prior_logit(objective)
    assert prior == pytest.approx(fitted_logit(objective), abs=1e-6)


@pytest.mark.parametrize("objective", list(Objective))
def test_down_sampled_negatives_are_corrected(objective):
    # Of 12 unclicked impressions every third was kept: the optimum must be that of all 12.
    kept = np.array([1, 1, 0, 0, 0, 0], np.float32)
    everything = np.array([1, 1] + [0] * 12, np.float32)
    watched = np.array([30, 6, 0, 0, 0, 0], np.float32)
    of_kept = fitted_logit(objective, kept, watched, keep_rate=1 / 3)
    of_all = fitted_logit(objective, everything, np.pad(watched, (0, 8)))
    assert of_kept == pytest.approx(of_all, abs=1e-6)
    assert LabelStatistics.of(kept, watched, negative_keep_rate=1 / 3).prior_logit(objective) == pytest.approx(of_all)


def test_watch_time_of_an_unclicked_impression_is_not_read():
    positive, negative = example_weights(tf.constant([0.0, 1.0]), tf.constant([np.nan, 4.0]), Objective.WEIGHTED)
    np.testing.assert_array_equal(positive, [0.0, 4.0])
    np.testing.assert_array_equal(negative, [1.0, 0.0])


def test_loss_and_gradient_stay_finite_at_extreme_logits():
    logit = tf.constant([-500.0, 500.0, -500.0, 500.0])
    with tf.GradientTape() as tape:
        tape.watch(logit)
        loss = weighted_logistic_loss(logit, tf.constant([1.0, 1.0, 0.0, 0.0]), tf.constant([20.0, 20.0, 0.0, 0.0]))
    np.testing.assert_allclose(loss, [10_000, 0, 0, 500])
    np.testing.assert_allclose(tape.gradient(loss, logit), [-20, 0, 0, 1], atol=1e-6)


def test_click_loss_is_the_plain_cross_entropy():
    loss = click_loss(tf.constant([0.0, np.log(3.0)], tf.float32), tf.constant([1.0, 0.0]), negative_keep_rate=0.5)
    np.testing.assert_allclose(loss, [np.log(2), 2 * np.log(4)], rtol=1e-6)


def test_mean_weight_by_hand():
    labels = LabelStatistics.of(CLICKED, WATCH_TIME_S)
    assert labels.mean_weight(Objective.WEIGHTED) == pytest.approx((36 + 3) / 5)
    assert labels.mean_weight(Objective.EXACT_ODDS) == pytest.approx((36 + 5) / 5)
    assert labels.mean_weight(Objective.UNWEIGHTED) == pytest.approx(1.0)


def test_expected_watch_time_removes_the_factor_of_the_odds():
    # Odds 36/3 = 12 with P = 2/5: 12 · 3/5 = 7.2 = 36/5.
    logit, click_logit = tf.math.log(12.0), tf.math.log(2 / 3)
    assert float(expected_watch_time(logit, click_logit, Objective.WEIGHTED, 18.0)) == pytest.approx(7.2, rel=1e-6)
    assert float(expected_watch_time(logit, click_logit, Objective.EXACT_ODDS, 18.0)) == pytest.approx(12, rel=1e-6)
    # P = 2/5 of 18 s a click.
    assert float(expected_watch_time(click_logit, logit, Objective.UNWEIGHTED, 18.0)) == pytest.approx(7.2, rel=1e-6)


@pytest.mark.parametrize("clicked", [[0.0, 0.0], [1.0, 1.0]])
def test_labels_of_one_kind_are_refused(clicked):
    with pytest.raises(DataError, match="clicked and unclicked"):
        LabelStatistics.of(np.array(clicked, np.float32), np.ones(2, np.float32))
