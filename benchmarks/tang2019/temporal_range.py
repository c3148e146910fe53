"""Tables 2, 4, 5 and 6 of Tang et al. 2019: a mixture of tiny, short and long range encoders beside single ranges.

- Tables 2 and 4: M3R and M3C beside the best of each table's baselines. Those of Table 2 read one range each,
  DeepYouTube of Table 4 the last watch beside the average of all.
- Table 5: every subset of the encoders {T, S, L}.
- Table 6: gates fixed at 1, on the last event (bottom-switch), on the context (contextual-switch), with M3R's setting.

Each model of the first three tables has four trials, without dropout and with it in two places, of which the one with
the best validation MAP is measured.

Worlds: those of `range_worlds.py`. Where nobody returns the mixtures are measured beside the recurrent model alone,
each with the best of the same trials in that world.
"""

from collections.abc import Iterable, Mapping
from functools import partial

from matplotlib.figure import Figure as Plot

from benchmarks.experiments import Claim, Request, Scale, claim, configuration, mean_of_seeds, prepare
from benchmarks.generators import MAP, HeldOutWatches
from benchmarks.report import Cell, ResultTable, publish_result
from benchmarks.sequences import METRICS, NAME, Judged, Variant, best_on_validation, judge, trial_table, tuned
from benchmarks.tang2019.range_models import (
    MIXTURES,
    PAPERS_LOGS,
    RECURRENT,
    TABLE_5,
    baselines,
    gates,
    search_space,
    subsets,
)
from benchmarks.tang2019.range_worlds import OFF, ON, WORLDS, range_settings
from pipeline.evaluation.bootstrap import paired_difference
from pipeline.evaluation.plots import new_plot
from pipeline.run import Run

COMPARED = "Tables 2 and 4"
MEASURED_OFF = (RECURRENT, *MIXTURES)

Found = Mapping[str, Mapping[str, Judged]]
"""World -> variant -> what it came to."""


def reproduce(request: Request) -> None:
    """Publishes `temporal_range`."""
    full = request.scale == Scale.FULL
    worlds = {name: _world(request, name, full) for name in WORLDS}
    compared = baselines(full)
    ranges = subsets(next(model for model in compared if model.name == TABLE_5["TSL"]))
    trials = {
        ON: _tuned(request, worlds[ON], {model.name: model for model in [*compared, *ranges]}.values(), full),
        OFF: _tuned(request, worlds[OFF], [model for model in compared if model.name in MEASURED_OFF], full),
    }
    best = {world: {name: variant for name, (variant, _) in tried.items()} for world, tried in trials.items()}
    groups = {
        COMPARED: [best[ON][model.name] for model in compared],
        "Table 5": [best[ON][model.name] for model in ranges],
        "Table 6": gates(best[ON][TABLE_5["TSL"]]),
    }
    measured = {ON: {variant.name: variant for group in groups.values() for variant in group}, OFF: best[OFF]}
    found = {
        world: {name: judge(request, *worlds[world], variant, request.seeds) for name, variant in variants.items()}
        for world, variants in measured.items()
    }
    names = {title: [variant.name for variant in group] for title, group in groups.items()}
    papers = {variant.name: variant.paper for group in groups.values() for variant in group}
    claims = [claims_of(ON, found[ON], names[COMPARED], papers), claims_of(OFF, found[OFF], [*measured[OFF]], papers)]
    notes = [f"{name}: {_told(each[1])}." for name, each in worlds.items()]
    publish_result(
        request.output,
        request.result_name,
        [
            *(table(f"{title}, world `{ON}`", found[ON], group, papers, notes) for title, group in names.items()),
            table(f"{COMPARED}, world `{OFF}`", found[OFF], [*measured[OFF]], papers, notes),
            *(
                trial_table(f"Trials, world `{world}`", {name: each for name, (_, each) in tried.items()})
                for world, tried in trials.items()
            ),
        ],
        plot(found),
        {
            "command": request.command,
            "summary": [made.sentence() for of_world in claims for made in of_world],
            "trainings of each variant": len(request.seeds),
            "passes at most": worlds[ON][0].config.generators[NAME].training.epochs,
            "stopped after passes without a better one": worlds[ON][0].config.generators[NAME].training.patience,
            "settings": {
                name: each.config.model_dump(mode="json", include={"source", "split", "sequence_examples"})
                for name, (each, _) in worlds.items()
            },
        },
        request.console,
    )


def _world(request: Request, name: str, full: bool) -> tuple[Run, HeldOutWatches]:
    run = prepare(request, name, configuration(request, range_settings(full), WORLDS[name]))
    return run, HeldOutWatches(run)


def _tuned(
    request: Request, world: tuple[Run, HeldOutWatches], models: Iterable[Variant], full: bool
) -> dict[str, tuple[Variant, dict[str, Judged]]]:
    """Name -> the model with the best of its settings, trained once with each, and what each came to."""
    trial = partial(judge, request, *world, seeds=request.seeds[:1])
    return {model.name: tuned(model, search_space(model, full), trial) for model in models}


def _told(held_out: HeldOutWatches) -> str:
    users = len(set(held_out.targets.users.tolist()))
    return f"{users:,} users, {len(held_out.targets):,} next watches"


def claims_of(
    world: str, judged: Mapping[str, Judged], compared: list[str], papers: Mapping[str, Mapping[str, float]]
) -> list[Claim]:
    """Mixtures are above the best of each table's baselines; each pair of encoders above its members; all three above
    the pairs.
    """
    off = world == OFF
    mixtures = [name for name in MIXTURES if name in judged]
    of_tables = [[name for name in compared if name not in MIXTURES and log in papers[name]] for log in PAPERS_LOGS]
    best = [best_on_validation(judged, names) for names in of_tables]
    pairs = [(mixture, name) for mixture in mixtures for name in best]
    if off:
        return [_claim(world, judged, above, below, off) for above, below in dict.fromkeys(pairs)]
    ranges = {letters: name for letters, name in TABLE_5.items() if len(letters) == 1}
    strongest = best_on_validation(judged, ranges.values())
    pairs += [(ranges["S"], other) for other in ranges.values() if other != ranges["S"]]
    for letters, name in TABLE_5.items():
        if len(letters) == 2:
            pairs += [(name, ranges[letter]) for letter in letters]
            pairs.append((TABLE_5["TSL"], name))
    pairs.append((TABLE_5["TSL"], strongest))
    return [_claim(world, judged, above, below, off) for above, below in dict.fromkeys(pairs)]


def _claim(world: str, judged: Mapping[str, Judged], above: str, below: str, off: bool) -> Claim:
    first, second = judged[above].measured[MAP], judged[below].measured[MAP]
    relative = mean_of_seeds(first).value / mean_of_seeds(second).value - 1
    return claim(f"{world}: {above} over {below}, {MAP} {relative:+.1%}", first, second, 1, off)


def table(
    title: str,
    judged: Mapping[str, Judged],
    names: list[str],
    papers: Mapping[str, Mapping[str, float]],
    notes: list[str],
) -> ResultTable:
    """Every variant's metrics, and how far it is from the mixture of all three."""
    base = mean_of_seeds(judged[TABLE_5["TSL"]].measured[MAP])
    rows: list[list[Cell]] = []
    for name in names:
        figures: list[Cell] = [mean_of_seeds(judged[name].measured[metric]).figure for metric in METRICS]
        mean = mean_of_seeds(judged[name].measured[MAP])
        rows.append([name, *figures, paired_difference(mean, base), *_paper(papers[name]), judged[name].parameters])
    columns = ["model", *METRICS, f"{MAP} over M3R", "paper, MovieLens 20M", "paper, YouTube", "parameters"]
    below = [*notes, "Intervals: 95%, over users and trainings. The paper's columns are its MAP@20."]
    return ResultTable(title, columns, rows, below, "Tang et al. 2019", 4)


def _paper(figures: Mapping[str, float]) -> list[Cell]:
    return [figures.get(log) for log in PAPERS_LOGS]


def plot(found: Found) -> Plot:
    """MAP of every variant with its interval, a panel for each world."""
    canvas = new_plot(6.0 * len(found), 4.6)
    for axes, (world, judged) in zip(canvas.subplots(1, len(found), sharey=True), found.items(), strict=True):
        figures = [mean_of_seeds(each.measured[MAP]).figure for each in judged.values()]
        errors = [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
        axes.errorbar(range(len(figures)), [f.value for f in figures], yerr=errors, fmt="o", capsize=3)
        axes.set_xticks(range(len(figures)), list(judged), rotation=60, ha="right")
        axes.set_title(world.replace("_", " "))
        axes.set_ylabel(MAP)
        axes.set_ylim(bottom=0)
    return canvas
