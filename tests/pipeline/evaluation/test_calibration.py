"""Calibration by hand."""

import numpy as np
import pytest

from features.errors import DataError
from pipeline.evaluation.bootstrap import BootstrapConfig, UserBootstrap
from pipeline.evaluation.calibration import calibrate, calibration_ratio, calibration_table, plot_calibration

BOOTSTRAP = UserBootstrap(np.arange(4), BootstrapConfig(resamples=100))


def test_two_bins_by_hand():
    calibration = calibrate(np.array([1.0, 3.0, 10.0, 20.0]), np.array([2.0, 2.0, 0.0, 40.0]), BOOTSTRAP, bins=2)
    assert [row.impressions for row in calibration.bins] == [2, 2]
    assert [row.predicted for row in calibration.bins] == [2.0, 15.0]
    assert [row.actual for row in calibration.bins] == [2.0, 20.0]
    assert [row.ratio.value for row in calibration.bins] == [1.0, 0.75]
    assert calibration.overall.value == pytest.approx(34 / 44)
    assert calibration.worst_bin_deviation == pytest.approx(0.25)
    assert calibration.bins[0].ratio.low <= 1.0 <= calibration.bins[0].ratio.high


def test_equal_predictions_share_a_bin():
    calibration = calibrate(np.ones(4), np.array([0.0, 1, 2, 1]), BOOTSTRAP)
    assert len(calibration.bins) == 1
    assert calibration.bins[0].impressions == 4
    assert calibration.overall.value == 1.0


def test_predictions_against_the_truth_of_a_calibrated_model():
    rng = np.random.default_rng(0)
    truth = rng.gamma(2.0, 10.0, 40_000)
    actual = np.where(rng.random(40_000) < 0.4, truth / 0.4, 0.0)
    bootstrap = UserBootstrap(rng.integers(0, 2000, 40_000), BootstrapConfig(resamples=100))
    assert calibrate(truth, actual, bootstrap).worst_bin_deviation < 0.1
    assert calibrate(truth, truth, bootstrap).worst_bin_deviation == pytest.approx(0.0)
    assert calibrate(1.3 * truth, actual, bootstrap).overall.low > 1.2


def test_nothing_watched_is_undefined_not_calibrated():
    assert np.isnan(calibrate(np.ones(4), np.zeros(4), BOOTSTRAP).overall.value)
    assert np.isnan(calibrate(np.ones(4), np.zeros(4), BOOTSTRAP).worst_bin_deviation)


def test_predictions_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="the first in row 2"):
        calibration_ratio(np.array([1.0, 1.0, np.nan, np.inf]), np.ones(4), BOOTSTRAP)


def test_table_and_plot_show_every_bin(tmp_path):
    calibration = calibrate(np.array([1.0, 3.0, 10.0, 20.0]), np.array([2.0, 2.0, 1.0, 40.0]), BOOTSTRAP, bins=2)
    assert calibration_table(calibration, "ranker").row_count == 3
    plot_calibration({"ranker": calibration, "trees": calibration}, tmp_path / "calibration.svg")
    text = (tmp_path / "calibration.svg").read_text()
    assert text.count("<svg") == 1
    assert len(text) > 5000
