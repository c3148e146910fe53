"""The leakage check: no example may hold what was not known at its moment.

Sampled examples are made again from logs that end at the label's moment (ranking: at the request's snapshot), once by
the code that made the example set and once by a slow second way (`features/leakage_reference.py`). What examples share
(boundaries of the split, the example age's zero, the vocabularies) is compared with the whole log.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.artifacts import read_manifest
from features.encoding import Encoder, load_encoder
from features.errors import LeakageError
from features.event_windows import ORDER_ONLY
from features.example_reader import ExampleSet
from features.feature_columns import GENERATORS
from features.history import Derivation
from features.leakage_reference import Lookups
from features.leakage_samples import Sample, readable
from features.settings import Settings
from features.shards import num_shards, read_rows, shard_columns, times_us
from features.splits import PARTS, Part


class LeakageConfig(Settings):
    """How much of an example set is made again."""

    examples_per_part: int = Field(default=200, ge=1)
    """Examples of each part, spread evenly over the sampled shards; fewer of a user with very many events."""
    shards: int = Field(default=4, ge=1)
    """Shards that examples are taken from, spread evenly."""
    max_label_shown_share: float = Field(default=0.5, ge=0, le=1)
    """Share of a generator's training labels at most that are among the videos shown before the watch."""


DEFAULTS = LeakageConfig()


@dataclass(frozen=True)
class LeakageReport:
    """What was checked: examples made again, by part, and the values compared."""

    examples: dict[str, int]
    values: int


def check_leakage(examples: Path, shards: Path, features: Path, config: LeakageConfig = DEFAULTS) -> LeakageReport:
    """Checks a published example set.

    Args:
      examples: the set, for example `runs/<id>/examples/ranking`.
      shards: the user shards that it was made from.
      features: the run's `features` folder (vocabularies, catalogue).
      config: how much is made again.

    Raises:
      LeakageError: an example, or what all share, holds what was not known; the message names the example.
    """
    stored = ExampleSet(examples)
    encoder = load_encoder(features)
    check_vocabularies(stored, shards, features, encoder)
    check_labels(stored)
    if stored.model in GENERATORS:
        check_t_max(stored, shards)
        check_shown(stored, config.max_label_shown_share)
    checked = {part.folder: 0 for part in PARTS}
    values = 0
    lookups = Lookups(encoder)
    for part in PARTS:
        for shard, rows in _samples(stored, part, num_shards(shards), config):
            sample = Sample(stored, part, shards, shard, rows, encoder, lookups)
            values += sample.check()
            checked[part.folder] += len(sample)
    return LeakageReport(checked, values)


def _samples(stored: ExampleSet, part: Part, shards: int, config: LeakageConfig) -> Iterator[tuple[int, pa.Table]]:
    chosen = np.unique(np.linspace(0, shards - 1, min(config.shards, shards)).astype(int))
    each = -(-config.examples_per_part // len(chosen))
    for shard in chosen:
        rows = pa.Table.from_batches(list(stored.batches([stored.files(part)[shard]])), stored.schema(part))
        if len(rows):
            yield int(shard), rows.take(pa.array(np.unique(np.linspace(0, len(rows) - 1, each).astype(np.int64))))


def check_vocabularies(stored: ExampleSet, shards: Path, features: Path, encoder: Encoder) -> None:
    """Vocabularies were fitted on the training part of this split: no id counts more often than it occurs there."""
    split = stored.split
    fitted = read_manifest(features / "vocabularies").get("split")
    if fitted is not None and fitted != split.as_json():
        raise LeakageError(
            f"{features}/vocabularies: fitted on the split {fitted}, but the examples in {stored.folder} have "
            f"{split.as_json()}; run the analysis again with this split"
        )
    tables = shard_columns(shards)
    for space, name in (("video", "watches"), ("clicked_video", "impressions")):
        if space not in encoder.vocabularies or name not in tables:
            continue
        vocabulary = encoder.vocabularies[space]
        counts = np.zeros(vocabulary.size + 1, np.int64)
        wanted = ["user_id", "video_id", "timestamp", "clicked", "time_known"]
        for shard in range(num_shards(shards)):
            rows = read_rows(shards, name, shard, [column for column in wanted if column in tables[name]])
            if rows is None or not len(rows):
                continue
            fits = split.fits(times_us(rows), rows["user_id"].combine_chunks())
            if space == "clicked_video":
                fits &= pc.fill_null(rows["clicked"], False).combine_chunks().to_numpy(zero_copy_only=False)
            counts += np.bincount(vocabulary.lookup(rows["video_id"])[fits], minlength=len(counts))
        excess = np.flatnonzero(vocabulary.counts > counts[1:])
        if len(excess):
            worst = int(excess[0])
            raise LeakageError(
                f"{features}/vocabularies/{space}.parquet: {vocabulary.ids[worst].as_py()!r} is counted "
                f"{vocabulary.counts[worst]} times but occurs {counts[1 + worst]} times in the training part; "
                "fit vocabularies on the training part only"
            )


def check_shown(stored: ExampleSet, most: float) -> None:
    """What was shown before a watch is seldom the watch: its own impression is no history of the request to predict.

    Where a log's impressions are a moment older than the watches they led to, a bag of what was shown holds the label,
    in training and test alike, and at serving it does not: there the list is yet to be made.
    """
    for feature in stored.features:
        if feature.source != f"history.{Derivation.SHOWN_VIDEO_IDS}" or feature.id_space != "video":
            continue
        found = 0
        for batch in stored.batches(stored.files(Part.TRAIN), ["label", feature.name]):
            shown = batch[feature.name]
            example = np.repeat(np.arange(len(batch)), pc.fill_null(pc.list_value_length(shown), 0).to_numpy())
            is_label = shown.flatten().to_numpy() == batch["label"].to_numpy()[example]
            found += len(np.unique(example[is_label]))
        share = found / max(stored.num_examples(Part.TRAIN), 1)
        if share > most:
            raise LeakageError(
                f"{stored.folder}: feature {feature.name!r} holds the label in {share:.0%} of the training examples, "
                f"expected at most {most:.0%}: impressions of this log precede the watches they led to; leave the "
                "feature out, or raise leakage.max_label_shown_share if videos are shown often before they are watched"
            )


def check_labels(stored: ExampleSet) -> None:
    """Every label is in the part that its time and user belong to, and what examples share is of the training part."""
    columns = ["user_id", "label_video_id", "label_timestamp", "label"]
    if stored.model == "ranker":
        columns = ["user_id", "video_id", "timestamp", "snapshot_timestamp"]
    elif "example_age" in stored.spec:
        columns.append("example_age")
    for part in PARTS:
        for batch in stored.batches(stored.files(part), columns):
            time_us = batch.column(2).cast(pa.int64()).to_numpy()
            belongs = stored.split.part_of(time_us, batch.column(0))
            for other in Part:
                _refuse((belongs == other) & (other != part), batch, part, f"it belongs to part {other.folder}")
            if stored.model == "ranker":
                snapshot_us = batch["snapshot_timestamp"].cast(pa.int64()).to_numpy()
                _refuse(snapshot_us > time_us, batch, part, "its snapshot is after the impression")
                continue
            if part == Part.TRAIN:
                label = batch["label"].to_numpy()
                _refuse(label < 1, batch, part, "column 'label' stored 0: out of vocabulary")
            if "example_age" in batch.schema.names:
                _check_example_ages(stored, batch, part, time_us)


def _check_example_ages(stored: ExampleSet, batch: pa.RecordBatch, part: Part, time_us: np.ndarray) -> None:
    ages = batch["example_age"].to_numpy()
    expected = np.zeros(len(ages), np.float32)
    if part == Part.TRAIN:
        expected = ((stored.manifest["t_max_us"] - time_us) / 1e6).astype(np.float32)
    wrong = (ages != expected) | (ages < 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        _refuse(wrong, batch, part, f"column 'example_age' stored {ages[row]}, recomputed {expected[row]}")


def _refuse(wrong: np.ndarray, batch: pa.RecordBatch, part: Part, why: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        user, video, time = (batch.column(i)[row].as_py() for i in range(3))
        raise LeakageError(f"{part.folder} example of user {user!r}, video {video!r} at {time}: {why}")


def check_t_max(stored: ExampleSet, shards: Path) -> None:
    """The example age's zero is the latest watch of the training part."""
    split = stored.split
    wanted = [c for c in ("user_id", "timestamp", "time_known") if c in shard_columns(shards)["watches"]]
    latest = ORDER_ONLY
    for shard in range(num_shards(shards)):
        rows = read_rows(shards, "watches", shard, wanted)
        if rows is not None and len(rows):
            time_us = times_us(rows)
            trains = (time_us < split.validation_start_us) & split.is_training_user(rows["user_id"].combine_chunks())
            latest = max(latest, int(time_us[trains].max(initial=ORDER_ONLY)))
    if stored.manifest["t_max_us"] != latest:
        raise LeakageError(
            f"{stored.folder}: t_max is {readable(stored.manifest['t_max_us'])}, but the latest training watch "
            f"is at {readable(latest)}; every example age is counted from it"
        )
