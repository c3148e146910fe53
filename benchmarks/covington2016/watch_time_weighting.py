"""Sections 4 and 4.2 of Covington et al. 2016: what a ranker by watch time does that a ranker by clicks does not.

Two rankers on the same impressions: one trained with watch-time weights, ordering by its odds, one with equal weights,
ordering by the odds of a click. The simulator marks some videos as clickbait: much clicked, little watched.

- Where clickbait stands: the share of the other videos of its page that are scored below it; 0.5 is the middle,
  and where its true watch time puts it is what it is worth. Episodes of series are left out, because none of them is
  clickbait and users return to them.
- What the odds learn: of constant features they are ΣT / (N − k) = E[T] / (1 − P), which the paper rounds to E[T] where
  clicks are rare (section 4.2). Predicted over true is given for both readings, and for the odds of a click.

- Why the lowest tenth of the expectations is too high: the same expectations calibrated as published, in finer bins,
  and by the true expectation in place of what was watched, each judged on the impressions it was fitted on by what was
  watched there, by the truth there, and on the test by the truth.

World `no_clickbait`: the same videos are marked, but only chance makes them differ. There clicks are not to put them
above what they are worth, nor watch-time odds below clicks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Plot

from benchmarks.covington2016.ranker_layers import simulator_settings
from benchmarks.experiments import (
    Claim,
    Request,
    Scale,
    claim,
    configuration,
    mean_of_seeds,
    prepare,
    published_settings,
    truth_of,
)
from benchmarks.rankers import HeldOutImpressions, ranker_answers
from benchmarks.report import Cell, ResultTable, publish_result
from features.example_reader import ExampleSet
from features.splits import Part
from models.calibration import CalibrationConfig, fit_watch_time_calibration
from models.candidate_generator import WEIGHT
from models.ranker import CLICKED, WATCH_TIME_S, Ranker
from models.weighted_logistic_regression import Objective
from pipeline.evaluation.bootstrap import Measurement, UserBootstrap
from pipeline.evaluation.calibration import Calibration, calibrate
from pipeline.evaluation.plots import new_plot
from pipeline.evaluation.ranking_metrics import mispredicted_pairs
from pipeline.input_pipeline import ExampleColumns
from pipeline.run import RANKER, Run
from pipeline.sources.truth import numbered_ids

WATCH_TIME, CLICKS, TRUE_WATCH_TIME, TRUE_CLICKS = "watch-time odds", "click odds", "true watch time", "true clicks"
VARIANTS = {WATCH_TIME: Objective.WEIGHTED, CLICKS: Objective.UNWEIGHTED}
OFF = "no_clickbait"
SWITCHED_OFF = {"clickbait": 0.0}


def reproduce(request: Request) -> None:
    """Publishes `watch_time_weighting`."""
    full = request.scale == Scale.FULL
    run = prepare(request, "plausible", configuration(request, settings(full)))
    off_run = prepare(request, OFF, configuration(request, settings(full), SWITCHED_OFF))
    here, off = World.measured(request, run), World.measured(request, off_run)
    claims = [*here.claims(), *off.switched_off_claims()]
    found = readings(here)
    publish_result(
        request.output,
        request.result_name,
        [
            here.table("Plausible world"),
            off.table(f"World '{OFF}'"),
            calibration_table(found),
            *([lowest_tenth_table(request, run)] if full else []),
        ],
        plot(here, off, found),
        {
            "command": request.command,
            "summary": [claim.sentence() for claim in claims],
            "trainings of each variant": len(request.seeds),
            "settings": published_settings(run, {"source", "split", "ranker"}),
            "switched_off": {OFF: SWITCHED_OFF},
        },
        request.console,
    )


def settings(full: bool) -> dict[str, Any]:
    """The platform of `ranker_layers`, a ranker with a click head."""
    value = simulator_settings(full)
    value["ranker"]["model"] = {"hidden_units": [256, 128] if full else [16]}
    return value


@dataclass(frozen=True)
class World:
    """What one world gave.

    Args:
      held_out: its test impressions.
      answers: variant -> what the ranker answers, by seed.
      stands: order -> where clickbait stands, a measurement per seed.
      losses: order -> expected weighted per-user loss, a measurement per seed.
    """

    held_out: HeldOutImpressions
    answers: dict[str, list[dict[str, np.ndarray]]]
    stands: dict[str, list[Measurement]]
    losses: dict[str, list[Measurement]]

    @staticmethod
    def measured(request: Request, run: Run) -> "World":
        """Trains both rankers in a world."""
        held_out = HeldOutImpressions(run)
        assert held_out.true is not None
        marked, comparable = clickbait(run, held_out)
        click, seconds = held_out.true
        world = World(held_out, {}, {}, {})
        for variant, objective in VARIANTS.items():
            model = {"objective": objective.value}
            world.answers[variant] = [
                ranker_answers(request, run, variant.replace(" ", "_"), model, seed) for seed in request.seeds
            ]
        orders = {variant: [found["score"] for found in by_seed] for variant, by_seed in world.answers.items()}
        orders |= {TRUE_WATCH_TIME: [click * seconds] * len(request.seeds), TRUE_CLICKS: [click] * len(request.seeds)}
        for order, by_seed in orders.items():
            world.stands[order] = [
                standing(scores, held_out.shown.groups, marked, comparable, held_out.bootstrap) for scores in by_seed
            ]
            losses = [held_out.expected_loss(scores) for scores in by_seed]
            world.losses[order] = [loss for loss in losses if loss is not None]
        return world

    def claims(self) -> list[Claim]:
        """Clicks promote clickbait, watch time demotes it, and orders better by watch time."""
        middle = [constant(found, 0.5) for found in self.stands[CLICKS]]
        return [
            claim("clicks put clickbait above the middle of its page", self.stands[CLICKS], middle, 1),
            claim("clicks put clickbait above what it is worth", self.stands[CLICKS], self.stands[TRUE_WATCH_TIME], 1),
            claim("watch-time odds put clickbait below the middle of its page", self.stands[WATCH_TIME], middle, -1),
            claim(
                "watch-time odds put clickbait lower than clicks do", self.stands[WATCH_TIME], self.stands[CLICKS], -1
            ),
            claim("watch-time odds lose less watch time than clicks", self.losses[WATCH_TIME], self.losses[CLICKS], -1),
        ]

    def switched_off_claims(self) -> list[Claim]:
        """What is to vanish where nothing is clickbait."""
        watch, clicks, worth = (self.stands[order] for order in (WATCH_TIME, CLICKS, TRUE_WATCH_TIME))
        prefix = f"switched off ({OFF}): "
        return [
            claim(f"{prefix}clicks put the marked videos above what they are worth", clicks, worth, 1, True),
            claim(f"{prefix}watch-time odds put them lower than clicks do", watch, clicks, -1, True),
        ]

    def table(self, title: str) -> ResultTable:
        """Where clickbait stands and what the order loses, for both rankers and the truth."""
        rows: list[list[Cell]] = [
            [order, mean_of_seeds(self.stands[order]).figure, mean_of_seeds(self.losses[order]).figure]
            for order in self.stands
        ]
        columns = ["ordered by", "clickbait stands at (0 last, 1 first)", "expected weighted per-user loss"]
        shown = (
            f"{self.held_out.bootstrap.num_users:,} users, {len(self.held_out.shown):,} impressions of the last day."
        )
        reference = "Covington et al. 2016, section 4: clicks promote clickbait, watch time does not (no values)"
        return ResultTable(title, columns, rows, [shown, "Intervals: 95%, over users."], reference, 3)


def clickbait(run: Run, held_out: HeldOutImpressions) -> tuple[np.ndarray, np.ndarray]:
    """bool `[impressions]` each: the video is marked as clickbait; it is comparable, being of no series."""
    truth = truth_of(run)
    assert truth is not None
    platform = truth.platform
    number = {video: i for i, video in enumerate(numbered_ids("v", np.arange(len(platform.clickbait))).to_pylist())}
    videos = np.array([number[video] for video in held_out.table["video_id"].to_pylist()])
    return platform.clickbait[videos], platform.series[videos] < 0


def standing(
    scores: np.ndarray, groups: np.ndarray, marked: np.ndarray, comparable: np.ndarray, bootstrap: UserBootstrap
) -> Measurement:
    """The share of pairs of a marked and an unmarked video of one page in which the marked one scores higher.

    Args:
      scores, groups, marked: `[n]`; a tie counts half.
      comparable: bool `[n]`; other rows have no part.
      bootstrap: over the users of the rows.
    """
    above, pairs = np.zeros((2, len(scores)))
    above[comparable], pairs[comparable] = mispredicted_pairs(
        groups[comparable], scores[comparable], marked[comparable]
    )
    return bootstrap.ratio("standing", pairs - above, pairs)


def constant(like: Measurement, value: float) -> Measurement:
    """A measurement that is `value` whatever the draw, over the population of another."""
    return Measurement(like.name, value, np.full_like(like.samples, value), like.n, like.population, like.confidence)


def readings(world: World) -> dict[str, Calibration]:
    """Predicted against true, of what the two rankers' odds may be read as; where the impressions really stood.

    Of the first seed.
    """
    assert world.held_out.true is not None
    click, seconds = world.held_out.true
    expected = click * seconds
    watch, clicks = world.answers[WATCH_TIME][0], world.answers[CLICKS][0]
    odds, click_odds = (found["logged_score"].astype(np.float64) for found in (watch, clicks))
    pairs = {
        "watch-time odds as E[T]": (odds, expected),
        "watch-time odds as E[T] / (1 − P)": (odds, expected / (1 - click)),
        "odds × (1 − P), calibrated, as E[T]": (watch["logged_expected_watch_time_s"], expected),
        "click odds as P": (click_odds, click),
        "click odds as P / (1 − P)": (click_odds, click / (1 - click)),
    }
    return {name: calibrate(*both, world.held_out.bootstrap) for name, both in pairs.items()}


def calibration_table(found: dict[str, Calibration]) -> ResultTable:
    """Predicted over true: overall, and in the lowest, middle and highest tenth of the prediction."""
    rows: list[list[Cell]] = []
    for name, calibration in found.items():
        bins = calibration.bins
        shown = [bins[0].ratio, bins[len(bins) // 2].ratio, bins[-1].ratio]
        rows.append([name, calibration.overall, *shown, calibration.worst_bin_deviation])
    columns = ["odds read as", "predicted / true", "lowest tenth", "middle", "highest tenth", "worst deviation"]
    return ResultTable("Calibration of both odds against the truth", columns, rows, ["1 is calibrated."])


CALIBRATIONS = {
    "10 bins, as published": (CalibrationConfig(), False),
    "40 bins": (CalibrationConfig(bins=40, min_watched_per_bin=50), False),
    "10 bins, by the truth": (CalibrationConfig(), True),
}
"""Name -> how expectations are calibrated, and whether by the truth of the validation part in place of its watches."""


def lowest_tenth_table(request: Request, run: Run) -> ResultTable:
    """Predicted over actual in the lowest tenth of the expectations, by how they are calibrated."""
    parts = {part: HeldOutImpressions(run, part) for part in (Part.VALIDATION, Part.TEST)}
    raw = [expectations(request, run, seed) for seed in request.seeds]
    fitted_on, judged_on = parts[Part.VALIDATION], parts[Part.TEST]
    watched = int((lowest_tenth(raw[0][Part.VALIDATION.folder]) & (fitted_on.shown.watch_time_s > 0)).sum())
    rows: list[list[Cell]] = []
    for name, (config, by_truth) in CALIBRATIONS.items():
        told = true_expectation(fitted_on) if by_truth else fitted_on.shown.watch_time_s
        found: dict[str, list[Measurement]] = {"watched": [], "true": [], "test": []}
        for by_part in raw:
            before, after = (by_part[part.folder] for part in parts)
            points = fit_watch_time_calibration(before, told, config)
            found["watched"].append(ratio_of_lowest(points.apply(before), fitted_on.shown.watch_time_s, fitted_on))
            found["true"].append(ratio_of_lowest(points.apply(before), true_expectation(fitted_on), fitted_on))
            found["test"].append(ratio_of_lowest(points.apply(after), true_expectation(judged_on), judged_on))
        rows.append([name, *(mean_of_seeds(measured).figure for measured in found.values())])
    columns = ["calibrated by", "validation, by what was watched", "validation, by the truth", "test, by the truth"]
    notes = [
        f"1 is calibrated. The lowest tenth of the {len(fitted_on.shown):,} validation impressions holds {watched} "
        "that were watched. Intervals: 95%, over users and trainings."
    ]
    return ResultTable("The lowest tenth of expected watch time: predicted over actual", columns, rows, notes)


def expectations(request: Request, run: Run, seed: int) -> dict[str, np.ndarray]:
    """Raw expectations in seconds, where the impressions really stood: part -> float64 `[impressions]`."""
    examples = ExampleSet(run.examples(RANKER))

    def ask(model: Ranker) -> dict[str, np.ndarray]:
        labels = (CLICKED, WATCH_TIME_S, WEIGHT)
        return {
            part.folder: model.expectations(ExampleColumns(examples, (part,), labels).ordered(8192)).raw_s
            for part in (Part.VALIDATION, Part.TEST)
        }

    model = {"objective": Objective.WEIGHTED.value}
    found = ranker_answers(request, run, "expectations", model, seed, more=ask)
    return {part.folder: found[part.folder].astype(np.float64) for part in (Part.VALIDATION, Part.TEST)}


def true_expectation(held_out: HeldOutImpressions) -> np.ndarray:
    """Seconds per impression, `[impressions]`."""
    assert held_out.true is not None
    click, seconds = held_out.true
    return click * seconds


def lowest_tenth(predicted: np.ndarray) -> np.ndarray:
    """bool `[n]`: the lowest tenth of the predictions."""
    return predicted < np.quantile(predicted, 0.1)


def ratio_of_lowest(predicted: np.ndarray, actual: np.ndarray, held_out: HeldOutImpressions) -> Measurement:
    """Σ predicted / Σ actual of the lowest tenth of the predictions."""
    rows = lowest_tenth(predicted)
    return held_out.bootstrap.ratio("lowest tenth", predicted * rows, actual * rows)


def plot(here: World, off: World, found: dict[str, Calibration]) -> Plot:
    """Where clickbait stands by either order, and the watch-time odds against the truth."""
    canvas = new_plot(10.0, 4.4)
    left, right = canvas.subplots(1, 2)
    for index, (title, world) in enumerate((("plausible", here), (OFF.replace("_", " "), off))):
        figures = [mean_of_seeds(by_seed).figure for by_seed in world.stands.values()]
        errors = [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
        x = np.arange(len(figures)) + 0.2 * (index - 0.5)
        left.errorbar(x, [f.value for f in figures], yerr=errors, fmt="o", capsize=3, label=title)
    left.axhline(0.5, color="grey", linestyle=":")
    left.set_xticks(range(len(here.stands)), [name.replace(" ", "\n", 1) for name in here.stands])
    left.set_xlabel("page ordered by")
    left.set_ylabel("share of other videos below clickbait")
    left.set_ylim(0, 1)
    left.legend()
    names = list(found)[:3]
    limit = 0.0
    for name in names:
        bins = found[name].bins
        right.plot([b.actual for b in bins], [b.predicted for b in bins], marker="o", label=name)
        limit = max(limit, *(max(b.actual, b.predicted) for b in bins))
    right.plot([0, limit], [0, limit], color="grey", linestyle=":", label="calibrated")
    right.set_xlabel("true, seconds per impression (mean of a tenth)")
    right.set_ylabel("predicted (s)")
    right.legend()
    return canvas
