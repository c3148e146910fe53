"""Parquet and CSV files as chunks of bounded size, each row with its number in its file.

CSV columns are read as text and judged later, so that one bad value costs one row and not the file.
"""

import gzip
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from features.errors import ConfigError, DataError

CSV_BLOCK_BYTES = 16 << 20
PARQUET_ROWS = 500_000
_PARQUET = (".parquet", ".pq")
_CSV = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")


@dataclass(frozen=True)
class CsvDialect:
    """How text files are written.

    Args:
      delimiter: one character between columns.
      quote: the quoting character, or None where quotes are ordinary characters.
      encoding: of the file.
      header: column names where the file has none.
      nulls: texts that stand for a missing value.
    """

    delimiter: str = ","
    quote: str | None = '"'
    encoding: str = "utf8"
    header: Sequence[str] | None = None
    nulls: Sequence[str] = ("",)


@dataclass(frozen=True)
class FileChunk:
    """Rows of one file under its own column names; see `RawChunk` for `rows` and `malformed`."""

    data: pa.Table
    path: Path
    rows: np.ndarray
    malformed: Sequence[tuple[int, str]] = ()


def find_files(path: str) -> list[Path]:
    """The data files behind a path: one file, a folder (searched whole) or a glob pattern; sorted.

    Raises:
      ConfigError: there is none.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        files = [
            file for file in given.rglob("*") if file.is_file() and is_data_file(file) and not _hidden(file, given)
        ]
        if not files:
            raise ConfigError(f"{path}: the folder ({given.resolve()}) has no {' or '.join((*_PARQUET, *_CSV))} file")
        return sorted(files)
    if any(character in path for character in "*?["):
        anchor = Path(given.anchor) if given.anchor else Path()
        files = sorted(file for file in anchor.glob(str(given.relative_to(given.anchor))) if file.is_file())
        if files:
            return files
        raise ConfigError(f"{path}: no file matches this pattern (from {Path.cwd()}); correct the source's path")
    raise ConfigError(f"{path}: no such file or folder (looked for {given.absolute()}); correct the source's path")


def is_data_file(path: Path) -> bool:
    """Whether the name of a file says Parquet or CSV."""
    return path.name.lower().endswith((*_PARQUET, *_CSV))


def is_parquet(path: Path) -> bool:
    return path.name.lower().endswith(_PARQUET)


def column_names(path: Path, dialect: CsvDialect | None = None) -> list[str]:
    """The columns of a file, without reading its rows.

    Raises:
      DataError: the file is empty or cannot be read.
    """
    dialect = dialect or CsvDialect()
    try:
        if is_parquet(path):
            return list(pq.read_schema(path).names)
        if dialect.header is not None:
            return list(dialect.header)
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as stream:
            line = stream.readline()
        if not line.strip():
            raise DataError(f"{path}: the file is empty, expected a header line with column names")
        table = csv.read_csv(
            pa.BufferReader(line.rstrip(b"\r\n") + b"\n"),
            read_options=csv.ReadOptions(encoding=dialect.encoding),
            parse_options=_parse_options(dialect),
        )
        return list(table.column_names)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def read_chunks(
    path: Path, columns: Sequence[str] | None = None, dialect: CsvDialect | None = None
) -> Iterator[FileChunk]:
    """The rows of a file in order, `columns` only.

    Raises:
      DataError: the file cannot be read.
    """
    try:
        if is_parquet(path):
            yield from _parquet_chunks(path, columns)
        else:
            yield from _csv_chunks(path, columns, dialect or CsvDialect())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error


def _parquet_chunks(path: Path, columns: Sequence[str] | None) -> Iterator[FileChunk]:
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=None if columns is None else list(columns)):
            yield FileChunk(pa.Table.from_batches([batch]), path, np.arange(start + 1, start + 1 + batch.num_rows))
            start += batch.num_rows


def _csv_chunks(path: Path, columns: Sequence[str] | None, dialect: CsvDialect) -> Iterator[FileChunk]:
    names = column_names(path, dialect)
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a column name occurs twice in the header ({', '.join(names)}); rename one")
    malformed: list[Any] = []

    def keep_aside(row: Any) -> str:
        malformed.append(row)
        return "skip"

    reader = csv.open_csv(
        path,
        read_options=csv.ReadOptions(
            block_size=CSV_BLOCK_BYTES,
            encoding=dialect.encoding,
            column_names=list(dialect.header) if dialect.header is not None else None,
            use_threads=False,  # numbers of malformed rows are known only then
        ),
        parse_options=_parse_options(dialect, keep_aside),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=list(columns) if columns is not None else None,
            null_values=list(dialect.nulls),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )
    header_lines = 0 if dialect.header is not None else 1
    kept = 0
    told = 0
    for batch in itertools.chain(reader, [None]):
        bad = np.array([row.number - header_lines for row in malformed], np.int64)
        positions = np.arange(kept, kept + (batch.num_rows if batch is not None else 0))
        # A kept row's number is its position plus the malformed rows before it.
        numbers = positions + 1 + np.searchsorted(bad - np.arange(1, len(bad) + 1), positions, side="right")
        last = np.iinfo(np.int64).max if batch is None else (numbers[-1] if len(numbers) else 0)
        now = [(int(n), row.text) for n, row in zip(bad[told:], malformed[told:], strict=True) if n <= last]
        told += len(now)
        kept += len(positions)
        if batch is not None:
            yield FileChunk(pa.Table.from_batches([batch]), path, numbers, now)
        elif now:
            empty = pa.table({name: pa.array([], pa.string()) for name in (columns or names)})
            yield FileChunk(empty, path, numbers, now)


def _parse_options(dialect: CsvDialect, handler: Any = None) -> csv.ParseOptions:
    return csv.ParseOptions(
        delimiter=dialect.delimiter,
        quote_char=dialect.quote if dialect.quote is not None else False,
        newlines_in_values=dialect.quote is not None,
        invalid_row_handler=handler,
    )


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _unreadable(path: Path, error: BaseException) -> DataError:
    kind = "Parquet" if is_parquet(path) else "CSV"
    return DataError(
        f"{path}: cannot be read as {kind} ({' '.join(str(error).split())[:200]}); repair or remove the file"
    )
