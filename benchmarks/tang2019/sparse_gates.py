"""The next step that Tang et al. 2019 state (section 6): gates that leave encoders out, accuracy against latency.

One M3R per gate penalty is trained; then its gates are cut at several thresholds when serving: an encoder whose gate is
below is not executed. MAP is that of the test part; latency is the query tower's for one request at a time, in a graph,
the thresholds taking turns: the mean, because the median is that of requests for which most is skipped. The share of
requests that an encoder is executed for comes from the gates themselves.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure as Plot

from benchmarks.experiments import Request, Scale, configuration, prepare
from benchmarks.generators import MAP, HeldOutWatches
from benchmarks.report import Cell, ResultTable, publish_result
from benchmarks.sequences import NAME, Variant, variant_run
from benchmarks.tang2019.range_models import mixture
from benchmarks.tang2019.range_worlds import ON, WORLDS, range_settings
from features.example_reader import ExampleSet
from features.splits import Part
from models.m3 import M3
from pipeline.evaluation.figures import Figure
from pipeline.evaluation.plots import new_plot
from pipeline.evaluation.retrieval_metrics import evaluate_ranks
from pipeline.input_pipeline import ExampleColumns
from pipeline.model_stages import fit_generator
from pipeline.retrieval_validation import tower_inputs
from pipeline.run import SEQUENCES

PENALTIES = (0.0, 0.1, 0.3)
THRESHOLDS = (None, 0.1, 0.2, 0.3, 0.5, 0.7)
REQUESTS, TURNS = 100, 5
KEPT = (0.98, 0.9, 0.8)  # shares of the MAP that the summary tells the price of
SHORT_DROPOUT = 0.4  # what `temporal_range` chose for M3R in this world


def reproduce(request: Request) -> None:
    """Publishes `sparse_gates`."""
    full = request.scale == Scale.FULL
    run = prepare(request, ON, configuration(request, range_settings(full), WORLDS[ON]))
    held_out = HeldOutWatches(run)
    rows: list[list[Cell]] = []
    points: dict[float, list[tuple[float, Figure]]] = {}
    for penalty in PENALTIES if full else PENALTIES[:1]:
        variant = variant_run(
            run, Variant(f"penalty {penalty}", mixture(full, gate_penalty=penalty, short_dropout=SHORT_DROPOUT)), seed=1
        )
        trained = fit_generator(variant, NAME).model
        models = {threshold: with_threshold(trained, threshold) for threshold in THRESHOLDS}
        columns = ExampleColumns(ExampleSet(run.examples(SEQUENCES)), (Part.TEST,), ())
        seconds = latencies(models, columns, REQUESTS if full else 5, TURNS if full else 1)
        gates = np.concatenate(
            [
                trained.gate_values(tower_inputs(trained, columns.at_serving(batch))).numpy()
                for batch in columns.ordered(4096)
            ]
        )
        for threshold, model in models.items():
            ranks = held_out.ranks(model)
            measured = evaluate_ranks(ranks, held_out.targets.users, run.config.evaluation.retrieval)
            found = next(m.figure for m in measured if m.name == MAP)
            executed = (gates >= (threshold or 0.0)).mean(axis=0)
            milliseconds = float(np.mean(seconds[threshold])) * 1e3
            median = float(np.median(seconds[threshold])) * 1e3
            told = "none" if threshold is None else f"{threshold}"
            rows.append([f"{penalty}", told, found, milliseconds, median, *map(float, executed)])
            points.setdefault(penalty, []).append((milliseconds, found))
            request.say(f"penalty {penalty}, threshold {told}: {MAP} {found.value:.4f}, {milliseconds:.2f} ms")
    encoders = [str(encoder) for encoder in trained.config.encoders]
    columns_of_table = [
        "gate penalty",
        "threshold",
        MAP,
        "mean, ms",
        "p50, ms",
        *(f"{name} executed" for name in encoders),
    ]
    note = f"Latency of {REQUESTS} requests, one at a time, {TURNS} turns of all thresholds. One training per penalty."
    publish_result(
        request.output,
        request.result_name,
        [ResultTable("Gates cut at a threshold", columns_of_table, rows, [note], "Tang et al. 2019, section 6", 4)],
        plot(points),
        {
            "command": request.command,
            "summary": summary(rows),
            "settings": run.config.model_dump(mode="json", include={"source", "split", "sequence_examples"}),
        },
        request.console,
    )


def with_threshold(trained: M3, threshold: float | None) -> M3:
    """The same weights with another threshold."""
    description: dict[str, Any] = trained.description()
    description["config"] = {**description["config"], "gate_threshold": threshold}
    model = M3.from_description(description, trained.spec)
    model.set_weights(trained.get_weights())
    return model


def latencies(
    models: Mapping[float | None, M3], columns: ExampleColumns, requests: int, turns: int
) -> dict[float | None, list[float]]:
    """Seconds of the query tower for single requests, the models taking turns."""
    batch = columns.at_serving(next(columns.ordered(requests)))
    towers = {
        threshold: tf.function(model.query_embeddings, reduce_retracing=True) for threshold, model in models.items()
    }
    features = {threshold: tower_inputs(model, batch) for threshold, model in models.items()}
    seconds: dict[float | None, list[float]] = {threshold: [] for threshold in models}
    for turn in range(turns + 1):
        for threshold, tower in towers.items():
            for row in range(len(next(iter(batch.values())))):
                one = {name: values[row : row + 1] for name, values in features[threshold].items()}
                started = time.perf_counter()
                tower(one).numpy()
                if turn:  # the first turn traces
                    seconds[threshold].append(time.perf_counter() - started)
    return seconds


def summary(rows: list[list[Cell]]) -> list[str]:
    """The fastest threshold of any penalty that keeps each share of the MAP of all gates without a penalty."""
    whole = rows[0]
    lines = []
    for share in KEPT:
        best = min((row for row in rows if _value(row) >= share * _value(whole)), key=_milliseconds)
        change = _milliseconds(best) / _milliseconds(whole) - 1
        lines.append(
            f"at least {share:.0%} of {MAP}: gate penalty {best[0]}, threshold {best[1]} keeps "
            f"{_value(best) / _value(whole):.1%} at {change:+.0%} latency"
        )
    return lines


def _milliseconds(row: list[Cell]) -> float:
    found = row[3]
    assert isinstance(found, float)
    return found


def _value(row: list[Cell]) -> float:
    found = row[2]
    assert isinstance(found, Figure)
    return found.value


def plot(points: Mapping[float, list[tuple[float, Figure]]]) -> Plot:
    """MAP against latency, a line for each penalty."""
    canvas = new_plot(6.0, 4.2)
    axes = canvas.subplots()
    for penalty, found in points.items():
        ordered = sorted(found, key=lambda point: point[0])
        axes.plot([ms for ms, _ in ordered], [f.value for _, f in ordered], marker="o", label=f"penalty {penalty}")
    axes.set_xlabel("query tower, one request, mean, ms")
    axes.set_ylabel(MAP)
    axes.legend()
    return canvas
