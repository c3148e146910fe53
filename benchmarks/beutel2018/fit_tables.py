"""How trainings of many models are told: median and range over seeds, what convergence came to, plain values."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.beutel2018.many_models import Fit, Training
from benchmarks.report import Cell, ResultTable
from pipeline.evaluation.figures import Figure


def spread(fit: Fit) -> Figure:
    """Median R over seeds, with the lowest and the highest."""
    last = fit.correlations[-1]
    return Figure("R", float(np.median(last)), float(last.min()), float(last.max()), len(last))


def convergence_table(title: str, fits: Mapping[str, Fit], how: Training) -> ResultTable:
    """Steps of every training, and what its last doubling brought."""
    rows: list[list[Cell]] = []
    for name, fit in fits.items():
        gain = fit.correlations[-1] - fit.correlations[-2]
        rows.append(
            [name, fit.steps[-1], f"{fit.converged.sum()} of {len(gain)}", float(np.median(gain)), float(gain.max())]
        )
    columns = ["model", "steps", "seeds converged", "gain of R by the last doubling, median", "largest"]
    note = (
        f"Converged: the last doubling of the steps raised R by at most {how.tolerance}. All train until all have, for "
        f"at most {how.first_check << how.doublings:,} steps. Adagrad at {how.learning_rate:g}, accumulators from "
        f"{how.initial_accumulator:g}, batches of {how.rows} x {how.columns} cells."
    )
    return ResultTable(title, columns, rows, [note], digits=5)


def plain_values(fits: Mapping[str, Fit]) -> dict[str, Any]:
    """R of every seed by the steps it was measured after, for the JSON."""
    return {name: dict(zip(map(str, fit.steps), fit.correlations.tolist(), strict=True)) for name, fit in fits.items()}
