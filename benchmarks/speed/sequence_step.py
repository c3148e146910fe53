"""Training steps of the sequence models: the GRU beside PyTorch's, M3 beside the GRU, and by number of videos.

Layers of the production model of Latent Cross: 256 ReLU, 256 GRU, 256 ReLU, histories of 100 watches, each watch
predicted from those before it, batches of 128. Competitors take turns in one run, on batches that are in memory.
"""

import gc
import json
import os
import statistics
from contextlib import ExitStack
from typing import Any

from matplotlib.figure import Figure as Plot

from benchmarks.report import ResultTable, publish_result
from benchmarks.speed import Request
from benchmarks.speed.measuring import in_turn, median_ratio
from benchmarks.speed.sequence_models import SequenceSizes, gru, m3, sequence_batch, sequence_step
from models.range_encoders import Short
from pipeline.evaluation.plots import new_plot

GRU = "GRU"
TARGETS = {
    "GRU step over PyTorch's": 1.1,
    "M3R step over the GRU's": 1.3,
    "step at 1 M videos over step at 100 k, same batch": 1.15,
}
SMOKE = SequenceSizes(videos=2_000, embedding=4, units=8, dimension=8, length=6, batch=16, sampled=50)


def run(request: Request) -> None:
    """Measures and publishes `sequence_step`."""
    peers, over_torch = _peers(request)
    models, over_gru = _models(request)
    sizes, growth = _table_sizes(request)
    found: dict[str, float | None] = dict(zip(TARGETS, (over_torch, over_gru, growth), strict=True))
    publish_result(
        request.results,
        "sequence_step",
        [*peers, models, sizes],
        _plot(*peers, models, sizes),
        {
            "command": f"python -m benchmarks.speed sequence_step --scale {request.scale}",
            "summary": [f"{name}: {value:.3g} (target {TARGETS[name]:g})" for name, value in found.items() if value],
            "targets": TARGETS,
            "found": found,
        },
    )


def _peers(request: Request) -> tuple[list[ResultTable], float | None]:
    """A table for few and one for 20,000 negatives; our step as a multiple of PyTorch's with few."""
    base, tables, ratios = SMOKE if request.smoke else SequenceSizes(), [], []
    notes = request.peers.missing(["torch"])
    for sampled, rounds in ((20, 2), (50, 2)) if request.smoke else ((2_000, 9), (20_000, 5)):
        sizes = base.with_sampled(sampled)
        steps = {GRU: sequence_step(gru(sizes), sequence_batch(sizes))}
        with ExitStack() as stack:
            if not notes:
                arguments = json.dumps({**sizes.as_json(), "threads": len(os.sched_getaffinity(0))})
                peer = stack.enter_context(request.peers.start("peer_torch.py", "recurrent", arguments))
                steps[f"PyTorch {peer.read()['ready']}"] = lambda peer=peer: peer.ask(1)
            seconds = in_turn(steps, rounds, warm_up=2)
        tables.append(_table(f"GRU step: {_told(sizes)}", seconds, ["Adagrad; sparse embeddings in both.", *notes]))
        ratios += [median_ratio(found, seconds[GRU]) for name, found in seconds.items() if name != GRU]
        del steps
        gc.collect()
    return tables, ratios[0] if ratios else None


def _models(request: Request) -> tuple[ResultTable, float]:
    """The GRU, M3R and M3C, and M3R's step as a multiple of the GRU's."""
    sizes = SMOKE if request.smoke else SequenceSizes()
    batch = sequence_batch(sizes)
    models = {GRU: gru(sizes), "M3R": m3(sizes, Short.GRU), "M3C": m3(sizes, Short.CONVOLUTION)}
    steps = {name: sequence_step(model, batch) for name, model in models.items()}
    seconds = in_turn(steps, 2 if request.smoke else 9, warm_up=2)
    note = f"M3: tiny, short and long range of {sizes.units} each, bottom gates, concatenated."
    return _table(f"M3 beside the GRU: {_told(sizes)}", seconds, [note]), median_ratio(seconds[GRU], seconds["M3R"])


def _table_sizes(request: Request) -> tuple[ResultTable, float]:
    """The GRU's step by number of videos, for one batch, and at the most videos as a multiple of that at the fewest."""
    counts = (1_000, 10_000) if request.smoke else (100_000, 1_000_000)
    base = SMOKE if request.smoke else SequenceSizes()
    steps = {}
    for videos in counts:
        sizes = base.with_videos(videos)
        steps[f"{videos:,}"] = sequence_step(gru(sizes), sequence_batch(sizes, drawn_from=counts[0]))
    seconds = in_turn(steps, 2 if request.smoke else 9, warm_up=2)
    first, last = seconds[f"{counts[0]:,}"], seconds[f"{counts[-1]:,}"]
    note = f"The same batch: {counts[0]:,} videos, spread over the table, so that only the table grows."
    return _table("The GRU's step by number of videos", seconds, [note]), median_ratio(first, last)


def _told(sizes: SequenceSizes) -> str:
    return (
        f"{sizes.videos:,} videos in {sizes.dimension} dimensions, {sizes.embedding} when watched, "
        f"{sizes.units} units, {sizes.length} watches, batch {sizes.batch}, {sizes.sampled:,} negatives"
    )


def _table(title: str, seconds: dict[str, list[float]], notes: list[str]) -> ResultTable:
    """Milliseconds, and times the first."""
    first = next(iter(seconds.values()))
    rows: list[list[Any]] = [
        [name, statistics.median(found) * 1e3, median_ratio(first, found)] for name, found in seconds.items()
    ]
    notes = [*notes, "Medians of turns, ratios by turn."]
    return ResultTable(title, ["step", "milliseconds", "times the first"], rows, notes, digits=2)


def _plot(*tables: ResultTable) -> Plot:
    plot = new_plot(11.0, 3.0)
    for axes, table in zip(plot.subplots(1, len(tables)), tables, strict=True):
        axes.barh([str(row[0]) for row in table.rows], [float(str(row[1])) for row in table.rows])
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        axes.set_title(table.title.split(":")[0], fontsize=8)
        axes.set_xlabel("milliseconds", fontsize=8)
    return plot
