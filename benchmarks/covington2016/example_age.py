"""Figure 4 of Covington et al. 2016: a fresh video's predicted probability over the days since its upload.

Two candidate generators, with and without example age, are asked at every moment of the training window (example age =
end of training − moment) for the class probabilities, averaged over users. For every video uploaded in its first half
the curve after its upload is compared with its true popularity, both relative to the videos from before the window:
a growing corpus takes a share from every video, which is not ageing. Curves are brought to the same total over
those days, so that only their shape counts:

    error = Σ_days |predicted − true| / Σ_days true, summed over videos, resampled by video.

At serving example age is zero; then the probability of the videos of the last days is compared with their share of the
next watches, and MAP with and without the feature.

World `no_ageing`: popularity does not change with age and nobody prefers fresh videos; there the difference is to
vanish.
"""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure as Plot

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
from benchmarks.report import Cell, ResultTable, new_plot, publish_result
from features.example_reader import ExampleSet
from features.splits import Part
from models.candidate_generator import CandidateGenerator
from pipeline.evaluation.bootstrap import Measurement, UserBootstrap
from pipeline.input_pipeline import Arrays, ExampleColumns
from pipeline.retrieval_validation import class_vectors, serving_features
from pipeline.run import GENERATOR, Run
from pipeline.sources.truth import numbered_ids

FEATURE = "example_age"
WITH, WITHOUT = "with example age", "without"
OFF = "no_ageing"
SWITCHED_OFF = {"freshness": 0.0}
DAY_US = 86_400_000_000
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
    publish_result(
        request.output,
        request.result_name,
        [here.table("Plausible world"), off.table(f"World '{OFF}'")],
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
      predicted: variant -> `[moments, videos]` by seed.
      errors, maps: variant -> a measurement per seed.
      fresh: variant -> probability of the fresh videos at serving over their share of the next watches, per seed.
      true_share: of the fresh videos in the next watches of the test part.
    """

    curves: Curves
    predicted: dict[str, list[np.ndarray]]
    errors: dict[str, list[Measurement]]
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
        world = World(curves, {}, {}, {}, {}, float(share[fresh].sum()))
        for variant, without in ((WITH, ()), (WITHOUT, (FEATURE,))):
            for seed in request.seeds:
                answers = generator_answers(
                    request, run, variant.replace(" ", "_"), {}, seed, without, lambda m: {"curve": asked(run, m)}
                )
                curve = answers["curve"].astype(np.float64)
                world.predicted.setdefault(variant, []).append(curve[:-1])
                world.errors.setdefault(variant, []).append(shape_error(curve[:-1], curves))
                world.maps.setdefault(variant, []).append(held_out.map(answers))
                ratio = UserBootstrap(fresh).ratio("fresh videos at serving", curve[-1][fresh], share[fresh])
                world.fresh.setdefault(variant, []).append(ratio)
        return world

    def claims(self, prefix: str) -> list[Claim]:
        """The feature brings the curve to the truth, and raises MAP."""
        off = bool(prefix)
        fresh = (self.fresh[WITH], self.fresh[WITHOUT])
        return [
            claim(f"{prefix}error of the curve, with minus without", self.errors[WITH], self.errors[WITHOUT], -1, off),
            claim(f"{prefix}MAP@20, with minus without", self.maps[WITH], self.maps[WITHOUT], 1, off),
            claim(f"{prefix}fresh videos at serving, with minus without", *fresh, 1, off),
        ]

    def table(self, title: str) -> ResultTable:
        """Error, MAP and fresh share of both variants."""
        rows: list[list[Cell]] = [
            [
                variant,
                mean_of_seeds(self.errors[variant]).figure,
                mean_of_seeds(self.maps[variant]).figure,
                mean_of_seeds(self.fresh[variant]).figure,
            ]
            for variant in (WITH, WITHOUT)
        ]
        rows.append(["truth", 0.0, None, 1.0])
        columns = ["", "error of the curve", "MAP@20", f"videos of the last {FRESH_DAYS} days at serving"]
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
        features = serving_features(model, batch)
        if FEATURE in features:
            features[FEATURE] = tf.fill(tf.shape(features[FEATURE]), tf.cast(age_s, tf.float32))
        logits = tf.matmul(model.query_embeddings(features), vectors, transpose_b=True)
        rows.append(tf.reduce_mean(tf.nn.softmax(logits), axis=0).numpy())
    return np.stack(rows)


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
