"""Sequence-model variants of an experiment: trained once per seed, judged on the next watches of the test part.

The worlds are platforms of users with some hundred watches each. All variants of a world have the same examples, the
same loss, optimizer and number of passes at most; the pass is chosen on the validation days.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from benchmarks.experiments import SMOKE_PLATFORM, SMOKE_SETTINGS, Request, once
from benchmarks.generators import MAP, HeldOutWatches
from benchmarks.report import Cell, ResultTable
from pipeline.config import GeneratorConfig
from pipeline.evaluation.bootstrap import Measurement
from pipeline.evaluation.retrieval_metrics import Ranks, evaluate_ranks
from pipeline.model_stages import fit_generator
from pipeline.run import Run

PRECISION = "precision@1"
METRICS = (MAP, PRECISION)
NAME = "generator"

READ = ("features/vocabularies", "features/catalogue", "examples/candidate_generation", "examples/sequences")


@dataclass(frozen=True)
class Variant:
    """A model to compare.

    Args:
      name: as the paper calls it.
      model: its configuration, `kind` included.
      paper: the paper's figures for it, metric -> value.
      generator: further settings of its `GeneratorConfig`, those of its training in place of the world's.
    """

    name: str
    model: Mapping[str, Any]
    paper: Mapping[str, float] = field(default_factory=dict)
    generator: Mapping[str, Any] = field(default_factory=dict)

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """The same with other settings of its model."""
        return replace(self, model={**self.model, **settings})


def platform_settings(full: bool) -> dict[str, Any]:
    """Two test days of 28, the two days before them validation; sequences of 100 watches, 50 labels in each."""
    scale = {"users": 1500, "videos": 800, "uploaders": 80, "days": 28, "steps_per_user": 100.0}
    training = {
        "epochs": 15 if full else 1,
        "batch_size": 64,
        "learning_rate": 0.006,
        "patience": 2,
        "refit": False,
        "checkpoints": False,
    }
    return {
        "name": "sequences",
        "source": {"kind": "simulator", **(scale if full else SMOKE_PLATFORM)},
        "split": {
            "t0": "2025-02-01T00:00:00Z" if full else "2025-01-12T00:00:00Z",
            "gap_hours": 0,
            "validation_days": 2 if full else 1,
            "refit": False,
        },
        "features": {"watch_window": 100 if full else 20},
        "candidate_examples": {"labels_per_user": 1, "evaluation_labels_per_user": 8},
        "sequence_examples": {"labels_per_user": None, "stride": 50 if full else 10},
        "generators": {NAME: {"model": {"kind": "latent_cross"}, "training": training}},
        "ranker": None,
        **({} if full else SMOKE_SETTINGS),
    }


def sizes(full: bool) -> dict[str, Any]:
    """Widths that all variants share, and their loss: a softmax over all of the few videos."""
    width = 64 if full else 8
    return {"dimension": width, "projection": True, "loss": "full"}


@dataclass(frozen=True)
class Judged:
    """What the trainings of a variant came to on the test part, one measurement per seed.

    Args:
      measured: metric -> measurement of each seed.
      parameters: weights of the model; None: it has no network.
      epochs: passes of each training.
      validation: MAP of each training on the validation part, at the pass that was chosen there.
    """

    measured: Mapping[str, list[Measurement]]
    parameters: int | None
    epochs: list[int]
    validation: list[float]


def judge(request: Request, run: Run, held_out: HeldOutWatches, variant: Variant, seeds: Sequence[int]) -> Judged:
    """Trains a variant once for each seed (or reads what was kept of it) and measures it."""
    answers = [sequence_answers(request, run, variant, seed) for seed in seeds]
    measured: dict[str, list[Measurement]] = {metric: [] for metric in METRICS}
    for found in answers:
        ranks = Ranks(found["among_all"], found["among_unwatched"])
        told = evaluate_ranks(ranks, held_out.targets.users, run.config.evaluation.retrieval)
        for measurement in told:
            if measurement.name in measured:
                measured[measurement.name].append(measurement)
    epochs = [int(found["epoch"][0]) for found in answers]
    validation = [float(found["validation_map"][epoch - 1]) for found, epoch in zip(answers, epochs, strict=True)]
    return Judged(measured, int(answers[0]["parameters"][0]), epochs, validation)


def best_on_validation(judged: Mapping[str, Judged], names: Iterable[str]) -> str:
    """The one of `names` whose trainings validate best on average; a choice that no test figure takes part in."""
    return max(names, key=lambda name: float(np.mean(judged[name].validation)))


def tuned(
    variant: Variant, space: Mapping[str, Mapping[str, Any]], trial: Callable[[Variant], Judged]
) -> tuple[Variant, dict[str, Judged]]:
    """The variant with the settings of the search space that validate best, and what each of them came to.

    Args:
      variant: the model whose settings are replaced.
      space: name -> settings of the model.
      trial: trains and judges a variant once.
    """
    tried = {name: variant.with_settings(settings) for name, settings in space.items()}
    trials = {name: trial(each) for name, each in tried.items()}
    return tried[max(trials, key=lambda name: trials[name].validation[0])], trials


def trial_table(title: str, trials: Mapping[str, Mapping[str, Judged]]) -> ResultTable:
    """What every trial came to on the validation part; the best of each model is the one that is measured.

    Args:
      title: of the table.
      trials: model -> setting -> what it came to; the same settings for every model.
    """
    settings = list(next(iter(trials.values())))
    rows: list[list[Cell]] = [
        [model, *(tried[setting].validation[0] for setting in settings)] for model, tried in trials.items()
    ]
    note = f"{MAP} on the validation part, of the first seed, at its best pass."
    return ResultTable(title, ["model", *settings], rows, [note], digits=4)


def variant_run(run: Run, variant: Variant, seed: int) -> Run:
    """The world with this model as its generator, trained with this seed."""
    settings = run.config.generators[NAME].model_dump(mode="json")
    training = {**settings["training"], **variant.generator.get("training", {}), "seed": seed}
    settings |= {**variant.generator, "model": dict(variant.model), "training": training}
    config = GeneratorConfig.model_validate(settings)
    return replace(run, config=run.config.model_copy(update={"generators": {NAME: config}}))


def sequence_answers(request: Request, run: Run, variant: Variant, seed: int) -> dict[str, np.ndarray]:
    """Ranks of the test labels by the trained variant, `validation_map` `[epochs]`, `epoch` and `parameters` `[1]`."""
    of_variant = variant_run(run, variant, seed)
    config = of_variant.config.generators[NAME]

    def train() -> dict[str, np.ndarray]:
        trained = fit_generator(of_variant, NAME)
        ranks = HeldOutWatches(of_variant).ranks(trained.model)
        return {
            "among_all": ranks.among_all,
            "among_unwatched": ranks.among_unwatched,
            "validation_map": np.array(trained.history[MAP]),
            "epoch": np.array([trained.epochs]),
            "parameters": np.array([trained.model.count_params()]),
        }

    answers = once(run, file_name(variant.name), config.model_dump(mode="json"), READ, train)
    epoch = int(answers["epoch"][0])
    told = f"validation MAP {answers['validation_map'][epoch - 1]:.4f} after {epoch} epochs"
    request.say(f"{variant.name}, seed {seed}: {told}")
    return answers


def file_name(name: str) -> str:
    """A variant's name as a file may be called."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)
