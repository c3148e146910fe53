"""Beam pipelines over columnar batches.

Elements are `pyarrow.Table` batches, never rows: Beam's Python SDK spends microseconds on every element, and a batch
spreads them over its rows. Whatever a worker calls lives in an importable module, never in `__main__`.
"""

import contextlib
import difflib
import io
import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo, FnApiRunner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineResult, PipelineState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import features.errors
from features.errors import ConfigError, DataError, UpnextError
from features.work_units import WorkUnit, work_units

ROWS_PER_BATCH = 1 << 17
"""Rows an element aims at: some 10 MB of log columns."""
FILES_PER_PLAN = 256
"""Files whose row groups one worker lists, and which may share a batch where they are small."""

_LOCAL_RUNNERS = frozenset({None, "DirectRunner", "SwitchingDirectRunner", "FnApiRunner"})


class TableCoder(beam.coders.Coder):
    """Arrow's stream format for batches between stages, and their size for Beam's samples without writing them."""

    def encode(self, value: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_table(value)
        return sink.getvalue().to_pybytes()

    def decode(self, encoded: bytes) -> pa.Table:
        return pa.ipc.open_stream(encoded).read_all()

    def estimate_size(self, value: pa.Table) -> int:
        return value.nbytes

    def is_deterministic(self) -> bool:
        return False


beam.coders.registry.register_coder(pa.Table, TableCoder)


def make_pipeline(beam_args: Sequence[str] = ()) -> beam.Pipeline:
    """A pipeline on the runner that `beam_args` name, the local one by default; run it with `run`.

    The local runner is Beam's FnApiRunner, made here: Beam's `DirectRunner` would first try to download another engine
    (Prism) and fall back silently.

    Args:
      beam_args: Beam's own options, for example `["--direct_num_workers=4", "--direct_running_mode=multi_processing"]`
        or `["--runner=FlinkRunner", "--flink_master=host:8081"]`.

    Raises:
      ConfigError: an option or the runner is unknown, or the runner is known to leave out branches of a pipeline.
    """
    # What goes wrong is raised; Beam would log its traceback as well.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    options, unknown = _options(beam_args)
    runner = options.view_as(StandardOptions).runner
    if runner in _LOCAL_RUNNERS:
        # Runners elsewhere may have options that only their job server knows.
        if unknown:
            near = difflib.get_close_matches(unknown[0], options.get_all_options(), n=1)
            hint = f"; the nearest is --{near[0]}" if near else ""
            raise ConfigError(f"Beam option --{unknown[0]}: expected an option of Apache Beam{hint}")
        return beam.Pipeline(runner=_local_runner(options), options=options)
    if "dask" in runner.lower():
        raise ConfigError(f"--runner={runner}: runs only the last branch of a pipeline; choose another Beam runner")
    try:
        return beam.Pipeline(options=options)
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(f"--runner={runner}: expected one of Beam's runners; {error}") from error


def _options(beam_args: Sequence[str]) -> tuple[PipelineOptions, list[str]]:
    """The options, and the names of those that Beam does not know."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = PipelineOptions(list(beam_args))
            known = options.get_all_options()
            given = options.get_all_options(retain_unknown_options=True)
    except SystemExit as error:  # of its argument parser
        reason = complaint.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise ConfigError(f"Beam options: expected {' '.join(beam_args)} to be valid, found {reason}") from error
    return options, sorted(set(given) - set(known))


def _local_runner(options: PipelineOptions) -> FnApiRunner:
    # Workers in processes of their own get the options through the provision information.
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    return FnApiRunner(
        provision_info=ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded))
    )


def run(pipeline: beam.Pipeline, description: str, console: Console | None = None) -> PipelineResult:
    """Runs a pipeline to its end, with a progress bar where the console is a terminal.

    Args:
      pipeline: made by `make_pipeline`.
      description: what the progress bar says.
      console: where it is drawn; default: standard error.

    Raises:
      UpnextError: one that a worker raised, of its own class and message.
      DataError: the runner ended without success.
    """
    _rows.restart()
    try:
        with _progress(description, console or Console(stderr=True)):
            result = pipeline.run()
            state = result.wait_until_finish()
    except Exception as error:
        if isinstance(error, UpnextError):
            raise type(error)(_STEP.sub("", str(error))) from error
        raise (_raised_by_worker(str(error)) or error) from error
    if state is not None and state != PipelineState.DONE:
        raise DataError(f"{description}: the Beam runner ended in state {state}; see its log")
    return result


_STEP = re.compile(r" \[while running '.*'\]$")
"""What Beam adds to the message of an exception."""


def _raised_by_worker(text: str) -> UpnextError | None:
    """Runners hand over a worker's exception as the text of its traceback."""
    found = re.findall(r"^features\.errors\.(\w+): (.*)$", text, re.MULTILINE)
    return getattr(features.errors, found[-1][0])(_STEP.sub("", found[-1][1])) if found else None


class _RowCounter:
    """Rows planned and read in this process: what the progress bar of a local run shows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.restart()

    def restart(self) -> None:
        self.planned = self.read = 0

    def add(self, planned: int = 0, read: int = 0) -> None:
        with self._lock:
            self.planned += planned
            self.read += read


_rows = _RowCounter()


@contextlib.contextmanager
def _progress(description: str, console: Console) -> Iterator[None]:
    if not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(description, total=None)
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(0.2):
                progress.update(task, total=_rows.planned or None, completed=_rows.read)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()
            progress.update(task, total=_rows.planned or None, completed=_rows.read)


class ReadTables(beam.PTransform):
    """Reads columns of Parquet tables as (table name, `pyarrow.Table` batch), in no fixed order.

    A batch is one or more whole row groups, of several files where those are small. Paths go through Beam's
    file systems.

    Args:
      tables: table name -> paths of its Parquet files, and the names of the columns to read.

    Raises (in a worker):
      DataError: a file cannot be read as Parquet or lacks one of the columns.
    """

    def __init__(self, tables: Mapping[str, tuple[Iterable[str | Path], Sequence[str]]]) -> None:
        super().__init__()
        self._plans: list[_Plan] = []
        for name, (files, columns) in tables.items():
            paths = [str(file) for file in files]
            for start in range(0, len(paths), FILES_PER_PLAN):
                self._plans.append((name, paths[start : start + FILES_PER_PLAN], list(columns)))

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            pbegin
            | "Files" >> beam.Create(self._plans, reshuffle=False)
            | "RowGroups" >> beam.FlatMap(_units)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.Map(_read)
        )


class ReadColumns(beam.PTransform):
    """`ReadTables` for one table without a name: a collection of `pyarrow.Table` batches."""

    def __init__(self, files: Iterable[str | Path], columns: Sequence[str]) -> None:
        super().__init__()
        self._tables = {"": (files, columns)}

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection:
        return pbegin | ReadTables(self._tables) | beam.Values()


_Plan = tuple[str, list[str], list[str]]
"""Table, paths, columns."""


def _units(plan: _Plan) -> Iterator[tuple[str, WorkUnit, list[str]]]:
    """Units of about `ROWS_PER_BATCH` rows."""
    name, paths, columns = plan
    for unit in work_units(((path, _row_groups(path, columns)) for path in paths), ROWS_PER_BATCH):
        _rows.add(planned=unit.rows)
        yield name, unit, columns


def _row_groups(path: str, columns: Sequence[str]) -> list[int]:
    """Rows of every row group."""
    with _parquet(path) as parquet:
        absent = sorted(set(columns) - set(parquet.schema_arrow.names))
        if absent:
            raise DataError(f"{path}: no column {', '.join(absent)}; every part of a table has the same columns")
        return [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]


def _read(planned: tuple[str, WorkUnit, list[str]]) -> tuple[str, pa.Table]:
    name, unit, columns = planned
    tables = []
    for path, groups in unit.parts:
        with _parquet(path) as parquet:
            # Parallelism is the runner's: several readers with threads of their own only take turns.
            tables.append(parquet.read_row_groups(list(groups), columns=columns, use_threads=False))
    _rows.add(read=unit.rows)
    return name, _together(tables, unit)


def _together(tables: list[pa.Table], unit: WorkUnit) -> pa.Table:
    if len(tables) == 1:
        return tables[0]
    try:
        return pa.concat_tables(tables).combine_chunks()
    except pa.ArrowException as error:
        first, last = unit.parts[0][0], unit.parts[-1][0]
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{first} to {last}: expected the same types in every part of a table: {reason}; write them again"
        ) from error


@contextlib.contextmanager
def _parquet(path: str) -> Iterator[pq.ParquetFile]:
    try:
        with (
            FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as stream,
            pq.ParquetFile(stream) as file,
        ):
            yield file
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: expected a readable Parquet file: {reason}; write it again") from error
