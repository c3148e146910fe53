"""The calibration against hand arithmetic, and its graph form against its NumPy form."""

import numpy as np
import pytest
import tensorflow as tf

from features.errors import ConfigError, DataError
from models.calibration import (
    CalibrationConfig,
    CalibrationPoints,
    WatchTimeCalibration,
    at_equal_rank,
    fit_watch_time_calibration,
)


def config(bins: int) -> CalibrationConfig:
    return CalibrationConfig(bins=bins, min_watched_per_bin=1)


def test_one_bin_is_the_ratio_of_the_totals():
    points = fit_watch_time_calibration(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 12.0]), config(1))
    np.testing.assert_allclose(points.apply(np.array([0.5, 2.0, 30.0])), [1.0, 4.0, 60.0])


def test_bins_by_hand():
    # Bins (1, 1) -> 2, (3, 3) -> 3: through (1, 2) and (3, 3); the totals agree already, so nothing is rescaled.
    points = fit_watch_time_calibration(np.array([3.0, 1.0, 3.0, 1.0]), np.array([6.0, 4.0, 0.0, 0.0]), config(2))
    np.testing.assert_allclose(points.apply(np.array([0.5, 1.0, 2.0, 3.0, 6.0])), [1.0, 2.0, 2.5, 3.0, 6.0])


def test_bins_that_descend_are_pooled():
    points = fit_watch_time_calibration(
        np.array([1.0, 2.0, 3.0]), np.array([6.0, 2.0, 7.0]), config(3)
    )  # (1 -> 6, 2 -> 2) pool to 1.5 -> 4
    ratio = points.calibrated_s / np.array([4.0, 7.0])
    np.testing.assert_allclose(points.raw_s, [1.5, 3.0])
    np.testing.assert_allclose(ratio, ratio[0])


def test_total_of_the_fitted_impressions_is_kept_with_weights():
    random = np.random.default_rng(0)
    expected = random.lognormal(2, 1, 5000)
    actual = random.exponential(3 * expected**0.7) * (random.random(5000) < 0.4)
    weight = random.choice([1.0, 4.0], 5000)
    points = fit_watch_time_calibration(expected, actual, CalibrationConfig(), weight)
    assert np.sum(weight * points.apply(expected)) == pytest.approx(np.sum(weight * actual))


def test_a_wrong_curve_is_repaired_in_every_decile():
    random = np.random.default_rng(1)
    truth = random.lognormal(2, 1, 200_000)
    raw = 2.5 * truth**0.6  # a ranker that is monotone but much too flat
    actual = random.exponential(truth)
    points = fit_watch_time_calibration(raw[:100_000], actual[:100_000], CalibrationConfig(bins=20))
    calibrated = points.apply(raw[100_000:])
    deciles = np.array_split(np.argsort(calibrated), 10)
    for decile in deciles:
        assert calibrated[decile].mean() == pytest.approx(truth[100_000:][decile].mean(), rel=0.08)


@pytest.mark.parametrize("bins", [1, 2, 7])
def test_the_layer_computes_what_numpy_computes(bins):
    random = np.random.default_rng(2)
    expected = random.lognormal(2, 1, 2000)
    points = fit_watch_time_calibration(expected, random.exponential(expected**0.5), config(bins))
    layer = WatchTimeCalibration(10)
    layer.assign(points)
    values = np.concatenate([random.lognormal(2, 3, 3000), points.raw_s, [1e-3, 1e5]]).reshape(-1, 1, 1)
    np.testing.assert_allclose(layer(tf.constant(values, tf.float32)), points.apply(values), rtol=1e-5)


def test_few_watches_make_few_bins():
    expected, watched = np.arange(1.0, 101.0), np.zeros(100)
    watched[::4] = 40.0  # 25 of 100 are watched
    points = fit_watch_time_calibration(expected, watched, CalibrationConfig(bins=10, min_watched_per_bin=9))
    assert len(points.raw_s) <= 2
    assert len(fit_watch_time_calibration(expected, watched, CalibrationConfig()).raw_s) == 1


def test_bins_hold_equally_many_watched_impressions():
    # Watched rows are 3, 4, 6, 9: two bins are cut midway between the second and the third, after row 5.
    expected, watched = np.arange(1.0, 11.0), np.zeros(10)
    watched[[3, 4, 6, 9]] = 6.0, 6.0, 10.0, 10.0
    points = fit_watch_time_calibration(expected, watched, config(2))
    np.testing.assert_allclose(points.raw_s, [3.5, 8.5])  # means of 1..6 and 7..10
    assert points.calibrated_s[1] / points.calibrated_s[0] == pytest.approx((20 / 4) / (12 / 6))


def test_expectations_at_equal_rank_by_hand():
    np.testing.assert_allclose(
        at_equal_rank(np.array([3.0, 1.0, 2.0]), np.array([10.0, 50.0, 20.0])), [50.0, 10.0, 20.0]
    )
    # Weights 1 and 3: midpoints of rank are 0.5, 2.5 before and 1.5, 3.5 after.
    found = at_equal_rank(np.array([1.0, 2.0]), np.array([40.0, 20.0]), np.array([1.0, 3.0]))
    np.testing.assert_allclose(found, [20.0, 30.0])


def test_calibration_is_carried_to_a_ranker_of_another_level_that_has_seen_the_impressions():
    random = np.random.default_rng(4)
    truth = random.lognormal(2, 1, 200_000)
    actual = random.exponential(truth)
    seen, unseen = slice(0, 100_000), slice(100_000, None)
    first = truth**0.8 * random.lognormal(0, 0.2, len(truth))
    second = 1.3 * truth**0.8 * random.lognormal(0, 0.2, len(truth))
    memory = (actual[seen] / truth[seen]) ** 0.1
    second[seen] *= memory / memory.mean()
    raw_s = at_equal_rank(first[seen], second[seen])
    calibrated = fit_watch_time_calibration(raw_s, actual[seen], CalibrationConfig()).apply(second[unseen])
    assert calibrated.sum() == pytest.approx(truth[unseen].sum(), rel=0.02)
    for decile in np.array_split(np.argsort(calibrated), 10):
        assert calibrated[decile].mean() == pytest.approx(truth[unseen][decile].mean(), rel=0.1)
    remembered = fit_watch_time_calibration(second[seen], actual[seen], CalibrationConfig()).apply(second[unseen])
    lowest = np.argsort(remembered)[:10_000]
    assert remembered[lowest].mean() < 0.9 * truth[unseen][lowest].mean()


def test_the_layer_is_the_identity_before_it_is_fitted():
    values = np.array([[1e-4, 1.0, 3.0], [100.0, 1000.0, 1e6]], np.float32)
    np.testing.assert_allclose(WatchTimeCalibration(10)(values), values, rtol=1e-6)


def test_the_layer_ascends():
    random = np.random.default_rng(3)
    expected = random.lognormal(1, 1, 1000)
    layer = WatchTimeCalibration(10)
    layer.assign(fit_watch_time_calibration(expected, random.exponential(5.0, 1000), config(10)))
    values = layer(np.sort(random.lognormal(1, 3, 5000)).astype(np.float32)).numpy()
    assert (np.diff(values) >= -1e-5 * values[1:]).all()


def test_impressions_that_cannot_be_calibrated_on_are_refused():
    with pytest.raises(DataError, match="with watch time"):
        fit_watch_time_calibration(np.ones(3), np.zeros(3), config(1))
    with pytest.raises(DataError, match="1 of 3 are not"):
        fit_watch_time_calibration(np.array([1.0, np.nan, 1.0]), np.ones(3), config(1))
    with pytest.raises(ConfigError, match="positive ascending"):
        CalibrationPoints(np.array([2.0, 1.0]), np.array([1.0, 2.0]))
