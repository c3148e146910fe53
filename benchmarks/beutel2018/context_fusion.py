"""Table 4 and Figures 3 and 4 of Beutel et al. 2018: context as latent crosses, concatenated, or not at all.

- Table 4: the time to the next watch alone, into an LSTM without ReLU layers: crossed with the watch (v ∗ w), put
  beside it (RRN), left out (plain RNN), each by a full softmax and by the paper's hierarchical one; bags of words
  without and with time, the latter with a softmax over the 50 videos most co-watched with the last one; paragraph
  vectors of users and what is most co-watched with the last watch.
- Figure 3: the page alone, into the production model: left out, concatenated on both sides, crossed after the
  recurrent cell, and both.
- Figure 4: the production model with all its context concatenated, with crosses on top of that, and without context.

Worlds:

- `decisive`, the simulator whose pages and devices multiply users' tastes three times as strongly as its default, with
  neither series nor favourite uploaders, so that taste decides nearly all that is watched.
- `turned`, where each of 16 devices turns the users' liking of about half of the topics around, a product of user and
  context that no sum comes near, and stable taste decides the rest; with more users and fewer videos, for there is more
  to learn.
- `no_context`, the same without the turning: neither device nor hour nor the time between watches tells anything of
  what is watched. The page does a little (what is popular is shown more than searched), and so does the watch time.

In the last two Figure 4 alone is measured, whose context holds that of the others.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Plot

from benchmarks.beutel2018.context_models import (
    FIGURE_4,
    HIERARCHICAL,
    TABLE_4,
    Comparison,
    figure_3,
    figure_4,
    table_4,
)
from benchmarks.experiments import Claim, Request, Scale, claim, configuration, mean_of_seeds, prepare, relative
from benchmarks.generators import MAP, HeldOutWatches, baseline_figures, retrieval_examples
from benchmarks.report import Cell, ResultTable, publish_result
from benchmarks.sequences import METRICS, Judged, judge, platform_settings
from features.splits import Part
from pipeline.evaluation.bootstrap import paired_difference
from pipeline.evaluation.plots import new_plot
from pipeline.evaluation.retrieval_baselines import CO_WATCH, PARAGRAPH_VECTORS, Method, RetrievalBaselinesConfig
from pipeline.run import Run

DECISIVE, TURNED, OFF = "decisive", "turned", "no_context"
PEERS: tuple[Method, ...] = (PARAGRAPH_VECTORS, CO_WATCH)
NO_HABITS = {"series": 0.0, "loyalty": 0.0}
_STABLE_TASTE: dict[str, Any] = {
    **dict.fromkeys(("context", "duration_fit", "related", "short_term_taste", "time_of_day"), 0.0),
    **dict.fromkeys(("demographics", "freshness", "language", "rewatch", "searches"), 0.0),
    **NO_HABITS,
    "long_term_taste": 2.5,
    "back_catalogue": 1.0,
    "device_models": 4,
    "main_device": 0.0,
}
WORLDS: dict[str, dict[str, Any]] = {
    DECISIVE: {"context": 3.0, **NO_HABITS},
    TURNED: {**_STABLE_TASTE, "reversal": 0.5},
    OFF: _STABLE_TASTE,
}
SCALE = {"users": 3000, "videos": 480, "uploaders": 48}  # of the two with stable taste alone, at full scale

Found = dict[str, dict[str, dict[str, Judged]]]
"""World -> comparison -> variant -> what it came to."""


def reproduce(request: Request) -> None:
    """Publishes `context_fusion`."""
    full = request.scale == Scale.FULL
    found: Found = {}
    notes, configured = [], {}
    comparisons = [make(full) for make in (table_4, figure_3, figure_4)]
    for world, switches in WORLDS.items():
        settings = with_time_of_week(platform_settings(full))
        if full and world != DECISIVE:
            settings["source"] |= SCALE
        run = prepare(request, world, configuration(request, settings, switches))
        configured[world] = run.config.model_dump(mode="json", include={"source", "split", "sequence_examples"})
        held_out = HeldOutWatches(run)
        found[world] = {
            comparison.name: {
                variant.name: judge(request, run, held_out, variant, request.seeds) for variant in comparison.variants
            }
            for comparison in comparisons
            if world == DECISIVE or comparison.name == FIGURE_4
        }
        if world == DECISIVE:
            found[world][TABLE_4] |= peers(run)
        users = len(set(held_out.targets.users.tolist()))
        notes.append(f"{world}: {users:,} users, {len(held_out.targets):,} next watches.")
    pairs = [(world, comparison) for world in found for comparison in comparisons if comparison.name in found[world]]
    claims = [made for pair in pairs for made in claims_of(*pair, found)]
    publish_result(
        request.output,
        request.result_name,
        [table(*pair, found, notes) for pair in pairs],
        plot(found),
        {
            "command": request.command,
            "summary": [made.sentence() for made in claims],
            "trainings of each variant": len(request.seeds),
            "settings": configured,
        },
        request.console,
    )


def with_time_of_week(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run whose sequences have the request's time of the week."""
    source = {"name": "time_of_week", "source": "request.time_of_week", "kind": "continuous"}
    scale = {"normaliser": "scale", "low": 0, "high": 604_800, "models": ["sequence_generator"]}
    return {**settings, "features": {**settings["features"], "extra": [{**source, **scale}]}}


def peers(run: Run) -> dict[str, Judged]:
    """The baselines of Table 4 without a network, as they are: what is popular just now weighs no more."""
    parts = {part: retrieval_examples(run, part) for part in (Part.VALIDATION, Part.TEST)}
    every = np.ones(len(parts[Part.TEST].targets), bool)
    results = baseline_figures(run, RetrievalBaselinesConfig(methods=PEERS), parts, every)
    return {
        result.method.capitalize(): Judged({m.name: [m] for m in result.measurements}, None, [], [])
        for result in results
        if result.method in PEERS
    }


def claims_of(world: str, comparison: Comparison, found: Found) -> list[Claim]:
    """The cross is above the concatenation, the concatenation above no context."""
    off = world == OFF
    judged = found[world][comparison.name]
    claims = []
    pairs = list(combinations((comparison.crossed, comparison.concatenated, comparison.without), 2))
    if comparison.name == TABLE_4:
        pairs += [(HIERARCHICAL.format(above), HIERARCHICAL.format(below)) for above, below in pairs]
    for above, below in pairs:
        for metric in METRICS:
            first, second = judged[above].measured[metric], judged[below].measured[metric]
            text = f"{world}, {comparison.name}: {above} over {below}, {metric} {relative(first, second)}"
            claims.append(claim(text, first, second, 1, off))
    return claims


def table(world: str, comparison: Comparison, found: Found, notes: list[str]) -> ResultTable:
    """Every variant's metrics, and how it stands to the concatenation."""
    judged = found[world][comparison.name]
    rows: list[list[Cell]] = []
    base = judged[comparison.concatenated]
    for name, of_variant in judged.items():
        measured = of_variant.measured
        figures: list[Cell] = []
        for metric in METRICS:
            mean = mean_of_seeds(measured[metric])
            figures += [mean.figure, paired_difference(mean, mean_of_seeds(base.measured[metric]))]
        rows.append([name, *figures, of_variant.parameters])
    columns = ["model", *(column for metric in METRICS for column in (metric, "over the concatenation")), "parameters"]
    below = [*notes, "Intervals: 95%, over users and trainings."]
    return ResultTable(f"{comparison.name}, world `{world}`", columns, rows, below, comparison.reference, 4)


def plot(found: Found) -> Plot:
    """MAP of every variant with its interval, a panel for each comparison."""
    names = list(next(iter(found.values())))
    canvas = new_plot(4.2 * len(names), 4.2)
    for axes, name in zip(canvas.subplots(1, len(names)), names, strict=True):
        for offset, (world, by_comparison) in enumerate(found.items()):
            if name not in by_comparison:
                continue
            figures = [mean_of_seeds(judged.measured[MAP]).figure for judged in by_comparison[name].values()]
            errors = [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
            x = [place + 0.2 * (offset - (len(found) - 1) / 2) for place in range(len(figures))]
            axes.errorbar(x, [f.value for f in figures], yerr=errors, fmt="o", capsize=3, label=world)
        variants = list(next(iter(found.values()))[name])
        axes.set_xticks(range(len(variants)), variants, rotation=30, ha="right")
        axes.set_title(name)
        axes.set_ylabel(MAP)
    axes.legend()
    return canvas
