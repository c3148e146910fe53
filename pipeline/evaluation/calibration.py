"""Calibration: predicted against actual (or known true) expected watch time, overall and by decile of the prediction.

The ratio Σ predicted / Σ actual is 1 for a calibrated model. Deciles are cut at the quantiles of the prediction;
equal predictions fall into one decile.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from features.errors import DataError
from pipeline.evaluation.bootstrap import Measurement, UserBootstrap
from pipeline.evaluation.figures import Figure
from pipeline.evaluation.plots import new_plot


@dataclass(frozen=True)
class CalibrationRow:
    """One bin of predictions.

    Args:
      bin: 1 for the lowest predictions.
      impressions: rows in it.
      predicted, actual: means over them, in the unit of the prediction.
      ratio: predicted / actual with its interval.
    """

    bin: int
    impressions: int
    predicted: float
    actual: float
    ratio: Figure


@dataclass(frozen=True)
class Calibration:
    """Calibration of one method: overall, and bin by bin of its own prediction."""

    overall: Figure
    bins: tuple[CalibrationRow, ...]

    @property
    def worst_bin_deviation(self) -> float:
        """The largest |ratio − 1| of any bin; NaN if a bin's ratio is undefined (nothing was watched in it)."""
        return float(np.max([abs(row.ratio.value - 1.0) for row in self.bins]))


def calibration_ratio(
    predicted: np.ndarray, actual: np.ndarray, bootstrap: UserBootstrap, name: str = "predicted / actual"
) -> Measurement:
    """Σ predicted / Σ actual over all rows."""
    _check(predicted, actual)
    return bootstrap.ratio(name, np.asarray(predicted, float), np.asarray(actual, float))


def calibrate(predicted: np.ndarray, actual: np.ndarray, bootstrap: UserBootstrap, bins: int = 10) -> Calibration:
    """Compares predictions with what happened or, where it is known, with the truth.

    Args:
      predicted: `[n]` expected watch time in seconds (or click probability).
      actual: `[n]` watch time with 0 where not clicked, or the true expectation, in the same unit.
      bootstrap: over the users of the rows.
      bins: number of quantile bins of the prediction.

    Raises:
      DataError: a prediction is not finite, or the lengths differ.
    """
    _check(predicted, actual)
    predicted, actual = np.asarray(predicted, float), np.asarray(actual, float)
    edges = np.quantile(predicted, np.arange(1, bins) / bins)
    bin_of_row = np.searchsorted(edges, predicted, side="right")
    present, bin_of_row = np.unique(bin_of_row, return_inverse=True)
    columns = np.arange(len(present)) == bin_of_row[:, None]
    rows = columns.sum(axis=0)
    names = [f"decile {i + 1}" if bins == 10 else f"bin {i + 1}" for i in present]
    ratios = bootstrap.ratios(
        names,
        bootstrap.sum_by_user(columns * predicted[:, None]),
        bootstrap.sum_by_user(columns * actual[:, None]),
    )
    mean_predicted, mean_actual = predicted @ columns / rows, actual @ columns / rows
    return Calibration(
        calibration_ratio(predicted, actual, bootstrap).figure,
        tuple(
            CalibrationRow(
                int(present[i]) + 1, int(rows[i]), float(mean_predicted[i]), float(mean_actual[i]), ratios[i].figure
            )
            for i in range(len(present))
        ),
    )


def calibration_table(calibration: Calibration, title: str) -> Table:
    """Bins and the overall ratio as a table."""
    table = Table(title=title, title_justify="left")
    for heading in ("decile", "impressions", "predicted", "actual", "predicted / actual"):
        table.add_column(heading, justify="right")
    for row in calibration.bins:
        table.add_row(
            str(row.bin), str(row.impressions), f"{row.predicted:.2f}", f"{row.actual:.2f}", _ratio(row.ratio)
        )
    table.add_row("all", str(sum(row.impressions for row in calibration.bins)), "", "", _ratio(calibration.overall))
    return table


def plot_calibration(calibrations: dict[str, Calibration], path: Path, unit: str = "s") -> None:
    """Draws predicted against actual means per bin, one line per method, beside the diagonal; format by suffix."""
    plot = new_plot(5.5, 5.0)
    axes = plot.subplots()
    limit = 0.0
    for method, calibration in calibrations.items():
        predicted = [row.predicted for row in calibration.bins]
        actual = [row.actual for row in calibration.bins]
        limit = max(limit, *predicted, *actual)
        axes.plot(predicted, actual, marker="o", label=f"{method} (overall {calibration.overall.value:.3f})")
    axes.plot([0, limit], [0, limit], color="grey", linestyle=":", label="calibrated")
    axes.set_xlabel(f"predicted ({unit})")
    axes.set_ylabel(f"actual ({unit})")
    axes.legend()
    plot.savefig(path)


def _ratio(figure: Figure) -> str:
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def _check(predicted: np.ndarray, actual: np.ndarray) -> None:
    if len(predicted) != len(actual):
        raise DataError(f"calibration: {len(predicted)} predictions for {len(actual)} rows; expected one each")
    wrong = ~np.isfinite(predicted)
    if np.any(wrong):
        raise DataError(
            f"calibration: {np.count_nonzero(wrong)} predictions are not finite, the first in row "
            f"{np.flatnonzero(wrong)[0]}; the model has diverged or a feature was not filled in"
        )
