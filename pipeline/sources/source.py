"""What every source is: raw chunks per canonical table, with where each row came from.

A source renames columns and says how raw values are written (units, separators); it does not judge them.
`pipeline/sources/validation.py` turns the values into canonical types and rejects the rows that cannot be used.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from features.artifacts import file_sha256
from features.settings import Settings

Unit = Literal["s", "ms", "us", "ns", "iso"]


@dataclass(frozen=True)
class RawChunk:
    """Some rows of one canonical table as the source wrote them.

    Args:
      data: canonical column names, raw values of any Arrow type. Columns that are not canonical are further columns.
      origin: where the rows were read, for error messages (a file's path).
      rows: int64 `[data.num_rows]`; the number of each row within `origin`, from 1 (a header is not counted).
      units: how times and durations are written, by column; without an entry a time is in seconds or ISO 8601 text
        and a duration in seconds.
      separators: what separates the values of a list that is written as text, by column.
      types: what further columns are to become, by column; without an entry they stay as they are.
      malformed: (row number, text) of rows that could not be split into columns.
      guessed: further columns whose type the source has guessed from their first rows.
    """

    data: pa.Table
    origin: str
    rows: np.ndarray
    units: Mapping[str, Unit] = field(default_factory=dict)
    separators: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    malformed: Sequence[tuple[int, str]] = ()
    guessed: Collection[str] = ()


class Source(Protocol):
    """Anything that can be ingested."""

    def tables(self) -> Mapping[str, Iterator[RawChunk]]:
        """Canonical table name → its chunks in the order of the source. Tables it does not have are absent."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What was read, as JSON: equal fingerprints mean equal rows."""
        ...


@dataclass(frozen=True)
class InMemorySource:
    """Canonical tables that are already in memory (the simulator's), read in bounded chunks.

    Args:
      data: canonical table name → table.
      name: stands where a file's path would in messages.
      identity: what the tables were made from, as JSON (a configuration); their own content when None.
      chunk_rows: rows per chunk.
    """

    data: Mapping[str, pa.Table]
    name: str
    identity: Mapping[str, Any] | None = None
    chunk_rows: int = 1_000_000

    def tables(self) -> Mapping[str, Iterator[RawChunk]]:
        return {name: self._chunks(name, table) for name, table in self.data.items()}

    def fingerprint(self) -> dict[str, Any]:
        if self.identity is not None:
            return {"source": self.name, **self.identity}
        return {"source": self.name, "tables": {name: _content_sha256(table) for name, table in self.data.items()}}

    def _chunks(self, name: str, table: pa.Table) -> Iterator[RawChunk]:
        for start in range(0, table.num_rows, self.chunk_rows):
            part = table.slice(start, self.chunk_rows)
            yield RawChunk(part, f"{self.name}:{name}", np.arange(start + 1, start + 1 + part.num_rows))


def file_fingerprints(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each file in the order given, wherever they lie."""
    return [{"name": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files]


def settings_of(config: Settings) -> dict[str, Any]:
    """A source's configuration as JSON but for where its files lie: logs that were moved are the same logs."""
    places: Any = {"path": True, "archive": True, "data_dir": True, "tables": {"__all__": {"path"}}}
    return config.model_dump(mode="json", exclude=places)


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for an error message: the known name nearest to `name`, and the known names."""
    close = get_close_matches(name, known, n=1, cutoff=0.5) or get_close_matches(
        name.lower(), [k.lower() for k in known], n=1, cutoff=0.5
    )
    listing = ", ".join(" ".join(k.split()) for k in known[:20]) + (", ..." if len(known) > 20 else "")
    by_lower = {k.lower(): k for k in known}
    hint = f"did you mean {by_lower.get(close[0].lower(), close[0])!r}? " if close else ""
    return f"{hint}there are: {listing or 'none'}"


def _content_sha256(table: pa.Table) -> str:
    digest = hashlib.sha256(str(table.schema).encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    digest.update(sink.getvalue())
    return digest.hexdigest()
