"""Ranker variants of an experiment: trained once per seed, judged on the test impressions, also by the truth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.experiments import Request, once, truth_of
from features.example_reader import ExampleSet
from features.splits import Part
from models.ranker import Ranker
from pipeline.config import RankingConfig
from pipeline.evaluation.bootstrap import Measurement, UserBootstrap
from pipeline.evaluation.ranking_metrics import Impressions, weighted_per_user_loss
from pipeline.evaluation_stage import true_impressions
from pipeline.input_pipeline import ExampleColumns
from pipeline.model_stages import fit_ranker
from pipeline.ranking_validation import predictions
from pipeline.run import RANKER, Run

EXPECTED_LOSS = "expected weighted per-user loss"
READ = ("features/vocabularies", "features/quantiles", "examples/ranking")

More = Callable[[Ranker], Mapping[str, np.ndarray]]


def ranker_answers(
    request: Request,
    run: Run,
    name: str,
    model: Mapping[str, Any],
    seed: int,
    training: Mapping[str, Any] | None = None,
    more: More | None = None,
) -> dict[str, np.ndarray]:
    """Trains the run's ranker with some settings changed, and asks it about the test impressions.

    Args:
      request: where it speaks.
      run: the world.
      name: of the variant.
      model: settings of `RankerConfig` in place of the run's.
      seed: of the training.
      training: settings of `TrainingConfig` in place of the run's.
      more: further answers of the trained model.

    Returns:
      `score`, `click_probability`, `expected_watch_time_s` `[impressions]`, features with a serving value at it; the
      same with the logged values as `logged_...`; `validation_loss` `[epochs]`, the chosen `epoch` `[1]`; and what
      `more` gives.
    """
    assert run.config.ranker is not None
    settings = run.config.ranker.model_dump(mode="json")
    trained_by = {**settings["training"], **(training or {}), "seed": seed}
    config = RankingConfig.model_validate({"model": {**settings["model"], **model}, "training": trained_by})
    variant = replace(run, config=run.config.model_copy(update={"ranker": config}))

    def train() -> dict[str, np.ndarray]:
        request.say(f"training {name}, seed {seed} ...")
        trained = fit_ranker(variant)
        columns = ExampleColumns(ExampleSet(run.examples(RANKER)), (Part.TEST,), ())
        logged = predictions(trained.model, columns)
        history = {"validation_loss": np.array(trained.history["validation_loss"]), "epoch": np.array([trained.epochs])}
        return (
            predictions(trained.model, columns, at_serving=True)
            | {f"logged_{key}": value for key, value in logged.items()}
            | history
            | dict(more(trained.model) if more else {})
        )

    answers = once(run, name, config.model_dump(mode="json"), READ, train)
    best = answers["validation_loss"][int(answers["epoch"][0]) - 1]
    request.say(f"{name}, seed {seed}: validation loss {best:.4f} after {int(answers['epoch'][0])} epochs")
    return answers


@dataclass(frozen=True)
class HeldOutImpressions:
    """The impressions of a world that rankers are judged on.

    Args:
      run: the world.
      part: the test impressions, or those of another part.
    """

    run: Run
    part: Part = Part.TEST

    @cached_property
    def table(self) -> pa.Table:
        examples = ExampleSet(self.run.examples(RANKER))
        wanted = ("user_id", "group_id", "clicked", "watch_time_s", "video_id", "impression_id")
        return examples.read(self.part, [name for name in wanted if name in examples.schema(self.part).names])

    @cached_property
    def shown(self) -> Impressions:
        """What was shown, clicked and watched."""
        clicked = self.table["clicked"].to_numpy() > 0.5
        seconds = np.where(clicked, self.table["watch_time_s"].to_numpy().astype(np.float64), 0.0)
        return Impressions(np.asarray(self.table["user_id"]), np.asarray(self.table["group_id"]), clicked, seconds)

    @cached_property
    def bootstrap(self) -> UserBootstrap:
        return UserBootstrap(self.shown.users, self.run.config.evaluation.bootstrap)

    @cached_property
    def true(self) -> tuple[np.ndarray, np.ndarray] | None:
        """True click probability, and expected watch time (s) given a click; None where the logs are real."""
        truth = truth_of(self.run)
        return None if truth is None else true_impressions(truth, self.table)

    def loss(self, scores: np.ndarray) -> Measurement:
        """The paper's loss on the clicks that happened."""
        return weighted_per_user_loss(scores, self.shown, self.bootstrap)

    def expected_loss(self, scores: np.ndarray) -> Measurement | None:
        """The paper's loss in expectation over clicks and watch times; None where the truth is not known."""
        if self.true is None:
            return None
        return expected_loss(scores, self.shown.groups, *self.true, self.bootstrap)


def expected_loss(
    scores: np.ndarray,
    groups: np.ndarray,
    click_probability: np.ndarray,
    seconds_if_clicked: np.ndarray,
    bootstrap: UserBootstrap,
) -> Measurement:
    """The weighted per-user loss in expectation over what is clicked and how long it is watched.

    Impressions of a page are clicked independently, so the pair (i clicked, j not) weighs p_i T_i (1 − p_j):

        Σ p_i T_i (1 − p_j) [s_j > s_i] / Σ p_i T_i (1 − p_j),  a tie counting half.

    The same loss over the same impressions, without the luck of few clicks.

    Args:
      scores: `[n]`, the higher the better.
      groups: `[n]` the page view.
      click_probability: `[n]` true.
      seconds_if_clicked: `[n]` true expected watch time given a click.
      bootstrap: over the users of the rows.
    """
    order = np.argsort(groups, kind="stable")
    _, start, page, size = np.unique(groups[order], return_index=True, return_inverse=True, return_counts=True)
    slot = np.arange(len(order)) - start[page]
    shape = (len(start), int(size.max()))

    def paged(values: np.ndarray, absent: float) -> np.ndarray:
        table = np.full(shape, absent)
        table[page, slot] = values[order]
        return table

    gain = paged(click_probability * seconds_if_clicked, 0.0)
    other = paged(1.0 - click_probability, 0.0)
    score = paged(scores.astype(np.float64), np.nan)
    ahead = (score[:, None, :] > score[:, :, None]) + 0.5 * (score[:, None, :] == score[:, :, None])
    ahead[:, np.arange(shape[1]), np.arange(shape[1])] = 0.0
    wrong = gain * np.einsum("gij,gj->gi", ahead, other)
    pairs = gain * (other.sum(axis=1, keepdims=True) - other)
    numerator, denominator = np.zeros(len(order)), np.zeros(len(order))
    numerator[order], denominator[order] = wrong[page, slot], pairs[page, slot]
    return bootstrap.ratio(EXPECTED_LOSS, numerator, denominator)
