"""Whatever is raised, the command line says one line and ends with an exit code that is not zero."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from features.artifacts import publish
from features.errors import ArtifactError, DataError
from pipeline.failures import one_line
from pipeline.stages import damage_named

ROOT = Path(__file__).parents[2]


def raised_by(action) -> Exception:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.ENOSPC, "runs/x/part-0.parquet: no space left; free some or choose another --workdir"),
        (errno.EACCES, "runs/x/part-0.parquet: permission denied; change its permissions or choose another --workdir"),
        (errno.EROFS, "runs/x/part-0.parquet: the file system is read-only; choose another --workdir"),
        (errno.EIO, "runs/x/part-0.parquet: Input/output error"),
    ],
)
def test_a_failure_of_the_system_names_the_file_and_what_to_do(code: int, told: str) -> None:
    assert one_line(OSError(code, os.strerror(code), "runs/x/part-0.parquet")) == told


def test_a_full_disk_is_told_when_pyarrow_meets_it() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    error = raised_by(lambda: pq.write_table(pa.table({"x": [1]}), "/dev/full"))
    assert "no space left; free some" in one_line(error)


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(DataError("watches: expected rows,\n   found none")) == "watches: expected rows, found none"


def test_failures_of_libraries_tell_library_reason_and_how_to_see_more(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no Parquet at all")
    told = one_line(raised_by(lambda: pq.read_table(tmp_path / "x.parquet")))
    assert told.startswith("pyarrow failed ")
    assert told.endswith("; set UPNEXT_TRACEBACK=1 to see where")
    told = one_line(raised_by(lambda: tf.io.read_file(str(tmp_path / "absent"))))
    assert told.startswith("tensorflow failed ")
    assert "absent" in told
    assert "\n" not in told


def test_running_out_of_memory_is_told_as_such() -> None:
    assert one_line(MemoryError()).startswith("out of memory (MemoryError)")
    assert one_line(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")).startswith("out of memory")


def test_a_full_disk_that_tensorflow_or_beam_meets_is_not_told_as_memory() -> None:
    full = "No space left on device"
    for error in (
        tf.errors.ResourceExhaustedError(None, None, f"/x/variables; {full}"),
        RuntimeError(f"OSError: {full}"),
    ):
        assert one_line(error).endswith(f"{full}: no space left; free some or choose another --workdir")


def test_a_defect_tells_where_it_is() -> None:
    error = raised_by(lambda: damage_named(None).__enter__().missing)  # type: ignore[arg-type]
    assert one_line(error).startswith("unexpected AttributeError ")


@pytest.mark.parametrize("room", ["features", "models", "serving", "pipeline", "benchmarks"])
def test_a_failure_is_placed_at_the_innermost_line_of_ours(room: str) -> None:
    files = [ROOT / "pipeline/cli.py", ROOT / room / "made_up.py", Path("/usr/lib/python3/json/decoder.py")]
    action: Callable[[], object] = partial({}.__getitem__, "x")
    for file in reversed(files):  # code that says it stands there, calling the one before
        scope = {"action": action}
        exec(compile("\n\ndef call(): action()\n", file, "exec"), scope)
        action = scope["call"]
    told = one_line(raised_by(action))
    assert told.startswith(f"unexpected KeyError in {room}/made_up.py:3: 'x'")


def test_the_damaged_file_is_named_in_place_of_a_library_s_words(tmp_path: Path) -> None:
    for name in ("whole", "damaged"):
        with publish(tmp_path / name, {}) as folder:
            (folder / "data.bin").write_bytes(b"12345678")
    (tmp_path / "damaged/data.bin").write_bytes(b"1234567x")
    with (
        pytest.raises(ArtifactError, match=r"damaged/data\.bin: content differs .* delete .*/damaged and run again"),
        damage_named([tmp_path / "whole", tmp_path / "damaged"]),
    ):
        raise pa.ArrowInvalid("Couldn't deserialize thrift")
    with pytest.raises(pa.ArrowInvalid), damage_named([tmp_path / "whole"]):
        raise pa.ArrowInvalid("something else")


COMMAND = """
import os, signal, sys, time
from pipeline import cli, funnel, simulated_logs
def do(*arguments, **named):
    {statement}
funnel.run_funnel = simulated_logs.simulate_to = do
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["upnext", {command!r}, "demo"]
cli.main()
"""


def ending(raised: str, command: str = "run", **environment: str) -> subprocess.CompletedProcess[str]:
    return doing(f"raise {raised}", command, **environment)


def doing(statement: str, command: str = "run", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND.format(statement=statement, command=command)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_a_traceback_is_shown_only_on_demand() -> None:
    plain = ending("KeyError('x')")
    assert plain.returncode == 1
    assert len(plain.stderr.strip().splitlines()) == 1
    assert plain.stderr.startswith("error: unexpected KeyError")
    full = ending("KeyError('x')", UPNEXT_TRACEBACK="1")
    assert full.returncode == 1
    assert "Traceback (most recent call last)" in full.stderr


def test_an_interruption_is_one_line_and_exit_code_130() -> None:
    ended = ending("KeyboardInterrupt")
    assert ended.returncode == 130
    assert ended.stderr == "interrupted: run the same command again to continue\n"


SWALLOWED = """
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    except KeyboardInterrupt:
        raise ValueError("Invalid affine transformation matrix") from None
"""
IN_BEAM = """
    import apache_beam as beam
    from features.beam import make_pipeline, run
    def stop(_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    pipeline = make_pipeline()
    pipeline | beam.Create([1]) | beam.Map(stop)
    run(pipeline, "job")
"""


@pytest.mark.parametrize("statement", [SWALLOWED, IN_BEAM])
def test_an_interruption_that_a_library_made_an_error_of_its_own_is_one_too(statement: str) -> None:
    ended = doing(statement)
    assert ended.returncode == 130
    assert ended.stderr == "interrupted: run the same command again to continue\n"


def test_an_interrupted_simulation_does_not_promise_to_continue() -> None:
    ended = ending("KeyboardInterrupt", "simulate")
    assert ended.returncode == 130
    assert ended.stderr == "interrupted: run the same command again to begin again\n"


DEVICES = """
from pipeline.quiet_start import find_devices
import os, tensorflow as tf
real = tf.config.list_physical_devices
def noisy(*arguments):
    os.write(2, b"E failed call to cuInit: no driver\\nE a real error\\n")
    return real(*arguments)
tf.config.list_physical_devices = noisy
find_devices()
os.write(2, b"afterwards\\n")
"""


@pytest.mark.skipif(any(Path("/dev").glob("nvidia*")), reason="nothing is left out where there is an NVIDIA driver")
def test_only_the_complaint_about_a_missing_gpu_is_left_out() -> None:
    said = subprocess.run([sys.executable, "-c", DEVICES], capture_output=True, text=True, check=True).stderr
    assert said == "E a real error\nafterwards\n"
