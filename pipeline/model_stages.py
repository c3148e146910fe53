"""The stages that train: the candidate generators and the ranker."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.table import Table

from features.analysis import read_quantiles
from features.artifacts import MANIFEST, file_sha256, read_manifest
from features.candidate_examples import SEQUENCE
from features.example_reader import ExampleSet
from features.settings import Settings
from features.spec import FeatureSpec, Side
from features.splits import Part
from features.vocabulary import Vocabulary
from models.calibration import Expectations, at_equal_rank
from models.candidate_generator import LABEL, WEIGHT
from models.co_watch_embeddings import CoWatchConfig
from models.co_watched_softmax import CO_WATCHED, co_watched_videos
from models.hierarchical_softmax import CLUSTER, clusters_by_co_watch
from models.ranker import CLICKED, WATCH_TIME_S, Ranker, RankerConfig
from models.sampled_softmax import Loss
from models.samplers import attach_label_probability, attach_negatives, make_sampler
from models.sequence_generator import LABEL_WEIGHTS, SequenceGenerator, attach_step_labels
from models.two_tower import TwoTower, TwoTowerConfig
from models.weighted_logistic_regression import LabelStatistics, Objective
from pipeline.callbacks import NOT_SHOWN
from pipeline.config import GeneratorConfig, GeneratorModel
from pipeline.input_pipeline import Arrays, ExampleColumns, Transform
from pipeline.model_folder import CANDIDATE_GENERATORS, save_model
from pipeline.ranking_validation import validation_metrics
from pipeline.retrieval_validation import MOST_EXAMPLES, retrieval_map
from pipeline.run import EXAMPLES, RANKER, SEQUENCES, Run
from pipeline.start_vectors import co_watch_vectors, start_vectors
from pipeline.training import Trained, train
from pipeline.vectors import attribute_rows

RANKER_FOLDER = "models/ranker"
RANKING_EXAMPLES = "examples/ranking"
TREE_DIMENSION = 8  # of the co-watch vectors that the hierarchical softmax has its clusters of: the leading ones


def generator_folder(name: str) -> str:
    """Where the candidate generator of that name in the configuration is published, relative to the run."""
    return f"models/{name}"


def train_generator(run: Run, name: str) -> None:
    """Publishes `models/<name>`."""
    _publish(run, generator_folder(name), run.config.generators[name].model.kind, fit_generator(run, name, keep=True))


def fit_generator(run: Run, name: str, spec: FeatureSpec | None = None, keep: bool = False) -> Trained:
    """Trains a candidate generator.

    Args:
      run: its examples and its configuration.
      name: of the generator in the configuration.
      spec: the features it sees, of those that the examples hold; None: all of them.
      keep: leave the checkpoints until `Trained.forget`.
    """
    config = run.config.generators[name]
    of_sequences = run.features_of_generator(name) == SEQUENCES
    model_features = run.features_of_generator(name)
    features = spec or run.specs[model_features]
    examples = ExampleSet(run.examples(model_features))
    columns = _Columns(examples, (LABEL, WEIGHT, *((LABEL_WEIGHTS,) if of_sequences else ())))
    sizes = vocabulary_sizes(run)
    attributes = class_attributes(run, config.model, features)
    if config.model.loss == Loss.CO_WATCHED:
        attributes[CO_WATCHED] = _co_watched(examples, sizes["video"])
    if config.model.loss == Loss.HIERARCHICAL:
        attributes[CLUSTER] = co_watched_clusters(examples, sizes["video"], run.console.print)
    generator: Any = CANDIDATE_GENERATORS[config.model.kind]

    def build(*parts: Part) -> TwoTower | SequenceGenerator:
        model: TwoTower | SequenceGenerator = generator(config.model, features, sizes, attributes)
        start = start_vectors(examples, parts, sizes["video"], config, run.console.print)
        if start is not None:
            model.start_from(start)
        return model

    return train(
        partial(build, Part.TRAIN),
        columns.train,
        config.training,
        run.folder / "models" / f".{name}.work",
        transform=_transform(run, config, columns.train, of_sequences),
        evaluate=None if columns.validation is None else _retrieval_map(columns.validation),
        monitor="MAP@20",
        refit_columns=columns.together,
        build_refit=partial(build, Part.TRAIN, Part.VALIDATION),
        identity=_identity(
            run,
            config,
            features,
            "features/vocabularies",
            "features/catalogue",
            f"examples/{EXAMPLES[model_features]}",
        ),
        keep=keep,
    )


def train_ranker(run: Run) -> None:
    """Publishes `models/ranker`."""
    _publish(run, RANKER_FOLDER, "ranker", fit_ranker(run, keep=True))


def fit_ranker(run: Run, keep: bool = False) -> Trained:
    """Trains and calibrates the ranker on the run's examples, as its configuration says; `keep` as above."""
    assert run.config.ranker is not None
    config = run.config.ranker
    examples = ExampleSet(run.examples(RANKER))
    columns = _Columns(examples, (CLICKED, WATCH_TIME_S, WEIGHT))
    validation = columns.validation
    labels = label_statistics(examples, config.model)
    quantiles = read_quantiles(run.features / "quantiles" / "quantiles.json")
    unseen: list[Expectations] = []  # of the validation part, by the ranker that was not trained on it

    def expect(model: Ranker) -> None:
        if validation is not None:
            unseen.append(model.expectations(validation.ordered(8192)))
            model.calibrate(unseen[0])

    trained = train(
        lambda: Ranker(config.model, run.specs[RANKER], vocabulary_sizes(run), quantiles, labels),
        columns.train,
        config.training,
        run.folder / "models" / ".ranker.work",
        evaluate=None if validation is None else lambda model: validation_metrics(model, examples, validation),
        monitor="log_likelihood",
        refit_columns=columns.together,
        on_validated=expect,
        identity=_identity(
            run, config, run.specs[RANKER], "features/vocabularies", "features/quantiles", RANKING_EXAMPLES
        ),
        keep=keep,
    )
    if unseen and trained.refit_history:
        assert validation is not None
        refitted = trained.model.expectations(validation.ordered(8192))
        raw_s = at_equal_rank(unseen[0].raw_s, refitted.raw_s, refitted.weight)
        trained.model.calibrate(refitted._replace(raw_s=raw_s))
    return trained


class _Columns:
    """Training, validation and both together; the last two are None where the set has no validation examples."""

    def __init__(self, examples: ExampleSet, extra: tuple[str, ...]) -> None:
        self.train = ExampleColumns(examples, (Part.TRAIN,), extra)
        self.validation: ExampleColumns | None = None
        self.together: ExampleColumns | None = None
        if examples.num_examples(Part.VALIDATION):
            self.validation = ExampleColumns(examples, (Part.VALIDATION,), extra)
            self.together = ExampleColumns(examples, (Part.TRAIN, Part.VALIDATION), extra, refit=True)


def vocabulary_sizes(run: Run) -> dict[str, int]:
    """Id space -> number of ids."""
    return dict(read_manifest(run.features / "vocabularies")["sizes"])


def class_attributes(run: Run, model: GeneratorModel, spec: FeatureSpec) -> dict[str, np.ndarray]:
    """Feature of videos -> int32 rows of each class's, after a row 0: `[classes + 1]` or `[..., length]`.

    Only of the two-tower model, whose video vectors are made of attributes too.
    """
    if not isinstance(model, TwoTowerConfig):
        return {}
    classes = vocabulary_sizes(run)["video"]
    attributes = {}
    for feature in spec.side(Side.IMPRESSION):
        rows = attribute_rows(run.encoder, feature)[:classes]
        attributes[feature.name] = np.concatenate([np.zeros_like(rows[:1]), rows])
    return attributes


def watch_counts(run: Run) -> np.ndarray:
    """int64 `[classes]`: how often each video of the vocabulary was watched in the training part."""
    return Vocabulary.read(run.features / "vocabularies" / "video.parquet").counts


def _transform(run: Run, config: GeneratorConfig, columns: ExampleColumns, of_sequences: bool) -> Transform | None:
    """What the input pipeline adds to a batch: labels of every step, negatives."""
    negatives = _negatives(run, config, columns, of_sequences)
    if not of_sequences:
        return negatives
    return attach_step_labels if negatives is None else lambda batch: negatives(attach_step_labels(batch))


def _negatives(run: Run, config: GeneratorConfig, columns: ExampleColumns, of_sequences: bool) -> Transform | None:
    loss = config.model.loss
    if loss == Loss.SAMPLED:
        return attach_negatives(make_sampler(config.model.sampler, watch_counts(run), config.training.seed))
    if loss == Loss.IN_BATCH:
        watches = watch_counts(run)
        if of_sequences:  # nearly every watch is the label of a step
            return attach_label_probability(watches)
        labels = columns.examples.read(Part.TRAIN, [LABEL])[LABEL].to_numpy()
        return attach_label_probability(np.bincount(labels, minlength=len(watches) + 1)[1:])
    return None


def _retrieval_map(columns: ExampleColumns) -> Callable[[Any], dict[str, float]]:
    scored = replace(columns, at_most=MOST_EXAMPLES)
    return lambda model: retrieval_map(model, scored)


def co_watched_clusters(examples: ExampleSet, num_videos: int, say: Callable[[str], object]) -> np.ndarray:
    """The tree of the hierarchical softmax: together what the same users watch, as `clusters_by_co_watch` gives it."""
    vectors = co_watch_vectors(examples, (Part.TRAIN,), num_videos, TREE_DIMENSION, CoWatchConfig(), say)
    return clusters_by_co_watch(vectors.watched)


def _co_watched(examples: ExampleSet, num_videos: int) -> np.ndarray:
    """The videos most watched right after each video, counted over the training labels of sequences."""
    table = examples.read(Part.TRAIN, [SEQUENCE, LABEL_WEIGHTS, LABEL])
    watched = table[SEQUENCE].combine_chunks()
    lengths = pc.list_value_length(watched).to_numpy(zero_copy_only=False)
    videos = watched.flatten().to_numpy(zero_copy_only=False)
    weights = pc.list_flatten(table[LABEL_WEIGHTS]).to_numpy(zero_copy_only=False)
    begins, own = np.zeros(len(videos), bool), lengths > 0
    ends = np.cumsum(lengths)
    begins[(ends - lengths)[own]] = True
    counted = np.flatnonzero((weights > 0) & ~begins)
    last = np.concatenate([videos[counted - 1], videos[ends[own] - 1]])
    following = np.concatenate([videos[counted], table[LABEL].to_numpy()[own]])
    return co_watched_videos(last, following, num_videos)


def label_statistics(examples: ExampleSet, config: RankerConfig) -> LabelStatistics:
    """Sums over the training impressions; of watch times as the loss weighs them, that is up to the cap."""
    table = examples.read(Part.TRAIN, [CLICKED, WATCH_TIME_S, WEIGHT])
    columns: Arrays = {name: table[name].to_numpy() for name in table.column_names}
    watch_time_s = columns[WATCH_TIME_S]
    if config.watch_time_cap_s and config.objective != Objective.UNWEIGHTED:
        watch_time_s = np.minimum(watch_time_s, config.watch_time_cap_s)
    return LabelStatistics.of(columns[CLICKED], watch_time_s, columns[WEIGHT], config.negative_keep_rate)


def _identity(run: Run, config: Settings, spec: FeatureSpec, *read: str) -> dict[str, Any]:
    """All that a training depends on; checkpoints of any other one are not continued."""
    manifests = {name: file_sha256(run.folder / name / MANIFEST) for name in read}
    return {"config": config.model_dump(mode="json"), "features": [asdict(f) for f in spec.features], "read": manifests}


def _publish(run: Run, folder: str, kind: str, trained: Trained) -> None:
    figures = {name: getattr(trained, name) for name in ("epochs", "examples_per_second", "seconds")}
    if trained.chief:
        save_model(run.folder / folder, trained.model, kind, trained.history, figures)
    trained.forget()
    run.console.print(history_table(kind, trained))


def history_table(title: str, trained: Trained) -> Table:
    """Metrics by epoch; the chosen epoch is marked."""
    names = [name for name in trained.history if name not in NOT_SHOWN]
    note = f"{trained.examples_per_second:,.0f} examples/s, {trained.seconds:.0f} s"
    view = Table(title=f"{title}: {note}" + (", refitted with validation" if trained.refit_history else ""))
    view.add_column("epoch")
    for name in names:
        view.add_column(name, justify="right")
    for epoch in range(len(trained.history[names[0]]) if names else 0):
        mark = " *" if epoch + 1 == trained.epochs else ""
        view.add_row(f"{epoch + 1}{mark}", *(f"{trained.history[name][epoch]:.4f}" for name in names))
    return view
