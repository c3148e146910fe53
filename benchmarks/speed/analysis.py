"""Beam analysis and example building: events per second, peak memory, and the same bytes from run to run.

Logs of two lengths (`event_logs.py`) go through the jobs of a run (`beam_jobs.py`) on Beam's local runner with two
threads, each time in a process of its own, twice. Beside it one small job (`job_shapes.py`) as columnar batches, as one
Python dict per event, and in polars without Beam, which is the limit.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure as Plot

from benchmarks.report import ResultTable, publish_result
from benchmarks.speed import Request
from benchmarks.speed.event_logs import LogSize, write_logs
from benchmarks.speed.measuring import ProcessRun, median_ratio, run_module
from features.artifacts import read_manifest
from features.quantiles import read_quantiles
from pipeline.evaluation.plots import new_plot

BEAM = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
STAGES = ("analysis", "examples")
TARGETS = {"analysis": 1.0e6, "examples": 150e3, "peak memory, GiB": 2.0}


def run(request: Request) -> None:
    """Measures and publishes `analysis`."""
    lengths = (20_000,) if request.smoke else (2_000_000, 20_000_000)
    size = {"videos": 2_000, "queries": 500} if request.smoke else {}
    runs: dict[int, list[Mapping[str, ProcessRun]]] = {}
    folders = {events: [request.scratch / f"{events}-{turn}" for turn in range(2)] for events in lengths}
    events_of = {}
    for events in lengths:
        events_of[events] = write_logs(_tables(request, events), LogSize(events, **size))
        runs[events] = [_stages(_tables(request, events), folder) for folder in folders[events]]
    same = {events: same_bytes(*folders[events]) for events in lengths}
    rank_gap = max(largest_rank_error(folder) for folder in folders[lengths[0]])
    shapes = _shapes(request, lengths[0])
    longest = runs[lengths[-1]]
    speeds = {stage: _speed(events_of[lengths[-1]], longest, stage) for stage in STAGES}
    peak = max(found.peak_gib for of_length in runs.values() for turn in of_length for found in turn.values())
    summary = [
        f"{stage}: {speeds[stage]:,.0f} events/s at {lengths[-1]:,} events (target {TARGETS[stage]:,.0f})"
        for stage in STAGES
    ] + [
        f"peak memory of all processes: {peak:.2f} GiB (target below {TARGETS['peak memory, GiB']:.0f})",
        f"two runs: vocabularies, catalogue and examples have the same bytes: {'yes' if all(same.values()) else 'NO'}",
        f"quantiles at {lengths[0]:,} events, two runs: every boundary's true rank is within {rank_gap:.4f} (stated: "
        "0.0035 with probability 0.99 for one)",
    ]
    publish_result(
        request.results,
        "analysis",
        [_jobs_table(events_of, runs), _steps_table(events_of, runs), shapes],
        _plot(events_of, runs),
        {
            "command": f"python -m benchmarks.speed analysis --scale {request.scale}",
            "summary": summary,
            "beam": " ".join(BEAM),
            "targets": TARGETS,
            "speeds": speeds,
            "same_bytes": {str(events): found for events, found in same.items()},
        },
    )


def _tables(request: Request, events: int) -> Path:
    return request.scratch / f"tables-{events}"


def _stages(tables: Path, folder: Path) -> Mapping[str, ProcessRun]:
    return {stage: run_module("benchmarks.speed.beam_jobs", tables, folder, stage, *BEAM) for stage in STAGES}


def _speed(events: int, turns: Sequence[Mapping[str, ProcessRun]], stage: str) -> float:
    """Events per second, the median of the turns; start of the process not counted."""
    return statistics.median(events / sum(turn[stage].answer["seconds"].values()) for turn in turns)


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two runs published the same vocabularies, catalogue and examples."""
    names = ("features/vocabularies", "features/catalogue", "examples/candidate_generator", "examples/ranker")
    return all(read_manifest(one / name)["files"] == read_manifest(other / name)["files"] for name in names)


def largest_rank_error(folder: Path) -> float:
    """How far the true rank of any boundary of a run's quantiles is from the stated one, over all features."""
    quantiles = read_quantiles(folder / "features" / "quantiles" / "quantiles.json")
    files = sorted((folder / "examples" / "ranker" / "train").glob("part-*.parquet"))
    largest = 0.0
    for name, found in quantiles.items():
        column = pa.concat_tables(pq.read_table(file, columns=[name]) for file in files)[name].to_numpy()
        values = np.sort(column[np.isfinite(column)])
        if len(values):
            largest = max(largest, rank_error(found.boundaries, values))
    return largest


def rank_error(boundaries: np.ndarray, values: np.ndarray) -> float:
    """The largest distance of a boundary's stated rank from its rank in `values` (ascending); ties have a range."""
    stated = np.linspace(0.0, 1.0, len(boundaries))
    below, upto = (np.searchsorted(values, boundaries, side=side) / len(values) for side in ("left", "right"))
    return float(np.abs(np.clip(stated, below, upto) - stated).max())


def _jobs_table(events_of: Mapping[int, int], runs: Mapping[int, Sequence[Mapping[str, ProcessRun]]]) -> ResultTable:
    rows = []
    for length, turns in runs.items():
        for stage in STAGES:
            found = [turn[stage] for turn in turns]
            rows.append(
                [
                    f"{stage}, {length:,} events",
                    round(_speed(events_of[length], turns, stage)),
                    round(statistics.median(events_of[length] / run.cpu_seconds for run in found)),
                    statistics.median(run.seconds for run in found),
                    max(run.peak_gib for run in found),
                ]
            )
    return ResultTable(
        "Jobs over whole logs",
        ["job", "events/s", "events per CPU second", "seconds with start", "peak memory, GiB"],
        rows,
        [
            "Medians of two runs. Events are watches, impressions and searches. Analysis: vocabularies, statistics of "
            "every column, catalogue. Examples: user shards, candidate-generation and ranking examples with all "
            "default features, quantiles. CPU seconds and memory are of all processes, their start included."
        ],
        digits=2,
    )


def _steps_table(events_of: Mapping[int, int], runs: Mapping[int, Sequence[Mapping[str, ProcessRun]]]) -> ResultTable:
    length = max(runs)
    steps = [(stage, step) for stage in STAGES for step in runs[length][0][stage].answer["seconds"]]
    rows = []
    for stage, step in steps:
        seconds = statistics.median(turn[stage].answer["seconds"][step] for turn in runs[length])
        written = runs[length][0][stage].answer["rows"].get(step)
        rows.append([step, seconds, round(events_of[length] / seconds), written])
    return ResultTable(
        f"Steps at {length:,} events", ["step", "seconds", "events/s", "examples written"], rows, digits=1
    )


def _shapes(request: Request, events: int) -> ResultTable:
    tables = _tables(request, events)
    runs: dict[str, list[ProcessRun]] = {"columnar batches": [], "one dict per event": [], "polars, no Beam": []}
    notes = request.peers.missing(["polars"])
    for _ in range(1 if request.smoke else 3):
        runs["columnar batches"].append(run_module("benchmarks.speed.job_shapes", "columnar", tables))
        runs["one dict per event"].append(run_module("benchmarks.speed.job_shapes", "rows", tables))
        if not notes:
            runs["polars, no Beam"].append(request.peers.run("peer_polars.py", tables))
    ours = [run.answer["seconds"] for run in runs["columnar batches"]]
    rows: list[list[Any]] = []
    for name, found in runs.items():
        if found:
            seconds = [run.answer["seconds"] for run in found]
            top = found[0].answer["top"]
            answer = f"{top[0]} {top[1]:,}; median {found[0].answer['median']:.1f} s"
            rows.append([name, statistics.median(seconds), 1 / median_ratio(ours, seconds), answer])
    return ResultTable(
        f"The 10,000 most frequent videos and 101 quantiles of {events:,} events",
        ["shape", "seconds", "our speed is its", "found"],
        [[*row[:2], f"1 / {row[2]:.2f}" if row[2] > 1 else f"{1 / row[2]:.1f} x", row[3]] for row in rows],
        ["One thread each of Beam's local runner; polars takes what cores it finds. In turn, medians.", *notes],
        digits=2,
    )


def _plot(events_of: Mapping[int, int], runs: Mapping[int, Sequence[Mapping[str, ProcessRun]]]) -> Plot:
    plot = new_plot(8.0, 3.6)
    speed, memory = plot.subplots(1, 2)
    for index, length in enumerate(runs):
        places = np.arange(len(STAGES)) + (index - 0.5) * 0.35
        speed.bar(places, [_speed(events_of[length], runs[length], stage) / 1e6 for stage in STAGES], 0.35)
        peaks = [max(turn[stage].peak_gib for turn in runs[length]) for stage in STAGES]
        memory.bar(places, peaks, 0.35, label=f"{length:,} events")
    for place, stage in enumerate(STAGES):
        speed.hlines(TARGETS[stage] / 1e6, place - 0.4, place + 0.4, colors="black", linestyles="dashed")
    memory.axhline(TARGETS["peak memory, GiB"], color="black", linestyle="dashed")
    for axes, title in ((speed, "million events per second"), (memory, "peak memory, GiB")):
        axes.set_xticks(range(len(STAGES)), STAGES)
        axes.set_title(title)
    plot.legend(*memory.get_legend_handles_labels(), loc="outside lower center", ncols=2, title="dashed: targets")
    return plot
