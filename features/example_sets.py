"""Example sets: a Beam job from user shards to Parquet files of examples.

`<set>/<train|validation|test>/part-*.parquet`, one file per shard and part, the specification of the features, and the
manifest with the counts: read = kept + left out, by reason. Two runs over the same input write the same bytes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq

from features.artifacts import publish, read_manifest
from features.beam import make_pipeline, run
from features.candidate_examples import (
    SEQUENCE,
    CandidateExamplesConfig,
    LabelTotals,
    candidate_examples,
    candidate_labels,
    candidate_schema,
    query_features,
)
from features.encoding import Encoder, load_encoder
from features.errors import ArtifactError, DataError
from features.event_windows import ORDER_ONLY
from features.example_reader import SPEC
from features.feature_columns import source_columns
from features.feature_lists import DEFAULTS, FeatureListConfig
from features.ranking_examples import RankingExamplesConfig, ranking_examples, ranking_labels, ranking_schema
from features.sequence_examples import SequenceExamplesConfig, SequenceLabels, sequence_labels
from features.shards import Shard, num_shards, read_shard, shard_columns
from features.spec import FeatureSpec, Model, write_specs
from features.splits import PARTS, Part, Split, iso_time
from features.vocabulary import serving_rows

ROW_GROUP_ROWS = 1 << 16
"""Rows of a row group, what a reader holds at a time."""


_CANDIDATE_DEFAULTS = CandidateExamplesConfig()
_SEQUENCE_DEFAULTS = SequenceExamplesConfig()
_RANKING_DEFAULTS = RankingExamplesConfig()


@dataclass(frozen=True)
class ShardExamples:
    """The examples of a shard: `batches` of a part and its rows, and reason → rows of the table that are none."""

    batches: Iterator[tuple[Part, pa.Table]]
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class CandidateExamplesJob:
    """The candidate-generation examples of a run.

    Args:
      spec: the candidate generator's features.
      split: of the labels.
      lists: lengths of the history windows.
      config: which watches become examples.
    """

    spec: FeatureSpec
    split: Split
    lists: FeatureListConfig = DEFAULTS
    config: CandidateExamplesConfig = _CANDIDATE_DEFAULTS

    model: ClassVar[Model] = "candidate_generator"
    event_table: ClassVar[str] = "watches"

    def schema(self, part: Part, columns: Mapping[str, Iterable[str]]) -> pa.Schema:
        return candidate_schema(self.spec, part)

    def tables(self) -> set[str]:
        return {"watches"} | {table for f in query_features(self.spec) for table, _ in source_columns(f, self.model)}

    def totals(self, shard: Shard, encoder: Encoder) -> LabelTotals:
        return LabelTotals.of(shard, candidate_labels(shard, self.split, encoder, self.config))

    def examples(self, shard: Shard, encoder: Encoder, totals: LabelTotals) -> ShardExamples:
        labels = candidate_labels(shard, self.split, encoder, self.config)
        return ShardExamples(
            candidate_examples(shard, labels, totals, self.split, self.spec, encoder, self.lists, self.config),
            labels.left_out,
        )

    def as_json(self) -> dict[str, Any]:
        return _as_json(self)


@dataclass(frozen=True)
class SequenceExamplesJob:
    """The sequence examples of a run.

    Args:
      spec: the features of generators of sequences, `watched_video_ids` among them.
      split: of the labels.
      lists: lengths of the history windows.
      evaluation: validation and test labels, as of the candidate-generation examples.
      config: training labels.
    """

    spec: FeatureSpec
    split: Split
    lists: FeatureListConfig = DEFAULTS
    evaluation: CandidateExamplesConfig = _CANDIDATE_DEFAULTS
    config: SequenceExamplesConfig = _SEQUENCE_DEFAULTS

    model: ClassVar[Model] = "sequence_generator"
    event_table: ClassVar[str] = "watches"

    def schema(self, part: Part, columns: Mapping[str, Iterable[str]]) -> pa.Schema:
        return candidate_schema(self.spec, part, sequences=True)

    def tables(self) -> set[str]:
        return {"watches"} | {table for f in query_features(self.spec) for table, _ in source_columns(f, self.model)}

    def totals(self, shard: Shard, encoder: Encoder) -> LabelTotals:
        return LabelTotals.of(shard, self._labels(shard, encoder).own)

    def examples(self, shard: Shard, encoder: Encoder, totals: LabelTotals) -> ShardExamples:
        labels = self._labels(shard, encoder)
        batches = candidate_examples(
            shard, labels.own, totals, self.split, self.spec, encoder, self.lists, self.evaluation, labels.weights
        )
        return ShardExamples(batches, labels.own.left_out)

    def _labels(self, shard: Shard, encoder: Encoder) -> SequenceLabels:
        length = int(self.spec[SEQUENCE].max_length or 0)
        return sequence_labels(shard, self.split, encoder, self.evaluation, self.config, length)

    def as_json(self) -> dict[str, Any]:
        return {**_as_json(self), "evaluation": self.evaluation.model_dump(mode="json")}


@dataclass(frozen=True)
class RankingExamplesJob:
    """The ranking examples of a run.

    Args:
      spec: the ranker's features.
      split: of the labels.
      lists: lengths of the history windows.
      config: which impressions become examples.
    """

    spec: FeatureSpec
    split: Split
    lists: FeatureListConfig = DEFAULTS
    config: RankingExamplesConfig = _RANKING_DEFAULTS

    model: ClassVar[Model] = "ranker"
    event_table: ClassVar[str] = "impressions"

    def schema(self, part: Part, columns: Mapping[str, Iterable[str]]) -> pa.Schema:
        return ranking_schema(self.spec, "impression_id" in columns["impressions"])

    def tables(self) -> set[str]:
        own = {table for f in self.spec.features for table, _ in source_columns(f, self.model)}
        return {"impressions", "watches"} | own  # watches may hold the watch time of clicked impressions

    def totals(self, shard: Shard, encoder: Encoder) -> LabelTotals:
        return LabelTotals.zero()

    def examples(self, shard: Shard, encoder: Encoder, totals: LabelTotals) -> ShardExamples:
        labels = ranking_labels(shard, self.split, self.config)
        batches = ranking_examples(shard, labels, self.spec, encoder, self.lists, self.split.utc_offset_s)
        return ShardExamples(batches, labels.left_out)

    def as_json(self) -> dict[str, Any]:
        return _as_json(self)


ExamplesJob = CandidateExamplesJob | SequenceExamplesJob | RankingExamplesJob


def _as_json(job: ExamplesJob) -> dict[str, Any]:
    return {
        "kind": "examples",
        "model": job.model,
        "split": job.split.as_json(),
        "feature_lists": job.lists.model_dump(mode="json"),
        "config": job.config.model_dump(mode="json"),
    }


def build_examples(
    job: ExamplesJob,
    shards: Path,
    features: Path,
    output: Path,
    beam_args: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Publishes an example set and returns its manifest.

    Args:
      job: which examples.
      shards: published by `features.shards.write_shards`.
      features: the run's `features` folder with published `vocabularies` and `catalogue`.
      output: the folder to publish, for example `runs/<id>/examples/ranking`.
      beam_args: Beam pipeline options.

    Raises:
      ArtifactError: the shards do not hold the table that examples are made of.
      DataError: no training example remains, none for the test of a candidate generator, or the counts do not add up.
    """
    columns = shard_columns(shards)
    if job.event_table not in columns:
        raise ArtifactError(f"{shards}: examples of the {job.model} need the table {job.event_table!r}, found none")
    manifest = job.as_json()
    with publish(output, manifest) as folder:
        for part in PARTS:
            (folder / part.folder).mkdir()
        shard_numbers = range(num_shards(shards))
        pipeline = make_pipeline(beam_args)
        numbers = pipeline | "shards" >> beam.Create(list(shard_numbers)) | "spread shards" >> beam.Reshuffle()
        totals = (
            numbers
            | "totals of a shard" >> beam.ParDo(_Totals(job, shards, features))
            | "totals" >> beam.CombineGlobally(_sum_totals)
        )
        _ = numbers | "write examples" >> beam.ParDo(
            _WriteExamples(job, shards, features, folder), beam.pvalue.AsSingleton(totals)
        )
        run(pipeline, f"{job.model} examples")
        write_specs(folder / SPEC, {job.model: job.spec})
        manifest["serving_rows"] = serving_rows(job.spec, load_encoder(features).vocabularies)
        manifest.update(_gather(folder, shard_numbers))
        _check_counts(output, manifest)
        if not isinstance(job, RankingExamplesJob):
            _require_test_labels(output, manifest, job.split)
    return read_manifest(output)


def _sum_totals(totals: Iterable[LabelTotals]) -> LabelTotals:
    return reduce(add, totals, LabelTotals.zero())


class _OnShards(beam.DoFn):
    """Reads shards and holds the encoder."""

    def __init__(self, job: ExamplesJob, shards: Path, features: Path) -> None:
        self._job = job
        self._shards = shards
        self._features = features

    def setup(self) -> None:
        self._encoder = load_encoder(self._features)


class _Totals(_OnShards):
    """Shard number → its totals."""

    def process(self, shard: int) -> Iterator[LabelTotals]:
        if not isinstance(self._job, RankingExamplesJob):
            yield self._job.totals(read_shard(self._shards, shard, {"watches"}), self._encoder)


class _WriteExamples(_OnShards):
    """Shard number → one Parquet file per part, and its counts."""

    def __init__(self, job: ExamplesJob, shards: Path, features: Path, folder: Path) -> None:
        super().__init__(job, shards, features)
        self._folder = folder

    def process(self, shard: int, totals: LabelTotals) -> None:
        rows = read_shard(self._shards, shard, self._job.tables())
        columns = shard_columns(self._shards)
        events = rows.events[self._job.event_table]
        examples = self._job.examples(rows, self._encoder, totals)
        kept = dict.fromkeys(PARTS, 0)
        with ExitStack() as files:
            writers = {}
            for part in PARTS:
                path = self._folder / part.folder / f"part-{shard:05d}.parquet"
                schema = self._job.schema(part, columns)
                # Dictionaries of values that seldom repeat cost time and, compressed, more space than they save.
                writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["user_id"])
                writers[part] = _RowGroups(files.enter_context(writer))
            for part, batch in examples.batches:
                writers[part].write(batch)
                kept[part] += len(batch)
            for writer in writers.values():
                writer.flush()
        counts = {
            "read": len(events.table) + events.told_twice,
            "kept": {part.folder: kept[part] for part in PARTS},
            "left_out": dict(examples.left_out),
            "totals": totals.as_json(),
            "last_us": int(events.time_us.max(initial=ORDER_ONLY)),
        }
        _counts_file(self._folder, shard).write_text(json.dumps(counts))


class _RowGroups:
    """Writes row groups of `ROW_GROUP_ROWS` rows."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def write(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        self._rows += len(rows)
        if self._rows >= ROW_GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=2 * ROW_GROUP_ROWS)
        self._waiting, self._rows = [], 0


def _counts_file(folder: Path, shard: int) -> Path:
    return folder / f"counts-{shard:05d}.json"


def _gather(folder: Path, shards: Iterable[int]) -> dict[str, Any]:
    """Adds up the shards' counts, whose files it removes."""
    total: dict[str, Any] = {"read": 0, "kept": {part.folder: 0 for part in PARTS}, "left_out": {}}
    last_us = ORDER_ONLY
    for shard in shards:
        counts = json.loads(_counts_file(folder, shard).read_text())
        _counts_file(folder, shard).unlink()
        total["read"] += counts["read"]
        for kind in ("kept", "left_out"):
            for name, count in counts[kind].items():
                total[kind][name] = total[kind].get(name, 0) + count
        totals = counts["totals"]
        last_us = max(last_us, counts["last_us"])
    times = {"t_max_us": totals["t_max_us"], "refit_t_max_us": totals["refit_t_max_us"], "last_us": last_us}
    return {"counts": total, **times}


def _check_counts(output: Path, manifest: Mapping[str, Any]) -> None:
    counts = manifest["counts"]
    told = sum(counts["kept"].values()) + sum(counts["left_out"].values())
    if counts["read"] != told:
        raise DataError(
            f"{output}: {counts['read']} rows read but {told} kept or left out; this is a defect, report it"
        )
    if counts["kept"]["train"] == 0:
        raise DataError(
            f"{output}: no training example among {counts['read']} rows ({_reasons(counts)}); "
            "check the split's t0, test_days and validation_days against the log"
        )


def _require_test_labels(output: Path, manifest: Mapping[str, Any], split: Split) -> None:
    """Raises DataError where nothing could be tested, before hours are spent on training."""
    counts = manifest["counts"]
    if counts["kept"]["test"]:
        return
    last_us = manifest["last_us"]
    last = "no watch has a time" if last_us == ORDER_ONLY else f"the last watch is of {iso_time(last_us)}"
    by_time = split.test_start_us > ORDER_ONLY + 1
    starts = f"t0 is {iso_time(split.t0_us)} and tests start at {iso_time(split.test_start_us)}, " if by_time else ""
    changes = ["an earlier split.t0 (or more split.test_days), a shorter split.gap_hours"] if by_time else []
    changes += ["a greater split.test_user_share"] if split.test_user_share else []
    raise DataError(
        f"{output}: no test label among {counts['read']} watches ({_reasons(counts)}): {starts}{last}; "
        f"set {' or '.join(changes)}"
    )


def _reasons(counts: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts["left_out"].items()))
    return reasons or "none was left out"
