"""Stages: what runs, in which order, and what may be skipped.

A stage reads only what earlier stages published and publishes its own folders. When it is done a small record is
written: the fingerprint of its configuration and of everything it read, and the manifests it left. A stage whose
record still holds is skipped, so a killed run continues where it was.

What a stage reads, and what a skipped stage left, is compared with its hashes first, once per command: formats such as
Parquet would give a flipped byte out as data. Only what a stage left when it came to its end is read by others.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from features.artifacts import (
    MANIFEST,
    discard,
    file_sha256,
    fingerprint,
    is_published,
    read_manifest,
    require_replaceable,
    write_whole,
)
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


class Verified:
    """Published folders of a run whose files were compared with their hashes by this command: each is read once.

    Args:
      run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._manifests: dict[str, str] = {}

    def check(self, *names: str) -> None:
        """Raises ArtifactError where one of these folders is not published, or differs from what was published."""
        for name, manifest in _manifest_hashes(names, self._run).items():
            if self._manifests.get(name) != manifest:
                read_manifest(self._run / name, verify=True)
                self._manifests[name] = manifest

    def add(self, *names: str) -> None:
        """These were published just now, hashed as they were written."""
        self._manifests |= _manifest_hashes(names, self._run)


def execute(
    stages: Sequence[Stage], run: Path, console: Console, version: str, verified: Verified | None = None
) -> None:
    """Runs `stages` in order, skipping those whose record holds; one line a stage.

    Args:
      stages: what is run.
      run: the run's folder.
      console: where it speaks.
      version: of the package; a changed one makes every stage run again.
      verified: what the command verified already.

    Raises:
      ArtifactError: an input of a stage was never published, is not what its stage left or is damaged; a folder that
        no stage left stands where one is to be published; or the stage did not publish what it should.
    """
    verified = verified or Verified(run)
    for stage in stages:
        expected = _fingerprint(stage, run, version)
        if _holds(stage, run, expected, verified, console):
            console.print(f"[dim]{stage.name}: unchanged, skipped[/dim]")
            continue
        _require_finished(stage, run)
        verified.check(*stage.inputs)
        _make_room(stage, run)
        console.rule(f"[bold]{stage.name}[/bold] {stage.about}", align="left")
        started = time.monotonic()
        with damage_named([run / name for name in stage.inputs]):
            stage.action()
        missing = [name for name in stage.outputs if not is_published(run / name)]
        if missing:
            raise ArtifactError(f"stage {stage.name}: ended without publishing {', '.join(missing)} in {run}")
        _write_record(stage, run, expected, time.monotonic() - started)
        verified.add(*stage.outputs)
        console.print(f"[green]{stage.name}: done in {time.monotonic() - started:.1f} s[/green]")


def up_to_date(stage: Stage, run: Path, console: Console, version: str) -> bool:
    """Whether `execute` with the same arguments would skip the stage.

    Raises:
      ArtifactError: an input of the stage was never published.
    """
    return _holds(stage, run, _fingerprint(stage, run, version), Verified(run), console)


def require_made(chosen: Sequence[Stage], stages: Sequence[Stage], run: Path, version: str) -> None:
    """What the chosen stages read, also through other stages, is what those make of their present settings.

    Args:
      chosen: stages that are to run alone.
      stages: all of the run, in order.
      run: the run's folder.
      version: of the package.

    Raises:
      ArtifactError: a stage has to run first, or was given other settings; names it and the first such setting.
    """
    needed = {name for stage in chosen for name in stage.inputs}
    earlier: list[Stage] = []
    for stage in reversed(stages):
        if stage not in chosen and needed & set(stage.outputs):
            earlier.insert(0, stage)
            needed |= set(stage.inputs)
    for stage in (*earlier, *chosen):
        _require_finished(stage, run)
        record = _read_record(_record_path(stage, run))
        if stage in earlier and record and record.fingerprint != _fingerprint(stage, run, version):
            reason = _first_difference(record.settings, stage.settings) or "what it reads, or Upnext, changed since"
            raise ArtifactError(
                f"{run}: expected what stage {stage.name} makes of this configuration, found another's ({reason}); run "
                f"`upnext {stage.name.partition(':')[0]}`, or `upnext run`, first, or give the settings it was given"
            )


def recorded_settings(name: str, run: Path) -> Any:
    """The settings with which a stage came to its end last; None where that is not known."""
    record = _read_record(run / RECORDS / f"{name}.json")
    return record.settings if record else None


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
    return {record.stage: record.seconds for record in sorted(_records(run), key=lambda record: record.ended)}


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds a folder, a run's or a training's; another process in it is refused instead of mixing its files in.

    Raises:
      ArtifactError: another process holds it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        stream = (run / ".lock").open("a+b", buffering=0)
    except OSError as error:
        raise ArtifactError(f"{run}: cannot be written ({error.strerror}); choose another --workdir") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read().decode().strip() or "unknown"
            raise ArtifactError(
                f"{run}: in use by process {holder}; wait for it or choose another --workdir"
            ) from error
        try:
            stream.truncate(0)
            stream.write(str(os.getpid()).encode())
        except OSError as error:  # a full disk
            raise ArtifactError(f"{run}: cannot be written ({error.strerror}); choose another --workdir") from error
        yield


def _manifest_hashes(names: Sequence[str], run: Path) -> dict[str, str]:
    for name in names:
        if not is_published(run / name):
            raise ArtifactError(
                f"{run / name}: not published; run the stage that writes it first, or `upnext run` for all"
            )
    return {name: file_sha256(run / name / MANIFEST) for name in names}


def _fingerprint(stage: Stage, run: Path, version: str) -> str:
    return fingerprint({"settings": stage.settings, "inputs": _manifest_hashes(stage.inputs, run), "version": version})


def _record_path(stage: Stage, run: Path) -> Path:
    return run / RECORDS / f"{stage.name}.json"


@dataclass(frozen=True)
class _Record:
    """What a stage leaves when it came to its end: folder -> SHA-256 of its manifest, among others.

    `settings` are for people: what is compared is the fingerprint. None: not known.
    """

    stage: str
    fingerprint: str
    outputs: dict[str, str]
    seconds: float
    ended: float
    settings: Any


def _read_record(path: Path) -> _Record | None:
    """A stage's record; None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        outputs = {str(name): str(manifest) for name, manifest in value["outputs"].items()}
        stage, left = str(value["stage"]), str(value["fingerprint"])
        return _Record(stage, left, outputs, float(value["seconds"]), float(value["ended"]), value.get("settings"))
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _records(run: Path) -> list[_Record]:
    found = (_read_record(path) for path in sorted((run / RECORDS).glob("*.json")))
    return [record for record in found if record is not None]


def _holds(stage: Stage, run: Path, expected: str, verified: Verified, console: Console) -> bool:
    record = _read_record(_record_path(stage, run))
    if record is None or record.fingerprint != expected or not set(stage.outputs) <= set(record.outputs):
        return False
    try:
        verified.check(*record.outputs)
        return record.outputs == _manifest_hashes(sorted(record.outputs), run)
    except ArtifactError as damage:
        console.print(f"{stage.name}: made again, {damage}", markup=False, soft_wrap=True)
        return False


def _require_finished(stage: Stage, run: Path) -> None:
    """A stage that was stopped, or not checked to its end, may have published some of its folders already."""
    left = {name: manifest for record in _records(run) for name, manifest in record.outputs.items()}
    for name, manifest in _manifest_hashes(stage.inputs, run).items():
        if left.get(name) != manifest:
            raise ArtifactError(
                f"{run / name}: expected what its stage left at its end, found something else (the stage was stopped, "
                f"or {MANIFEST} is damaged); run that stage, or `upnext run`, again"
            )


def _first_difference(before: Any, now: Any) -> str:
    """The first setting that differs with both values; empty where none does, or the former are not known."""
    found = _differences(before, json.loads(json.dumps(now, default=str)), ())
    return next(found, "") if before is not None else ""


def _differences(before: Any, now: Any, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _differences(before.get(name), now.get(name), (*path, name))
    elif before != now:
        yield f"{'.'.join(path) or 'it'} was {json.dumps(before)}, is {json.dumps(now)}"


def _make_room(stage: Stage, run: Path) -> None:
    """Refuses folders that no stage left before the work begins; one that a stage left goes, whatever it holds now."""
    left = {name for record in _records(run) for name in record.outputs}
    for name in stage.outputs:
        try:
            require_replaceable(run / name)
        except ArtifactError:
            if name not in left:
                raise
            discard(run / name)


def _write_record(stage: Stage, run: Path, expected: str, seconds: float) -> None:
    path = _record_path(stage, run)
    path.parent.mkdir(exist_ok=True)
    outputs = _manifest_hashes((*stage.outputs, *stage.also()), run)
    record = _Record(stage.name, expected, outputs, round(seconds, 3), time.time(), stage.settings)
    write_whole(path, json.dumps(asdict(record), indent=2, default=str) + "\n")
