"""Sequence examples: a user's watches in order, several of which are predicted from those before them.

Beutel et al. 2018, section 5.1: Pr(j | i, t, X_{i,t}), every watch of a sequence predicted from the watches before it.
An example has the form of a candidate-generation example (the watches before its label, the request's context, the
label) and the list `label_weights` beside its watches: w_l of every watch of the list that is a label too, 0 of the
others. One pass over the sequence then gives all its predictions.

A user's training labels are cut into blocks from the newest backwards: the newest label of a block is the example's
own, the block's other labels are among the `stride` watches before it. Every label is in exactly one example, and has
before it at least the watches of the sequence that are not its block's (where the user has as many). Left out are
labels of the very moment of their block's newest: watches of a label's own moment are not in its sequence.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from features.candidate_examples import CandidateExamplesConfig, CandidateLabels, candidate_labels
from features.encoding import Encoder
from features.event_windows import ORDER_ONLY
from features.settings import Settings
from features.shards import EventRows, Shard
from features.splits import Part, Split

_DAY_US = 24 * 3_600_000_000


class SequenceExamplesConfig(Settings):
    """Which watches are labels in training. Weights w_l are 1 for each: users weigh by their number of labels."""

    labels_per_user: int | None = Field(default=100, ge=1)
    """The most recent labels of a user (Beutel et al. 2018, section 5.4: 100); None: all."""
    label_days: float | None = Field(default=None, gt=0)
    """Only labels inside (t0 − these days, t0] (section 5.4: 7); None: all. Those of the validation days among them
    join the others when the final model is trained on both."""
    stride: int = Field(default=25, ge=1)
    """Labels in one sequence: more are faster, fewer leave every label a longer history."""
    first_watch: bool = False
    """Whether a user's first watch, before which nothing is known, is a label."""
    min_watches: int = Field(default=1, ge=1)
    """Users with fewer watches before the end of training have no training label (M3's δ_min)."""
    max_watches: int | None = Field(default=None, ge=1)
    """Only the last watches of a user before the end of training are labels (M3's δ_max); None: all. Inputs are not
    cut: which watches are the last is known only afterwards, and no input may depend on that."""


@dataclass(frozen=True)
class SequenceLabels:
    """The labels of one shard, one row per example, and the further labels that its sequence predicts.

    Args:
      own: the examples' own labels, and all labels of validation and test.
      block: int64 `[rows]`, of every watch the row of the example's own label that it is predicted with; -1 of
        watches that are no training label.
    """

    own: CandidateLabels
    block: np.ndarray

    def weights(self, positions: np.ndarray, own_row: np.ndarray) -> np.ndarray:
        """float32 w_l of the watches at `positions` in the examples whose own label is `own_row`."""
        return ((self.block[positions] == own_row) & (positions != own_row)).astype(np.float32)


def sequence_labels(
    shard: Shard,
    split: Split,
    encoder: Encoder,
    evaluation: CandidateExamplesConfig,
    config: SequenceExamplesConfig,
    length: int,
) -> SequenceLabels:
    """Chooses the labels of a shard.

    Args:
      shard: with the watches.
      split: of the labels.
      encoder: looks up ids.
      evaluation: validation and test labels are those of the candidate-generation examples.
      config: of the training labels.
      length: watches in a sequence; a block is never longer.

    Returns:
      the labels; reasons for watches left out are those of `candidate_labels`, and: earlier than the days or the
      watches that labels are taken from, a user with too few watches, a first watch, more than the labels of a user,
      the same moment as the newest label of the block.
    """
    rows = shard.events["watches"]
    every = evaluation.model_copy(update={"labels_per_user": len(rows.user) + 1})
    found = candidate_labels(shard, split, encoder, every)
    left_out = dict(found.left_out)
    trains = found.part == Part.TRAIN
    row = found.row[trains]
    kept = np.ones(len(row), bool)
    for reason, drop in _reasons(rows, split, row, config):
        _count(left_out, reason, kept & drop)
        kept &= ~drop
    row = row[kept]
    if config.labels_per_user is not None:
        recent = _from_last(rows.user[row]) < config.labels_per_user
        _count(left_out, "beyond_the_labels_per_user", ~recent)
        row = row[recent]
    own = _own_labels(rows, row, min(config.stride, length))
    apart = (own == row) | (rows.time_us[own] != rows.time_us[row])
    _count(left_out, "of_the_moment_of_the_label_after", ~apart)
    row, own = row[apart], own[apart]
    block = np.full(len(rows.user), -1, np.int64)
    block[row] = own
    _count(left_out, "predicted_in_the_sequence_of_another", own != row)
    chosen = np.union1d(own, found.row[~trains])
    where = np.searchsorted(found.row, chosen)
    labels = CandidateLabels(chosen, found.part[where], found.label[where], found.identity, found.last_us, left_out)
    return SequenceLabels(labels, block)


def _count(left_out: dict[str, int], reason: str, which: np.ndarray) -> None:
    """Adds watches, bool `[n]`, to those left out for a reason; labels of evaluation may be among them already."""
    if count := int(which.sum()):
        left_out[reason] = left_out.get(reason, 0) + count


def _reasons(
    rows: EventRows, split: Split, row: np.ndarray, config: SequenceExamplesConfig
) -> list[tuple[str, np.ndarray]]:
    """Why labels at `row` are none, by reason."""
    user, time_us = rows.user, rows.time_us
    before = time_us < split.validation_start_us  # of all watches; those of the order alone are the earliest
    count = np.bincount(user[before], minlength=int(user.max(initial=-1)) + 1)
    position = row - rows.offsets[user[row]]
    reasons = [("user_with_too_few_watches", count[user[row]] < config.min_watches)]
    if not config.first_watch:
        reasons.append(("first_watch", position == 0))
    if config.label_days is not None:
        start_us = split.t0_us - round(config.label_days * _DAY_US)
        reasons.append(("before_the_label_days", time_us[row] <= max(start_us, ORDER_ONLY)))
    if config.max_watches is not None:
        reasons.append(("before_the_last_watches", position < count[user[row]] - config.max_watches))
    return reasons


def _from_last(user: np.ndarray) -> np.ndarray:
    """int64 `[n]`: how many of the same user come after, users being consecutive."""
    last = np.ones(len(user), bool)
    last[:-1] = user[1:] != user[:-1]
    position = np.arange(len(user))
    following = np.where(last, position, len(user))
    return np.minimum.accumulate(following[::-1])[::-1] - position


def _own_labels(rows: EventRows, row: np.ndarray, stride: int) -> np.ndarray:
    """int64 `[n]`: of labels at `row`, ascending, the label whose example predicts each: the newest of its block."""
    user = rows.user[row]
    newest = row[np.arange(len(row)) + _from_last(user)]
    block = (newest - row) // stride
    last = np.ones(len(row), bool)
    last[:-1] = (user[1:] != user[:-1]) | (block[1:] != block[:-1])
    following = np.where(last, np.arange(len(row)), len(row))
    return row[np.minimum.accumulate(following[::-1])[::-1]] if len(row) else row
