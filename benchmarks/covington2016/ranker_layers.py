"""Table 1 of Covington et al. 2016: hidden layers of the ranker, on next-day hold-out; and the two sentences under it.

Loss is the paper's weighted per-user loss over impressions as at serving. On the simulator it is also given in
expectation over clicks and watch times, which the verdicts are about: the same impressions without the luck of a day's
few clicks.

Worlds where the causes are switched off:
- `everybody_alike`: no user, page or device prefers anything, so that the features of query and video add up and hidden
  layers have nothing to bring over none but speed of learning (`learning_rates.py`);
- `equal_watch_times`: all videos last equally long, there is no clickbait, and age, repetition and duration matter to
  nobody, so that neither watch times nor powers of continuous features have much to tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure as Plot

from benchmarks.covington2016.learning_rates import SHARED, at_rates, claim_at_own_rates, rates_table, shown_table
from benchmarks.experiments import (
    SMOKE_PLATFORM,
    SMOKE_SETTINGS,
    Claim,
    Request,
    Scale,
    SourceName,
    claim,
    configuration,
    mean_of_seeds,
    prepare,
    published_settings,
)
from benchmarks.rankers import HeldOutImpressions, ranker_answers
from benchmarks.report import Cell, ResultTable, publish_result
from models.weighted_logistic_regression import Objective
from pipeline.config_file import read_settings
from pipeline.evaluation.bootstrap import Measurement, paired_difference
from pipeline.evaluation.plots import new_plot
from pipeline.run import Run

PAPER_ROWS: dict[str, tuple[tuple[int, ...], float]] = {
    "none": ((), 41.6),
    "256": ((256,), 36.9),
    "512": ((512,), 36.7),
    "1024": ((1024,), 35.8),
    "512 → 256": ((512, 256), 35.2),
    "1024 → 512": ((1024, 512), 34.7),
    "1024 → 512 → 256": ((1024, 512, 256), 34.6),
}
"""Row of Table 1 -> hidden layers, loss in %."""
BEST = "1024 → 512 → 256"
WITHOUT_POWERS, EQUAL_WEIGHTS = "without powers", "equal weights"
PAPER_SENTENCES = {WITHOUT_POWERS: 0.2, EQUAL_WEIGHTS: 4.1}
SWITCHED_OFF = {
    "everybody_alike": dict.fromkeys(
        (
            *("long_term_taste", "short_term_taste", "demographics", "context", "time_of_day", "language", "loyalty"),
            *("series", "related", "duration_fit", "rewatch", "churn"),
        ),
        0.0,
    ),
    "equal_watch_times": dict.fromkeys(
        ("durations", "clickbait", "freshness", "duration_fit", "churn", "rewatch", "position"), 0.0
    ),
}

Measured = dict[str, list[Measurement]]
"""Variant -> its loss, one measurement per seed."""


@dataclass(frozen=True)
class Losses:
    """What one world gave: the loss on the clicks that happened and, where the truth is known, in expectation."""

    observed: Measured
    expected: Measured

    @property
    def judged(self) -> Measured:
        """What verdicts are about."""
        return self.expected or self.observed


def reproduce(request: Request) -> None:
    """Publishes `ranker_layers`."""
    full = request.scale == Scale.FULL
    seeds = request.seeds
    base = kuairand_settings(full) if request.source == SourceName.KUAIRAND else simulator_settings(full)
    run = prepare(request, "plausible", configuration(request, base))
    rows = variants()
    if not full:
        rows = {name: rows[name] for name in ("none", BEST, EQUAL_WEIGHTS)}
    losses = measure(request, run, rows, seeds)
    claims = claims_of(losses.judged)
    off: dict[str, Losses] = {}
    if request.source == SourceName.SIMULATOR:
        for world, switches in SWITCHED_OFF.items() if full else [("everybody_alike", SWITCHED_OFF["everybody_alike"])]:
            other = prepare(request, world, configuration(request, base, switches))
            wanted = ("none", BEST) if world == "everybody_alike" else (BEST, WITHOUT_POWERS, EQUAL_WEIGHTS)
            off[world] = measure(request, other, {name: variants()[name] for name in wanted}, seeds)
            claims += switched_off_claims(world, off[world].judged)
    made = tables(losses, off, run)
    if full and off:
        why, explained = explanation(request, run, base)
        claims += why
        made += explained
    publish_result(
        request.output,
        request.result_name,
        made,
        plot(losses),
        {
            "command": request.command,
            "summary": [claim.sentence() for claim in claims],
            "trainings of each variant": len(seeds),
            "settings": published_settings(run, {"source", "split", "ranker"}),
            "switched_off": SWITCHED_OFF if off else {},
        },
        request.console,
    )


def simulator_settings(full: bool) -> dict[str, Any]:
    """A platform whose last day is the test, the day before it validation."""
    scale = {"users": 6000, "videos": 1500, "uploaders": 150, "days": 8, "steps_per_user": 26.0}
    return {
        "name": "ranker_layers",
        "source": {"kind": "simulator", **(scale if full else SMOKE_PLATFORM)},
        "split": {"t0": "2025-01-13T00:00:00Z", "gap_hours": 0, "refit": False},
        "candidate_examples": {"labels_per_user": 1, "evaluation_labels_per_user": 1},
        "generators": {"two_tower": {"training": {"refit": False}}},
        "ranker": ranker_settings(full),
        **({} if full else SMOKE_SETTINGS),
    }


def kuairand_settings(full: bool) -> dict[str, Any]:
    """The last local day of KuaiRand is the test, the day before it validation."""
    value, _ = read_settings("kuairand")
    value["split"] |= {"test_days": 1, "validation_days": 1, "gap_hours": 0, "refit": False}
    value["candidate_examples"] = {"labels_per_user": 1, "evaluation_labels_per_user": 1}
    value["generators"]["two_tower"]["training"] |= {"refit": False}
    return value | {"name": "ranker_layers", "ranker": ranker_settings(full)}


def ranker_settings(full: bool) -> dict[str, Any]:
    """The same for every row: the paper's objective alone, no dropout; the epoch is chosen on the validation day."""
    training = {"epochs": 3 if full else 1, "batch_size": 1024, "patience": 1, "refit": False, "checkpoints": False}
    return {"model": {"click_loss_weight": 0.0}, "training": training}


def variants() -> dict[str, dict[str, Any]]:
    """Row -> the ranker's settings that make it."""
    rows: dict[str, dict[str, Any]] = {name: {"hidden_units": units} for name, (units, _) in PAPER_ROWS.items()}
    best = rows[BEST]
    return rows | {
        WITHOUT_POWERS: {**best, "powers": False},
        EQUAL_WEIGHTS: {**best, "objective": Objective.UNWEIGHTED.value},
    }


def measure(request: Request, run: Run, chosen: Mapping[str, Mapping[str, Any]], seeds: tuple[int, ...]) -> Losses:
    """The losses of some variants in a world."""
    held_out = HeldOutImpressions(run)
    observed: Measured = {}
    expected: Measured = {}
    for name, settings in chosen.items():
        for seed in seeds:
            scores = ranker_answers(request, run, name.replace(" ", ""), settings, seed)["score"]
            observed.setdefault(name, []).append(held_out.loss(scores))
            in_expectation = held_out.expected_loss(scores)
            if in_expectation is not None:
                expected.setdefault(name, []).append(in_expectation)
    return Losses(observed, expected)


RATES = (SHARED, 1e-2, 3e-2)
"""Learning rates at which the first and the last row are tried, to tell what layers owe to the one that all share."""


def explanation(request: Request, run: Run, base: dict[str, Any]) -> tuple[list[Claim], list[ResultTable]]:
    """Why hidden layers stay ahead where everybody is alike: the learning rate, and the videos that are new."""
    rows = {name: variants()[name] for name in ("none", BEST)}
    alike = prepare(request, "everybody_alike", configuration(request, base, SWITCHED_OFF["everybody_alike"]))
    tried = {"plausible": at_rates(request, run, rows, RATES), "everybody_alike": at_rates(request, alike, rows, RATES)}
    texts = {
        "plausible": f"{BEST} loses less than none",
        "everybody_alike": "switched off (everybody_alike): advantage of hidden layers over none",
    }
    claims = [
        claim_at_own_rates(text, tried[world], BEST, "none", world != "plausible") for world, text in texts.items()
    ]
    return claims, [rates_table(tried), shown_table(alike, tried["everybody_alike"], BEST, "none")]


def claims_of(loss: Measured) -> list[Claim]:
    """Table 1's order, step by step and from end to end, and the two sentences, of the rows that were measured."""
    pairs = [(f"{b} loses less than {a}", b, a, -1) for a, b in pairwise(PAPER_ROWS)]
    pairs += [
        (f"from end to end: {BEST} loses less than none", BEST, "none", -1),
        ("width: 1024 loses less than 256", "1024", "256", -1),
        (f"depth: {BEST} loses less than 1024", BEST, "1024", -1),
        ("without powers the loss is higher", WITHOUT_POWERS, BEST, 1),
        ("with equal weights the loss is higher", EQUAL_WEIGHTS, BEST, 1),
    ]
    return [claim(text, loss[a], loss[b], sign) for text, a, b, sign in pairs if a in loss and b in loss]


def switched_off_claims(world: str, loss: Measured) -> list[Claim]:
    """The advantages that are to vanish in a world without their cause."""
    if world == "everybody_alike":
        pairs = [("of hidden layers over none", BEST, "none", -1)]
    else:
        pairs = [("of powers", WITHOUT_POWERS, BEST, 1), ("of watch-time weights", EQUAL_WEIGHTS, BEST, 1)]
    return [
        claim(f"switched off ({world}): advantage {text}", loss[a], loss[b], sign, switched_off=True)
        for text, a, b, sign in pairs
    ]


def tables(losses: Losses, off: Mapping[str, Losses], run: Run) -> list[ResultTable]:
    """Table 1 beside the paper's, and the worlds switched off."""
    held_out = HeldOutImpressions(run)
    about = f"{held_out.bootstrap.num_users:,} users, {len(held_out.shown):,} impressions of the last day"
    columns = ["hidden layers", "loss", *(["expected loss"] if losses.expected else []), "minus none", "paper"]
    rows: list[list[Cell]] = []
    for name in losses.observed:
        against = "none" if name in PAPER_ROWS else BEST
        paper = f"{PAPER_ROWS[name][1]}%" if name in PAPER_ROWS else f"{BEST} + {PAPER_SENTENCES[name]}%"
        difference = paired_difference(mean_of_seeds(losses.judged[name]), mean_of_seeds(losses.judged[against]))
        shown: list[Cell] = [mean_of_seeds(losses.observed[name]).figure]
        shown += [mean_of_seeds(losses.expected[name]).figure] if losses.expected else []
        rows.append([name, *shown, None if name == against else difference, paper])
    notes = [f"The last two rows are {BEST} and are compared with it.", "Intervals: 95%, over users."]
    if losses.expected:
        notes.append(
            "Expected loss: over clicks and watch times, by the simulator's truth; differences are of it. "
            f"A perfect ranker has {perfect(held_out):.3f}."
        )
    made = [ResultTable(f"Weighted per-user loss ({about})", columns, rows, notes, "Covington et al. 2016, Table 1", 4)]
    for world, found in off.items():
        cells: list[list[Cell]] = [[name, mean_of_seeds(loss).figure] for name, loss in found.judged.items()]
        made.append(ResultTable(f"World '{world}'", ["variant", "expected loss"], cells, digits=4))
    return made


def perfect(held_out: HeldOutImpressions) -> float:
    """The expected loss of the true expected watch time."""
    assert held_out.true is not None
    click, seconds = held_out.true
    found = held_out.expected_loss(click * seconds)
    assert found is not None
    return found.value


def plot(losses: Losses) -> Plot:
    """Losses with their intervals, beside the paper's on an axis of its own."""
    names = list(losses.judged)
    figures = [mean_of_seeds(losses.judged[name]).figure for name in names]
    canvas = new_plot(8.0, 4.6)
    axes = canvas.subplots()
    x = range(len(names))
    values = [figure.value for figure in figures]
    low = [figure.value - figure.low for figure in figures]
    high = [figure.high - figure.value for figure in figures]
    axes.errorbar(x, values, yerr=[low, high], fmt="o", capsize=3, label="measured (left axis)")
    axes.set_xticks(
        list(x), [name.replace(" → ", "\n→ ").replace("t ", "t\n").replace("l w", "l\nw") for name in names], fontsize=8
    )
    axes.set_xlabel("hidden ReLU layers")
    axes.set_ylabel("weighted per-user loss" + (" (expected)" if losses.expected else ""))
    paper = axes.twinx()
    best = PAPER_ROWS[BEST][1]
    told = [PAPER_ROWS[name][1] if name in PAPER_ROWS else best + PAPER_SENTENCES[name] for name in names]
    paper.plot(x, told, "s", color="grey", markerfacecolor="none", label="paper (right axis)")
    paper.set_ylabel("paper's loss (%)")
    handles, labels = (a + b for a, b in zip(*(ax.get_legend_handles_labels() for ax in (axes, paper)), strict=True))
    axes.legend(handles, labels, loc="upper center")
    return canvas
