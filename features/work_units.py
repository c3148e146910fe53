"""Units of work over Parquet files: a large file is several, many small files are one.

An element of a pipeline costs milliseconds whatever it holds, and a log by day may have thousands of small files.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkUnit:
    """Row groups to read together.

    Args:
      parts: path -> its row groups, in the order of the files.
      rows: rows in all of them.
    """

    parts: tuple[tuple[str, tuple[int, ...]], ...]
    rows: int


def work_units(files: Iterable[tuple[str, Sequence[int]]], rows: int) -> Iterator[WorkUnit]:
    """Runs of whole row groups with at least `rows` rows, the last with what is left; a file without rows is in none.

    Args:
      files: path and the rows of each of its row groups.
      rows: a unit ends with the row group that brings it to as many.
    """
    parts: list[tuple[str, tuple[int, ...]]] = []
    held = 0
    for path, sizes in files:
        groups: list[int] = []
        for group, size in enumerate(sizes if sum(sizes) else ()):
            groups.append(group)
            held += size
            if held >= rows:
                yield WorkUnit((*parts, (path, tuple(groups))), held)
                parts, groups, held = [], [], 0
        if groups:
            parts.append((path, tuple(groups)))
    if held:
        yield WorkUnit(tuple(parts), held)
