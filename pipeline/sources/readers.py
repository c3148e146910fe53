"""Parquet and CSV files as chunks of bounded size, each row with its number in its file.

CSV columns are read as text and judged later, so that one bad value costs one row and not the file.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from features.errors import ConfigError, DataError
from pipeline.sources.data_files import COMPRESSED, is_parquet, text_name

CSV_BLOCK_BYTES = 16 << 20
PARQUET_ROWS = 500_000
# What reading a file raises that is damaged or of another kind than its name says, that holds what Arrow cannot read
# (nested columns of large Parquet files), that cannot be opened, or that has another encoding: one error names it.
_UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError)


@dataclass(frozen=True)
class CsvDialect:
    """How text files are written.

    Args:
      delimiter: one character between columns; None: a tab where the file's name says `.tsv`, else a comma.
      quote: the quoting character, or None where quotes are ordinary characters.
      encoding: of the file.
      header: column names where the file has none.
      nulls: texts that stand for a missing value.
      max_line_breaks: in one quoted value, or in a row that cannot be split; more are taken for a quote that is not
        closed, which would swallow the rows after it.
    """

    delimiter: str | None = None
    quote: str | None = '"'
    encoding: str = "utf8"
    header: Sequence[str] | None = None
    nulls: Sequence[str] = ("",)
    max_line_breaks: int = 20

    def delimiter_of(self, path: Path) -> str:
        """What is between the columns of a file."""
        return self.delimiter or ("\t" if text_name(path).endswith(".tsv") else ",")


@dataclass(frozen=True)
class FileChunk:
    """Rows of one file under its own column names; see `RawChunk` for `rows` and `malformed`."""

    data: pa.Table
    path: Path
    rows: np.ndarray
    malformed: Sequence[tuple[int, str]] = ()


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
        with _open_csv(path, dialect, lambda row: "skip") as reader:
            names = list(reader.schema.names)
    except _UNREADABLE as error:
        if "Empty CSV file" in str(error):
            raise DataError(f"{path}: the file is empty, expected a header line with column names") from error
        raise _unreadable(path, error) from error
    breaks = int(_line_breaks(pa.array(names)).max())
    if breaks > dialect.max_line_breaks:
        raise _swallowed(path, "header", breaks, dialect)
    return names


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
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _parquet_chunks(path: Path, columns: Sequence[str] | None) -> Iterator[FileChunk]:
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=None if columns is None else list(columns)):
            yield FileChunk(pa.Table.from_batches([batch]), path, np.arange(start + 1, start + 1 + batch.num_rows))
            start += batch.num_rows


@dataclass
class _CsvRows:
    """Numbers the rows of a CSV file, of which Arrow tells the malformed ones apart from the others.

    Args:
      header_rows: rows before the first.
      malformed: rows so far that could not be split, in order.
      kept: rows so far that could.
    """

    header_rows: int
    malformed: list[tuple[int, str]] = field(default_factory=list)
    kept: int = 0
    _told: int = 0

    def keep_aside(self, row: Any) -> str:
        """Arrow's handler of malformed rows."""
        self.malformed.append((row.number - self.header_rows, row.text))
        return "skip"

    def place(self, size: int) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """The numbers `[size]` of the next rows that could be split, and the malformed rows up to the last of them."""
        bad = np.array([number for number, _ in self.malformed], np.int64)
        positions = np.arange(self.kept, self.kept + size)
        # A kept row's number is its position plus the malformed rows before it.
        numbers = positions + 1 + np.searchsorted(bad - np.arange(1, len(bad) + 1), positions, side="right")
        self.kept += size
        return numbers, self._until(numbers[-1] if size else 0)

    def rest(self) -> list[tuple[int, str]]:
        """The malformed rows that no other follows."""
        return self._until(np.iinfo(np.int64).max)

    def unseal(self, seal: str) -> bool:
        """Takes the seal off again; False where the end of the file is another row than the seal."""
        sealed = bool(self.malformed) and self.malformed[-1] == (self.kept + len(self.malformed), seal)
        if sealed:
            self.malformed.pop()
        return sealed

    def _until(self, last: int) -> list[tuple[int, str]]:
        now = [row for row in self.malformed[self._told :] if row[0] <= last]
        self._told += len(now)
        return now


def _csv_chunks(path: Path, columns: Sequence[str] | None, dialect: CsvDialect) -> Iterator[FileChunk]:
    names = column_names(path, dialect)
    if len(set(names)) < len(names):
        raise DataError(f"{path}: a column name occurs twice in the header ({', '.join(names)}); rename one")
    wanted = list(columns) if columns is not None else names
    rows = _CsvRows(header_rows=0 if dialect.header is not None else 1)
    # A row of a column too many after the end of the file is malformed, unless the file ends inside a quote.
    seal = dialect.delimiter_of(path) * len(names) if dialect.quote is not None else ""
    # The other columns are read as well: any of them may hold rows that a quote has swallowed.
    types = {name: pa.string() if name in wanted else pa.binary() for name in names}
    try:
        with _open_csv(path, dialect, rows.keep_aside, types, seal) as reader:
            for batch in reader:
                numbers, malformed = rows.place(batch.num_rows)
                _refuse_swallowed_rows(path, batch, numbers, malformed, dialect)
                if batch.num_rows:
                    yield FileChunk(pa.Table.from_batches([batch]).select(wanted), path, numbers, malformed)
    except pa.ArrowInvalid as error:
        if "straddling" in str(error):  # Arrow's word for a row that is longer than a block
            row = rows.kept + len(rows.malformed) + 1
            raise _quote_error(path, f"row {row}", f"expected a row of at most {CSV_BLOCK_BYTES:,} bytes") from error
        raise
    if seal and not rows.unseal(seal):
        raise _quote_error(path, f"row {rows.kept + len(rows.malformed)}", "the file ends inside a quoted value")
    if malformed := rows.rest():
        empty = pa.table({name: pa.array([], pa.string()) for name in wanted})
        _refuse_swallowed_rows(path, None, np.zeros(0, np.int64), malformed, dialect)
        yield FileChunk(empty, path, np.zeros(0, np.int64), malformed)


def _open_csv(
    path: Path, dialect: CsvDialect, handler: Any, types: dict[str, pa.DataType] | None = None, seal: str = ""
) -> csv.CSVStreamingReader:
    return csv.open_csv(
        _text_stream(path, dialect.encoding, seal),
        read_options=csv.ReadOptions(
            block_size=CSV_BLOCK_BYTES,
            column_names=list(dialect.header) if dialect.header is not None else None,
            use_threads=False,  # numbers of malformed rows are known only then
        ),
        parse_options=csv.ParseOptions(
            delimiter=dialect.delimiter_of(path),
            quote_char=dialect.quote if dialect.quote is not None else False,
            newlines_in_values=dialect.quote is not None,
            invalid_row_handler=handler,
        ),
        convert_options=csv.ConvertOptions(
            column_types=types,
            null_values=list(dialect.nulls),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )


def _text_stream(path: Path, encoding: str, seal: str) -> Any:
    """A file decompressed by its suffix, as UTF-8, and `seal` after it as a line of its own."""
    stream = pa.input_stream(str(path), compression=COMPRESSED.get(path.suffix.lower()))
    try:
        codec = codecs.lookup(encoding).name
    except LookupError as error:
        raise ConfigError(
            f"encoding: expected one that Python has, as utf8, utf-16 or latin1, found {encoding!r}; correct it"
        ) from error
    if codec != "utf-8":
        stream = pa.transcoding_input_stream(stream, encoding, "utf-8")
    return _Sealed(stream, f"\n{seal}\n".encode()) if seal else stream


class _Sealed:
    """A binary stream and some bytes after it, as a file object that Arrow reads."""

    def __init__(self, stream: Any, seal: bytes) -> None:
        self._stream = stream
        self._seal = seal
        self._ahead: bytes | None = None

    @property
    def closed(self) -> bool:
        return bool(self._stream.closed)

    def read(self, size: int = -1) -> bytes:
        if self._ahead is None:
            self._ahead = self._stream.read(size)
        block: bytes = self._ahead
        self._ahead = self._stream.read(size)
        if not self._ahead and (not block or len(block) + len(self._seal) <= size):
            block, self._seal = block + self._seal, b""
        return block

    def close(self) -> None:
        self._stream.close()


def _refuse_swallowed_rows(
    path: Path,
    batch: pa.RecordBatch | None,
    numbers: np.ndarray,
    malformed: Sequence[tuple[int, str]],
    dialect: CsvDialect,
) -> None:
    """Stops at the first row with more line breaks than a value has: rows that a quote has swallowed are no value."""
    if dialect.quote is None:
        return
    suspects = [(number, max(text.count("\n"), text.count("\r"))) for number, text in malformed]
    for column in batch.columns if batch is not None else ():
        breaks = _line_breaks(column)
        first = int(np.argmax(breaks > dialect.max_line_breaks)) if len(breaks) else 0
        suspects += [(int(numbers[first]), int(breaks[first]))] if len(breaks) else []
    swallowing = [suspect for suspect in suspects if suspect[1] > dialect.max_line_breaks]
    if swallowing:
        number, count = min(swallowing)
        raise _swallowed(path, f"row {number}", count, dialect)


def _line_breaks(values: pa.Array) -> np.ndarray:
    """int64 `[n]`: line breaks in each text."""
    data = np.frombuffer(values.buffers()[2] or b"", np.uint8)
    if not (data == ord("\n")).any() and not (data == ord("\r")).any():  # as nearly always; counting takes longer
        return np.zeros(len(values), np.int64)
    counts = [pc.fill_null(pc.count_substring(values, end), 0).to_numpy(zero_copy_only=False) for end in ("\n", "\r")]
    return np.maximum(*counts).astype(np.int64)


def _swallowed(path: Path, where: str, count: int, dialect: CsvDialect) -> DataError:
    return _quote_error(
        path,
        where,
        f"expected at most {dialect.max_line_breaks} line breaks in a row, found {count:,}",
        ", and max_line_breaks where values do have more",
    )


def _quote_error(path: Path, where: str, found: str, more: str = "") -> DataError:
    return DataError(
        f"{path} {where}: {found}: most often a quote that is not closed; close it, or set quote: null where quotes "
        f"are ordinary characters{more}"
    )


def _unreadable(path: Path, error: BaseException) -> DataError:
    kind = "Parquet" if is_parquet(path) else "CSV"
    found = " ".join(str(error).split())[:200]
    remedy = "repair or remove the file"
    if kind == "CSV" and (isinstance(error, UnicodeDecodeError) or "invalid UTF8" in found):
        remedy = "set the table's encoding to that of the file (as encoding: cp1252), or repair it"
    return DataError(f"{path}: cannot be read as {kind} ({found}); {remedy}")
