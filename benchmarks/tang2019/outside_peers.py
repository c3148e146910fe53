"""Our sequence models beside RecBole's GRU4Rec, SASRec and Caser on real logs: one split, one metric, one budget.

    upnext reproduce outside_peers --source movielens --set source.archive=ZIP --peers PYTHON

Everything is trained on the same labels with the watches before them, a softmax over all videos, Adam, and as many
passes at most; every model is tried with the same settings, its pass and its setting are chosen by MAP@20 on the
validation part, and our evaluation ranks the held-out videos for all of them. Nothing is trained on validation.

MovieLens: users 80/10/10 in the paper, here 70/10/20 for narrower intervals; of each held-out user 20 watches are
predicted. KuaiRand: the last two days, of which nothing is known in training but the users.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure as Plot

from benchmarks.experiments import (
    Claim,
    Request,
    Scale,
    SourceName,
    claim,
    configuration,
    mean_of_seeds,
    once,
    prepare,
    published_settings,
    relative,
)
from benchmarks.generators import MAP, READ, baseline_figures, retrieval_examples
from benchmarks.report import Cell, ResultTable, publish_result
from benchmarks.sequences import NAME, PRECISION, Variant, file_name, platform_settings, sequence_answers
from benchmarks.speed.peers import Peers
from benchmarks.tang2019.handover import PEERS_NEED, SCRIPTS, RecBole
from benchmarks.tang2019.outside_models import OUTSIDE, WIDTH, Ours, Outside, Tried, ours, search_space
from features.candidate_examples import SEQUENCE
from features.example_reader import ExampleSet
from features.splits import Part
from features.tables import TIMESTAMP, table_batches, table_columns
from pipeline.evaluation.baselines.interactions import RetrievalExamples
from pipeline.evaluation.bootstrap import Measurement, paired_difference
from pipeline.evaluation.plots import new_plot
from pipeline.evaluation.retrieval_baselines import (
    CO_WATCH,
    ITEM_KNN,
    POPULARITY,
    RECENT_POPULARITY,
    BaselineResult,
    RetrievalBaselinesConfig,
)
from pipeline.evaluation.retrieval_metrics import Ranks, evaluate_ranks, reciprocal_rank
from pipeline.run import GENERATOR, SEQUENCES, Run

ADVICE = "--peers PYTHON names the interpreter of an environment with benchmarks/tang2019/requirements-recbole.txt"
RECALL = "recall@20"
METRICS = (MAP, PRECISION, RECALL)
ALL, LATER = "all next watches", "first of their moment"
BASELINES = RetrievalBaselinesConfig(methods=(POPULARITY, RECENT_POPULARITY, CO_WATCH, ITEM_KNN))
READ_BY_RECBOLE = (*READ, "examples/sequences")
_NO_REFIT = {"refit": False, "checkpoints": False}


def settings(source: SourceName | None, full: bool) -> dict[str, Any]:
    """The run's configuration for a source of logs."""
    if source in (None, SourceName.SIMULATOR):
        return platform_settings(full)
    training = {"epochs": 30, "batch_size": 32, "patience": 4, **_NO_REFIT}
    common = {
        "name": "outside_peers",
        "features": {"watch_window": 50},
        "sequence_examples": {"labels_per_user": None, "stride": 50},
        "generators": {NAME: {"model": {"kind": "latent_cross"}, "training": training}},
        "ranker": None,
    }
    if source == SourceName.MOVIELENS:
        return {
            **common,
            "protocol": "m3_movielens",
            "source": {"kind": "movielens", "version": "latest-small"},
            "split": {"test_user_share": 0.2, "validation_user_share": 0.1, "refit": False},
            "candidate_examples": {
                "labels_per_user": 1,
                "evaluation_labels_per_user": 20,
                "evaluation_choice": "drawn",
            },
        }
    training |= {"epochs": 10, "patience": 2, "batch_size": 128}
    return {
        **common,
        "source": {"kind": "kuairand", "path": "data/kuairand-pure"},
        "split": {"test_days": 2, "utc_offset_hours": 8, "gap_hours": 4, "validation_days": 1, "refit": False},
        "candidate_examples": {"labels_per_user": 1, "evaluation_labels_per_user": None},
    }


@dataclass(frozen=True)
class Trial:
    """A setting and the training with it.

    Args:
      tried: the setting.
      validation: MAP@20 over the validation labels.
      answers: `test_among_all`, `test_among_unwatched`, `epoch`, `parameters`.
    """

    tried: Tried
    validation: float
    answers: Mapping[str, np.ndarray]


Answer = Callable[[Tried, int], Trial]
"""Trains a model with a setting and a seed."""


@dataclass(frozen=True)
class Model:
    """A model after its trials.

    Args:
      name: in the tables.
      outside: whether it is RecBole's.
      trials: of the first seed, as tried.
      chosen: of every seed, with the setting that is best on validation.
    """

    name: str
    outside: bool
    trials: list[Trial]
    chosen: list[Trial]

    def measured(self, metric: str, users: np.ndarray, which: np.ndarray, run: Run) -> list[Measurement]:
        """A metric over the test examples of `which`, by seed."""
        found = []
        for trial in self.chosen:
            ranks = Ranks(trial.answers["test_among_all"][which], trial.answers["test_among_unwatched"][which])
            told = evaluate_ranks(ranks, users[which], run.config.evaluation.retrieval)
            found.append(next(measurement for measurement in told if measurement.name == metric))
        return found


def reproduce(request: Request) -> None:
    """Publishes `outside_peers_<source>`."""
    full = request.scale == Scale.FULL
    run = prepare(request, str(request.source), configuration(request, settings(request.source, full)))
    peers = Peers(request.peers, SCRIPTS, ADVICE)
    missing = peers.missing(PEERS_NEED)
    parts = {part: retrieval_examples(run, part) for part in (Part.VALIDATION, Part.TEST)}
    space = search_space(full)
    models = [tuned(request, of_ours(request, run, one), one.name, False, space) for one in ours(WIDTH if full else 8)]
    if not missing:
        beside = [OUTSIDE[0]] if not full else OUTSIDE
        models += [tuned(request, of_recbole(run, peers, one, parts), one.name, True, space) for one in beside]
    publish(request, run, parts, models, missing)


def tuned(request: Request, answer: Answer, name: str, outside: bool, space: Sequence[Tried]) -> Model:
    """Tries every setting once, and the best of them with the other seeds."""
    first, *others = request.seeds
    trials = [answer(tried, first) for tried in space]
    best = max(trials, key=lambda trial: trial.validation)
    for trial in trials:
        request.say(
            f"{name}, {trial.tried}: validation MAP {trial.validation:.4f} after {trial.answers['epoch'][0]} passes"
        )
    return Model(name, outside, trials, [best, *(answer(best.tried, seed) for seed in others)])


def of_ours(request: Request, run: Run, model: Ours) -> Answer:
    """Trains a model of ours: a setting and a seed -> its trial."""

    def answer(tried: Tried, seed: int) -> Trial:
        generator = model.generator(tried, {})
        variant = Variant(f"{model.name}, {tried}", generator.pop("model"), generator=generator)
        found = sequence_answers(request, run, variant, seed)
        renamed = {**found, **{f"test_{name}": found[name] for name in ("among_all", "among_unwatched")}}
        return Trial(tried, float(np.max(found["validation_map"])), renamed)

    return answer


def of_recbole(run: Run, peers: Peers, model: Outside, parts: Mapping[Part, RetrievalExamples]) -> Answer:
    """Trains a model of RecBole: a setting and a seed -> its trial."""
    training = run.config.generators[NAME].training.model_dump(mode="json")
    length = int(run.specs[SEQUENCES][SEQUENCE].max_length or 0)
    targets = {part: examples.targets for part, examples in parts.items()}

    def answer(tried: Tried, seed: int) -> Trial:
        wanted = model.recbole(tried, training, seed)
        identity = {
            "model": model.model,
            "every_step": model.every_step,
            "settings": wanted,
            "length": length,
            "versions": {module: peers.version(module) for module in PEERS_NEED},
        }
        found = once(
            run,
            file_name(f"{model.name}, {tried}"),
            identity,
            READ_BY_RECBOLE,
            lambda: RecBole(run, peers, length).answers(model.model, model.every_step, wanted, targets),
        )
        of_labels = reciprocal_rank(found["validation_among_all"], 20)
        return Trial(tried, float(of_labels.mean()), found)

    return answer


def first_of_their_moment(run: Run) -> np.ndarray:
    """bool `[test examples]`: whether the history of a next watch holds all that came before it.

    A history ends before its label's moment. Where a log gives several watches one moment (MovieLens), the first of
    them in the source's order is later than the history's last time and directly follows it; others do not.
    """
    names = [
        name
        for name in ("user_id", "video_id", "timestamp", "time_known")
        if name in table_columns(run.tables, "watches")
    ]
    watches = pa.concat_tables(list(table_batches(run.tables, "watches", names)))
    if "time_known" in names:
        watches = watches.filter(pc.fill_null(watches["time_known"], True))
    watches = watches.filter(pc.is_valid(watches["timestamp"]))
    first = watches.group_by(["user_id", "timestamp"], use_threads=False).aggregate([("video_id", "first")])
    columns = ["user_id", "label_timestamp", "label_video_id"]
    labels = ExampleSet(run.examples(GENERATOR)).read(Part.TEST, columns)
    of_moment = dict(
        zip(_moments(first["user_id"], first["timestamp"]), first["video_id_first"].to_pylist(), strict=True)
    )
    moments = _moments(labels["user_id"], labels["label_timestamp"])
    videos = labels["label_video_id"].to_pylist()
    return np.array([of_moment[moment] == video for moment, video in zip(moments, videos, strict=True)], bool)


def _moments(users: pa.ChunkedArray, times: pa.ChunkedArray) -> list[tuple[str, int]]:
    return list(zip(users.to_pylist(), times.cast(TIMESTAMP).cast(pa.int64()).to_pylist(), strict=True))


def publish(
    request: Request,
    run: Run,
    parts: Mapping[Part, RetrievalExamples],
    models: Sequence[Model],
    missing: Sequence[str],
) -> None:
    """Tables of figures, of trials and of the peers without a network; claims; a plot."""
    targets = parts[Part.TEST].targets
    everything, later = np.ones(len(targets), bool), first_of_their_moment(run)
    which = {ALL: everything} if later.all() else {ALL: everything, LATER: later}
    told = [
        f"{title}: {int(rows.sum()):,} next watches of {len(np.unique(targets.users[rows])):,} users."
        for title, rows in which.items()
    ]
    claims = [made for title, rows in which.items() for made in claims_of(run, models, targets.users, title, rows)]
    tables = [figures(run, models, targets.users, title, rows, told) for title, rows in which.items()]
    tables += [baselines(baseline_figures(run, BASELINES, parts, rows), title) for title, rows in which.items()]
    tables.append(trials(models, run))
    publish_result(
        request.output,
        request.result_name,
        tables,
        plot(run, models, targets.users),
        {
            "command": request.command,
            "summary": [*(made.sentence() for made in claims), *missing],
            "trainings of each chosen setting": len(request.seeds),
            "settings tried for each model": len(models[0].trials),
            "passes at most": run.config.generators[NAME].training.epochs,
            "settings": published_settings(
                run, {"source", "split", "features", "sequence_examples", "candidate_examples"}
            ),
            "models": {one.name: one.generator(Tried(0.0, 0.0), {}) for one in ours(WIDTH)},
            "RecBole": {one.name: one.settings for one in OUTSIDE},
        },
        request.console,
    )


def best(models: Iterable[Model]) -> Model:
    """The best on validation."""
    return max(models, key=lambda model: max(trial.validation for trial in model.trials))


def claims_of(run: Run, models: Sequence[Model], users: np.ndarray, title: str, which: np.ndarray) -> list[Claim]:
    """Our best on validation is above theirs."""
    theirs = [model for model in models if model.outside]
    if not theirs:
        return []
    mine, other = best(model for model in models if not model.outside), best(theirs)
    found = []
    for metric in (MAP, f"{MAP} unwatched"):
        first, second = (model.measured(metric, users, which, run) for model in (mine, other))
        more = relative(first, second)
        found.append(claim(f"{title}: {mine.name} over {other.name}, {metric} {more}", first, second, 1))
    return found


def figures(
    run: Run, models: Sequence[Model], users: np.ndarray, title: str, which: np.ndarray, told: Sequence[str]
) -> ResultTable:
    """Every model with the setting that is best for it on validation."""
    theirs = [model for model in models if model.outside]
    base = mean_of_seeds(best(theirs or models).measured(MAP, users, which, run))
    rows: list[list[Cell]] = []
    for model in models:
        of_metric = {m: mean_of_seeds(model.measured(m, users, which, run)) for m in (*METRICS, f"{MAP} unwatched")}
        chosen = model.chosen[0]
        rows.append(
            [
                model.name,
                *(measured.figure for measured in of_metric.values()),
                paired_difference(of_metric[MAP], base),
                int(chosen.answers["parameters"][0]),
            ]
        )
    columns = ["model", *METRICS, f"{MAP} unwatched", f"{MAP} over {best(theirs or models).name}", "parameters"]
    below = [*told, "Intervals: 95%, over users and trainings. Unwatched: videos watched before are removed."]
    return ResultTable(title, columns, rows, below, digits=4)


def baselines(results: Sequence[BaselineResult], title: str) -> ResultTable:
    """The peers without a network."""
    rows: list[list[Cell]] = []
    for result in results:
        of_metric = {measurement.name: measurement.figure for measurement in result.measurements}
        rows.append([result.method, *(of_metric[m] for m in (*METRICS, f"{MAP} unwatched"))])
    return ResultTable(f"Without a network, {title}", ["method", *METRICS, f"{MAP} unwatched"], rows, digits=4)


def trials(models: Sequence[Model], run: Run) -> ResultTable:
    """Everything that was tried on validation."""
    rows: list[list[Cell]] = []
    for model in models:
        for trial in model.trials:
            chosen = "chosen" if trial is model.chosen[0] else ""
            rows.append([model.name, str(trial.tried), trial.validation, int(trial.answers["epoch"][0]), chosen])
    training = run.config.generators[NAME].training
    notes = [
        f"Adam, at most {training.epochs} passes, stopped after {training.patience} without a better one; batches of "
        f"{training.batch_size} sequences (RecBole's Caser: of 512 pairs of the last 10 watches and the next).",
        "RecBole's GRU4Rec and SASRec predict at every step of a sequence at once, on the same labels as ours.",
        "Six earlier trainings of our GRU and M3R on MovieLens tried a rate of 0.006, and vectors that start from "
        "co-watches or are not shared. On KuaiRand our GRU from co-watches was added after a first comparison without "
        "it.",
    ]
    return ResultTable("Trials on validation", ["model", "setting", MAP, "pass", ""], rows, notes, digits=4)


def plot(run: Run, models: Sequence[Model], users: np.ndarray) -> Plot:
    """MAP of every model with its interval."""
    canvas = new_plot(7.0, 4.6)
    axes = canvas.subplots()
    everything = np.ones(len(users), bool)
    for place, model in enumerate(models):
        figure = mean_of_seeds(model.measured(MAP, users, everything, run)).figure
        error = [[figure.value - figure.low], [figure.high - figure.value]]
        axes.errorbar([place], [figure.value], yerr=error, fmt="o", capsize=3, color="C1" if model.outside else "C0")
    axes.set_xticks(range(len(models)), [model.name for model in models], rotation=45, ha="right")
    axes.set_ylabel(MAP)
    axes.set_ylim(bottom=0)
    return canvas
