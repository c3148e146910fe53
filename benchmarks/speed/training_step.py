"""Training steps: the sampled softmax and the two-tower model beside TensorFlow's own loss and PyTorch.

One process holds ours and TensorFlow's, a second one PyTorch; they take turns. The loss alone is timed by
`softmax_step.py`, once in ordinary and once in huge pages. Inputs of a timed step are ready in memory, except where the
share of the input pipeline is measured. The paper's sizes run in a process of their own (`paper_sizes.py`), so that its
peak memory is theirs alone.
"""

import gc
import json
import os
import statistics
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.report import ResultTable, publish_result
from benchmarks.speed import Request
from benchmarks.speed.fit_share import fit_share
from benchmarks.speed.measuring import in_turn, median_ratio, run_module
from benchmarks.speed.training_models import (
    TowerSizes,
    bare_step,
    compiled_tower,
    tower_batch,
    two_tower_step,
)
from pipeline.evaluation.plots import new_plot
from pipeline.huge_pages import TUNABLE, VARIABLE

TARGETS = {
    "times as fast as tf.nn.sampled_softmax_loss, 20,000 negatives, ordinary pages": 1.8,
    "the same in huge pages": 1.8,
    "largest difference of gradients": 1e-6,
    "fit as a share of the bare step": 0.85,
    "step at 4 M videos over step at 100 k": 1.15,
    "peak memory at the paper's sizes, GiB": 16.0,
}
MEMORIES = {"ordinary pages": 0, "huge pages": 1}


def run(request: Request) -> None:
    """Measures and publishes `training_step`."""
    softmax, ratios, difference = _softmax(request)
    towers = _towers(request)
    sizes, growth = _table_sizes(request)
    share = fit_share(request.scratch, smoke=request.smoke)
    paper = run_module("benchmarks.speed.paper_sizes", request.scale)
    share_table = ResultTable(
        "The input pipeline's share",
        ["step", "steps/s"],
        [["bare, the batch in memory", share.bare], ["in fit, batches read, shuffled, negatives drawn", share.fit]],
        [
            f"fit reaches {share.ratio:.0%} of the bare step (target 85%), median of turns. {share.about} Steps are "
            "timed in a callback."
        ],
        digits=1,
    )
    paper_table = ResultTable(
        "The paper's sizes",
        ["what", "value"],
        [
            ["parameters, millions", paper.answer["parameters"] / 1e6],
            ["steps/s", paper.answer["steps_per_second"]],
            ["examples/s", paper.answer["steps_per_second"] * paper.answer["batch"]],
            ["peak memory, GiB", paper.peak_gib],
        ],
        [paper.answer["about"]],
        digits=2,
    )
    found = dict(zip(TARGETS, (*ratios.values(), difference, share.ratio, growth, paper.peak_gib), strict=True))
    publish_result(
        request.results,
        "training_step",
        [softmax, towers, share_table, sizes, paper_table],
        _plot(softmax, towers, sizes),
        {
            "command": f"python -m benchmarks.speed training_step --scale {request.scale}",
            "summary": [f"{name}: {value:.3g} (target {TARGETS[name]:g})" for name, value in found.items()],
            "targets": TARGETS,
            "found": found,
        },
    )


def _softmax(request: Request) -> tuple[ResultTable, dict[str, float], float]:
    """The table, by memory how many times as fast we are with the most negatives, the largest gradient difference."""
    given = [str(request.peers.python)] if request.peers.python else []
    answers = {}
    for memory, setting in MEMORIES.items():
        environment = {**os.environ, VARIABLE: f"{TUNABLE}={setting}"}
        answers[memory] = run_module(
            "benchmarks.speed.softmax_step", request.scale, *given, environment=environment
        ).answer
    sizes = next(iter(answers.values()))
    difference = max(answer["difference"] for answer in answers.values())
    return (
        ResultTable(
            f"Sampled softmax: {sizes['videos']:,} videos in {sizes['dimension']} dimensions, batch "
            f"{sizes['batch']:,}, Adagrad",
            ["loss", "milliseconds", "times ours"],
            [[f"{name}, {memory}", *row] for memory, answer in answers.items() for name, *row in answer["rows"]],
            [
                "Forward, backward and update of the table; medians of turns, ratios by turn. Gradients of ours and of "
                f"tf.nn.sampled_softmax_loss differ by at most {difference:.1e} of the largest. Huge pages: all of "
                f"them with {VARIABLE}={TUNABLE}=1, as `upnext` trains; ordinary pages: as any program starts.",
                *request.peers.missing(["torch"]),
            ],
            digits=2,
        ),
        {memory: answer["ratio"] for memory, answer in answers.items()},
        difference,
    )


def _towers(request: Request) -> ResultTable:
    sizes = TowerSizes(videos=20_000, tokens=5_000, batch=256, sampled=200) if request.smoke else TowerSizes()
    notes = request.peers.missing(["torch"])
    steps = {"ours": two_tower_step(sizes)}
    with ExitStack() as stack:
        if not notes:
            arguments = json.dumps({**sizes.as_json(), "threads": _threads()})
            peer = stack.enter_context(request.peers.start("peer_torch.py", "two_tower", arguments))
            steps[f"PyTorch {peer.read()['ready']}"] = lambda: peer.ask(1)
        seconds = in_turn(steps, 2 if request.smoke else 9, each=1 if request.smoke else 5, warm_up=2)
    return ResultTable(
        f"Two-tower step: {sizes.videos:,} videos, {sizes.tokens:,} tokens, {sizes.dimension} dimensions, bags of "
        f"{sizes.length}, layers {'-'.join(map(str, sizes.widths))}, batch {sizes.batch:,}, "
        f"{sizes.sampled:,} negatives",
        ["model", "milliseconds", "times ours"],
        [[name, statistics.median(s) * 1e3, median_ratio(seconds["ours"], s)] for name, s in seconds.items()],
        [f"Adagrad everywhere; PyTorch with sparse embedding bags. {_memory()}", *notes],
        digits=2,
    )


def _table_sizes(request: Request) -> tuple[ResultTable, float]:
    """The table, and the step at the most videos as a multiple of that at the fewest, for the same batch."""
    counts = (1_000, 10_000) if request.smoke else (100_000, 1_000_000, 4_000_000)
    base = TowerSizes(batch=256, sampled=200) if request.smoke else TowerSizes()
    steps, distinct = {}, {}
    for videos in counts:
        sizes = base.with_videos(videos)
        model = compiled_tower(sizes)
        for kind, drawn_from in (("same", counts[0]), ("all", videos)):
            batch = tower_batch(sizes, model.spec, drawn_from)
            distinct[videos, kind] = len(np.unique(batch["watched_video_ids"]))
            steps[f"{videos} {kind}"] = bare_step(model, batch)
    seconds = in_turn(steps, 2 if request.smoke else 25, each=1 if request.smoke else 2, warm_up=3)
    rows: list[list[Any]] = []
    for videos in counts:
        row: list[Any] = [f"{videos:,}"]
        for kind in ("same", "all"):
            found = seconds[f"{videos} {kind}"]
            ratio = median_ratio(seconds[f"{counts[0]} {kind}"], found)
            row += [statistics.median(found) * 1e3, ratio, distinct[videos, kind]]
        rows.append(row)
    del steps
    gc.collect()
    times = f"times that at {counts[0]:,}"
    return (
        ResultTable(
            "The same step by number of videos",
            ["videos", "ms, same batch", times, "rows watched", "ms, videos drawn from all", times, "rows watched"],
            rows,
            [
                f"Same batch: {counts[0]:,} videos by Zipf's law, spread over the table, so that only the table grows. "
                f"Drawn from all: Zipf's law over the whole table, where a batch meets more different rows. {_memory()}"
            ],
            digits=2,
        ),
        float(rows[-1][2]),
    )


def _memory() -> str:
    """Of the C library, which gives out the tables of TensorFlow and of PyTorch."""
    given = os.environ.get(VARIABLE)
    return f"{VARIABLE}={given} in all processes, peers too." if given else f"{VARIABLE} is not set."


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _plot(*tables: ResultTable) -> Any:
    plot = new_plot(10.0, 3.6)
    for axes, table in zip(plot.subplots(1, len(tables)), tables, strict=True):
        names = [str(row[0]).replace(", ", ",\n").replace("_softmax_loss", "_\nsoftmax_loss") for row in table.rows]
        values = [float(str(row[1])) for row in table.rows]
        axes.barh(names, values)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        axes.set_title(table.title.split(":")[0], fontsize=8)
        axes.set_xlabel("milliseconds", fontsize=8)
    return plot
