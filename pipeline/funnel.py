"""The funnel from raw logs to recommendations: the stages of a run, and what the command line does with them."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pyarrow.compute as pc
from rich.console import Console

from features.artifacts import read_manifest
from features.errors import ConfigError
from features.tables import read_table
from pipeline import config_file, data_stages, evaluation_stage, export_stage, model_stages
from pipeline.config import RunConfig
from pipeline.quiet_start import find_devices
from pipeline.run import EXAMPLES, SEQUENCES, Run
from pipeline.stages import (
    Stage,
    Verified,
    durations,
    execute,
    locked,
    recorded_settings,
    require_made,
    up_to_date,
)
from pipeline.strategies import StrategyName, is_further_process, serve_cluster
from serving.recommend import Recommender
from serving.recommendations_table import recommendations_table

INGEST = "ingest"
TRAINING_STAGES = ("train-generator", "train-ranker")


def package_version() -> str:
    """The installed version; a changed one makes every stage run again."""
    try:
        return version("upnext")
    except PackageNotFoundError:
        return "not installed"


def data_part(run: Run, anew: bool = True) -> list[Stage]:
    """From raw logs to canonical tables: what later stages' features depend on.

    Args:
      run: the run.
      anew: look at the raw logs; False: take it that they are what the last ingest read.
    """
    read = data_stages.files_read(run) if anew else (recorded_settings(INGEST, run.folder) or {}).get("read")
    return [
        Stage(
            INGEST,
            "raw logs to canonical tables",
            data_stages.ingest_settings(run, read),
            (),
            ("tables", "rejected", *_truth(run)),
            lambda: data_stages.ingest_tables(run),
        )
    ]


def _truth(run: Run) -> tuple[str, ...]:
    """The folder that only the simulator publishes."""
    return ("truth",) if run.has_truth else ()


def model_part(run: Run) -> list[Stage]:
    """From canonical tables to exported and evaluated models."""
    config = run.config
    seen = {
        "split": config.split.model_dump(mode="json"),
        "features": config.features.model_dump(mode="json"),
        "ranker": run.has_ranker,
    }
    features = ("features/vocabularies", "features/catalogue")
    ranking_examples, ranker = model_stages.RANKING_EXAMPLES, model_stages.RANKER_FOLDER
    examples = tuple(f"examples/{EXAMPLES[model]}" for model in run.models)
    generators = tuple(map(model_stages.generator_folder, config.generators))
    models = (*generators, *((ranker,) if run.has_ranker else ()))
    stages = [
        Stage(
            "analyze",
            "vocabularies, statistics, catalogue",
            {**seen, "sequences": SEQUENCES in run.models, "analysis": config.analysis.model_dump(mode="json")},
            ("tables",),
            ("features/vocabularies", "features/statistics", "features/catalogue", data_stages.STATISTICS_REPORT),
            lambda: data_stages.analyze(run),
        ),
        Stage(
            "examples",
            "training, validation and test examples",
            {
                **seen,
                "shards": config.shards.model_dump(mode="json"),
                "candidate": config.candidate_examples.model_dump(mode="json"),
                "sequences": config.sequence_examples.model_dump(mode="json") if SEQUENCES in run.models else None,
                "ranking": config.ranking_examples.model_dump(mode="json"),
                "leakage": config.leakage.model_dump(mode="json"),
            },
            ("tables", *features),
            ("shards", *examples),
            lambda: data_stages.make_examples(run),
        ),
    ]
    if run.has_ranker:
        stages.append(
            Stage(
                "quantiles",
                "quantiles of the ranking features",
                config.analysis.quantiles.model_dump(mode="json"),
                (ranking_examples,),
                ("features/quantiles",),
                lambda: data_stages.quantiles(run),
            )
        )
    stages += [_train_generator(run, name, features) for name in config.generators]
    if run.has_ranker and config.ranker is not None:
        stages.append(
            Stage(
                "train-ranker",
                "the ranker of expected watch time",
                config.ranker.model_dump(mode="json"),
                (*features, "features/quantiles", ranking_examples),
                (ranker,),
                lambda: model_stages.train_ranker(run),
            )
        )
    stages += [
        Stage(
            "export",
            "SavedModels with index, checked",
            {**config.export.model_dump(mode="json"), "names": export_stage.exported_names(config)},
            ("tables", *features, *examples, *models),
            (export_stage.REPORT,),
            lambda: export_stage.export(run),
            lambda: export_stage.exported_folders(run.folder),
        ),
        Stage(
            "evaluate",
            "metrics beside the peers",
            {**config.evaluation.model_dump(mode="json"), "generators": list(config.generators)},
            ("tables", *_truth(run), *features, *examples, *models),
            (evaluation_stage.REPORT,),
            lambda: evaluation_stage.evaluate(run),
        ),
    ]
    return stages


def _train_generator(run: Run, name: str, features: tuple[str, ...]) -> Stage:
    """A generator's stage is `train-generator:<name>` wherever it stands: changing the order trains none again."""
    return Stage(
        f"{TRAINING_STAGES[0]}:{name}",
        f"the candidate generator {name}",
        run.config.generators[name].model_dump(mode="json"),
        (*features, f"examples/{EXAMPLES[run.features_of_generator(name)]}"),
        (model_stages.generator_folder(name),),
        lambda: model_stages.train_generator(run, name),
    )


def run_funnel(
    name: str,
    overrides: Sequence[str],
    workdir: Path | None,
    beam_options: Sequence[str],
    only: str | None,
    console: Console,
) -> None:
    """Runs a configuration, or one stage of it.

    Args:
      name: a built-in configuration or a YAML file.
      overrides: `key=value` texts.
      workdir: the run's folder; None: `runs/<name of the configuration>`.
      beam_options: Beam's own.
      only: the stage to run alone, or None.
      console: where the run speaks.

    Raises:
      ArtifactError: a stage alone would read what another configuration made.
    """
    config = config_file.read(RunConfig, name, overrides)
    folder = workdir or Path("runs") / config.name
    run = Run(folder, config, tuple(beam_options), console)
    if only in TRAINING_STAGES and is_further_process():
        _take_part(run, only)
        return
    find_devices()
    with locked(folder):
        verified = Verified(folder)
        if only in (None, INGEST):
            _begin(run)
            execute(data_part(run), folder, console, package_version(), verified)
        if only != INGEST:
            verified.check("tables")  # the columns they have decide which stages there are
            stages = model_part(run)
            chosen = [stage for stage in stages if only in (None, stage.name.partition(":")[0])]
            if not chosen:
                raise ConfigError(
                    f"stage {only!r} is not part of this run (there are no impressions or no ranker is configured); "
                    f"its stages: {', '.join([INGEST, *(stage.name for stage in stages)])}"
                )
            if only is not None:
                require_made(chosen, [*data_part(run, anew=False), *stages], folder, package_version())
                _begin(run)
            execute(chosen, folder, console, package_version(), verified)
        if only is None:
            _show_recommendations(run)
            seconds = durations(folder)
            told = ", ".join(f"{stage} {took:.0f} s" for stage, took in seconds.items())
            console.print(f"[dim]Stages: {told}; together {sum(seconds.values()):.0f} s.[/dim]")
            console.print(f"Ask for more: [bold]upnext recommend {folder} --user ID[/bold]")


def _begin(run: Run) -> None:
    """From here on the folder is this configuration's."""
    config_file.write_run(run.folder, run.config)
    run.console.print(f"[bold]{run.config.name}[/bold] in {run.folder}")


def _take_part(run: Run, only: str) -> None:
    """What a process of a cluster does that is not the one to publish: it locks, records and publishes nothing.

    Stages that the publishing process skips are skipped here too.
    """
    trained = [*run.config.generators.values()] if only == TRAINING_STAGES[0] else [run.config.ranker]
    if any(model and model.training.strategy == StrategyName.PARAMETER_SERVER for model in trained):
        serve_cluster()
    for stage in model_part(run):
        if stage.name.partition(":")[0] == only:
            run.require(*stage.inputs)
            if not up_to_date(stage, run.folder, run.console, package_version()):
                stage.action()


def _show_recommendations(run: Run) -> None:
    """Prints lists for some users of the log who watched most recently."""
    count = run.config.evaluation.show_users
    if not count:
        return
    watches = read_table(run.tables, "watches", ["user_id", "timestamp"])
    last = watches.group_by("user_id").aggregate([("timestamp", "max"), ("timestamp", "count")])
    active = last.filter(pc.greater_equal(last["timestamp_count"], 5))
    chosen = (active if len(active) else last).sort_by([("timestamp_max", "descending"), ("user_id", "ascending")])
    recommender = _recommender(run.folder, run.config)
    for user in chosen["user_id"][:count].to_pylist():
        run.console.print(recommendations_table(recommender.recommend(user, count=10), run.tables))


def recommend_from(
    workdir: Path, user: str, page: str | None, device: str | None, count: int, console: Console
) -> None:
    """Prints the list for one user from a finished run.

    Raises:
      ConfigError: the user, page or device is no text.
    """
    if not user:
        raise ConfigError("--user: expected a user id, found ''; an unknown one may be any text")
    for option, value in (("user", user), ("page", page), ("device", device)):
        if value and value.encode(errors="replace").decode() != value:
            raise ConfigError(f"--{option}: expected UTF-8 text, found {value!r}; an unknown {option} may be any text")
    config = config_file.read_run(RunConfig, workdir)
    tables = workdir / "tables"
    for folder in (tables, *export_stage.models_to_recommend(workdir)):
        read_manifest(folder, verify=True)
    find_devices()
    found = _recommender(workdir, config).recommend(user, count, request={"page": page, "device": device})
    console.print(recommendations_table(found, tables))


def _recommender(folder: Path, config: RunConfig) -> Recommender:
    features = export_stage.exported_features(folder) or config.features
    return Recommender(export_stage.models_to_recommend(folder), folder / "tables", features)
