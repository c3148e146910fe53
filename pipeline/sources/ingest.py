"""A source to published canonical tables and rejected rows; every row read is counted as kept or rejected."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.table import Table as RichTable

from features.artifacts import publish
from features.errors import DataError
from features.tables import TABLES, Table
from pipeline.sources.partitions import Spill, write_parts
from pipeline.sources.source import RawChunk, Source, nearest
from pipeline.sources.validation import REJECTED, ValidationConfig, check_chunk, refuse_if_too_many

Progress = Callable[[str, int], None]  # (table, rows read so far)

# Users and videos first: events are then compared with their ids.
_ORDER = ("users", "videos", "watches", "impressions", "searches")
_REFERENCES = {"user_id": "users", "video_id": "videos", "seed_video_id": "videos"}
_REJECTED_BATCH_ROWS = 50_000


@dataclass
class TableCounts:
    """What became of a table's rows: read = kept + the sum of rejected.

    Args:
      read, kept: rows.
      rejected: rows by reason.
      unmatched: kept events whose user, video or seed video is in no row of users or videos; they are kept.
      first, last: times of the first and last event (ISO 8601), None where there is none.
      days: UTC days with events.
      columns: column name → Arrow type.
    """

    read: int = 0
    kept: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    unmatched: dict[str, int] = field(default_factory=dict)
    first: str | None = None
    last: str | None = None
    days: int = 0
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class IngestSummary:
    """Counts by table, and the seconds it took."""

    tables: Mapping[str, TableCounts]
    seconds: float


def ingest(
    source: Source,
    tables: Path,
    rejected: Path,
    config: ValidationConfig | None = None,
    manifest: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> IngestSummary:
    """Validates everything a source has and publishes it.

    Args:
      source: where the rows come from.
      tables: folder to publish: `<table>/day=YYYY-MM-DD/part-*.parquet` (events), `<table>/part-*.parquet`.
      rejected: folder to publish: `<table>/part-*.parquet` with reason, column, origin, row number and the raw row as
        JSON. It is published also when the run fails because too many rows were rejected.
      config: the rules' limits.
      manifest: further entries for both manifests.
      progress: told after every chunk.

    Raises:
      DataError: no watches, too many rows rejected, or too many events of users or videos that their tables lack.
    """
    started = time.monotonic()
    config = config or ValidationConfig()
    chunks = dict(source.tables())
    _require_tables(chunks)
    counts: dict[str, TableCounts] = {}
    entries: dict[str, Any] = {
        **(manifest or {}),
        "source": source.fingerprint(),
        "validation": config.model_dump(mode="json"),
    }
    with ExitStack() as stack:
        tables_manifest = dict(entries)
        table_folder = stack.enter_context(publish(Path(tables), tables_manifest))
        rejected_manifest = dict(entries)
        refusals: list[DataError] = []
        with publish(Path(rejected), rejected_manifest) as rejected_folder:
            ids: dict[str, pa.Array] = {}
            for name in _ORDER:
                if name in chunks:
                    job = _TableJob(TABLES[name], table_folder, rejected_folder, config, progress, ids)
                    counts[name] = job.run(chunks[name])
                    refusals += job.refusal(Path(rejected))
                    if refusals:
                        break
            rejected_manifest["tables"] = {name: asdict(count) for name, count in counts.items()}
        if refusals:
            raise refusals[0]
        tables_manifest["tables"] = {name: asdict(count) for name, count in counts.items() if count.kept}
    return IngestSummary(counts, time.monotonic() - started)


def summary_table(summary: IngestSummary) -> RichTable:
    """Rows read, kept and rejected by reason of every table, for the terminal."""
    view = RichTable(title=f"Rows read in {summary.seconds:.1f} s")
    view.add_column("table")
    for column in ("read", "kept", "rejected", "days"):
        view.add_column(column, justify="right")
    view.add_column("reasons and remarks")
    for name, count in summary.tables.items():
        remarks = [f"{reason} {number:,}" for reason, number in sorted(count.rejected.items(), key=lambda r: -r[1])]
        remarks += [f"{what} {number:,}" for what, number in count.unmatched.items() if number]
        lost = sum(count.rejected.values())
        days = f"{count.days:,}" if TABLES[name].partitioned else ""
        view.add_row(name, f"{count.read:,}", f"{count.kept:,}", f"{lost:,}", days, "; ".join(remarks))
    return view


def _require_tables(chunks: Mapping[str, Any]) -> None:
    for name in chunks:
        if name not in TABLES:
            raise DataError(f"the source provides table {name!r}, {nearest(name, list(TABLES))}; rename it")
    if "watches" not in chunks:
        raise DataError(
            f"the source has no table 'watches' (it has {', '.join(chunks) or 'none'}), which every model needs; "
            f"add it to the source's configuration"
        )


@dataclass
class _Reference:
    """How many events name a user or video, and how many of those its table lacks, with the first such id."""

    column: str
    table: str
    rows: int = 0
    unmatched: int = 0
    example: str = ""

    def add(self, ids: pa.ChunkedArray, known: pa.Array) -> None:
        absent = ids.filter(pc.and_(ids.is_valid(), pc.invert(pc.is_in(ids, value_set=known))))
        self.rows += len(ids) - ids.null_count
        self.unmatched += len(absent)
        self.example = self.example or (absent[0].as_py() if len(absent) else "")

    def refuse_if_too_many(self, events: str, known: pa.Array, config: ValidationConfig) -> None:
        """Fails the run where the ids of two tables are not the same ids; seeds may be of other things than videos.

        Raises:
          DataError: more events than are tolerated name what the table lacks; tells an id of each.
        """
        limit = config.max_unmatched_share
        if self.column != "seed_video_id" and self.unmatched > limit * self.rows:
            raise DataError(
                f"{events}: expected each {self.column} in {self.table}, found {self.unmatched:,} of {self.rows:,} "
                f"rows with one that is not there ({self.unmatched / self.rows:.1%}, tolerated are {limit:.1%}), as "
                f"{self.example!r}, while {self.table} has {_alike(self.example, known)!r}; make the sources write "
                f"both alike, leave {self.table} out, or raise validation.max_unmatched_share"
            )


def _alike(example: str, known: pa.Array) -> str:
    """A known id that differs from one only in how it is written, as 12 does from 12.0; else any known id."""
    whole = example.removesuffix(".0")
    forms = (whole, f"{whole}.0", whole.lstrip("0"), whole.strip(), whole.lower(), whole.upper())
    return next(
        (form for form in forms if pc.index(known, form).as_py() >= 0), known[0].as_py() if len(known) else "none"
    )


class _TableJob:
    """One table on its way from raw chunks to its folder."""

    def __init__(
        self,
        table: Table,
        table_folder: Path,
        rejected_folder: Path,
        config: ValidationConfig,
        progress: Progress | None,
        ids: dict[str, pa.Array],
    ) -> None:
        self.table = table
        self.folder = table_folder / table.name
        self.config = config
        self.progress = progress
        self.ids = ids
        self.counts = TableCounts()
        found = {column: table for column, table in _REFERENCES.items() if table in ids}
        self._references = [_Reference(column, table) for column, table in found.items()] if table.partitioned else []
        self._rejected = _RejectedRows(rejected_folder / table.name)

    def run(self, chunks: Iterator[RawChunk]) -> TableCounts:
        with TemporaryDirectory(dir=self.folder.parent, prefix=".spill-") as scratch:
            spill = Spill(Path(scratch), self.table)
            for chunk in chunks:
                checked = check_chunk(chunk, self.table, self.config)
                self.counts.read += chunk.data.num_rows + len(chunk.malformed)
                self._rejected.add(checked.rejected)
                spill.add(checked.kept, chunk.origin, checked.rows)
                if self.progress:
                    self.progress(self.table.name, self.counts.read)
            if not self.counts.read and self.table.name == "watches":
                raise DataError("watches: expected rows, found none in the source; check its path and column mapping")
            for rows, duplicates in spill.finish():
                self._rejected.add(duplicates)
                self._keep(rows)
        self._rejected.close()
        self.counts.rejected = dict(self._rejected.counts)
        assert self.counts.read == self.counts.kept + sum(self.counts.rejected.values())
        return self.counts

    def refusal(self, where: Path) -> list[DataError]:
        """The error that this table's rejected rows, or ids that others lack, amount to, if any."""
        try:
            refuse_if_too_many(
                self.table.name, self.counts.read, self.counts.rejected, self._rejected.samples(), self.config, where
            )
            for reference in self._references:
                reference.refuse_if_too_many(self.table.name, self.ids[reference.table], self.config)
        except DataError as error:
            return [error]
        return []

    def _keep(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        counts = self.counts
        counts.kept += rows.num_rows
        counts.columns = {field.name: str(field.type) for field in rows.schema}
        counts.days += len(set(write_parts(self.folder, self.table, rows)) - {"unknown"})
        if not self.table.partitioned:
            known = [self.ids[self.table.name]] if self.table.name in self.ids else []
            new = rows[self.table.required.names[0]].combine_chunks()
            self.ids[self.table.name] = pa.concat_arrays([*known, new])
            return
        span = pc.min_max(rows["timestamp"])
        if span["min"].is_valid:
            first, last = span["min"].as_py().isoformat(), span["max"].as_py().isoformat()
            counts.first = min(first, counts.first or first)
            counts.last = max(last, counts.last or last)
        for reference in self._references:
            if reference.column in rows.column_names:
                reference.add(rows[reference.column], self.ids[reference.table])
                counts.unmatched[f"{reference.column} not in {reference.table}"] = reference.unmatched


class _RejectedRows:
    """Rejected rows on their way to Parquet, with counts and the first rows of each reason and column."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._folder = folder
        self._waiting: list[pa.Table] = []
        self._samples: dict[tuple[str, str], dict[str, Any]] = {}
        self._parts = 0

    def add(self, rejected: pa.Table) -> None:
        if not rejected.num_rows:
            return
        groups = rejected.group_by(["reason", "column"], use_threads=False).aggregate(
            [([], "count_all"), ("origin", "first"), ("row", "first"), ("raw", "first")]
        )
        for group in groups.to_pylist():
            self.counts[group["reason"]] += group["count_all"]
            sample = self._samples.setdefault((group["reason"], group["column"]), {**group, "count_all": 0})
            sample["count_all"] += group["count_all"]
        self._waiting.append(rejected)
        if sum(part.num_rows for part in self._waiting) >= _REJECTED_BATCH_ROWS:
            self._flush()

    def samples(self) -> list[dict[str, Any]]:
        """Count and first row of each reason and column, most frequent first."""
        return sorted(self._samples.values(), key=lambda s: (-s["count_all"], s["reason"], s["column"]))

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"part-{self._parts:05d}.parquet"
            pq.write_table(pa.concat_tables(self._waiting).cast(REJECTED), path, compression="zstd")
            self._parts += 1
            self._waiting = []
