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
from pydantic import Field
from rich.console import Console

from features.artifacts import MANIFEST, publish
from features.beam import ReadColumns, ReadTables, make_pipeline, run
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
        read = {name: (table_files(tables, name), table_columns(tables, name)) for name in names}
        parts = pipeline | ReadTables(read) | "TrainingPart" >> beam.Map(training_part, split)
        if requests:
            configs = {request.space: config.of_space(request.space) for request in requests}
            counted_by = next((name for name in ("watches", "impressions") if name in names), None)
            batches = parts | "Batches" >> beam.Map(_without_rows)
            _ = batches | WriteVocabularies(requests, configs, vocabularies, counted_by)
        _ = parts | WriteStatistics(names, config.statistics, statistics)
        run(pipeline, "Analysing tables", console)
        rows = {name: table["rows"] for name, table in read_statistics(statistics).items()}
        _check_rows(rows, requests, split)
        counted["sizes"] = _complete(vocabularies, requests)
        counted["rows"] = described["rows"] = rows


def training_part(table: tuple[str, pa.Table], split: Split) -> tuple[str, tuple[int, pa.Table]]:
    """Table name -> rows read, and those of them that are in the training part."""
    name, batch = table
    if name in _EVENT_TABLES:
        kept = split.fits(_time_us(batch["timestamp"]), batch["user_id"].combine_chunks())
    elif name == "users":
        kept = split.is_training_user(batch["user_id"].combine_chunks(), with_validation=split.refit)
    elif "upload_time" in batch.column_names:
        kept = _time_us(batch["upload_time"]) < split.fit_end_us
    else:
        kept = np.ones(len(batch), bool)
    return name, (len(batch), batch if kept.all() else batch.filter(pa.array(kept)))


def _without_rows(part: tuple[str, tuple[int, pa.Table]]) -> tuple[str, pa.Table]:
    name, (_, batch) = part
    return name, batch


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


class WriteStatistics(beam.PTransform):
    """(table name, (rows read, batch of the training part)) -> `<table>.json` for every table."""

    def __init__(self, names: Sequence[str], config: StatisticsConfig, folder: Path) -> None:
        super().__init__()
        self._names, self._config, self._folder = list(names), config, folder

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        rows = parts | "Rows" >> beam.FlatMap(_row_counts) | "AddRows" >> beam.CombinePerKey(sum)
        columns = (
            parts
            | "Columns" >> beam.FlatMap(_columns)
            | "Summarise" >> beam.CombinePerKey(SummariseColumn(self._config))
            | "Gather" >> beam.combiners.ToDict()
        )
        rows_by_key = beam.pvalue.AsDict(rows)
        return columns | "Write" >> beam.Map(_write_statistics, self._names, self._folder, rows_by_key)


def _row_counts(part: tuple[str, tuple[int, pa.Table]]) -> list[tuple[tuple[str, str], int]]:
    name, (read, batch) = part
    used = len(batch)
    return [((name, "read"), read), ((name, "used"), used), ((name, "outside_training_part"), read - used)]


def _columns(part: tuple[str, tuple[int, pa.Table]]) -> Iterator[tuple[tuple[str, str], pa.ChunkedArray]]:
    name, (_, batch) = part
    for column, values in zip(batch.column_names, batch.columns, strict=True):
        yield (name, column), values


def _write_statistics(
    columns: dict[tuple[str, str], Any], names: Sequence[str], folder: Path, rows: dict[tuple[str, str], int]
) -> None:
    for name in names:
        counts = {key: rows.get((name, key), 0) for key in ("read", "used", "outside_training_part")}
        described = {column: found for (table, column), found in columns.items() if table == name}
        text = json.dumps({"rows": counts, "columns": described}, indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n")


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
