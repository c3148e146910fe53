"""Stages: what runs, in which order, and what may be skipped.

A stage reads only what earlier stages published and publishes its own folders. When it is done a small record is
written: the fingerprint of its configuration and of everything it read, and the manifests it left. A stage whose
record still holds is skipped, so a killed run continues where it was.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from features.artifacts import MANIFEST, file_sha256, fingerprint, is_published, read_manifest
from features.errors import ArtifactError, UpnextError

RECORDS = "stages"


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Args:
      name: what the command line calls it.
      about: what it does, in a few words.
      settings: the part of the configuration its result depends on (JSON-serialisable).
      inputs: published folders it reads, relative to the run.
      outputs: folders it publishes, relative to the run.
      action: does the work.
      also: names further folders that the action published, such as numbered versions.
    """

    name: str
    about: str
    settings: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    action: Callable[[], None]
    also: Callable[[], tuple[str, ...]] = tuple


def execute(stages: Sequence[Stage], run: Path, console: Console, version: str) -> None:
    """Runs `stages` in order, skipping those whose record holds; one line a stage.

    Raises:
      ArtifactError: an input of a stage was never published, or the stage did not publish what it should.
    """
    for stage in stages:
        expected = _fingerprint(stage, run, version)
        if _holds(stage, run, expected):
            console.print(f"[dim]{stage.name}: unchanged, skipped[/dim]")
            continue
        console.rule(f"[bold]{stage.name}[/bold] {stage.about}", align="left")
        started = time.monotonic()
        with damage_named([run / name for name in stage.inputs]):
            stage.action()
        missing = [name for name in stage.outputs if not is_published(run / name)]
        if missing:
            raise ArtifactError(f"stage {stage.name}: ended without publishing {', '.join(missing)} in {run}")
        _write_record(stage, run, expected, time.monotonic() - started)
        console.print(f"[green]{stage.name}: done in {time.monotonic() - started:.1f} s[/green]")


@contextmanager
def damage_named(folders: Sequence[Path]) -> Iterator[None]:
    """Where a library fails on what it reads from published folders, the damaged file is named instead.

    Raises:
      ArtifactError: a file differs from what was published.
    """
    try:
        yield
    except UpnextError:
        raise
    except Exception as error:
        for folder in folders:
            try:
                read_manifest(folder, verify=True)
            except ArtifactError as damage:
                raise damage from error
        raise


def durations(run: Path) -> dict[str, float]:
    """Seconds each recorded stage took, by name, in the order they ended."""
    records = [json.loads(path.read_text()) for path in (run / RECORDS).glob("*.json")]
    return {record["stage"]: record["seconds"] for record in sorted(records, key=lambda record: record["ended"])}


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run's folder; a second run in it is refused instead of mixing its files in.

    Raises:
      ArtifactError: another process holds it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        stream = (run / ".lock").open("a+")
    except OSError as error:
        raise ArtifactError(f"{run}: cannot be written ({error.strerror}); choose another --workdir") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise ArtifactError(
                f"{run}: in use by process {holder}; wait for it or choose another --workdir"
            ) from error
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _manifest_hashes(names: Sequence[str], run: Path) -> dict[str, str]:
    for name in names:
        if not is_published(run / name):
            raise ArtifactError(f"{run / name}: not published; run the stage that writes it first")
    return {name: file_sha256(run / name / MANIFEST) for name in names}


def _fingerprint(stage: Stage, run: Path, version: str) -> str:
    return fingerprint({"settings": stage.settings, "inputs": _manifest_hashes(stage.inputs, run), "version": version})


def _record_path(stage: Stage, run: Path) -> Path:
    return run / RECORDS / f"{stage.name}.json"


def _holds(stage: Stage, run: Path, expected: str) -> bool:
    try:
        record = json.loads(_record_path(stage, run).read_text())
        left = set(record["outputs"])
        for name in left:
            read_manifest(run / name)
    except (FileNotFoundError, ValueError, ArtifactError):
        return False
    whole = set(stage.outputs) <= left and record["outputs"] == _manifest_hashes(sorted(left), run)
    return record["fingerprint"] == expected and whole


def _write_record(stage: Stage, run: Path, expected: str, seconds: float) -> None:
    path = _record_path(stage, run)
    path.parent.mkdir(exist_ok=True)
    record = {
        "stage": stage.name,
        "fingerprint": expected,
        "outputs": _manifest_hashes((*stage.outputs, *stage.also()), run),
        "seconds": round(seconds, 3),
        "ended": time.time(),
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    temporary.rename(path)
