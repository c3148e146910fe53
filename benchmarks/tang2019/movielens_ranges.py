"""Tables 2, 5 and 6 of Tang et al. 2019 on the paper's own log, MovieLens 20M, as TensorFlow Datasets has it.

    upnext reproduce temporal_range --source movielens

Users, ratings, windows and the one target are the paper's (protocol `m3_movielens`, section 5.1), and so are the sizes
of the models. It has no context, so that gates are fixed or on the last event. Where the log cannot be had nothing is
measured: `not run`, and why. Another version stands in by `--set source.version=... --set source.archive=...`.
"""

from typing import Any

from benchmarks.experiments import Request, Scale, configuration, prepare, published_settings
from benchmarks.generators import HeldOutWatches
from benchmarks.report import publish_result
from benchmarks.sequences import NAME, Variant, judge, trial_table
from benchmarks.tang2019.range_models import PAPERS_LOGS, TABLE_5, gates, subsets
from benchmarks.tang2019.range_results import claims_of, plot, table, told, tuned_models
from features.errors import DataError
from models.baseline_presets import BASELINES
from models.m3 import PRESETS
from models.sequence_generator import SequenceConfig
from pipeline.sources.movielens import MovieLensConfig

LOG = PAPERS_LOGS[0]
_WIDTH_AT_SMOKE_SCALE = 8


def reproduce(request: Request) -> None:
    """Publishes `temporal_range_movielens`, or says why not.

    Raises:
      DataError: the archive that was named is none.
    """
    full = request.scale == Scale.FULL
    config = configuration(request, settings(full))
    try:
        run = prepare(request, "movielens", config)
    except DataError as error:
        if isinstance(config.source, MovieLensConfig) and config.source.archive:
            raise
        request.say(f"{LOG}: not run ({error})")
        return
    held_out = HeldOutWatches(run)
    compared = baselines(full)
    ranges = subsets(next(model for model in compared if model.name == TABLE_5["TSL"]))
    trials = tuned_models(
        request, (run, held_out), {model.name: model for model in [*compared, *ranges]}.values(), full
    )
    best = {name: variant for name, (variant, _) in trials.items()}
    groups = {
        "Table 2": [best[model.name] for model in compared],
        "Table 5": [best[model.name] for model in ranges],
        "Table 6": [gates(best[TABLE_5["TSL"]])[0], best[TABLE_5["TSL"]]],
    }
    variants = {variant.name: variant for group in groups.values() for variant in group}
    found = {name: judge(request, run, held_out, variant, request.seeds) for name, variant in variants.items()}
    papers = {name: variant.paper for name, variant in variants.items()}
    names = {title: [variant.name for variant in group] for title, group in groups.items()}
    world = f"MovieLens {config.source.version}" if isinstance(config.source, MovieLensConfig) else "another log"
    publish_result(
        request.output,
        request.result_name,
        [
            *(
                table(f"{title}, {world}", found, group, papers, [f"{told(held_out)}."])
                for title, group in names.items()
            ),
            trial_table(f"Trials, {world}", {name: each for name, (_, each) in trials.items()}),
        ],
        plot({world: found}),
        {
            "command": request.command,
            "summary": [made.sentence() for made in claims_of(world, found, names["Table 2"], papers)],
            "trainings of each variant": len(request.seeds),
            "passes at most": config.generators[NAME].training.epochs,
            "settings": published_settings(run, {"source", "split", "features", "sequence_examples"}),
        },
        request.console,
    )


def settings(full: bool) -> dict[str, Any]:
    """The run's configuration."""
    training = {
        "epochs": 30 if full else 1,
        "batch_size": 32,
        "learning_rate": 0.003,
        "patience": 4,
        "refit": False,
        "checkpoints": False,
    }
    return {
        "name": "temporal_range",
        "protocol": "m3_movielens",
        "source": {"kind": "movielens", "version": "20m"},
        "split": {"refit": False},
        "features": {"without": ["example_age"]},
        "candidate_examples": {"labels_per_user": 1},
        "generators": {NAME: {"model": {"kind": "latent_cross"}, "training": training}},
        "ranker": None,
    }


def baselines(full: bool) -> list[Variant]:
    """Table 2: M3R and M3C beside models of one range, at the paper's sizes, without context."""
    return [
        _variant("DeepBoW", "bag_of_watches", BASELINES["bag_of_watches"]["deep_bow"], 0.0093, full),
        _variant("Caser", "caser", BASELINES["caser"]["caser_4_32"], 0.0304, full),
        _variant("FMC", "m3", BASELINES["m3"]["fmc"], 0.0317, full),
        _variant("GRU4Rec", "latent_cross", BASELINES["latent_cross"]["gru4rec"], 0.0343, full),
        _variant("M3C-TSL", "m3", PRESETS["movielens_m3c"], 0.0379, full),
        _variant("M3R-TSL", "m3", PRESETS["movielens_m3r"], 0.0421, full),
    ]


def _variant(name: str, kind: str, config: SequenceConfig, paper: float, full: bool) -> Variant:
    model: dict[str, Any] = {**config.model_dump(mode="json"), "kind": kind, "projection": True, "loss": "full"}
    narrow = {} if full else {"dimension": _WIDTH_AT_SMOKE_SCALE}
    return Variant(name, {**model, **narrow}, {LOG: paper})
