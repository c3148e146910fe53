"""The stage that evaluates: generator and ranker on the test part, beside their peers and, if known, the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import RenderableType

from features.artifacts import publish
from features.example_reader import ExampleSet
from features.history import Derivation
from features.splits import Part
from models.sequence_generator import SequenceGenerator
from models.two_tower import TwoTower
from pipeline.config import reported_name
from pipeline.evaluation.baselines.interactions import RetrievalExamples
from pipeline.evaluation.baselines.training_watches import read_training_watches
from pipeline.evaluation.best_possible import best_possible_ranking, best_possible_retrieval, share_of_best
from pipeline.evaluation.bootstrap import Measurement, UserBootstrap, paired_differences
from pipeline.evaluation.calibration import Calibration, calibrate, calibration_table, plot_calibration
from pipeline.evaluation.figures import NO_VALIDATION, MethodFigures, differences_table, figures_table, write_json
from pipeline.evaluation.gradient_boosted_trees import (
    TreeVariant,
    best_variant,
    expected_watch_time_s,
    fit_trees,
)
from pipeline.evaluation.plots import plot_methods
from pipeline.evaluation.ranking_metrics import (
    AUC,
    GROUPED_AUC,
    LOG_LOSS,
    WEIGHTED_PER_USER_LOSS,
    Impressions,
    evaluate_clicks,
    evaluate_ranking,
)
from pipeline.evaluation.retrieval_baselines import ALS, EASE, ITEM_KNN, BaselineResult, evaluate_baselines
from pipeline.evaluation.retrieval_metrics import UNWATCHED, Scorer, evaluate_retrieval
from pipeline.evaluation.tree_features import read_ranking_data
from pipeline.input_pipeline import ExampleColumns
from pipeline.insight import Insight, insight_of
from pipeline.model_folder import load_candidate_generator, load_ranker
from pipeline.model_stages import RANKER_FOLDER, generator_folder
from pipeline.ranking_validation import predictions
from pipeline.run import GENERATOR, RANKER, Run
from pipeline.sources.truth import Truth
from pipeline.vectors import catalogue_vectors, query_vectors, scorer

REPORT = "reports/evaluation"
RANKER_NAME = "ranker"
CLICK_RANKER = "ranker, by click probability"
BEST = "best possible (the truth)"


@dataclass(frozen=True)
class Findings:
    """What was found about one model and its peers.

    Args:
      methods: figures of all methods, the model first.
      drawn: which of their figures are drawn.
      views: what is printed.
      json: what is written.
      calibrations: method -> predicted against actual watch time, drawn too.
    """

    methods: list[MethodFigures]
    drawn: Sequence[str]
    views: list[RenderableType]
    json: dict = field(default_factory=dict)
    calibrations: dict[str, Calibration] = field(default_factory=dict)


def evaluate(run: Run) -> None:
    """Publishes `reports/evaluation`: figures as JSON and plots, calibration plots; prints the tables."""
    findings = {"retrieval": evaluate_generators(run)}
    insights = look_into_generators(run)
    if run.has_ranker:
        findings["ranking"] = evaluate_ranker(run)
    with publish(run.folder / REPORT, {"kind": "report"}) as folder:
        for name, found in findings.items():
            write_json(folder / f"{name}.json", {"methods": found.methods, **found.json})
            plot_methods(found.methods, found.drawn, folder / f"{name}.png")
            if found.calibrations:
                plot_calibration(found.calibrations, folder / f"{name}_calibration.png")
        for insight in insights:
            insight.write(folder)
    views = [view for found in findings.values() for view in found.views]
    for view in [*views, *(view for insight in insights for view in insight.views())]:
        run.console.print(view)


def look_into_generators(run: Run) -> list[Insight]:
    """What the generators have learned."""
    targets = RetrievalExamples.over_catalogue(_scored_examples(run), run.encoder).targets
    found = []
    for name in run.config.generators:
        generator = load_candidate_generator(run.folder / generator_folder(name))
        if isinstance(generator, SequenceGenerator | TwoTower):
            found.append(insight_of(run, name, generator, targets))
    return found


def evaluate_generators(run: Run) -> Findings:
    """The candidate generators on the test part, over the whole catalogue; the first is compared with all others."""
    config = run.config.evaluation
    examples = ExampleSet(run.examples(GENERATOR))
    encoder = run.encoder
    videos = len(encoder.catalogue)
    scored = _scored_examples(run)
    test = RetrievalExamples.over_catalogue(scored, encoder)

    measured: dict[str, list[Measurement]] = {}
    for name in run.config.generators:
        measured[reported_name(name)] = evaluate_retrieval(_scorer(run, name), test.targets, config.retrieval)
    methods = [_figures(name, figures) for name, figures in measured.items()]
    first = reported_name(next(iter(run.config.generators)))

    features = run.specs[GENERATOR].features
    shown = [f.name for f in features if f.source == f"history.{Derivation.SHOWN_VIDEO_IDS}"]
    for peer in _peers(run, examples, []):
        measured[peer.method] = list(peer.measurements)
        methods.append(peer.method_figures)
    # Where the generator knows what was shown, peers that can use it are also run with it.
    for peer in _peers(run, examples, shown) if shown else []:
        name = f"{peer.method}, shown too"
        measured[name] = list(peer.measurements)
        methods.append(replace(peer.method_figures, method=name))
    truth = _truth(run)
    if truth is not None:
        probabilities = _true_next_watches(truth, scored, encoder.catalogue)
        measured[BEST] = best_possible_retrieval(probabilities, test.targets, config.retrieval)
        methods.append(_figures(BEST, measured[BEST]))

    names = [m.name for m in measured[first] if not m.name.endswith(UNWATCHED)]
    chosen = [name for name in names if name.startswith(("MAP", "recall"))]
    peers = {
        method: paired_differences(measured[first], figures)
        for method, figures in measured.items()
        if method != first and figures
    }
    of_all = examples.num_examples(Part.TEST)
    of_more = f" of {of_all:,} (evaluation.retrieval.max_examples)" if len(test) < of_all else ""
    users = f"{len(np.unique(test.users)):,} users, {len(test):,}{of_more} next watches, {videos:,} videos"
    views: list[RenderableType] = [
        figures_table(methods, names, f"Candidate generation, all videos ({users})"),
        figures_table(
            methods, [f"{name} {UNWATCHED}" for name in names], "Candidate generation, watched videos removed"
        ),
        differences_table(first, peers, chosen, "Paired bootstrap over users"),
    ]
    found: dict = {"differences": peers}
    if len(test) < of_all:
        found["examples"] = {"scored": len(test), "of": of_all}
    if truth is not None:
        shares = {
            name: share_of_best(methods[0].figure(name), methods[-1].figure(name))
            for name in (*names, *(f"{name} {UNWATCHED}" for name in names))
        }
        found["share_of_best_possible"] = shares
        told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        views.append(f"[bold]Share of the best possible:[/bold] {told}")
    return Findings(methods, chosen, views, found)


def _scored_examples(run: Run) -> pa.Table:
    """The test examples of the candidate generators, or of some users as many as are scored at most."""
    examples = ExampleSet(run.examples(GENERATOR))
    rows = examples.rows_of_some_users(Part.TEST, run.config.evaluation.retrieval.max_examples)
    return examples.read(Part.TEST) if rows is None else examples.read(Part.TEST, at_most=rows[-1] + 1).take(rows)


def _peers(run: Run, examples: ExampleSet, shown: Sequence[str]) -> list[BaselineResult]:
    """The peers on the test part, fitted on watches or, with the names of `shown` bags, on what was shown as well."""
    config = run.config.evaluation
    encoder = run.encoder
    validation, test = (
        RetrievalExamples.over_catalogue(_with_shown(table, shown), encoder)
        for table in (examples.read(Part.VALIDATION), _scored_examples(run))
    )
    before_validation, before_test = (
        read_training_watches(
            run.tables,
            run.split,
            with_validation,
            lambda ids: encoder.positions(ids.combine_chunks()),
            len(encoder.catalogue),
            with_impressions=bool(shown),
        )
        for with_validation in (False, True)
    )
    peers = config.retrieval_baselines
    if shown:
        peers = peers.model_copy(update={"methods": tuple(m for m in (ITEM_KNN, ALS, EASE) if m in peers.methods)})
    with run.console.status("Peers ...") as status:
        return evaluate_baselines(
            before_validation,
            validation,
            before_test,
            test,
            peers,
            config.retrieval,
            progress=lambda text: status.update(f"Peers: {text} ..."),
        )


def _with_shown(table: pa.Table, shown: Sequence[str]) -> pa.Table:
    """The examples with the bags `shown` put before the watches, so that the newest watch stays the last."""
    history = "watched_video_ids"
    bags = [table[name].combine_chunks() for name in (*shown, history)]
    lengths = np.stack([pc.fill_null(pc.list_value_length(bag), 0).to_numpy() for bag in bags], axis=1)
    values = np.concatenate([bag.flatten().to_numpy() for bag in bags])
    row = np.concatenate([np.repeat(np.arange(len(table)), lengths[:, i]) for i in range(len(bags))])
    offsets = np.concatenate([[0], np.cumsum(lengths.sum(axis=1))]).astype(np.int32)
    joined = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[np.argsort(row, kind="stable")]))
    return table.set_column(table.column_names.index(history), history, joined)


def evaluate_ranker(run: Run) -> Findings:
    """The ranker on the test part, beside gradient-boosted trees on the same features.

    Lists are ordered as at serving: features with a fixed serving value (position) have it. Expected watch time is
    compared with what happened where the impressions really stood, so calibration takes the logged values.
    """
    config = run.config.evaluation
    examples = ExampleSet(run.examples(RANKER))
    test = read_ranking_data(examples, Part.TEST, at_serving=True)
    shown = test.impressions
    bootstrap = UserBootstrap(shown.users, config.bootstrap)

    ranker = load_ranker(run.folder / RANKER_FOLDER)
    told = predictions(ranker, ExampleColumns(examples, (Part.TEST,), ()), at_serving=True)
    clicks = evaluate_clicks(told["click_probability"], shown, bootstrap)
    measured = {
        RANKER_NAME: evaluate_ranking(told["score"], shown, bootstrap, clicks),
        CLICK_RANKER: evaluate_ranking(told["click_probability"], shown, bootstrap, clicks),
    }
    methods = [_figures(name, figures) for name, figures in measured.items()]
    logged = predictions(ranker, ExampleColumns(examples, (Part.TEST,), ()))
    expected = {RANKER_NAME: logged["expected_watch_time_s"].astype(np.float64)}
    if config.trees is not None and not examples.num_examples(Part.VALIDATION):
        methods += [MethodFigures(variant.value, left_out=NO_VALIDATION) for variant in TreeVariant]
    elif config.trees is not None:
        with run.console.status("Gradient-boosted trees ...") as status:
            trees = fit_trees(
                read_ranking_data(examples, Part.TRAIN),
                read_ranking_data(examples, Part.VALIDATION),
                config.trees,
                progress=lambda text: status.update(f"Gradient-boosted trees: {text} ..."),
                validation_at_serving=read_ranking_data(examples, Part.VALIDATION, at_serving=True),
            )
        clicks = evaluate_clicks(trees[TreeVariant.CLICK].predict(test), shown, bootstrap)
        best = best_variant(trees)
        for variant, fitted in trees.items():
            measured[variant.value] = evaluate_ranking(fitted.predict(test), shown, bootstrap, clicks)
            settings = {
                "parameters": fitted.trials[0].parameters,
                "rounds": fitted.trials[0].rounds,
                "validation_loss": fitted.validation_loss,
                "best_on_validation": variant is best,
                "seconds": round(fitted.seconds, 1),
            }
            methods.append(_figures(variant.value, measured[variant.value], settings))
        as_logged = read_ranking_data(examples, Part.TEST)
        expected |= {variant.value: seconds for variant, seconds in expected_watch_time_s(trees, as_logged).items()}
    truth = _truth(run)
    found: dict = {}
    actual = np.where(shown.clicked, shown.watch_time_s, 0.0)
    calibrations = {name: calibrate(seconds, actual, bootstrap) for name, seconds in expected.items()}
    views_of_truth: list[RenderableType] = []
    if truth is not None:
        click, seconds = true_impressions(truth, examples.read(Part.TEST, ["impression_id"]))
        measured[BEST] = best_possible_ranking(click, seconds, shown, bootstrap)
        methods.append(_figures(BEST, measured[BEST]))
        against_truth = calibrate(expected[RANKER_NAME], click * seconds, bootstrap)
        found["calibration_against_the_truth"] = against_truth
        views_of_truth.append(calibration_table(against_truth, "Expected watch time (s) against the truth: ranker"))
    names = [WEIGHTED_PER_USER_LOSS, AUC, GROUPED_AUC, LOG_LOSS]
    peers = {
        method: paired_differences(measured[RANKER_NAME], figures)
        for method, figures in measured.items()
        if method != RANKER_NAME
    }
    title = f"Ranking ({bootstrap.num_users:,} users, {len(test):,} impressions; {_pairs(shown)})"
    views = [
        figures_table(methods, names, title),
        differences_table(RANKER_NAME, peers, names[:2], "Paired bootstrap over users"),
        *[calibration_table(c, f"Expected watch time (s): {name}") for name, c in calibrations.items()],
        *views_of_truth,
    ]
    found |= {"differences": peers, "calibration": calibrations}
    return Findings(methods, names[:2], views, found, calibrations)


def _scorer(run: Run, name: str) -> Scorer:
    """Scores of all videos of the catalogue by a trained candidate generator, for the test examples."""
    generator = load_candidate_generator(run.folder / generator_folder(name))
    examples = ExampleSet(run.examples(run.features_of_generator(name)))
    most = run.config.evaluation.retrieval.max_examples
    queries = query_vectors(generator, ExampleColumns(examples, (Part.TEST,), (), at_most=most))
    vectors = catalogue_vectors(generator, run.encoder, run.split, examples)
    return scorer(queries, vectors)


def _figures(method: str, measurements: Sequence[Measurement], settings: Mapping | None = None) -> MethodFigures:
    return MethodFigures(method, tuple(m.figure for m in measurements), settings or {})


def _pairs(shown: Impressions) -> str:
    groups = len(np.unique(shown.groups))
    return f"{groups:,} page views, {np.mean(shown.clicked):.1%} clicked"


def _truth(run: Run) -> Truth | None:
    return Truth.read(run.folder / "truth") if run.has_truth else None


def _true_next_watches(truth: Truth, test: pa.Table, catalogue: pa.Table) -> Scorer:
    """The true probabilities of completed next watches, by catalogue position."""
    users = test["user_id"].combine_chunks()
    times_us = test["label_timestamp"].cast(pa.int64()).to_numpy()
    position = {video: column for column, video in enumerate(truth.video_ids)}
    columns = np.array([position[video] for video in catalogue["video_id"].to_pylist()])

    def probabilities(rows: slice) -> np.ndarray:
        found = truth.next_watch_probabilities(users[rows.start : rows.stop], times_us[rows], completed_only=True)
        return found[:, columns]

    return probabilities


def true_impressions(truth: Truth, test: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """True click probability and expected watch time (s) given a click of the test impressions."""
    row = {impression: i for i, impression in enumerate(truth.impressions["impression_id"].to_pylist())}
    rows = pa.array([row[impression] for impression in test["impression_id"].to_pylist()])
    known = truth.impressions.take(rows)
    return known["click_probability"].to_numpy(), known["expected_watch_time_given_click_s"].to_numpy()
