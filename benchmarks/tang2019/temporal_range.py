"""Tables 2, 4, 5 and 6 of Tang et al. 2019: a mixture of tiny, short and long range encoders beside single ranges.

- Tables 2 and 4: M3R and M3C beside the best of each table's baselines. Those of Table 2 read one range each,
  DeepYouTube of Table 4 the last watch beside the average of all.
- Table 5: every subset of the encoders {T, S, L}.
- Table 6: gates fixed at 1, on the last event (bottom-switch), on the context (contextual-switch), with M3R's setting.

Each model of the first three tables has four trials, without dropout and with it in two places, of which the one with
the best validation MAP is measured.

Worlds: those of `range_worlds.py`. Where nobody returns the mixtures are measured beside the recurrent model alone,
each with the best of the same trials in that world. The paper's MovieLens 20M is `--source movielens`
(`movielens_ranges.py`).
"""

from benchmarks.experiments import Request, Scale, SourceName, configuration, prepare
from benchmarks.generators import HeldOutWatches
from benchmarks.report import publish_result
from benchmarks.sequences import NAME, judge, trial_table
from benchmarks.tang2019 import movielens_ranges
from benchmarks.tang2019.range_models import (
    MIXTURES,
    RECURRENT,
    TABLE_5,
    baselines,
    gates,
    subsets,
)
from benchmarks.tang2019.range_results import claims_of, plot, table, told, tuned_models
from benchmarks.tang2019.range_worlds import OFF, ON, WORLDS, range_settings
from pipeline.run import Run

COMPARED = "Tables 2 and 4"
MEASURED_OFF = (RECURRENT, *MIXTURES)


def reproduce(request: Request) -> None:
    """Publishes `temporal_range`."""
    if request.source == SourceName.MOVIELENS:
        movielens_ranges.reproduce(request)
        return
    full = request.scale == Scale.FULL
    worlds = {name: _world(request, name, full) for name in WORLDS}
    compared = baselines(full)
    ranges = subsets(next(model for model in compared if model.name == TABLE_5["TSL"]))
    trials = {
        ON: tuned_models(request, worlds[ON], {model.name: model for model in [*compared, *ranges]}.values(), full),
        OFF: tuned_models(request, worlds[OFF], [model for model in compared if model.name in MEASURED_OFF], full),
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
    notes = [f"{name}: {told(each[1])}." for name, each in worlds.items()]
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
