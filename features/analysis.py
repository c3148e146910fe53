"""The analysis jobs: vocabularies and statistics of the training part, and quantiles of the ranking examples.

`analyze_tables` reads every table once: each batch is cut to its rows in the training part, and its id counts and
column summaries go their ways from there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints.decorators import no_annotations
from pydantic import Field
from rich.console import Console

from features.artifacts import MANIFEST, publish
from features.beam import ReadColumns, make_pipeline, run
from features.errors import ArtifactError, DataError
from features.event_windows import ORDER_ONLY
from features.quantiles import (
    Quantiles,
    QuantilesCombineFn,
    QuantilesConfig,
    QuantileSketch,
    read_quantiles,
    write_quantiles,
)
from features.settings import Settings
from features.spec import FeatureSpec, Kind, Normaliser
from features.splits import Split
from features.statistics import StatisticsConfig, SummariseColumn
from features.tables import TABLES, has_table, table_columns, table_files
from features.vocabulary import Vocabulary, VocabularyConfig
from features.vocabulary_requests import VocabularyRequest, WriteVocabularies

FIXED_VOCABULARIES: Mapping[str, tuple[str, ...]] = {"hour": tuple(str(hour) for hour in range(24))}
"""Id spaces that are known beforehand."""

_EVENT_TABLES = ("watches", "impressions", "searches")


class AnalysisConfig(Settings):
    """What the analysis keeps."""

    vocabulary: VocabularyConfig = VocabularyConfig(top_n=1_000_000)
    """Of every id space that `vocabularies` does not name (section 3.5: 1M videos, 1M search tokens)."""
    vocabularies: dict[str, VocabularyConfig] = Field(default_factory=dict)
    """By id space: `video`, `clicked_video`, `uploader`, `topic`, `search_token`, `region`, ..."""
    statistics: StatisticsConfig = StatisticsConfig()
    """Of every column of every table."""
    quantiles: QuantilesConfig = QuantilesConfig()
    """Of the ranker's continuous features."""

    def of_space(self, space: str) -> VocabularyConfig:
        return self.vocabularies.get(space, self.vocabulary)


def analyze_tables(
    tables: Path,
    output: Path,
    requests: Sequence[VocabularyRequest],
    split: Split,
    config: AnalysisConfig = AnalysisConfig(),  # noqa: B008 - frozen
    beam_args: Sequence[str] = (),
    manifest: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> None:
    """Publishes `<output>/vocabularies/<space>.parquet` and `<output>/statistics/<table>.json`.

    The training part is: events that `split.fits`, users not held out, videos uploaded before the end of the fit (or at
    an unknown time). Both manifests hold the rows read, used and outside the training part, by table; that of the
    vocabularies also holds their sizes.

    Args:
      tables: the run's canonical tables.
      output: the run's `features` folder.
      requests: what to count; `FIXED_VOCABULARIES` are added.
      split: the training part.
      config: what is kept.
      beam_args: Beam's own options.
      manifest: entries to add to both manifests.
      console: where progress is drawn.

    Raises:
      ArtifactError: a requested table is not there.
      DataError: a requested table has no row in the training part, or a worker could not read its input.
    """
    names = [name for name in TABLES if has_table(tables, name)]
    absent = sorted({request.table for request in requests} - set(names))
    if absent:
        raise ArtifactError(
            f"{tables}: expected table {absent[0]!r} for a vocabulary, found {', '.join(names) or 'none'}"
        )
    entries = {"split": split.as_json(), "config": config.model_dump(mode="json"), **(manifest or {})}
    counted: dict[str, Any] = {**entries, "requests": [asdict(request) for request in requests]}
    described: dict[str, Any] = dict(entries)
    with ExitStack() as stack:
        vocabularies = stack.enter_context(publish(Path(output) / "vocabularies", counted))
        statistics = stack.enter_context(publish(Path(output) / "statistics", described))
        pipeline = make_pipeline(beam_args)
        parts = {name: pipeline | name >> _TrainingPart(tables, name, split) for name in names}
        if requests:
            batches = {name: part | f"Batches_{name}" >> beam.Values() for name, part in parts.items()}
            configs = {request.space: config.of_space(request.space) for request in requests}
            _ = batches | "Vocabularies" >> WriteVocabularies(requests, configs, vocabularies)
        _ = parts | "Statistics" >> _Statistics(config.statistics, statistics)
        run(pipeline, "Analysing tables", console)
        rows = {name: table["rows"] for name, table in read_statistics(statistics).items()}
        _check_rows(rows, requests, split)
        counted["sizes"] = _complete(vocabularies, requests)
        counted["rows"] = described["rows"] = rows


class _TrainingPart(beam.PTransform):
    """A table's batches as (rows read, rows of the training part)."""

    def __init__(self, tables: Path, name: str, split: Split) -> None:
        super().__init__()
        self._files = table_files(tables, name)
        self._columns = table_columns(tables, name)
        self._name, self._split = name, split

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        read = pbegin | "Read" >> ReadColumns(self._files, self._columns)
        return read | "Keep" >> beam.Map(training_rows, self._name, self._split)


def training_rows(batch: pa.Table, name: str, split: Split) -> tuple[int, pa.Table]:
    """Rows read, and those of them that are in the training part."""
    if name in _EVENT_TABLES:
        kept = split.fits(_time_us(batch["timestamp"]), batch["user_id"].combine_chunks())
    elif name == "users":
        kept = ~split.is_test_user(batch["user_id"].combine_chunks())
    elif "upload_time" in batch.column_names:
        kept = _time_us(batch["upload_time"]) < split.fit_end_us
    else:
        return batch.num_rows, batch
    return batch.num_rows, batch if kept.all() else batch.filter(pa.array(kept))


def _time_us(column: pa.ChunkedArray) -> np.ndarray:
    times = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return pc.fill_null(times, ORDER_ONLY).to_numpy()


def _complete(folder: Path, requests: Sequence[VocabularyRequest]) -> dict[str, int]:
    """Adds the fixed vocabularies and the empty ones; returns all sizes."""
    for space, ids in FIXED_VOCABULARIES.items():
        Vocabulary.of(ids).write(folder / f"{space}.parquet")
    for space in {request.space for request in requests}:
        if not (folder / f"{space}.parquet").exists():
            Vocabulary.of([]).write(folder / f"{space}.parquet")
    return {path.stem: Vocabulary.read(path).size for path in sorted(folder.glob("*.parquet"))}


class _Statistics(beam.PTransform):
    """Table name -> batches; writes `<table>.json`."""

    def __init__(self, config: StatisticsConfig, folder: Path) -> None:
        super().__init__()
        self._config, self._folder = config, folder

    @no_annotations
    def expand(self, batches: dict[str, beam.PCollection]) -> list[beam.PCollection]:
        return [self._describe(name, parts) for name, parts in batches.items()]

    def _describe(self, name: str, parts: beam.PCollection) -> beam.PCollection:
        rows = parts | f"Rows_{name}" >> beam.FlatMap(_row_counts) | f"AddRows_{name}" >> beam.CombinePerKey(sum)
        columns = (
            parts
            | f"Columns_{name}" >> beam.FlatMap(_columns)
            | f"Summarise_{name}" >> beam.CombinePerKey(SummariseColumn(self._config))
            | f"Gather_{name}" >> beam.combiners.ToDict()
        )
        path = self._folder / f"{name}.json"
        return columns | f"Write_{name}" >> beam.Map(_write_statistics, path, beam.pvalue.AsDict(rows))


def _row_counts(part: tuple[int, pa.Table]) -> list[tuple[str, int]]:
    read, batch = part
    used = batch.num_rows
    return [("read", read), ("used", used), ("outside_training_part", read - used)]


def _columns(part: tuple[int, pa.Table]) -> Iterator[tuple[str, pa.ChunkedArray]]:
    _, batch = part
    yield from zip(batch.column_names, batch.columns, strict=True)


def _write_statistics(columns: dict[str, Any], path: Path, rows: dict[str, int]) -> None:
    path.write_text(json.dumps({"rows": rows, "columns": columns}, indent=1, sort_keys=True) + "\n")


def read_statistics(folder: Path) -> dict[str, dict[str, Any]]:
    """Table name -> {rows: {read, used, outside_training_part}, columns: {column: its statistics}}.

    Args:
      folder: the published `statistics` folder.
    """
    return {
        path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json")) if path.name != MANIFEST
    }


def _check_rows(rows: Mapping[str, Mapping[str, int]], requests: Sequence[VocabularyRequest], split: Split) -> None:
    for name in sorted({request.table for request in requests}):
        if rows[name].get("used", 0) == 0:
            raise DataError(
                f"table {name!r}: expected rows in the training part (before {_moment(split.fit_end_us)}, of users not "
                f"held out), found none among {rows[name].get('read', 0):,}; change the split or add earlier data"
            )


def _moment(time_us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()


def fit_quantiles(
    example_set: Path,
    spec: FeatureSpec,
    output: Path,
    config: QuantilesConfig = QuantilesConfig(),  # noqa: B008 - frozen
    beam_args: Sequence[str] = (),
    manifest: Mapping[str, Any] | None = None,
    console: Console | None = None,
    part: str = "train",
) -> dict[str, Quantiles]:
    """Publishes `<output>/quantiles/quantiles.json`: the quantiles of every `Normaliser.QUANTILE` feature of `spec`.

    Args:
      example_set: a published example set (`examples/ranking`).
      spec: the model's features.
      output: the run's `features` folder.
      config: how quantiles are found.
      beam_args: Beam's own options.
      manifest: entries to add to the manifest.
      console: where progress is drawn.
      part: the sub-folder to read.

    Returns:
      What it published: feature name -> quantiles.

    Raises:
      ArtifactError: there are no examples.
      DataError: the examples lack a feature's column.
    """
    names = [f.name for f in spec.kind(Kind.CONTINUOUS) if f.normaliser == Normaliser.QUANTILE]
    files = sorted((Path(example_set) / part).glob("part-*.parquet"))
    if not files:
        raise ArtifactError(f"{example_set}/{part}: expected part-*.parquet, found none; build the examples first")
    entries = {"config": config.model_dump(mode="json"), "features": names, **(manifest or {})}
    with publish(Path(output) / "quantiles", entries) as folder:
        path = folder / "quantiles.json"
        if names:
            pipeline = make_pipeline(beam_args)
            _ = (
                pipeline
                | "Read" >> ReadColumns(files, names)
                | "Columns" >> beam.FlatMap(_number_columns)
                | "Sketch" >> beam.CombinePerKey(QuantilesCombineFn(config))
                | "Gather" >> beam.combiners.ToDict()
                | "Write" >> beam.Map(_write_quantiles, path, names, config.boundaries)
            )
            run(pipeline, "Fitting quantiles", console)
        else:
            write_quantiles(path, {})
        quantiles = read_quantiles(path)
        entries["examples"] = max((q.count + q.missing + q.infinite for q in quantiles.values()), default=0)
    return quantiles


def _number_columns(batch: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    for name, column in zip(batch.column_names, batch.columns, strict=True):
        yield name, pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()


def _write_quantiles(found: dict[str, Quantiles], path: Path, names: Sequence[str], boundaries: int) -> None:
    none = QuantileSketch().quantiles(boundaries)
    write_quantiles(path, {name: found.get(name, none) for name in names})
