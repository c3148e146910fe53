"""Figure 4 of Tang et al. 2019: four variants of one log by the length of its sequences, from short to very long.

A variant has the users with δ_min watches or more, of each the latest δ_max, and sequences of δ_win (Table 3). The
paper's lengths are halved, so that a simulated platform of modest size has users for all four. What δ_max leaves out
is no label; the watches before a label stay inputs as far as the sequence reaches, because which watches are the
latest is known only afterwards. Users return to old favourites (`range_worlds.py`), without which a long range has
nothing to add.

Compared are those of the paper's figure: a recurrent cell alone (GRU4Rec), Caser, M3C and M3R, without context and
with bottom-switch gates as on MovieLens, at the width of the other sequence experiments. F_in is the identity, so that
all four read the same. Each has the trials of `temporal_range`, for each variant of the log anew. The figure
shows the uplift over the better one of the first two.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
from matplotlib.figure import Figure as Plot

from benchmarks.experiments import Claim, Request, Scale, claim, configuration, mean_of_seeds, prepare
from benchmarks.generators import MAP, HeldOutWatches
from benchmarks.report import Cell, ResultTable, publish_result
from benchmarks.sequences import METRICS, NAME, Judged, Variant, best_on_validation, judge, sizes, trial_table, tuned
from benchmarks.tang2019.range_models import search_space
from benchmarks.tang2019.range_worlds import ON, WORLDS, range_settings
from features.tables import read_table
from models.baseline_presets import BASELINES
from models.m3 import PRESETS
from pipeline.evaluation.bootstrap import Measurement, paired_difference
from pipeline.evaluation.plots import new_plot
from pipeline.run import Run

BASELINE_NAMES = ("GRU", "Caser")
MIXTURES = ("M3C", "M3R")
PAPER = (
    "Tang et al. 2019, Figure 4 (no values): M3R above both baselines on all four variants, M3C on M alone, both about "
    "+10% to +20%; standard error up to 2.3% on XL"
)


@dataclass(frozen=True)
class Lengths:
    """A variant of the log, in watches.

    Args:
      name: of the variant.
      least: δ_min, of a user.
      most: δ_max, latest ones of a user; None: all.
      window: δ_win, of a sequence.
    """

    name: str
    least: int
    most: int | None
    window: int

    def scaled(self, share: float) -> "Lengths":
        """The same with all lengths times `share`, rounded up, at least two."""

        def times(length: int) -> int:
            return max(2, math.ceil(length * share))

        return Lengths(
            self.name, times(self.least), None if self.most is None else times(self.most), times(self.window)
        )

    def settings(self) -> dict[str, Any]:
        """Settings of a run."""
        return {
            "features": {"watch_window": self.window},
            "candidate_examples": {"evaluation_min_watches": self.least},
            "sequence_examples": {
                "labels_per_user": None,
                "min_watches": self.least,
                "max_watches": self.most,
                "stride": self.window,
            },
        }


TABLE_3 = (
    Lengths("S", 20, 50, 20),
    Lengths("M", 50, 150, 50),
    Lengths("L", 150, 300, 150),
    Lengths("XL", 300, None, 300),
)
"""Minimum, maximum and window of the paper's variants of MovieLens 20M."""


def reproduce(request: Request) -> None:
    """Publishes `sequence_lengths`."""
    full = request.scale == Scale.FULL
    found: dict[str, dict[str, Judged]] = {}
    trials: dict[str, Mapping[str, Judged]] = {}
    rows: list[list[Cell]] = []
    for lengths in variants_of_the_log(full):
        run = prepare(request, f"length_{lengths.name}", configuration(request, settings(lengths, full), WORLDS[ON]))
        held_out = HeldOutWatches(run)
        trial = partial(judge, request, run, held_out, seeds=request.seeds[:1])
        chosen = {model.name: tuned(model, search_space(model, full), trial) for model in models(lengths, full)}
        trials |= {f"{lengths.name}, {name}": tried for name, (_, tried) in chosen.items()}
        found[lengths.name] = {
            name: judge(request, run, held_out, variant, request.seeds) for name, (variant, _) in chosen.items()
        }
        tested = (len(set(held_out.targets.users.tolist())), len(held_out.targets))
        rows.append([lengths.name, lengths.least, lengths.most, lengths.window, *kept_users(run, lengths), *tested])
    publish_result(
        request.output,
        request.result_name,
        [uplift_table(found), metrics_table(found), lengths_table(rows), trial_table("Trials", trials)],
        plot(found),
        {
            "command": request.command,
            "summary": [made.sentence() for name, judged in found.items() for made in claims_of(name, judged)],
            "trainings of each variant": len(request.seeds),
            "settings": run.config.model_dump(mode="json", include={"source", "split"}),
        },
        request.console,
    )


def variants_of_the_log(full: bool) -> list[Lengths]:
    """Half of the paper's lengths; at smoke scale a fifteenth."""
    return [lengths.scaled(1 / 2 if full else 1 / 15) for lengths in TABLE_3]


def settings(lengths: Lengths, full: bool) -> dict[str, Any]:
    """The platform of the worlds, with fewer users of longer histories, and what the variant keeps of it."""
    value = range_settings(full)
    if full:
        value["source"] |= {"users": 800, "steps_per_user": 180.0}
        value["generators"][NAME]["training"]["epochs"] = 40  # fewer users, fewer steps in a pass
    return {**value, **{name: {**value[name], **changes} for name, changes in lengths.settings().items()}}


def models(lengths: Lengths, full: bool) -> list[Variant]:
    """The figure's models at the world's widths; Caser's filters reach no further than the sequence."""
    width = sizes(full)["dimension"]
    mixture = {"input_widths": [], "encoder_dimension": width, "output_widths": [width], "embedding_dimension": width}
    filters = {"horizontal_filters": width // 2, "last_watches": min(10, lengths.window), "output_widths": [width]}
    configurations = {
        "GRU": (BASELINES["latent_cross"]["gru4rec"], {"units": width, "output_widths": [width]}),
        "Caser": (BASELINES["caser"]["caser_4_32"], filters),
        "M3C": (PRESETS["movielens_m3c"], mixture),
        "M3R": (PRESETS["movielens_m3r"], mixture),
    }
    return [
        Variant(name, {**config.model_dump(mode="json"), **sizes(full), **changes})
        for name, (config, changes) in configurations.items()
    ]


def kept_users(run: Run, lengths: Lengths) -> tuple[int, float]:
    """How many users have δ_min watches or more, and how many of their latest δ_max they have on average."""
    counts = pc.value_counts(read_table(run.tables, "watches")["user_id"]).field("counts").to_numpy()
    kept = np.minimum(counts[counts >= lengths.least], lengths.most or counts.max())
    return len(kept), float(kept.mean())


def best_baseline(judged: Mapping[str, Judged]) -> str:
    """The recurrent cell or Caser, whichever validates better."""
    return best_on_validation(judged, BASELINE_NAMES)


def uplift(first: Sequence[Measurement], second: Sequence[Measurement]) -> Measurement:
    """How much higher the first is, as a share of the second: both averaged over trainings, over the same draws."""
    above, below = mean_of_seeds(first), mean_of_seeds(second)
    drawn = below.samples > 0
    samples = np.divide(above.samples, below.samples, out=np.full_like(above.samples, np.nan), where=drawn) - 1
    return Measurement("uplift", above.value / below.value - 1, samples, above.n, above.population, above.confidence)


def claims_of(name: str, judged: Mapping[str, Judged]) -> list[Claim]:
    """Both mixtures are above the better baseline."""
    best = best_baseline(judged)
    return [
        claim(
            f"{name}: {mixture} over {best}, {MAP} {uplift(_map(judged, mixture), _map(judged, best)).value:+.1%}",
            _map(judged, mixture),
            _map(judged, best),
            1,
        )
        for mixture in MIXTURES
    ]


def _map(judged: Mapping[str, Judged], name: str) -> list[Measurement]:
    return judged[name].measured[MAP]


def uplift_table(found: Mapping[str, Mapping[str, Judged]]) -> ResultTable:
    """Every model's uplift over the better baseline, a row for each variant of the log."""
    rows: list[list[Cell]] = []
    for name, judged in found.items():
        best = best_baseline(judged)
        uplifts: list[Cell] = [uplift(_map(judged, model), _map(judged, best)).figure for model in judged]
        rows.append([name, best, *uplifts])
    columns = ["variant", "best baseline", *next(iter(found.values()))]
    notes = [f"Shares of the best baseline's {MAP}. Intervals: 95%, over users and trainings."]
    return ResultTable("Figure 4, uplift by length of sequences", columns, rows, notes, PAPER, 3)


def metrics_table(found: Mapping[str, Mapping[str, Judged]]) -> ResultTable:
    """The metrics themselves."""
    rows: list[list[Cell]] = []
    for name, judged in found.items():
        base = mean_of_seeds(_map(judged, best_baseline(judged)))
        for model, each in judged.items():
            figures: list[Cell] = [mean_of_seeds(each.measured[metric]).figure for metric in METRICS]
            mean = mean_of_seeds(each.measured[MAP])
            rows.append([f"{name}, {model}", *figures, paired_difference(mean, base), each.parameters])
    columns = ["variant, model", *METRICS, f"{MAP} over the best baseline", "parameters"]
    return ResultTable("Metrics", columns, rows, digits=4)


def lengths_table(rows: Sequence[Sequence[Cell]]) -> ResultTable:
    """What each variant holds of the log (Table 3)."""
    columns = [
        "variant",
        "min. length",
        "max. length",
        "window",
        "users",
        "avg. length",
        "tested",
        "next watches",
    ]
    reference = "Tang et al. 2019, Table 3, whose lengths are twice as great; 138,400, 85,200, 35,800 and 16,300 users"
    return ResultTable("Variants of the log", columns, rows, reference=reference, digits=1)


def plot(found: Mapping[str, Mapping[str, Judged]]) -> Plot:
    """Uplifts as bars, a group for each variant of the log."""
    canvas = new_plot(7.0, 4.2)
    axes = canvas.subplots()
    names = list(next(iter(found.values())))
    for offset, model in enumerate(names):
        figures = [uplift(_map(judged, model), _map(judged, best_baseline(judged))).figure for judged in found.values()]
        errors = [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
        places = [group + 0.2 * (offset - 1.5) for group in range(len(found))]
        axes.bar(places, [f.value for f in figures], 0.18, yerr=errors, capsize=2, label=model)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_xlabel("variant of the log, by length of sequences")
    axes.set_ylabel(f"{MAP}, uplift over the best baseline")
    axes.legend()
    return canvas
