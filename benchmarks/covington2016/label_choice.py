"""Figure 5 of Covington et al. 2016: predicting the next watch (rollback) against a randomly held-out one.

Two candidate generators on the same users and labels. One is trained on inputs from before its label (5b), the other on
watches drawn from before and after it (5a). Both are judged on future watches: the test part, always the next watch
from what came before. Search tokens are left out of both, because those before the label are the same in both.

World `no_order`, where the causes are switched off: episodes are watched in any order, popularity does not age, nobody
is into a topic for a while, watch-next pages are not related to what was watched, and what was watched is not avoided.
There the past is to the future as the future is to the past, and nothing is gained by keeping to the order.
"""

from typing import Any

from matplotlib.figure import Figure as Plot

from benchmarks.experiments import (
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
from benchmarks.generators import MAP, HeldOutWatches, generator_answers, simulator_settings
from benchmarks.report import Cell, ResultTable, publish_result
from features.candidate_examples import LabelChoice
from pipeline.config_file import read_settings
from pipeline.evaluation.bootstrap import Measurement, paired_difference
from pipeline.evaluation.plots import new_plot

NAMES = {LabelChoice.ROLLBACK: "rollback (next watch)", LabelChoice.RANDOM_HOLD_OUT: "random hold-out"}
OFF = "no_order"
SWITCHED_OFF = dict.fromkeys(("series", "freshness", "short_term_taste", "related", "rewatch"), 0.0)

Maps = dict[str, dict[LabelChoice, list[Measurement]]]
"""World -> label choice -> MAP, one measurement per seed."""


def reproduce(request: Request) -> None:
    """Publishes `label_choice`."""
    full = request.scale == Scale.FULL
    real = request.source == SourceName.KUAIRAND
    base = kuairand_settings(full) if real else simulator_settings(full)
    base["features"]["without"] += ["search_tokens", "last_search_tokens"]
    worlds: dict[str, dict[str, float]] = {"kuairand": {}} if real else {"plausible": {}, OFF: SWITCHED_OFF}
    seeds = request.seeds
    maps: Maps = {}
    notes: dict[str, str] = {}
    for world, switches in worlds.items():
        for choice in NAMES:
            settings = {**base, "candidate_examples": {**base["candidate_examples"], "label_choice": choice.value}}
            run = prepare(request, f"{world}-{choice}", configuration(request, settings, switches))
            held_out = HeldOutWatches(run)
            found = [held_out.map(generator_answers(request, run, choice, {}, seed)) for seed in seeds]
            maps.setdefault(world, {})[choice] = found
            users = len(set(held_out.targets.users.tolist()))
            notes[world] = f"{users:,} users, {len(held_out.targets):,} next watches"
    claims = [claim_of(world, by_choice) for world, by_choice in maps.items()]
    publish_result(
        request.output,
        request.result_name,
        [table(maps, notes)],
        plot(maps),
        {
            "command": request.command,
            "summary": [claim.sentence() for claim in claims],
            "trainings of each variant": len(seeds),
            "settings": published_settings(run, {"source", "split", "generators", "candidate_examples"}),
            "switched_off": {} if real else {OFF: SWITCHED_OFF},
        },
        request.console,
    )


def kuairand_settings(full: bool) -> dict[str, Any]:
    """KuaiRand's configuration without what was shown, which both inputs would have from before the label alone."""
    value, _ = read_settings("kuairand")
    extra = [feature for feature in value["features"]["extra"] if feature["name"] != "shown_video_ids"]
    value["features"]["extra"] = extra
    value["split"] |= {"refit": False}
    training = {"epochs": 10 if full else 1, "patience": 1, "refit": False, "checkpoints": False}
    value["generators"]["two_tower"]["training"] |= training
    return value | {"name": "label_choice", "ranker": None}


def claim_of(world: str, by_choice: dict[LabelChoice, list[Measurement]]) -> Claim:
    """Rollback retrieves future watches better."""
    off = world == OFF
    text = f"switched off ({OFF}): advantage of rollback" if off else f"{world}: rollback is above random hold-out"
    rollback, random = by_choice[LabelChoice.ROLLBACK], by_choice[LabelChoice.RANDOM_HOLD_OUT]
    return claim(f"{text} ({MAP})", rollback, random, 1, off)


def table(maps: Maps, notes: dict[str, str]) -> ResultTable:
    """MAP of both label choices in each world."""
    rows: list[list[Cell]] = []
    for world, by_choice in maps.items():
        rollback, random = (mean_of_seeds(by_choice[choice]) for choice in NAMES)
        difference = paired_difference(rollback, random)
        rows.append([world, rollback.figure, random.figure, difference])
    reference = "Covington et al. 2016, Figure 5: a future watch was the better label in live tests (no values)"
    below = [*(f"{world}: {note}." for world, note in notes.items()), "Intervals: 95%, over users."]
    columns = ["world", *NAMES.values(), "difference"]
    return ResultTable("MAP@20 of next watches", columns, rows, below, reference, 4)


def plot(maps: Maps) -> Plot:
    """MAP of both label choices with intervals, by world."""
    canvas = new_plot(5.5, 4.0)
    axes = canvas.subplots()
    for index, (choice, name) in enumerate(NAMES.items()):
        figures = [mean_of_seeds(by_choice[choice]).figure for by_choice in maps.values()]
        errors = [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
        x = [world + 0.16 * (index - 0.5) for world in range(len(maps))]
        axes.errorbar(x, [f.value for f in figures], yerr=errors, fmt="o", capsize=3, label=name)
    axes.set_xticks(range(len(maps)), [world.replace("_", " ") for world in maps])
    axes.set_xlim(-0.6, len(maps) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("world")
    axes.set_ylabel("MAP@20 of next watches")
    axes.legend()
    return canvas
