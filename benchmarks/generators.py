"""Candidate-generator variants of an experiment: trained once per seed, judged on the next watches of the test part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.experiments import SMOKE_PLATFORM, SMOKE_SETTINGS, Request, once
from features.example_reader import ExampleSet
from features.spec import FeatureSpec
from features.splits import Part
from models.candidate_generator import CandidateGenerator
from models.sequence_generator import SequenceGenerator
from pipeline.config import GeneratorConfig
from pipeline.evaluation.baselines.interactions import RetrievalExamples
from pipeline.evaluation.baselines.training_watches import read_training_watches
from pipeline.evaluation.bootstrap import Measurement
from pipeline.evaluation.retrieval_baselines import BaselineResult, RetrievalBaselinesConfig, evaluate_baselines
from pipeline.evaluation.retrieval_metrics import Ranks, RetrievalTargets, evaluate_ranks, rank_examples
from pipeline.input_pipeline import ExampleColumns
from pipeline.model_stages import fit_generator
from pipeline.run import GENERATOR, SEQUENCES, Run
from pipeline.vectors import class_scorer, query_vectors, scorer, trained_vectors

READ = ("features/vocabularies", "features/catalogue", "examples/candidate_generation")
MAP = "MAP@20"
NAME = "two_tower"

More = Callable[[CandidateGenerator], Mapping[str, np.ndarray]]


def simulator_settings(full: bool) -> dict[str, Any]:
    """A platform whose last two days are the test, the day before them validation; shared by three experiments.

    The model is the paper's: towers that end in a ReLU layer, output embeddings that start at random, and no
    attributes of videos; all variants train alike, the epoch being chosen on the validation day.
    """
    scale = {"users": 4000, "videos": 600, "uploaders": 80, "days": 28, "steps_per_user": 40.0}
    # Chosen once on the validation day, for all variants: 0.003 reaches a MAP of 0.107 there, 0.001 stops at 0.096.
    training = {"learning_rate": 0.003, "epochs": 12 if full else 1, "batch_size": 512, "patience": 2}
    training |= {"refit": False, "checkpoints": False}
    model: dict[str, Any] = {"dimension": 64 if full else 8, "depth": 1, "loss": "full"}
    return {
        "name": "generators",
        "source": {"kind": "simulator", **(scale if full else SMOKE_PLATFORM)},
        "split": {"t0": "2025-02-01T00:00:00Z" if full else "2025-01-12T00:00:00Z", "gap_hours": 0, "refit": False},
        "features": {"without": ["recent_watched_video_ids", "uploader", "topics"]},
        "candidate_examples": {"labels_per_user": 24, "evaluation_labels_per_user": None},
        "generators": {NAME: {"model": model, "training": training}},
        "ranker": None,
        **({} if full else SMOKE_SETTINGS),
    }


def generator_answers(
    request: Request,
    run: Run,
    name: str,
    model: Mapping[str, Any],
    seed: int,
    without: Sequence[str] = (),
    more: More | None = None,
    training: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Trains the run's candidate generator with some settings changed and ranks the test labels by it.

    Args:
      request: where it speaks.
      run: the world.
      name: of the variant.
      model: settings of `TwoTowerConfig` in place of the run's.
      seed: of the training.
      without: query features the model does not see.
      more: further answers of the trained model.
      training: settings of `TrainingConfig` in place of the run's.

    Returns:
      `among_all`, `among_unwatched` `[examples]` ranks of the labels; `validation_map` `[epochs]`, the chosen `epoch`
      `[1]`; and what `more` gives.
    """
    settings = run.config.generators[NAME].model_dump(mode="json")
    trained_by = {**settings["training"], **(training or {}), "seed": seed}
    settings |= {"model": {**settings["model"], **model}, "training": trained_by}
    config = GeneratorConfig.model_validate(settings)
    variant = replace(run, config=run.config.model_copy(update={"generators": {NAME: config}}))
    spec = FeatureSpec(tuple(f for f in run.specs[GENERATOR].features if f.name not in without))

    def train() -> dict[str, np.ndarray]:
        request.say(f"training {name}, seed {seed} ...")
        trained = fit_generator(variant, NAME, spec)
        ranks = HeldOutWatches(run).ranks(trained.model)
        return {
            "among_all": ranks.among_all,
            "among_unwatched": ranks.among_unwatched,
            "validation_map": np.array(trained.history[MAP]),
            "epoch": np.array([trained.epochs]),
            **(more(trained.model) if more else {}),
        }

    identity = {"generator": config.model_dump(mode="json"), "features": [f.name for f in spec.features]}
    answers = once(run, name, identity, READ, train)
    epoch = int(answers["epoch"][0])
    request.say(f"{name}, seed {seed}: validation MAP {answers['validation_map'][epoch - 1]:.4f} after {epoch} epochs")
    return answers


def retrieval_examples(run: Run, part: Part) -> RetrievalExamples:
    """Histories and next watches of a world's validation or test part, over the whole catalogue."""
    return RetrievalExamples.over_catalogue(ExampleSet(run.examples(GENERATOR)).read(part), run.encoder)


def baseline_figures(
    run: Run, config: RetrievalBaselinesConfig, parts: Mapping[Part, RetrievalExamples], which: np.ndarray
) -> list[BaselineResult]:
    """The peers without a network, chosen on the validation part, over the test examples of `which`.

    Args:
      run: the world.
      config: which peers.
      parts: the validation and the test part.
      which: bool `[test examples]`.
    """
    chosen = parts[Part.TEST].take(np.flatnonzero(which))
    encoder = run.encoder
    watches = read_training_watches(
        run.tables, run.split, False, lambda ids: encoder.positions(ids.combine_chunks()), len(encoder.catalogue)
    )
    return evaluate_baselines(watches, parts[Part.VALIDATION], watches, chosen, config, run.config.evaluation.retrieval)


@dataclass(frozen=True)
class HeldOutWatches:
    """The test examples of a world: the next watches of its users, over the whole catalogue.

    Args:
      run: the world.
    """

    run: Run

    @cached_property
    def examples(self) -> ExampleSet:
        return ExampleSet(self.run.examples(GENERATOR))

    @cached_property
    def targets(self) -> RetrievalTargets:
        return retrieval_examples(self.run, Part.TEST).targets

    def ranks(self, model: CandidateGenerator) -> Ranks:
        """Ranks of the labels by a trained model, as in the papers: a video uploaded since has no vector of its own."""
        features = SEQUENCES if isinstance(model, SequenceGenerator) else GENERATOR
        columns = ExampleColumns(ExampleSet(self.run.examples(features)), (Part.TEST,), ())
        encoder = self.run.encoder
        if not model.softmax.dot_products:
            return rank_examples(class_scorer(model, columns, len(encoder.catalogue)), self.targets)
        queries = query_vectors(model, columns)
        return rank_examples(scorer(queries, trained_vectors(model, encoder)), self.targets)

    def map(self, answers: Mapping[str, np.ndarray]) -> Measurement:
        """MAP among all videos, averaged over users."""
        ranks = Ranks(answers["among_all"], answers["among_unwatched"])
        measured = evaluate_ranks(ranks, self.targets.users, self.run.config.evaluation.retrieval)
        return next(measurement for measurement in measured if measurement.name == MAP)
