"""Which data files are behind a path: a file, a folder or a glob pattern; none is left out silently."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from features.errors import ConfigError

_PARQUET = (".parquet", ".pq")
_CSV = (".csv", ".tsv", ".txt")
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_NOT_DATA = {"manifest.json"}


def find_files(path: str) -> list[Path]:
    """The data files behind a path: one file, a folder (searched whole) or a glob pattern; sorted.

    Links to folders are followed, also by `**`; a folder that several ways lead to is read once. Files and folders of a
    folder whose names begin with a dot or an underscore, and `manifest.json`, are no data.

    Raises:
      ConfigError: there is none, a folder has a file that is neither Parquet nor CSV by its name, a folder cannot be
        listed, or a link leads nowhere.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        files = sorted(_files_below(given))
        _refuse_other_files(path, given, [file for file in files if not _is_data_file(file)])
        if not files:
            raise ConfigError(f"{path}: the folder ({given.resolve()}) has no {_readable()} file")
        return files
    if any(character in path for character in "*?["):
        anchor = Path(given.anchor)
        matching = (file for file in _matching(anchor, given.relative_to(anchor).parts) if _is_file(file))
        # Of the ways to a file the shortest, which comes last here.
        by_length = sorted(matching, key=lambda file: (-len(file.parts), file))
        by_place = {file.parent.resolve() / file.name: file for file in by_length}
        if by_place:
            return sorted(by_place.values())
        raise ConfigError(f"{path}: no file matches this pattern (from {Path.cwd()}); correct the source's path")
    raise ConfigError(f"{path}: no such file or folder (looked for {given.absolute()}); correct the source's path")


def _files_below(given: Path) -> Iterator[Path]:
    for folder, folders, names in _walk(given):
        folders[:] = [name for name in folders if not _ignored(name)]
        yield from (file for name in names if not _ignored(name) and _is_file(file := folder / name))


def _matching(base: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What matches a pattern below a folder; unlike that of pathlib, `**` goes through links to folders."""
    if "**" not in parts:
        yield from base.glob("/".join(parts) or "*")
        return
    first = parts.index("**")
    starts = base.glob("/".join(parts[:first])) if first else [base]
    for start in (start for start in starts if start.is_dir()):
        for folder, _, _ in _walk(start):
            yield from _matching(folder, parts[first + 1 :])


def _walk(start: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder from `start` down once, with the names of its folders (those kept in the list follow) and files."""

    def refuse(error: OSError) -> None:
        raise ConfigError(
            f"{error.filename}: expected a folder whose files can be listed, found none ({error.strerror}); make it "
            "readable, or name the files by a pattern that leaves it out"
        ) from error

    seen = set(start.resolve().parents)  # a link back to them is a loop
    for name, folders, files in os.walk(start, onerror=refuse, followlinks=True):
        folder = Path(name)
        if folder.resolve() in seen:
            folders.clear()
            continue
        seen.add(folder.resolve())
        folders.sort(key=lambda below: ((folder / below).is_symlink(), below))  # a folder is known by its own name
        yield folder, folders, files


def _is_file(path: Path) -> bool:
    """Raises ConfigError where a link leads nowhere."""
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{path}: expected a file, found a link that leads nowhere; mend or remove it")
    return path.is_file()


def is_parquet(path: Path) -> bool:
    return path.name.lower().endswith(_PARQUET)


def text_name(path: Path) -> str:
    """A file's name in lower case, without what says how it is compressed."""
    name = path.name.lower()
    return next((name.removesuffix(suffix) for suffix in COMPRESSED if name.endswith(suffix)), name)


def _is_data_file(path: Path) -> bool:
    return is_parquet(path) or text_name(path).endswith(_CSV)


def _ignored(name: str) -> bool:
    return name.startswith((".", "_")) or name in _NOT_DATA


def _refuse_other_files(path: str, folder: Path, others: list[Path]) -> None:
    if others:
        shown = ", ".join(str(file.relative_to(folder)) for file in others[:5]) + (", ..." if len(others) > 5 else "")
        raise ConfigError(
            f"{path}: expected a folder of {_readable()} files, found {len(others)} of other names that would be left "
            f"out: {shown}; move them away, or name the files by a pattern, as {path.rstrip('/')}/**/*.csv"
        )


def _readable() -> str:
    return f"{' or '.join((*_PARQUET, *_CSV))} (text also with {', '.join(COMPRESSED)})"
