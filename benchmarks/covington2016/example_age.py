"""Figure 4 of Covington et al. 2016: a fresh video's predicted probability over the days since its upload.

Two candidate generators, with and without example age, are asked at every moment of the training window (example age =
end of training − moment) for the class probabilities, averaged over users. For every video uploaded in its first half
the curve after its upload is compared with its true popularity, both relative to the videos from before the window:
a growing corpus takes a share from every video, which is not ageing. Curves are brought to the same total over
those days, so that only their shape counts:

    error = Σ_days |predicted − true| / Σ_days true, summed over videos, resampled by video.

The curve is taken twice, because histories tell of the date too: asked of the test users, whose histories stay as they
are while only the age moves; and from the training examples, each with the history and the age of its own moment.
What the feature can tell by itself is measured apart: networks that see nothing else, and functions of age fitted
video by video without a network (`age_forms.py`).

At serving example age is zero; then the probability of the videos of the last days is compared with their share of the
next watches, and MAP with and without the feature.

World `no_ageing`: popularity does not change with age and nobody prefers fresh videos; there the difference is to
vanish.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure as Plot

from benchmarks.covington2016.age_forms import forms, most_likely
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
from benchmarks.generators import HeldOutWatches, generator_answers, simulator_settings
from benchmarks.report import Cell, ResultTable, publish_result
from features.example_reader import ExampleSet
from features.spec import Side
from features.splits import Part
from models.candidate_generator import LABEL, CandidateGenerator
from pipeline.evaluation.bootstrap import Measurement, UserBootstrap
from pipeline.evaluation.plots import new_plot
from pipeline.input_pipeline import Arrays, ExampleColumns
from pipeline.retrieval_validation import class_vectors, tower_inputs
from pipeline.run import GENERATOR, Run
from pipeline.sources.truth import numbered_ids

FEATURE = "example_age"
WITH, WITHOUT = "with example age", "without"
OFF = "no_ageing"
SWITCHED_OFF = {"freshness": 0.0}
DAY_US = 86_400_000_000
ALONE: dict[str, dict[str, Any]] = {
    "example age alone, one layer of 64": {},
    "example age alone, layers of 512 and 64": {"depth": 2, "widths": (512, 64)},
}
"""Name -> model settings of a network that sees nothing but example age."""
ALONE_TRAINING = {"epochs": 30, "patience": None}
FRESH_DAYS = 5  # before the end of training: the videos that are fresh when lists are served
USERS = 1024  # whose probabilities are averaged


@dataclass(frozen=True)
class Curves:
    """Popularity over the training window.

    Args:
      days: `[moments]` days since the start of the window.
      uploaded: `[videos]` day of each video's upload, the videos being those of the vocabulary, in its order.
      true: `[moments, videos]` the simulator's popularity, zero before the upload.
    """

    days: np.ndarray
    uploaded: np.ndarray
    true: np.ndarray

    @property
    def followed(self) -> np.ndarray:
        """Rows of the videos uploaded in the first half of the window, early enough to see them age."""
        return np.flatnonzero((self.uploaded >= 0) & (self.uploaded <= self.days[-1] / 2))

    def relative(self, values: np.ndarray) -> np.ndarray:
        """`[moments, videos]` as a multiple of the mean of the videos from before the window."""
        return values / values[:, self.uploaded < 0].mean(axis=1, keepdims=True)


def reproduce(request: Request) -> None:
    """Publishes `example_age`."""
    base = simulator_settings(request.scale == Scale.FULL)
    run = prepare(request, "plausible", configuration(request, base))
    off_run = prepare(request, OFF, configuration(request, base, SWITCHED_OFF))
    here, off = World.measured(request, run), World.measured(request, off_run)
    claims = [*here.claims(""), *off.claims(f"switched off ({OFF}): ")]
    alone = age_alone(request, run, here.curves) if request.scale == Scale.FULL else {}
    publish_result(
        request.output,
        request.result_name,
        [here.table("Plausible world"), off.table(f"World '{OFF}'"), forms_table(run, here.curves, alone)],
        plot(here, off),
        {
            "command": request.command,
            "summary": [claim.sentence() for claim in claims],
            "trainings of each variant": len(request.seeds),
            "settings": published_settings(run, {"source", "split", "generators"}),
            "switched_off": {OFF: SWITCHED_OFF},
        },
        request.console,
    )


@dataclass(frozen=True)
class World:
    """What one world gave.

    Args:
      curves: the truth.
      predicted: variant -> `[moments, videos]` by seed, asked of the test users.
      errors, maps: variant -> a measurement per seed.
      errors_then: variant -> a measurement per seed, of the curve from the training examples.
      fresh: variant -> probability of the fresh videos at serving over their share of the next watches, per seed.
      true_share: of the fresh videos in the next watches of the test part.
    """

    curves: Curves
    predicted: dict[str, list[np.ndarray]]
    errors: dict[str, list[Measurement]]
    errors_then: dict[str, list[Measurement]]
    maps: dict[str, list[Measurement]]
    fresh: dict[str, list[Measurement]]
    true_share: float

    @staticmethod
    def measured(request: Request, run: Run) -> "World":
        """Trains both generators in a world and asks them."""
        curves = true_curves(run)
        held_out = HeldOutWatches(run)
        labels = held_out.targets.targets
        share = np.bincount(labels[labels >= 0], minlength=len(curves.uploaded))[: len(curves.uploaded)] / len(labels)
        fresh = np.flatnonzero(curves.uploaded > curves.days[-1] - FRESH_DAYS)
        world = World(curves, {}, {}, {}, {}, {}, float(share[fresh].sum()))
        for variant, without in ((WITH, ()), (WITHOUT, (FEATURE,))):
            for seed in request.seeds:
                answers = generator_answers(
                    request, run, variant.replace(" ", "_"), {}, seed, without, lambda m: both_curves(run, m)
                )
                curve, then = (answers[name].astype(np.float64) for name in ("curve", "curve_then"))
                world.predicted.setdefault(variant, []).append(curve[:-1])
                world.errors.setdefault(variant, []).append(shape_error(curve[:-1], curves))
                world.errors_then.setdefault(variant, []).append(shape_error(then, curves))
                world.maps.setdefault(variant, []).append(held_out.map(answers))
                ratio = UserBootstrap(fresh).ratio("fresh videos at serving", curve[-1][fresh], share[fresh])
                world.fresh.setdefault(variant, []).append(ratio)
        return world

    def claims(self, prefix: str) -> list[Claim]:
        """The feature brings the curve to the truth, and raises MAP."""
        off = bool(prefix)
        fresh = (self.fresh[WITH], self.fresh[WITHOUT])
        then = (self.errors_then[WITH], self.errors_then[WITHOUT])
        return [
            claim(f"{prefix}error of the curve, with minus without", self.errors[WITH], self.errors[WITHOUT], -1, off),
            claim(f"{prefix}error of the curve, histories of each moment, with minus without", *then, -1, off),
            claim(f"{prefix}MAP@20, with minus without", self.maps[WITH], self.maps[WITHOUT], 1, off),
            claim(f"{prefix}fresh videos at serving, with minus without", *fresh, 1, off),
        ]

    def table(self, title: str) -> ResultTable:
        """Error, MAP and fresh share of both variants."""
        rows: list[list[Cell]] = [
            [
                variant,
                mean_of_seeds(self.errors[variant]).figure,
                mean_of_seeds(self.errors_then[variant]).figure,
                mean_of_seeds(self.maps[variant]).figure,
                mean_of_seeds(self.fresh[variant]).figure,
            ]
            for variant in (WITH, WITHOUT)
        ]
        rows.append(["truth", 0.0, 0.0, None, 1.0])
        columns = [
            "",
            "error of the curve",
            "error, histories of each moment",
            "MAP@20",
            f"videos of the last {FRESH_DAYS} days at serving",
        ]
        notes = [
            f"Curves of the {len(self.curves.followed)} videos uploaded in the first half of the training window. "
            f"Fresh videos at serving: their predicted probability over their share of the next watches, which is "
            f"{self.true_share:.3f}.",
            "Intervals: 95%, over videos (error, fresh videos) and users (MAP).",
        ]
        return ResultTable(title, columns, rows, notes, "Covington et al. 2016, Figure 4 (a curve, no values)", 4)


def true_curves(run: Run) -> Curves:
    """The simulator's popularity of the videos of the vocabulary, at its renewals within the training part."""
    truth = truth_of(run)
    assert truth is not None
    platform = truth.platform
    catalogue = run.encoder.catalogue
    ids = catalogue["video_id"].to_pylist()[: int(np.count_nonzero(catalogue["video"].to_numpy()))]
    number = {video: index for index, video in enumerate(numbered_ids("v", np.arange(len(platform.topic))).to_pylist())}
    videos = np.array([number[video] for video in ids])
    bins = np.flatnonzero(platform.bin_starts_us < run.split.validation_start_us)
    return Curves(
        (platform.bin_starts_us[bins] - platform.start_us) / DAY_US,
        (platform.upload_us[videos] - platform.start_us) / DAY_US,
        platform.popularity[np.ix_(bins, videos)],
    )


def both_curves(run: Run, model: CandidateGenerator) -> dict[str, np.ndarray]:
    """The answers of a trained model: `curve` of `asked`, `curve_then` of `asked_then`."""
    return {"curve": asked(run, model), "curve_then": asked_then(run, model)}


def asked(run: Run, model: CandidateGenerator) -> np.ndarray:
    """Mean class probabilities of test users if they were asked at each moment of `true_curves`, and last at serving.

    Returns:
      float32 `[moments + 1, videos]`.
    """
    examples = ExampleSet(run.examples(GENERATOR))
    batch = next(ExampleColumns(examples, (Part.TEST,), ()).ordered(USERS))
    truth = truth_of(run)
    assert truth is not None
    moments_us = true_curves(run).days * DAY_US + truth.platform.start_us
    ages_s = np.append((examples.manifest["t_max_us"] - moments_us) / 1e6, 0.0)
    return probabilities_by_age(model, batch, ages_s)


def probabilities_by_age(model: CandidateGenerator, batch: Arrays, ages_s: np.ndarray) -> np.ndarray:
    """Mean softmax over the queries of a batch at each example age, float32 `[ages, classes]`."""
    vectors = class_vectors(model)
    rows = []
    for age_s in ages_s:
        features = tower_inputs(model, batch)
        if FEATURE in features:
            features[FEATURE] = tf.fill(tf.shape(features[FEATURE]), tf.cast(age_s, tf.float32))
        logits = tf.matmul(model.query_embeddings(features), vectors, transpose_b=True)
        rows.append(tf.reduce_mean(tf.nn.softmax(logits), axis=0).numpy())
    return np.stack(rows)


def moment_of_labels(run: Run) -> np.ndarray:
    """int64 `[training examples]`: the moment of `true_curves` that each label's watch lies in."""
    time_us = ExampleSet(run.examples(GENERATOR)).read(Part.TRAIN, ["label_timestamp"])["label_timestamp"]
    truth = truth_of(run)
    assert truth is not None
    days = (time_us.cast("int64").to_numpy() - truth.platform.start_us) / DAY_US
    return np.searchsorted(true_curves(run).days, days, side="right") - 1


def asked_then(run: Run, model: CandidateGenerator) -> np.ndarray:
    """Mean class probabilities of the training examples of each moment, with their own histories and ages.

    Returns:
      float32 `[moments, videos]`.
    """
    vectors, moment = class_vectors(model), moment_of_labels(run)
    total = np.zeros((len(true_curves(run).days), len(vectors)))
    start = 0
    for batch in ExampleColumns(ExampleSet(run.examples(GENERATOR)), (Part.TRAIN,), ()).ordered(USERS):
        features = {f.name: tf.constant(batch[f.name]) for f in model.spec.side(Side.QUERY)}
        logits = tf.matmul(model.query_embeddings(features), vectors, transpose_b=True)
        rows = moment[start : start + logits.shape[0]]
        total += (rows == np.arange(len(total))[:, None]).astype(np.float32) @ tf.nn.softmax(logits).numpy()
        start += len(rows)
    return (total / np.bincount(moment, minlength=len(total))[:, None]).astype(np.float32)


def age_alone(request: Request, run: Run, curves: Curves) -> dict[str, list[Measurement]]:
    """Errors of networks that see nothing but example age: name -> a measurement per seed."""
    others = tuple(f.name for f in run.specs[GENERATOR].features if f.name != FEATURE)
    found: dict[str, list[Measurement]] = {}
    for name, model in ALONE.items():
        for seed in request.seeds:
            answers = generator_answers(
                request, run, name.replace(" ", "_"), model, seed, others, lambda m: both_curves(run, m), ALONE_TRAINING
            )
            found.setdefault(name, []).append(shape_error(answers["curve"][:-1].astype(np.float64), curves))
    return found


def forms_table(run: Run, curves: Curves, alone: dict[str, list[Measurement]]) -> ResultTable:
    """How close functions of example age alone come to the curves, fitted to the truth and to the labels."""
    examples = ExampleSet(run.examples(GENERATOR))
    labels = np.zeros(curves.true.shape)
    np.add.at(labels, (moment_of_labels(run), examples.read(Part.TRAIN, [LABEL])[LABEL].to_numpy() - 1), 1.0)
    feature = run.specs[GENERATOR][FEATURE]
    truth = truth_of(run)
    assert truth is not None
    age_s = (examples.manifest["t_max_us"] - truth.platform.start_us - curves.days * DAY_US) / 1e6
    rows: list[list[Cell]] = []
    for name, functions in forms((age_s - feature.low) / (feature.high - feature.low)).items():
        fitted = [shape_error(most_likely(functions, to), curves).figure for to in (curves.true, labels)]
        rows.append([name, *fitted])
    rows += [[name, None, mean_of_seeds(errors).figure] for name, errors in alone.items()]
    notes = [
        f"Error of the curve; labels: {len(examples.read(Part.TRAIN, [LABEL])):,} watches of {labels.shape[1]} videos, "
        f"{labels[:, curves.followed].sum():,.0f} of them of the {len(curves.followed)} videos that are followed."
    ]
    return ResultTable("What example age can tell by itself", ["", "fitted to the truth", "to labels"], rows, notes)


def shape_error(predicted: np.ndarray, curves: Curves) -> Measurement:
    """Σ |predicted − true| / Σ true after upload, each video's prediction brought to its true total.

    Args:
      predicted: `[moments, videos]`.
      curves: the truth.
    """
    videos = curves.followed
    after = curves.days[:, None] >= curves.uploaded[videos]
    true = np.where(after, curves.relative(curves.true)[:, videos], 0.0)
    found = np.where(after, curves.relative(predicted)[:, videos], 0.0)
    found = found * (true.sum(axis=0) / found.sum(axis=0))
    wrong = np.abs(found - true).sum(axis=0) / true.sum(axis=0)
    return UserBootstrap(videos).ratio("error of the curve", wrong, np.ones(len(videos)))


def by_days_since_upload(values: np.ndarray, curves: Curves, days: np.ndarray) -> np.ndarray:
    """Mean over the followed videos at whole days since their upload, NaN where no video was seen so old (or young)."""
    videos = curves.followed
    since = np.floor(curves.days[:, None] - curves.uploaded[videos])
    shown = curves.relative(values)[:, videos]
    return np.array([shown[since == day].mean() if (since == day).any() else np.nan for day in days])


def plot(here: World, off: World) -> Plot:
    """Mean curves over the days since upload, in both worlds."""
    canvas = new_plot(9.5, 4.2)
    for axes, world, title in zip(
        canvas.subplots(1, 2), (here, off), ("plausible", OFF.replace("_", " ")), strict=True
    ):
        days = np.arange(-5, int(world.curves.days[-1]))
        lines = {name: np.mean(by_seed, axis=0) for name, by_seed in world.predicted.items()}
        for name, values in ({"true popularity": world.curves.true} | lines).items():
            style = {"color": "black", "linestyle": ":"} if name == "true popularity" else {}
            axes.plot(days, by_days_since_upload(values, world.curves, days), label=name, **style)
        axes.axvline(0, color="grey", linewidth=0.6)
        axes.set_title(title)
        axes.set_xlabel("days since upload")
        axes.set_ylabel("probability of a fresh video / of an old one")
        axes.set_ylim(bottom=0)
        axes.legend()
    return canvas
