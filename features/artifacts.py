"""Published folders: written whole or not at all.

A folder is built under a temporary name beside its destination, its `manifest.json` is written last, and it is then
renamed into place; what stood there before is first moved aside in one step, so that it is never there in part. A
folder without a manifest does not exist for readers, and is never replaced: it may be somebody's own.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features.errors import ArtifactError

MANIFEST = "manifest.json"
_being_written: set[str] = set()
"""Hidden folders that this very process fills at the moment."""


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of a JSON-serialisable value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def publish(folder: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """Yields a temporary folder to fill; on success adds the manifest and renames it to `folder`.

    Entries added to `manifest` inside the `with` block (counts, for example) are published with it; size and
    SHA-256 of every file are added under `files`. On any error nothing appears at `folder`.

    Raises:
      ArtifactError: what stands at `folder`, or some of it, was not published, so it is not replaced.
    """
    folder = Path(folder)
    require_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.*.tmp"):
        _remove_if_abandoned(stale)
    temporary = _hidden_name(folder)
    _being_written.add(temporary.name)
    try:
        temporary.mkdir()
        yield temporary
        files = {
            str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        text = json.dumps({**manifest, "files": files}, indent=2, sort_keys=True, default=str)
        (temporary / MANIFEST).write_text(text + "\n")
        _put_in_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        _being_written.discard(temporary.name)


def require_replaceable(folder: Path) -> None:
    """What may give way to a published folder: nothing, an empty folder, or one with what was published and no more.

    Raises:
      ArtifactError: something else stands there.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ArtifactError(f"{folder}: expected a folder, found a file; move it away or choose another folder")
        return
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return
    try:
        _, published = _parsed(folder / MANIFEST)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ArtifactError(
            f"{folder}: expected nothing there, or a folder that was published with its {MANIFEST}, found {found}; "
            "nothing was replaced; move it away or choose another folder"
        ) from error
    files = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir())
    if added := [name for name in files if name not in published and name != MANIFEST]:
        raise ArtifactError(
            f"{folder}: expected what was published there, found {added[0]} besides ({len(added)} such); nothing was "
            "replaced; move it away or choose another folder"
        )


def discard(folder: Path) -> None:
    """Removes a folder; it is gone in one step."""
    aside = _hidden_name(folder)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a small text file that is there whole or as it was before."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _hidden_name(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"


def _put_in_place(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; the one that was there stays, whole, where that fails."""
    require_replaceable(folder)
    if not folder.exists():
        new.rename(folder)
        return
    old = _hidden_name(folder)
    try:
        folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_if_abandoned(stale: Path) -> None:
    """Removes what a killed process left, unless the process that writes it is still alive."""
    pid = stale.name.split(".")[-2].split("-")[0]
    # In a container every process in turn has the same id: of its own id only what it writes itself is alive.
    alive = stale.name in _being_written if pid == str(os.getpid()) else Path(f"/proc/{pid}").exists()
    if not pid.isdigit() or not alive:
        shutil.rmtree(stale, ignore_errors=True)


def _parsed(path: Path) -> tuple[Mapping[str, Any], dict[str, tuple[int, str]]]:
    """A manifest, and size and SHA-256 of its files by name; fails as reading, JSON and look-ups do."""
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return manifest, {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}


def is_published(folder: Path) -> bool:
    """Whether `folder` was published whole."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: Path, verify: bool = False) -> Mapping[str, Any]:
    """The manifest of a published folder.

    Args:
      folder: the published folder.
      verify: also compare every file's size and SHA-256.

    Raises:
      ArtifactError: there is no manifest, it cannot be read, or a file is missing or differs.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder}: no {MANIFEST}, so nothing is published there; run the stage that writes it")
    try:
        manifest, files = _parsed(path)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(
            f"{path}: expected a manifest as published, found something else ({reason}); delete {folder} and run again"
        ) from error
    for name, (size, sha256) in files.items():
        found = folder / name
        if not found.is_file() or found.stat().st_size != size:
            raise ArtifactError(f"{found}: missing or of another size than published; delete {folder} and run again")
        if verify and file_sha256(found) != sha256:
            raise ArtifactError(f"{found}: content differs from what was published; delete {folder} and run again")
    return manifest
