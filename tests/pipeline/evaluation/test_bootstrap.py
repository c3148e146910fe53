"""Bootstrap over users: exact values, coverage, pairing."""

import numpy as np
import pytest

from features.errors import DataError
from pipeline.evaluation.bootstrap import (
    BootstrapConfig,
    UserBootstrap,
    paired_difference,
    paired_differences,
    percentile_interval,
)


def test_every_draw_draws_as_many_users_as_there_are():
    bootstrap = UserBootstrap(np.array(["a", "b", "b", "c"]), BootstrapConfig(resamples=50))
    counts = np.concatenate(list(bootstrap.draws()))
    assert counts.shape == (50, 3)
    assert (counts.sum(axis=1) == 3).all()
    assert counts.std() > 0


def test_draws_do_not_depend_on_the_size_of_the_blocks(monkeypatch):
    bootstrap = UserBootstrap(np.arange(7), BootstrapConfig(resamples=20))
    at_once = np.concatenate(list(bootstrap.draws()))
    monkeypatch.setattr("pipeline.evaluation.bootstrap._BLOCK_VALUES", 21)
    in_blocks = list(bootstrap.draws())
    assert len(in_blocks) == 7
    np.testing.assert_array_equal(np.concatenate(in_blocks), at_once)


def test_ratio_divides_totals_and_means_of_users_average_averages():
    users = np.array(["a", "a", "b"])
    bootstrap = UserBootstrap(users)
    ratio = bootstrap.ratio("r", np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 4.0]))
    assert ratio.value == pytest.approx(6 / 6)
    (mean,) = bootstrap.means_of_users(["m"], np.array([[1.0], [0.0], [0.0]]))
    assert mean.value == pytest.approx((0.5 + 0.0) / 2)
    assert mean.n == 2


def test_samples_of_two_users_are_the_three_possible_ratios():
    bootstrap = UserBootstrap(np.array([1, 2]), BootstrapConfig(resamples=200))
    ratio = bootstrap.ratio("r", np.array([1.0, 2.0]), np.array([2.0, 2.0]))
    assert set(np.round(ratio.samples, 6)) == {0.5, 0.75, 1.0}


def test_a_draw_without_denominator_is_left_out_of_the_interval():
    bootstrap = UserBootstrap(np.array([1, 2]), BootstrapConfig(resamples=100))
    ratio = bootstrap.ratio("r", np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    assert np.isnan(ratio.samples).any()
    assert (ratio.figure.low, ratio.figure.high, ratio.n) == (0.5, 0.5, 1)


def test_nothing_to_measure_gives_nan_not_a_perfect_score():
    figure = UserBootstrap(np.array([1])).ratio("r", np.zeros(1), np.zeros(1)).figure
    assert np.isnan([figure.value, figure.low, figure.high]).all()
    assert figure.n == 0


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    config = BootstrapConfig(resamples=200, confidence=0.9)
    covered = []
    for _ in range(200):
        users = np.repeat(np.arange(60), 3)
        values = rng.normal(1.0, 1.0, 60)[users] + rng.normal(0.0, 1.0, 180)
        figure = UserBootstrap(users, config).means_of_users(["m"], values[:, None])[0].figure
        covered.append(figure.low <= 1.0 <= figure.high)
    # Treating the three correlated rows of a user as independent would cover about 73%.
    assert 0.83 <= np.mean(covered) <= 0.96


def test_pairing_cancels_what_two_methods_share():
    rng = np.random.default_rng(2)
    users, shared = np.arange(300), rng.normal(0, 10, 300)
    bootstrap = UserBootstrap(users)
    (a,) = bootstrap.means_of_users(["m"], (shared + rng.normal(0.5, 1, 300))[:, None])
    (b,) = bootstrap.means_of_users(["m"], shared[:, None])
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(a.value - b.value)
    assert 0.2 < difference.low < difference.value < difference.high < 0.8
    assert a.figure.high - a.figure.low > 1.5
    assert difference.share_a_not_above_b == 0.0
    assert paired_difference(b, a).share_a_not_above_b == 1.0
    assert paired_difference(a, a).share_a_not_above_b == 1.0


def test_measurements_on_other_users_are_not_paired():
    one = UserBootstrap(np.array([1, 2])).ratio("r", np.ones(2), np.ones(2))
    other = UserBootstrap(np.array([1, 3])).ratio("r", np.ones(2), np.ones(2))
    with pytest.raises(DataError, match="different users or draws"):
        paired_difference(one, other)


def test_differences_of_two_methods_pair_metrics_by_name():
    bootstrap = UserBootstrap(np.array([1, 2]), BootstrapConfig(resamples=20))
    a = bootstrap.means_of_users(["m", "only in a", "k"], np.array([[1.0, 0, 5], [2.0, 0, 6]]))
    b = bootstrap.means_of_users(["k", "m"], np.array([[1.0, 0], [1.0, 0]]))
    assert [(d.name, d.value) for d in paired_differences(a, b)] == [("m", 1.5), ("k", 4.5)]


def test_no_rows_is_a_clear_error():
    with pytest.raises(DataError, match="no examples to measure on"):
        UserBootstrap(np.array([]))


def test_percentile_interval_of_known_samples():
    assert percentile_interval(np.arange(101.0), 0.9) == pytest.approx((5.0, 95.0))
