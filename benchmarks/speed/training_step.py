"""Training steps: the sampled softmax and the two-tower model beside TensorFlow's own loss and PyTorch.

One process holds ours and TensorFlow's, a second one PyTorch; they take turns. Inputs of a timed step are ready in
memory, except where the share of the input pipeline is measured. The paper's sizes run in a process of their own
(`paper_sizes.py`), so that its peak memory is theirs alone.
"""

import gc
import json
import os
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from benchmarks.report import ResultTable, new_plot, publish_result
from benchmarks.speed import Request
from benchmarks.speed.fit_share import fit_share
from benchmarks.speed.measuring import in_turn, median_ratio, run_module
from benchmarks.speed.training_models import (
    SoftmaxSizes,
    TowerSizes,
    bare_step,
    compiled_tower,
    tower_batch,
    two_tower_step,
    video_generator,
)
from features.errors import DataError
from models.sampled_softmax import SampledSoftmax
from models.samplers import LABEL_EXPECTED_COUNT, NEGATIVES, NEGATIVES_EXPECTED_COUNT
from pipeline.huge_pages import VARIABLE

TARGETS = {
    "times as fast as tf.nn.sampled_softmax_loss, 20,000 negatives": 1.8,
    "largest difference of gradients": 1e-6,
    "fit as a share of the bare step": 0.85,
    "step at 4 M videos over step at 100 k": 1.15,
    "peak memory at the paper's sizes, GiB": 16.0,
}


def run(request: Request) -> None:
    """Measures and publishes `training_step`."""
    softmax, ratio, difference = _softmax(request)
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
    found = dict(zip(TARGETS, (ratio, difference, share.ratio, growth, paper.peak_gib), strict=True))
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


def _softmax(request: Request) -> tuple[ResultTable, float, float]:
    """The table, how many times as fast we are with the most negatives, and the largest difference of gradients."""
    sizes = SoftmaxSizes(20_000, 256, 16) if request.smoke else SoftmaxSizes(1_000_000, 1024, 64)
    rounds, notes = (2 if request.smoke else 9), request.peers.missing(["torch"])
    rows: list[list[Any]] = []
    ratio = difference = 0.0
    for sampled in (100, 400) if request.smoke else (2_000, 20_000):
        batch = sizes.batch_of(sampled)
        losses = {"ours": _our_loss(sizes), "tf.nn.sampled_softmax_loss": _tensorflow_loss(sizes)}
        difference = max(difference, gradient_difference(*losses.values(), batch))
        steps = {name: _step(*parts, batch) for name, parts in losses.items()}
        with ExitStack() as stack:
            if not notes:
                arguments = json.dumps({**sizes.as_json(), "sampled": sampled, "threads": _threads()})
                peer = stack.enter_context(request.peers.start("peer_torch.py", "softmax", arguments))
                version = peer.read()["ready"]
                steps[f"PyTorch {version}"] = lambda peer=peer: peer.ask(1)
            seconds = in_turn(steps, rounds, each=1 if request.smoke else 3, warm_up=2)
        ours = seconds["ours"]
        for name, found in seconds.items():
            rows.append([f"{name}, {sampled:,} negatives", statistics.median(found) * 1e3, median_ratio(ours, found)])
        ratio = median_ratio(ours, seconds["tf.nn.sampled_softmax_loss"])
        del losses, steps
        gc.collect()
    return (
        ResultTable(
            f"Sampled softmax: {sizes.videos:,} videos in {sizes.dimension} dimensions, batch {sizes.batch:,}, Adagrad",
            ["loss", "milliseconds", "times ours"],
            rows,
            [
                "Forward, backward and update of the table; medians of turns, ratios by turn. Gradients of ours and of "
                f"tf.nn.sampled_softmax_loss differ by at most {difference:.1e} of the largest. {_memory()}",
                *notes,
            ],
            digits=2,
        ),
        ratio,
        difference,
    )


Loss = Callable[[Mapping[str, tf.Tensor]], tf.Tensor]


def _our_loss(sizes: SoftmaxSizes) -> tuple[tf.Variable, Loss]:
    generator = video_generator(sizes)
    softmax = SampledSoftmax()

    def loss(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return tf.reduce_mean(softmax(generator, batch["queries"], batch, training=True))

    return generator.table.embeddings, loss


def _tensorflow_loss(sizes: SoftmaxSizes) -> tuple[tf.Variable, Loss]:
    """Rows as in ours, so row 0 is a class that is never drawn."""
    table = video_generator(sizes).table.embeddings
    biases = tf.zeros([sizes.videos + 1])

    def loss(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        labels = tf.cast(batch["label"], tf.int64)[:, tf.newaxis]
        drawn = (
            tf.cast(batch[NEGATIVES], tf.int64),
            batch[LABEL_EXPECTED_COUNT][:, tf.newaxis],
            batch[NEGATIVES_EXPECTED_COUNT],
        )
        count = batch[NEGATIVES].shape[0]
        losses = tf.nn.sampled_softmax_loss(
            table, biases, labels, batch["queries"], count, sizes.videos + 1, sampled_values=drawn
        )
        return tf.reduce_mean(losses)

    return table, loss


def gradient_difference(
    ours: tuple[tf.Variable, Loss], theirs: tuple[tf.Variable, Loss], batch: Mapping[str, tf.Tensor]
) -> float:
    """The largest difference of any entry of two losses' gradients, as a share of the largest entry."""
    found = []
    for table, loss in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(batch["queries"])
            value = loss(batch)
        of_table, of_queries = tape.gradient(value, [table, batch["queries"]])
        found.append((tf.convert_to_tensor(of_table).numpy(), of_queries.numpy()))
    if any(not np.abs(gradient).max() > 0 for gradients in found for gradient in gradients):
        raise DataError("sampled softmax: expected gradients, found zeros; look at the losses that are compared")
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(*found, strict=True))


def _step(table: tf.Variable, loss: Loss, batch: Mapping[str, tf.Tensor]) -> Callable[[], object]:
    optimizer = tf_keras.optimizers.Adagrad(0.1, jit_compile=False)
    optimizer.build([table])

    @tf.function
    def step(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(batch)
        optimizer.apply_gradients([(tape.gradient(value, table), table)])
        return value

    return lambda: step(batch).numpy()


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
