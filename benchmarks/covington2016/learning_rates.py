"""What hidden layers owe to the learning rate that all rows of Table 1 share.

Adam moves a weight by about the learning rate in a step, whatever the gradient, so that a linear model whose weights
have far to go is held back by few steps, where layers multiply what each of them moves. Rows of Table 1 are trained at
several learning rates; each is then judged at the one that its loss on the validation day chooses. Losses by how often
a video was shown in training tell where the linear model falls behind: ids learn what videos are worth that were shown
often, the weights of features are what there is for new ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.experiments import Claim, Request, claim, mean_of_seeds
from benchmarks.rankers import HeldOutImpressions, expected_loss, ranker_answers
from benchmarks.report import Cell, ResultTable
from features.example_reader import ExampleSet
from features.splits import Part
from pipeline.evaluation.bootstrap import Measurement, UserBootstrap, paired_difference
from pipeline.run import RANKER, Run

Settings = Mapping[str, Any]

SHARED = 1e-3
VIDEO = "impression_video_id"
SHOWN = (0, 60, 400)
"""Upper ends of how often a video was shown in training, but for the last group, which has none."""


@dataclass(frozen=True)
class Tried:
    """A row at one learning rate, trained once or more: its losses on the validation day and on the test day."""

    validation_loss: float
    expected: list[Measurement]
    scores: list[np.ndarray]


@dataclass(frozen=True)
class Rated:
    """A row at several learning rates, once each, and at the best of them as often as asked.

    `best` has the least loss on the validation day, in the first training of each.
    """

    by_rate: Mapping[float, Tried]
    best: float

    @property
    def chosen(self) -> Tried:
        return self.by_rate[self.best]


ByRow = Mapping[str, Rated]
Train = Callable[[float, Sequence[int]], Tried]
"""Learning rate and seeds -> what came of it."""


def train_at(
    request: Request, held_out: HeldOutImpressions, row: str, settings: Settings, rate: float, seeds: Sequence[int]
) -> Tried:
    """Trains a row of Table 1 at a learning rate, in a world whose truth is known."""
    training = {"learning_rate": rate}
    name = row.replace(" ", "")
    answers = [ranker_answers(request, held_out.run, name, settings, seed, training) for seed in seeds]
    validation_loss = np.mean([found["validation_loss"][int(found["epoch"][0]) - 1] for found in answers])
    scores = [found["score"] for found in answers]
    expected = [loss for loss in map(held_out.expected_loss, scores) if loss is not None]
    return Tried(float(validation_loss), expected, scores)


def at_rates(request: Request, run: Run, rows: Mapping[str, Settings], rates: Sequence[float]) -> ByRow:
    """Trains rows at the same learning rates."""
    held_out = HeldOutImpressions(run)
    return {
        row: at_best_rate(rates, request.seeds, partial(train_at, request, held_out, row, settings))
        for row, settings in rows.items()
    }


def at_best_rate(rates: Sequence[float], seeds: Sequence[int], train: Train) -> Rated:
    """Trains at every rate with the first seed, and at the best of them with all."""
    tried = {rate: train(rate, seeds[:1]) for rate in rates}
    best = min(tried, key=lambda rate: tried[rate].validation_loss)
    return Rated({**tried, best: train(best, seeds)}, best)


def claim_at_own_rates(text: str, tried: ByRow, deep: str, linear: str, switched_off: bool) -> Claim:
    """That the deep row loses less than the linear one, each at the rate that the validation day chooses."""
    told = f"{text}, each at its own learning rate ({tried[deep].best:g}, {tried[linear].best:g})"
    return claim(told, tried[deep].chosen.expected, tried[linear].chosen.expected, -1, switched_off)


def rates_table(worlds: Mapping[str, ByRow]) -> ResultTable:
    """Every row at every learning rate."""
    rows: list[list[Cell]] = [
        [world, row, f"{rate:g}{' *' if rate == rated.best else ''}", tried.validation_loss, _figure(tried)]
        for world, by_row in worlds.items()
        for row, rated in by_row.items()
        for rate, tried in rated.by_rate.items()
    ]
    columns = ["world", "hidden layers", "learning rate", "loss on the validation day", "expected loss"]
    notes = [
        "*: chosen by the loss that is trained, on the validation day; trained as often as told below, the others once."
    ]
    return ResultTable("By learning rate", columns, rows, notes, digits=4)


def _figure(tried: Tried) -> Cell:
    return mean_of_seeds(tried.expected).figure


def shown_table(run: Run, tried: ByRow, deep: str, linear: str) -> ResultTable:
    """Expected loss at the shared learning rate, by how often the videos of the test day were shown in training."""
    held_out = HeldOutImpressions(run)
    examples = ExampleSet(run.examples(RANKER))
    video = examples.read(Part.TEST, [VIDEO])[VIDEO].to_numpy()
    trained = examples.read(Part.TRAIN, [VIDEO])[VIDEO].to_numpy()
    times = np.bincount(trained, minlength=int(video.max()) + 1)[video]
    times[video == 0] = 0  # out of vocabulary: no id of its own
    group = np.searchsorted(SHOWN, times, side="left")
    names = ["new", *(f"{low + 1} to {high}" for low, high in pairwise(SHOWN)), f"over {SHOWN[-1]}"]
    rows: list[list[Cell]] = []
    for index, name in enumerate(names):
        of_group = np.flatnonzero(group == index)
        shared = (tried[row].by_rate[SHARED] for row in (linear, deep))
        without, with_layers = (loss_among(held_out, of_group, each.scores) for each in shared)
        difference = paired_difference(with_layers, without)
        rows.append([name, len(of_group), without.figure, with_layers.figure, difference])
    columns = ["shown in training", "impressions", linear, deep, "difference"]
    notes = [f"Among impressions of the group on one page; all at the learning rate {SHARED:g}."]
    return ResultTable("World 'everybody_alike', by how often a video was shown", columns, rows, notes, digits=4)


def loss_among(held_out: HeldOutImpressions, rows: np.ndarray, scores: Sequence[np.ndarray]) -> Measurement:
    """The expected loss of some trainings among some of the impressions."""
    assert held_out.true is not None
    click, seconds = (values[rows] for values in held_out.true)
    bootstrap = UserBootstrap(held_out.shown.users[rows], held_out.run.config.evaluation.bootstrap)
    pages = held_out.shown.groups[rows]
    return mean_of_seeds([expected_loss(score[rows], pages, click, seconds, bootstrap) for score in scores])
