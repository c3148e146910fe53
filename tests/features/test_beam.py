import io
import socket
import sys

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to
from rich.console import Console

from features import beam as columnar
from features.beam import ReadColumns, TableCoder, make_pipeline, run
from features.errors import ConfigError, DataError


@pytest.fixture
def files(tmp_path):
    paths = []
    for day, rows in enumerate((5, 0, 3)):
        table = pa.table({"id": [f"{day}-{i}" for i in range(rows)], "n": list(range(rows)), "unused": [0.0] * rows})
        paths.append(tmp_path / f"part-{day}.parquet")
        pq.write_table(table, paths[-1], row_group_size=2)
    return paths


def fail(batch):
    raise DataError(f"batch of {batch.num_rows} rows: expected nothing; look [here]")


def test_every_row_is_read_once_in_batches_of_the_columns_asked_for(files, monkeypatch):
    monkeypatch.setattr(columnar, "ROWS_PER_BATCH", 4)
    pipeline = make_pipeline()
    batches = pipeline | ReadColumns(files, ["n", "id"])
    assert_that(batches | beam.Map(lambda batch: batch.column_names), equal_to([["n", "id"]] * 2), "columns")
    assert_that(batches | beam.Map(lambda batch: batch.num_rows), equal_to([4, 4]), "rows")
    ids = batches | beam.FlatMap(lambda batch: batch["id"].to_pylist())
    assert_that(ids, equal_to(["0-0", "0-1", "0-2", "0-3", "0-4", "2-0", "2-1", "2-2"]), "ids")
    run(pipeline, "reading")


def test_files_planned_apart_share_no_batch(files, monkeypatch):
    monkeypatch.setattr(columnar, "FILES_PER_PLAN", 2)
    pipeline = make_pipeline()
    batches = pipeline | ReadColumns(files, ["id"])
    assert_that(batches | beam.Map(lambda batch: batch["id"].num_chunks), equal_to([1, 1]), "chunks")
    ids = batches | "Ids" >> beam.Map(lambda batch: batch["id"].to_pylist())
    assert_that(ids, equal_to([["0-0", "0-1", "0-2", "0-3", "0-4"], ["2-0", "2-1", "2-2"]]), "ids")
    run(pipeline, "reading")


def test_parts_of_other_types_are_named(files):
    pq.write_table(pa.table({"id": [7]}), files[2])
    pipeline = make_pipeline()
    _ = pipeline | ReadColumns(files, ["id"])
    with pytest.raises(DataError, match=r"part-0\.parquet to .*part-2\.parquet: expected the same types"):
        run(pipeline, "reading")


def test_the_local_runner_looks_up_no_host(files, monkeypatch):
    looked_up = []

    def refuse(host, *arguments, **keywords):
        looked_up.append(host)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    pipeline = make_pipeline(["--runner=DirectRunner"])
    _ = pipeline | ReadColumns(files, ["id"])
    run(pipeline, "reading")
    assert looked_up == []  # Beam's own DirectRunner asks github.com for Prism


def test_a_workers_error_keeps_its_class_and_message(files):
    pipeline = make_pipeline()
    _ = pipeline | ReadColumns(files, ["id"]) | beam.Map(fail)
    with pytest.raises(DataError, match=r"^batch of \d rows: expected nothing; look \[here\]$"):
        run(pipeline, "failing")


def test_an_absent_column_names_file_and_column(files):
    pipeline = make_pipeline()
    _ = pipeline | ReadColumns(files, ["id", "colour"])
    with pytest.raises(DataError, match=r"part-\d\.parquet: no column colour; every part"):
        run(pipeline, "reading")


def test_a_damaged_file_is_named(files):
    files[0].write_bytes(b"not Parquet")
    pipeline = make_pipeline()
    _ = pipeline | ReadColumns(files, ["id"])
    with pytest.raises(DataError, match=r"part-0\.parquet: expected a readable Parquet file"):
        run(pipeline, "reading")


def test_an_unknown_runner_is_a_configuration_error():
    with pytest.raises(ConfigError, match="--runner=NoSuchRunner"):
        make_pipeline(["--runner=NoSuchRunner"])
    with pytest.raises(ConfigError, match="only the last branch"):
        make_pipeline(["--runner=DaskRunner"])


def test_a_wrong_option_is_a_configuration_error(capsys):
    with pytest.raises(ConfigError, match=r"--direct_num_wrkers: .*; the nearest is --direct_num_workers"):
        make_pipeline(["--direct_num_wrkers=2"])
    with pytest.raises(ConfigError, match=r"direct_running_mode=fast to be valid, found .*invalid choice: 'fast'"):
        make_pipeline(["--direct_running_mode=fast"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_drawn_on_terminals_only(files, terminal):
    pipeline = make_pipeline()
    _ = pipeline | ReadColumns(files, ["id"])
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    run(pipeline, "Reading parts", console)
    drawn = console.file.getvalue()
    assert ("Reading parts" in drawn and "8/8" in drawn) if terminal else drawn == ""


PORTABLE = [
    "--runner=PortableRunner",
    "--job_endpoint=embed",
    "--environment_type=beam:env:harness_subprocess_python:v1",
    f"--environment_config={sys.executable} -m apache_beam.runners.worker.sdk_worker_main",
]
PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@pytest.mark.slow
@pytest.mark.parametrize("beam_args", [PORTABLE, PROCESSES], ids=["portable", "multi_processing"])
def test_other_processes_give_the_same(files, beam_args):
    pipeline = make_pipeline(beam_args)
    batches = pipeline | ReadColumns(files, ["id"])
    ids = batches | beam.FlatMap(lambda batch: batch["id"].to_pylist())
    assert_that(ids, equal_to(["0-0", "0-1", "0-2", "0-3", "0-4", "2-0", "2-1", "2-2"]))
    run(pipeline, "reading")

    pipeline = make_pipeline(beam_args)
    _ = pipeline | ReadColumns(files, ["id", "colour"])
    with pytest.raises(DataError, match=r"part-\d\.parquet: no column colour; every part"):
        run(pipeline, "reading")


def test_batches_between_stages_keep_their_types_and_are_measured_without_being_written() -> None:
    table = pa.table({"id": ["a", None], "when": pa.array([1, 2], pa.timestamp("us", "UTC")), "bag": [[1], []]})
    coder = beam.coders.registry.get_coder(pa.Table)
    assert isinstance(coder, TableCoder)
    assert coder.decode(coder.encode(table)).equals(table)
    assert coder.decode(coder.encode(table[:0])).equals(table[:0])
    big = pa.table({"x": pa.array(range(1 << 10), pa.float64())})
    assert coder.get_impl().estimate_size(big) == 8 << 10  # what is written would hold the schema too
