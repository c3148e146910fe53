"""Your own logs: Parquet or CSV files, with a column mapping in the configuration.

Example (YAML):

    source:
      kind: files
      tables:
        watches:
          path: logs/plays/*.csv
          columns: {user_id: uid, video_id: item, timestamp: started, watch_time_s: played_ms}
          units: {timestamp: ms, watch_time_s: ms}
          constants: {origin: recommended}
        users:
          path: users.parquet
          values: {gender: {F: 0, M: 1, "?": null}}
          extra: {plan: string, followers: number}
        videos:
          path: videos.csv
          columns: {video_id: id, topics: tags}
          separators: {topics: "|"}
          extra: [studio]
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.errors import ConfigError, DataError
from features.settings import Settings
from features.tables import TABLES, Table
from pipeline.sources.conversion import convert, plain
from pipeline.sources.data_files import find_files, is_parquet
from pipeline.sources.readers import CsvDialect, FileChunk, column_names, read_chunks
from pipeline.sources.source import RawChunk, Unit, file_fingerprints, nearest, settings_of

TableName = Literal["watches", "impressions", "searches", "users", "videos"]
ExtraType = Literal["string", "number", "integer", "bool", "strings"]

_EXTRA_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "number": pa.float64(),
    "integer": pa.int64(),
    "bool": pa.bool_(),
    "strings": pa.list_(pa.string()),
}


class FileTable(Settings):
    """The files of one canonical table."""

    path: str = Field(description="a file, a folder or a glob pattern; relative to the current directory")
    columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="canonical column: column of the files; a column of the same name needs none, and null leaves it "
        "out where it means something else",
    )
    units: dict[str, Unit] = Field(
        default_factory=dict,
        description="s, ms, us, ns or iso, of times (default: seconds or ISO 8601) and of durations (default: s)",
    )
    values: dict[str, dict[str, bool | int | float | str | None]] = Field(
        default_factory=dict, description="canonical column: {value in the files: canonical value, null for missing}"
    )
    constants: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="canonical column: the value of every row"
    )
    separators: dict[str, str] = Field(
        default_factory=dict, description="list column: what separates its values where it is text"
    )
    extra: list[str] | dict[str, ExtraType] = Field(
        default_factory=list,
        description="further columns to keep, with a type or (CSV) the type that the first rows suggest; "
        "whole numbers of more than 15 digits suggest text",
    )
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="of CSV; null: a tab where a file is .tsv, else a comma"
    )
    quote: str | None = Field(default='"', description="of CSV; null where quotes are ordinary characters")
    max_line_breaks: int = Field(
        default=20, ge=0, description="in a row of CSV; more are taken for a quote that is not closed, and stop the run"
    )
    encoding: str = Field(default="utf8", description="of CSV")
    nulls: list[str] = Field(default=["", "NULL", "null", "\\N"], description="texts of CSV that mean missing")

    @property
    def dialect(self) -> CsvDialect:
        return CsvDialect(
            self.delimiter, self.quote, self.encoding, nulls=tuple(self.nulls), max_line_breaks=self.max_line_breaks
        )


class FilesConfig(Settings):
    """Parquet or CSV files as a source."""

    kind: Literal["files"] = "files"
    tables: dict[TableName, FileTable] = Field(description="the tables there are; watches is required")


@dataclass(frozen=True)
class FilesSource:
    """Reads the files that a `FilesConfig` names."""

    config: FilesConfig

    def tables(self) -> Mapping[str, Iterator[RawChunk]]:
        """The configured tables; files and columns of all of them are checked before the first row is read.

        Raises:
          ConfigError: no file at a path, or the mapping names a column that is not canonical or not in the files.
          DataError: a file cannot be read, or a table has no row.
        """
        plans = {}
        for name, entry in self.config.tables.items():
            files = find_files(entry.path)
            plans[name] = (files, [_resolve(TABLES[name], entry, file) for file in files])
        return {
            name: _chunks(TABLES[name], self.config.tables[name], files, mappings)
            for name, (files, mappings) in plans.items()
        }

    def fingerprint(self) -> dict[str, Any]:
        files = {name: file_fingerprints(find_files(entry.path)) for name, entry in self.config.tables.items()}
        return {"source": "files", "config": settings_of(self.config), "files": files}


def _resolve(table: Table, entry: FileTable, file: Path) -> dict[str, str]:
    """Canonical or further column → column of the file."""
    present = column_names(file, entry.dialect)
    extra = list(entry.extra)
    known = [*table.schema.names, *extra]
    for setting in ("columns", "units", "values", "constants", "separators"):
        for name in getattr(entry, setting):
            if name not in known:
                raise ConfigError(
                    f"source.tables.{table.name}.{setting}: {name!r} is not a column of {table.name}, "
                    f"{nearest(name, known)}; to keep a further column list it under extra"
                )
    for name in entry.values:
        if pa.types.is_list(_target(table, name)):
            raise ConfigError(f"source.tables.{table.name}.values: {name!r} holds lists, whose values cannot be mapped")
    mapping = {}
    for name in known:
        column = entry.columns.get(name, name)
        if column is None:
            _refuse_needed(table, entry, name)
        elif column in present:
            mapping[name] = column
        elif name not in entry.constants and (name in entry.columns or name in table.required.names or name in extra):
            raise ConfigError(
                f"{file}: no column {column!r} for {table.name}.{name}, {nearest(column, present)}; "
                f"{_suspected_delimiter(table, present)}correct source.tables.{table.name}.columns"
            )
    return mapping


def _refuse_needed(table: Table, entry: FileTable, name: str) -> None:
    """Raises ConfigError where a column that is left out is needed."""
    if name in entry.extra or (name in table.required.names and name not in entry.constants):
        why = "it is listed under extra" if name in entry.extra else "every row needs it"
        raise ConfigError(
            f"source.tables.{table.name}.columns.{name}: expected a column of the files, found null, which leaves it "
            f"out, but {why}; name a column"
        )


def _suspected_delimiter(table: Table, present: list[str]) -> str:
    """What to do where the header was not split, for an error message."""
    found = [character for character in ";\t|" if any(character in name for name in present)]
    return f"set source.tables.{table.name}.delimiter if it is {found[0]!r}, or " if found else ""


def _target(table: Table, name: str) -> pa.DataType:
    return table.schema.field(name).type if name in table.schema.names else pa.string()


def _chunks(table: Table, entry: FileTable, files: list[Path], mappings: list[dict[str, str]]) -> Iterator[RawChunk]:
    types = {n: _EXTRA_TYPES[t] for n, t in entry.extra.items()} if isinstance(entry.extra, dict) else {}
    guessed: set[str] = set()
    rows = 0
    for file, mapping in zip(files, mappings, strict=True):
        for chunk in read_chunks(file, sorted(set(mapping.values())), entry.dialect):
            rows += chunk.data.num_rows + len(chunk.malformed)
            if not is_parquet(file):
                untyped = [name for name in entry.extra if name not in types]
                types.update({name: _suggested_type(chunk.data[mapping[name]]) for name in untyped})
                guessed.update(untyped)
            yield RawChunk(
                data=_mapped(chunk, entry, mapping),
                origin=str(file),
                rows=chunk.rows,
                units=entry.units,
                separators=entry.separators,
                types=types,
                guessed=guessed,
                malformed=chunk.malformed,
            )
    if not rows:
        listing = ", ".join(map(str, files[:3])) + (", ..." if len(files) > 3 else "")
        raise DataError(
            f"table {table.name!r}: expected rows in {listing}, found none; correct source.tables.{table.name}.path "
            f"or leave the table out"
        )


def _mapped(chunk: FileChunk, entry: FileTable, mapping: Mapping[str, str]) -> pa.Table:
    columns = {}
    for name, column in mapping.items():
        columns[name] = chunk.data[column]
        if name in entry.values:
            columns[name] = _map_values(columns[name], entry.values[name])
    for name, value in entry.constants.items():
        columns[name] = pa.repeat(value, chunk.data.num_rows)
    return pa.table(columns)


def _map_values(column: pa.ChunkedArray, values: Mapping[str, Any]) -> pa.Array:
    """Mapped values as text; a value without an entry stays what it is, for validation to judge."""
    text, _ = convert(plain(column)[0], pa.string())
    keys = pa.array(list(values), pa.string())
    texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in values.values()]
    none = np.array([value is None for value in values.values()], bool)
    position = pc.index_in(text, value_set=keys)
    return pc.if_else(position.is_valid(), pa.array(texts, pa.string(), mask=none).take(position), text)


def _suggested_type(column: pa.ChunkedArray) -> pa.DataType:
    """Integer or number where all of a text column's values are.

    Numerals with leading zeros, or with more than the 15 digits that every number holds, are identifiers.
    """
    text = plain(column)[0]
    filled = text.drop_null()
    if not len(filled) or pc.any(pc.match_substring_regex(filled, r"^\s*(0\d|[+-]?\d{16})")).as_py():
        return pa.string()
    for kind in (pa.int64(), pa.float64()):
        _, bad = convert(text, kind)
        if not np.any(bad):
            return kind
    return pa.string()
