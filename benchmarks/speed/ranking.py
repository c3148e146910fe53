"""Latency of scoring 200 candidates through the ranking signature, by requests a call, beside what the machine can do.

The signature takes raw requests of a generated log (`event_logs.py`): 50 watches, 100 impressions, searches, and 200
candidate ids, whose features it looks up and derives itself. The limit is a large matrix product in the same run: the
share says how much of the machine's floating-point speed the whole request reaches.
"""

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure as Plot

from benchmarks.report import ResultTable, publish_result
from benchmarks.speed import Request, beam_jobs
from benchmarks.speed.event_logs import LogSize, write_logs
from features.artifacts import read_manifest
from features.encoding import load_encoder
from features.example_reader import ExampleSet
from features.feature_lists import FeatureListConfig
from features.quantiles import read_quantiles
from models.ranker import Ranker, RankerConfig
from models.raw_features import RawFeatures
from pipeline.evaluation.plots import new_plot
from pipeline.model_stages import label_statistics
from serving.ranking import CANDIDATES, RankingModule
from serving.stored_examples import stored_examples

NUM_CANDIDATES = 200
TARGET_MS = 10.0
SIZES = {"the paper's": RankerConfig().hidden_units, "the demo's": (256, 128)}


def run(request: Request) -> None:
    """Measures and publishes `ranking`."""
    events, candidates, calls = (20_000, 20, 5) if request.smoke else (1_000_000, NUM_CANDIDATES, 200)
    tables, folder = request.scratch / "tables", request.scratch / "run"
    write_logs(tables, LogSize(events, 2_000, 500) if request.smoke else LogSize(events))
    beam_jobs.analysis(tables, folder, [])
    beam_jobs.examples(tables, folder, [])
    rows: list[list[Any]] = []
    p50 = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, units in SIZES.items():
        if request.smoke:
            units = (64, 32)
        ranker, answer, inputs = _signature(
            tables, folder, units, candidates, request.scratch / f"ranking-{len(units)}"
        )
        title = f"{name}, {'-'.join(map(str, units))}"
        for batch in (1, 4, 16):
            requests = [
                {key: tf.constant(values[start : start + batch]) for key, values in inputs.items()}
                for start in range(0, 64, batch)
            ]
            seconds, flops_limit = _timed(answer, requests, max(calls // batch, 3))
            work = flops(ranker, candidates) * batch
            middle = statistics.median(seconds) * 1e3
            share = work / statistics.median(seconds) / flops_limit
            rows.append(
                [
                    f"{title}, {batch} request{'s' * (batch > 1)}",
                    middle,
                    float(np.quantile(seconds, 0.95)) * 1e3,
                    round(batch * candidates / middle * 1e3),
                    work / 1e6,
                    f"{share:.0%} of {flops_limit / 1e9:.0f} GFLOP/s",
                ]
            )
            curves.setdefault(title, []).append((batch, middle))
            if batch == 1:
                p50[name] = middle
    publish_result(
        request.results,
        "ranking",
        [
            ResultTable(
                f"Scoring {candidates} candidates a request",
                ["ranker", "p50, ms", "p95, ms", "candidates/s", "MFLOP", "share of the matmul limit"],
                rows,
                [
                    "Raw requests through the SavedModel signature: string lookups, history features and the network. "
                    "MFLOP are those of the dense layers. The limit is measured between the calls."
                ],
                digits=2,
            )
        ],
        _plot(curves),
        {
            "command": f"python -m benchmarks.speed ranking --scale {request.scale}",
            "summary": [f"{name}: p50 {value:.2f} ms (target {TARGET_MS:g} ms)" for name, value in p50.items()],
            "target_ms": TARGET_MS,
            "p50_ms": p50,
        },
    )


def _signature(
    tables: Path, folder: Path, units: tuple[int, ...], candidates: int, export: Path
) -> tuple[Ranker, Any, Mapping[str, np.ndarray]]:
    """An untrained ranker of that size, its loaded signature, and 64 raw requests."""
    examples = ExampleSet(folder / "examples" / "ranker")
    encoder = load_encoder(folder / "features")
    config = RankerConfig(hidden_units=units)
    sizes = read_manifest(folder / "features" / "vocabularies")["sizes"]
    quantiles = read_quantiles(folder / "features" / "quantiles" / "quantiles.json")
    ranker = Ranker(config, examples.spec, sizes, quantiles, label_statistics(examples, config))
    raw = RawFeatures(examples.spec, encoder, FeatureListConfig())
    module = RankingModule(ranker, raw)
    tf.saved_model.save(module, str(export), signatures=module.signatures())
    stored = stored_examples(
        folder / "examples" / "ranker" / "test",
        tables,
        "ranker",
        examples.spec,
        raw.input_specs,
        FeatureListConfig(),
        64,
    )
    loaded = tf.saved_model.load(str(export))
    answer = loaded.signatures["ranking"]
    answer.kept = loaded  # a signature does not keep its model alive
    catalogue = encoder.catalogue["video_id"].to_numpy()
    chosen = np.random.default_rng(0).integers(0, len(catalogue), (len(stored.descriptions), candidates))
    inputs = {name: np.asarray(values) for name, values in stored.inputs.items() if name in module.input_specs}
    per_candidate = {name for name in inputs if name.startswith("candidate_") or name == "position"}
    inputs = {n: np.repeat(v, candidates, axis=1) if n in per_candidate else v for n, v in inputs.items()}
    return ranker, answer, {**inputs, CANDIDATES: catalogue[chosen].astype(object)}


def flops(ranker: Ranker, candidates: int) -> int:
    """Of the dense layers for one request: the query side once, the rest for every candidate."""
    per_candidate = [ranker.impression_dense, *ranker.hidden, *([ranker.heads] if ranker.heads else [])]
    each = sum(2 * int(np.prod(layer.kernel.shape)) for layer in per_candidate)
    return each * candidates + 2 * int(np.prod(ranker.query_dense.kernel.shape))


def _timed(answer: Any, requests: list[dict[str, tf.Tensor]], calls: int) -> tuple[list[float], float]:
    """Seconds of every call, and the machine's floating-point operations per second, measured in between."""
    matrix = tf.random.normal([1024, 1024])
    multiply = tf.function(lambda m: tf.matmul(m, m))
    multiply(matrix)
    for inputs in requests[:3]:
        answer(**inputs)
    seconds, limits = [], []
    for call in range(calls):
        inputs = requests[call % len(requests)]
        started = time.perf_counter()
        answer(**inputs)["score"].numpy()
        seconds.append(time.perf_counter() - started)
        if call % 10 == 0:
            started = time.perf_counter()
            multiply(matrix).numpy()
            limits.append(2 * 1024**3 / (time.perf_counter() - started))
    return seconds, statistics.median(limits)


def _plot(curves: Mapping[str, list[tuple[int, float]]]) -> Plot:
    plot = new_plot()
    axes = plot.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.axhline(TARGET_MS, color="black", linestyle="dashed", linewidth=0.8, label="target for one request")
    axes.set_yscale("log")
    axes.set_xticks([batch for batch, _ in next(iter(curves.values()))])
    axes.set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_xlabel("requests a call")
    axes.set_ylabel("milliseconds a call, median")
    axes.legend()
    return plot
