"""Candidate-generation examples: the next watch, from what the user did before it.

Covington et al. 2016, section 3.4. Labels are completed watches of every origin, not only recommended ones, a fixed
number per user so that users weigh equally. "Rollback" (Figure 5b): inputs are strictly before the label watch. The
random hold-out that many collaborative filters use (Figure 5a) is a choice for comparison.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.encoding import Encoder
from features.event_windows import ORDER_ONLY, Bags, Events
from features.example_features import FeatureColumns, Histories, RequestRows, list_array
from features.feature_lists import FeatureListConfig
from features.hashing import combine, hash_strings
from features.history import Derivation, last_events, seconds_between
from features.settings import Settings
from features.shards import Shard
from features.spec import Feature, FeatureSpec, Side
from features.splits import IN_GAP, PARTS, Part, Split
from features.tables import TIMESTAMP

LABEL_WEIGHTS = "label_weights"
"""Column of sequence examples: w_l of each watch of the sequence as a label, 0 where it is none."""

SEQUENCE = "watched_video_ids"
"""The feature that further lists of a sequence stand beside."""

LabelWeights = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Watches at positions `[n]`, in the examples of own labels at rows `[n]` -> float32 weights `[n]`."""

_CHUNK = 8192  # examples joined at a time
_CHUNK_EVENTS = 1 << 22  # events of their histories at a time, where whole histories are needed


class LabelChoice(StrEnum):
    """Which watches a training label is predicted from."""

    ROLLBACK = "rollback"  # Figure 5b: only what came before the label
    RANDOM_HOLD_OUT = "random_hold_out"  # Figure 5a: other watches of the training part, before and after the label


class EvaluationChoice(StrEnum):
    """Which validation and test labels of a user are taken, where there are too many."""

    DRAWN = "drawn"
    LAST = "last"


class CandidateExamplesConfig(Settings):
    """Which watches become candidate-generation examples."""

    label_choice: LabelChoice = LabelChoice.ROLLBACK
    """`rollback` or `random_hold_out`; validation, test and sequences are always next watches (rollback)."""
    labels_per_user: int = Field(default=50, ge=1)
    """Training labels of a user at most, chosen by a seeded hash; all users weigh the same."""
    evaluation_labels_per_user: int | None = Field(default=16, ge=1)
    """Validation and test labels of a user at most; None: all."""
    evaluation_choice: EvaluationChoice = EvaluationChoice.DRAWN
    """Which of them, where there are more: `drawn` by the seeded hash, or the `last` of each part."""
    evaluation_min_watches: int = Field(default=1, ge=1)
    """Users with fewer watches in the log have no validation and no test label."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of labels (and of watches, in the random hold-out)."""


@dataclass(frozen=True)
class CandidateLabels:
    """The watches of one shard that become labels.

    Args:
      row: int64 `[B]`, rows of the shard's watches, ascending.
      part: int8 `[B]` of `Part`.
      label: int32 `[B]`, row of the video in `video`; at least 1 in training.
      identity: uint64 `[rows]`, a hash of user, video and time of **all** watches.
      last_us: for training, and for training with validation (refit): the latest time of a watch, or None.
      left_out: reason → watches that become no example.
    """

    row: np.ndarray
    part: np.ndarray
    label: np.ndarray
    identity: np.ndarray
    last_us: tuple[int | None, int | None]
    left_out: dict[str, int]


def candidate_labels(shard: Shard, split: Split, encoder: Encoder, config: CandidateExamplesConfig) -> CandidateLabels:
    """Chooses the label watches of a shard.

    Left out, by reason: told twice; the time is not known; not completed (only where the table says so); it lies in
    the gap after t0; it belongs to no other part of the split; its user has too few watches (validation and test); a
    training label out of vocabulary; not among the user's chosen labels.
    """
    rows = shard.events["watches"]
    user = rows.user
    group = split.groups(shard.user_ids)[user]
    part = split.part_of_group(rows.time_us, group)
    label = encoder.videos.rows["video"][encoder.positions(rows.table["video_id"].combine_chunks())]
    completed = np.ones(len(user), bool)
    if "completed" in rows.table.column_names:
        known = pc.fill_null(rows.table["completed"].combine_chunks(), False)
        completed = known.to_numpy(zero_copy_only=False)
    video = hash_strings(rows.table["video_id"])
    identity = combine(combine(hash_strings(shard.user_ids)[user], rows.time_us), video)
    left_out = {"told_twice": rows.told_twice} if rows.told_twice else {}
    kept = np.ones(len(user), bool)
    for reason, drop in (
        ("time_not_known", rows.time_us == ORDER_ONLY),
        ("not_completed", ~completed),
        (IN_GAP, split.in_gap(rows.time_us, group)),
        ("in_no_part_of_the_split", part == Part.NONE),
        ("training_label_out_of_vocabulary", (part == Part.TRAIN) & (label == 0)),
        (
            "user_with_too_few_watches",
            (part != Part.TRAIN) & (np.diff(rows.offsets)[user] < config.evaluation_min_watches),
        ),
    ):
        if count := int((kept & drop).sum()):
            left_out[reason] = count
        kept &= ~drop
    row = np.flatnonzero(kept)
    draw = combine(identity[row], np.asarray(config.seed))
    if config.evaluation_choice == EvaluationChoice.LAST:  # rows of a user ascend in time
        draw = np.where(part[row] == Part.TRAIN, draw, np.uint64(len(user)) - row.astype(np.uint64))
    chosen = row[_chosen(user[row], part[row], draw, config)]
    if count := len(row) - len(chosen):
        left_out["beyond_the_labels_per_user"] = count
    timed = rows.time_us != ORDER_ONLY
    last_us = [
        _latest(rows.time_us[timed & split.is_training_user(shard.user_ids, with_validation)[user]], end_us)
        for with_validation, end_us in ((False, split.validation_start_us), (True, split.t0_us))
    ]
    return CandidateLabels(chosen, part[chosen], label[chosen], identity, (last_us[0], last_us[1]), left_out)


def _chosen(user: np.ndarray, part: np.ndarray, draw: np.ndarray, config: CandidateExamplesConfig) -> np.ndarray:
    """Positions, ascending, of the labels with a user's smallest draws within each part."""
    order = np.lexsort((draw, part, user))
    start = np.ones(len(order), bool)
    start[1:] = (user[order][1:] != user[order][:-1]) | (part[order][1:] != part[order][:-1])
    position = np.arange(len(order))
    rank = position - np.maximum.accumulate(np.where(start, position, 0))
    most = np.full(len(Part), config.evaluation_labels_per_user or len(order))
    most[Part.TRAIN] = config.labels_per_user
    return np.sort(order[rank < most[part[order]]])


def _latest(time_us: np.ndarray, end_us: int) -> int | None:
    before = time_us[time_us < end_us]
    return int(before.max()) if len(before) else None


@dataclass(frozen=True)
class LabelTotals:
    """What the examples of one shard need to know of all shards.

    Args:
      labels: part → number of labels.
      users: part → number of users with a label.
      t_max_us: latest time of a watch in training: the example age's zero (Figure 5b).
      refit_t_max_us: the same of training and validation together.
    """

    labels: Mapping[Part, int]
    users: Mapping[Part, int]
    t_max_us: int | None
    refit_t_max_us: int | None

    @staticmethod
    def of(shard: Shard, labels: CandidateLabels) -> "LabelTotals":
        """The totals of one shard."""
        user = shard.events["watches"].user[labels.row]
        return LabelTotals(
            {part: int((labels.part == part).sum()) for part in PARTS},
            {part: len(np.unique(user[labels.part == part])) for part in PARTS},
            *labels.last_us,
        )

    def __add__(self, other: "LabelTotals") -> "LabelTotals":
        return LabelTotals(
            {part: self.labels[part] + other.labels[part] for part in PARTS},
            {part: self.users[part] + other.users[part] for part in PARTS},
            _later(self.t_max_us, other.t_max_us),
            _later(self.refit_t_max_us, other.refit_t_max_us),
        )

    @staticmethod
    def zero() -> "LabelTotals":
        nothing = dict.fromkeys(PARTS, 0)
        return LabelTotals(nothing, nothing, None, None)

    def as_json(self) -> dict[str, Any]:
        return {
            "labels": {part.folder: self.labels[part] for part in PARTS},
            "users": {part.folder: self.users[part] for part in PARTS},
            "t_max_us": self.t_max_us,
            "refit_t_max_us": self.refit_t_max_us,
        }


def _later(one: int | None, other: int | None) -> int | None:
    times = [time for time in (one, other) if time is not None]
    return max(times) if times else None


def query_features(spec: FeatureSpec) -> tuple[Feature, ...]:
    """The features that examples hold; attributes of the output videos come from the catalogue."""
    return spec.side(Side.QUERY)


def candidate_schema(spec: FeatureSpec, part: Part, sequences: bool = False) -> pa.Schema:
    """The columns of a part of a candidate-generation example set, or of one of sequences."""
    fields: list[tuple[str, pa.DataType]] = [
        ("user_id", pa.string()),
        ("label_video_id", pa.string()),
        ("label", pa.int32()),
        ("label_timestamp", TIMESTAMP),
        ("weight", pa.float32()),
        *[(feature.name, feature.arrow_type) for feature in query_features(spec)],
    ]
    if sequences:
        fields.append((LABEL_WEIGHTS, pa.list_(pa.float32())))
    if part != Part.TRAIN:
        fields.append(("seen_video_ids", pa.list_(pa.int32())))
    return pa.schema(fields)


def candidate_examples(
    shard: Shard,
    labels: CandidateLabels,
    totals: LabelTotals,
    split: Split,
    spec: FeatureSpec,
    encoder: Encoder,
    lists: FeatureListConfig,
    config: CandidateExamplesConfig,
    label_weights: LabelWeights | None = None,
) -> Iterator[tuple[Part, pa.Table]]:
    """The examples of a shard.

    Args:
      shard: with the tables watches, searches and users, where the run has them.
      labels: of this shard.
      totals: of all shards.
      split: of the labels.
      spec: the candidate generator's features.
      encoder: looks up ids.
      lists: lengths of the history windows.
      config: how labels were chosen.
      label_weights: of sequence examples: weights of the watches in the sequence that are labels too; every example
        then weighs 1.

    Yields:
      A part and rows of its `candidate_schema`, some thousand at a time, in the shard's order.
    """
    watches = shard.events["watches"]
    history = Histories(shard, encoder, lists)
    rows = RequestRows(watches.table, watches.user, watches.time_us, _example_ages(watches.time_us, labels, totals))
    columns = FeatureColumns(query_features(spec), encoder, shard.users, rows, split.utc_offset_s, watches.table)
    seen = _FirstWatches(history.watches, watches.user)
    user = watches.user[labels.row]
    for part in PARTS:
        weights = np.ones(len(user), np.float32)
        if label_weights is None:
            weights = _weights(user, labels.part == part, totals.labels[part], totals.users[part])
        of_part = np.flatnonzero(labels.part == part)
        lengths = np.diff(watches.offsets)[user[of_part]]
        for chosen in _chunks(of_part, lengths):
            row = labels.row[chosen]
            snapshot_us = watches.time_us[row]
            requests = history.at(user[chosen], snapshot_us, history.watches.video[row])
            examples: dict[str, pa.Array | pa.ChunkedArray] = {
                "user_id": shard.user_ids.take(pa.array(user[chosen])),
                "label_video_id": watches.table["video_id"].take(pa.array(row)),
                "label": pa.array(labels.label[chosen]),
                "label_timestamp": pa.array(snapshot_us).cast(TIMESTAMP),
                "weight": pa.array(weights[chosen]),
                **columns.of(requests, row),
            }
            if part == Part.TRAIN and label_weights is None and config.label_choice == LabelChoice.RANDOM_HOLD_OUT:
                examples |= _held_out_columns(
                    spec, history.watches, user[chosen], row, labels.identity, split, encoder, config.seed
                )
            if label_weights is not None:
                length = int(spec[SEQUENCE].max_length or 0)
                positions = last_events(requests.watches, np.arange(len(watches.user)), length)
                found = label_weights(positions.values, row[positions.example])
                examples[LABEL_WEIGHTS] = list_array(Bags(found, positions.offsets))
            if part != Part.TRAIN:
                examples["seen_video_ids"] = list_array(seen.before(history.watches, user[chosen], snapshot_us))
            schema = candidate_schema(spec, part, label_weights is not None)
            yield part, pa.table([examples[name] for name in schema.names], schema)


def _chunks(chosen: np.ndarray, history_lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of at most `_CHUNK` examples whose histories hold about `_CHUNK_EVENTS` events at most."""
    total = np.cumsum(history_lengths)
    start = 0
    while start < len(chosen):
        before = total[start - 1] if start else 0
        end = int(np.searchsorted(total, before + _CHUNK_EVENTS, side="right"))
        end = min(max(end, start + 1), start + _CHUNK)
        yield chosen[start:end]
        start = end


def _example_ages(time_us: np.ndarray, labels: CandidateLabels, totals: LabelTotals) -> np.ndarray:
    """float32 seconds t_max − t of every training label's watch; 0 of all others, as at serving."""
    ages = np.zeros(len(time_us), np.float32)
    row = labels.row[labels.part == Part.TRAIN]
    if len(row):
        ages[row] = seconds_between(time_us[row], np.asarray(totals.t_max_us))
    return ages


def _weights(user: np.ndarray, of_part: np.ndarray, labels: int, users: int) -> np.ndarray:
    """float32: every user's weights in a part add up to labels / users, so their mean is one."""
    count = np.bincount(user[of_part], minlength=int(user.max(initial=-1)) + 1)
    return (labels / max(users, 1) / np.maximum(count[user], 1)).astype(np.float32)


class _FirstWatches:
    """Every user's first watch of every video of the catalogue: the distinct videos watched before a moment."""

    def __init__(self, events: Events, user: np.ndarray) -> None:
        video = events.video + 1  # of the vocabulary's videos their row, for the catalogue begins with them
        order = np.lexsort((np.arange(len(user)), video, user))
        first = np.ones(len(order), bool)
        first[1:] = (user[order][1:] != user[order][:-1]) | (video[order][1:] != video[order][:-1])
        self._positions = np.sort(order[first & (video[order] > 0)])
        self._videos = video[self._positions]

    def before(self, events: Events, user: np.ndarray, snapshot_us: np.ndarray) -> Bags:
        """Catalogue positions + 1 of the distinct videos that `user` `[n]` watched before `snapshot_us` `[n]`."""
        first, last = events.before(user, snapshot_us)
        return Bags.of_ranges(
            self._videos, np.searchsorted(self._positions, first), np.searchsorted(self._positions, last)
        ).sorted()


def _held_out_columns(
    spec: FeatureSpec,
    events: Events,
    user: np.ndarray,
    row: np.ndarray,
    identity: np.ndarray,
    split: Split,
    encoder: Encoder,
    seed: int,
) -> dict[str, pa.Array]:
    """The bags of watched videos drawn from before and after the label (Figure 5a), by feature name."""
    drawn = {}
    for feature in query_features(spec):
        if feature.source == f"history.{Derivation.WATCHED_VIDEO_IDS}":
            length = int(feature.max_length or 0)
            positions = draw_other_watches(events, user, row, identity, split.validation_start_us, length, seed)
            rows = encoder.videos.rows[str(feature.id_space)]
            drawn[feature.name] = list_array(Bags(rows[events.video[positions.values]], positions.offsets))
    return drawn


def draw_other_watches(
    events: Events, user: np.ndarray, row: np.ndarray, identity: np.ndarray, end_us: int, size: int, seed: int
) -> Bags:
    """Positions of at most `size` watches of each label's user, before and after it, drawn by a seeded hash.

    Args:
      events: the watches.
      user, row: int64 `[n]`, the labels.
      identity: uint64 `[events]`, hashes that tell the watches apart.
      end_us: end of the training part; later watches are never drawn, nor watches at the label's own time.
      size: of each bag, oldest first.
      seed: of the draw.
    """
    first, last = events.before(user, np.full(len(user), end_us))
    pool = Bags.of_ranges(np.arange(len(events.time_us)), first, last)
    label = row[pool.example]
    others = events.time_us[pool.values] != events.time_us[label]
    example, position = pool.example[others], pool.values[others]
    draw = combine(combine(identity[label[others]], identity[position].view(np.int64)), np.asarray(seed))
    order = np.lexsort((draw, example))
    counts = np.bincount(example, minlength=len(row))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    taken = np.sort(order[rank < size])
    offsets = np.concatenate([[0], np.cumsum(np.minimum(counts, size))])
    return Bags(position[taken], offsets)
