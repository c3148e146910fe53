"""The rules every raw row passes: it is kept in canonical form, or rejected with a reason.

A row has at most one reason, the first that applies in the order of `Reason`. Duplicates are found later, when all
rows of a day are together (`pipeline/sources/partitions.py`).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.errors import DataError
from features.settings import Settings
from features.tables import TABLES, TIMESTAMP, Table
from pipeline.sources.conversion import convert, finite, mask_of, plain
from pipeline.sources.source import RawChunk, nearest


class Reason(StrEnum):
    """Why a row was rejected."""

    MALFORMED_ROW = "malformed row"  # not as many columns as the header
    MISSING_ID = "missing id"  # null, empty or only spaces
    UNUSABLE_ID = "unusable id"  # control characters or line breaks, too long, or not UTF-8
    WRONG_TYPE = "wrong type"  # a value that is not of the column's type, or not finite
    GUESSED_TYPE = "not of the type that the first rows suggest"
    UNPARSABLE_TIME = "missing or unparsable time"
    FUTURE_TIME = "future time"
    EARLY_TIME = "time too early"  # most often a wrong unit
    FUTURE_UPLOAD = "upload far in the future, most often a wrong unit"
    MISSING_VALUE = "missing required value"
    NEGATIVE_WATCH_TIME = "negative watch time"
    ABSURD_WATCH_TIME = "absurd watch time"
    OUT_OF_RANGE = "value out of range"
    DUPLICATE = "duplicate"


REASONS = tuple(Reason)
REJECTED = pa.schema(
    [
        ("reason", pa.string()),
        ("column", pa.string()),
        ("origin", pa.string()),
        ("row", pa.int64()),
        ("raw", pa.string()),
    ]
)

_IDS = {"user_id", "video_id", "uploader_id", "impression_id", "request_id", "seed_video_id"}
_RANGES = {
    ("videos", "duration_s"): (0.0, math.inf),
    ("users", "gender"): (0.0, 1.0),
    ("users", "age"): (0.0, 150.0),
}
_TIME_REASONS = {Reason.UNPARSABLE_TIME, Reason.FUTURE_TIME, Reason.EARLY_TIME, Reason.FUTURE_UPLOAD}
_PARTS_OF_SECOND: Mapping[str, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_REPLACED = "\ufffd"  # stands for bytes that are no text
_UPLOAD_AHEAD = timedelta(days=400)


class ValidationConfig(Settings):
    """What a usable row is, and how many others are tolerated."""

    max_rejected_share: float = Field(default=0.05, ge=0, le=1, description="of a table's rows, duplicates not counted")
    max_duplicate_share: float = Field(default=0.2, ge=0, le=1, description="of a table's rows")
    max_unmatched_share: float = Field(
        default=0.9, ge=0, le=1, description="of an event table's rows, whose user or video its table lacks; 1: any"
    )
    max_watch_time_s: float = Field(default=86_400.0, gt=0, description="seconds; a longer watch is absurd")
    max_id_length: int = Field(default=256, ge=1, description="characters")
    earliest: datetime = Field(default=datetime(1990, 1, 1, tzinfo=UTC), description="events before it are rejected")
    latest: datetime | None = Field(
        default=None,
        description="events after it are rejected; None: one day after now. Uploads may be up to 400 days "
        "after it, or after tomorrow where that is later",
    )


@dataclass(frozen=True)
class Checked:
    """A chunk after the rules.

    Args:
      kept: the kept rows in canonical types, canonical columns first.
      rows: int64 `[kept]` row numbers within the chunk's origin.
      rejected: the others, as `REJECTED`.
    """

    kept: pa.Table
    rows: np.ndarray
    rejected: pa.Table


class _Marks:
    """The first reason and column of each row."""

    def __init__(self, size: int) -> None:
        self.reason = np.full(size, -1, np.int8)
        self.column = np.full(size, "", object)

    def add(self, mask: np.ndarray, reason: Reason, column: str) -> None:
        code = REASONS.index(reason)
        replaced = mask & ((self.reason < 0) | (code < self.reason))
        self.reason[replaced] = code
        self.column[replaced] = column


def check_chunk(chunk: RawChunk, table: Table, config: ValidationConfig, now: datetime | None = None) -> Checked:
    """Applies the rules to a chunk of `table`.

    Args:
      chunk: raw rows.
      table: the canonical table they are for.
      config: the limits.
      now: the present, for `config.latest` = None.

    Raises:
      DataError: a required column is absent.
    """
    columns, broken = _plain_columns(chunk)
    _require_columns(chunk, table)
    marks = _Marks(chunk.data.num_rows)
    values: dict[str, pa.Array] = {}
    for field in table.schema:
        if field.name not in columns:
            continue
        raw = columns[field.name]
        values[field.name], bad = convert(
            raw, field.type, chunk.units.get(field.name), chunk.separators.get(field.name)
        )
        bad = bad | broken[field.name]
        if field.name in _IDS:
            values[field.name] = _check_ids(values[field.name], bad, field.name, table, config, marks)
        elif pa.types.is_timestamp(field.type):
            marks.add(bad, Reason.UNPARSABLE_TIME, field.name)
        else:
            marks.add(bad, Reason.WRONG_TYPE, field.name)
            if pa.types.is_string(field.type):
                values[field.name] = _blank_to_null(values[field.name])
    for name in columns.keys() - values.keys():
        if name in chunk.types:
            values[name], bad = convert(
                columns[name], chunk.types[name], chunk.units.get(name), chunk.separators.get(name)
            )
        else:
            values[name], bad = finite(columns[name])
        guessed = name in chunk.guessed
        marks.add(bad | broken[name], Reason.GUESSED_TYPE if guessed else Reason.WRONG_TYPE, name)
    tomorrow = (now or datetime.now(UTC)) + timedelta(days=1)
    if table.partitioned:
        _check_times(values, marks, config, tomorrow, chunk.data.num_rows)
    elif "upload_time" in table.schema.names and "upload_time" in values:
        latest = max(_scalar(moment).value for moment in (tomorrow, config.latest or tomorrow))
        ahead = pa.scalar(latest + _UPLOAD_AHEAD // timedelta(microseconds=1), TIMESTAMP)
        marks.add(mask_of(pc.greater(values["upload_time"], ahead)), Reason.FUTURE_UPLOAD, "upload_time")
    _check_values(values, table, config, marks)
    return _split(chunk, columns, values, marks, table)


def raw_json(data: pa.Table) -> list[str]:
    """Each row as a JSON object (values JSON lacks become text, times in UTC)."""

    def writable(value: object) -> object:
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return [
        json.dumps({key: writable(value) for key, value in row.items()}, ensure_ascii=False, default=str)
        for row in pa.table({name: _times_as_text(data[name]) for name in data.column_names}).to_pylist()
    ]


def _times_as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times and durations as text, in lists and structs as well: Python has no nanoseconds and no year 10,000."""
    for leaf in (_without_zone, _text_of_time):
        kind = _with_leaves(column.type, leaf)
        column = column if kind == column.type else column.cast(kind)
    return column


def _with_leaves(kind: pa.DataType, leaf: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type whose innermost types are replaced."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_with_leaves(kind.value_type, leaf)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_leaves(field.type, leaf)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_with_leaves(kind.key_type, leaf), _with_leaves(kind.item_type, leaf))
    return leaf(kind)


def _without_zone(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def _text_of_time(kind: pa.DataType) -> pa.DataType:
    is_time = (pa.types.is_timestamp, pa.types.is_date, pa.types.is_time, pa.types.is_duration)
    return pa.string() if any(test(kind) for test in is_time) else kind


def rejected_table(
    reasons: list[str], columns: list[str], origins: list[str], rows: list[int], raw: list[str]
) -> pa.Table:
    """Rejected rows as a `REJECTED` table."""
    return pa.table([reasons, columns, origins, rows, raw], schema=REJECTED)


def _plain_columns(chunk: RawChunk) -> tuple[dict[str, pa.Array], dict[str, np.ndarray]]:
    columns: dict[str, pa.Array] = {}
    broken: dict[str, np.ndarray] = {}
    for name in chunk.data.column_names:
        columns[name], broken[name] = plain(chunk.data[name])
    return columns, broken


def _require_columns(chunk: RawChunk, table: Table) -> None:
    present = chunk.data.column_names
    for name in table.required.names:
        if name not in present and not (name in {"timestamp", "clicked"} and "time_known" in present):
            raise DataError(
                f"{chunk.origin}: table {table.name!r} needs column {name!r}, {nearest(name, present)}; "
                f"map it in the source's configuration"
            )


def _check_ids(
    ids: pa.Array, bad: np.ndarray, name: str, table: Table, config: ValidationConfig, marks: _Marks
) -> pa.Array:
    ids = _blank_to_null(ids)
    if name in table.required.names:
        marks.add(mask_of(ids.is_null()) & ~bad, Reason.MISSING_ID, name)
    # Control characters, and the line breaks of Unicode.
    unusable = mask_of(pc.match_substring_regex(ids, r"[\x00-\x1f\x7f\x{85}\x{2028}\x{2029}]"))
    unusable |= mask_of(pc.greater(pc.utf8_length(ids), config.max_id_length))
    marks.add(bad | unusable, Reason.UNUSABLE_ID, name)
    return ids


def _blank_to_null(text: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(text), ""), pa.scalar(None, pa.string()), text)


def _check_times(
    values: dict[str, pa.Array], marks: _Marks, config: ValidationConfig, tomorrow: datetime, size: int
) -> None:
    known = np.ones(size, bool)
    if "time_known" in values:
        values["time_known"] = pc.fill_null(values["time_known"], True)
        known = mask_of(values["time_known"])
        order = values.get("order", pa.nulls(size, pa.int64()))
        marks.add(~known & mask_of(order.is_null()), Reason.MISSING_VALUE, "order")
    times = values.get("timestamp", pa.nulls(size, TIMESTAMP))
    times = pc.if_else(pa.array(known), times, None)
    values["timestamp"] = times
    latest = config.latest or tomorrow
    marks.add(known & mask_of(times.is_null()), Reason.UNPARSABLE_TIME, "timestamp")
    marks.add(mask_of(pc.greater(times, _scalar(latest))), Reason.FUTURE_TIME, "timestamp")
    marks.add(mask_of(pc.less(times, _scalar(config.earliest))), Reason.EARLY_TIME, "timestamp")
    if "clicked" in values:
        marks.add(known & mask_of(values["clicked"].is_null()), Reason.MISSING_VALUE, "clicked")


def _scalar(moment: datetime) -> pa.Scalar:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return pa.scalar(aware.astimezone(UTC), TIMESTAMP)


def _check_values(values: dict[str, pa.Array], table: Table, config: ValidationConfig, marks: _Marks) -> None:
    if "query" in table.required.names:
        marks.add(mask_of(values["query"].is_null()), Reason.MISSING_VALUE, "query")
    if "watch_time_s" in values and table.partitioned:
        watch_time = values["watch_time_s"]
        marks.add(mask_of(pc.less(watch_time, 0.0)), Reason.NEGATIVE_WATCH_TIME, "watch_time_s")
        marks.add(mask_of(pc.greater(watch_time, config.max_watch_time_s)), Reason.ABSURD_WATCH_TIME, "watch_time_s")
    for (table_name, column), (low, high) in _RANGES.items():
        if table_name == table.name and column in values:
            outside = pc.or_(pc.less(values[column], low), pc.greater(values[column], high))
            marks.add(mask_of(outside), Reason.OUT_OF_RANGE, column)


def _split(
    chunk: RawChunk, columns: dict[str, pa.Array], values: dict[str, pa.Array], marks: _Marks, table: Table
) -> Checked:
    names = [name for name in table.schema.names if name in values]
    names += [name for name in chunk.data.column_names if name not in names]
    keep = marks.reason < 0
    kept = pa.table({name: values[name] for name in names})
    rejected = [
        rejected_table(
            [Reason.MALFORMED_ROW.value] * len(chunk.malformed),
            [""] * len(chunk.malformed),
            [chunk.origin] * len(chunk.malformed),
            [number for number, _ in chunk.malformed],
            [json.dumps(text, ensure_ascii=False) for _, text in chunk.malformed],
        )
    ]
    if not keep.all():
        kept = kept.filter(pa.array(keep))
        lost = np.flatnonzero(~keep)
        rejected.append(
            rejected_table(
                [REASONS[code].value for code in marks.reason[lost]],
                marks.column[lost].tolist(),
                [chunk.origin] * len(lost),
                chunk.rows[lost].tolist(),
                raw_json(pa.table(columns).take(pa.array(lost))),
            )
        )
    return Checked(kept, chunk.rows[keep], pa.concat_tables(rejected))


def refuse_if_too_many(
    name: str,
    read: int,
    rejected: Mapping[str, int],
    samples: Sequence[Mapping[str, Any]],
    config: ValidationConfig,
    where: Path,
) -> None:
    """Fails the run when too large a share of a table was rejected.

    Args:
      name: the canonical table.
      read: rows read.
      rejected: rejected rows by reason.
      samples: by reason and column, most frequent first: `reason`, `column`, `count_all` and the first such row
        (`origin_first`, `row_first`, `raw_first`).
      config: the shares that are tolerated. Duplicates have a share of their own: a log that was shipped twice is
        still a good log.
      where: where the rejected rows can be looked at.

    Raises:
      DataError: too many rows, or all of them, were rejected; names the worst reasons with example rows.
    """
    duplicates = rejected.get(Reason.DUPLICATE.value, 0)
    others = sum(rejected.values()) - duplicates
    limits = [
        (others, config.max_rejected_share, "rejected", "max_rejected_share"),
        (duplicates, config.max_duplicate_share, "duplicates", "max_duplicate_share"),
    ]
    for count, limit, what, setting in limits:
        if count > limit * read or (count and count == read):
            worst = [s for s in samples if (s["reason"] == Reason.DUPLICATE.value) == (what == "duplicates")][:3]
            listing = "; ".join(
                f"{s['reason']}{' in ' + s['column'] if s['column'] else ''}: {s['count_all']:,} rows, "
                f"as {s['origin_first']} row {s['row_first']}: {s['raw_first'][:200]}"
                for s in worst
            )
            raise DataError(
                f"{name}: {count:,} of {read:,} rows are {what} ({count / read:.1%}, tolerated are {limit:.1%}); "
                f"worst: {listing}; the rejected rows are in {where}; {_guesses(name, read, worst)}"
                f"correct the source or its column mapping, or raise validation.{setting}"
            )


def _guesses(table: str, read: int, samples: Sequence[Mapping[str, Any]]) -> str:
    """What to do about guessed types, wrong units, bytes for text and columns of another meaning, for an error."""
    told = []
    for sample in samples:
        name = sample["column"]
        if sample["reason"] == Reason.GUESSED_TYPE.value:
            told.append(
                f"the type of {name!r} was guessed from the first rows: give it, as extra: {{{name}: string}}; "
            )
        elif sample["reason"] == Reason.UNUSABLE_ID.value and _REPLACED in sample["raw_first"]:
            told.append(f"the bytes of {name!r} are not UTF-8: write them as text, UUIDs also as Parquet's UUID type; ")
        elif sample["reason"] in _TIME_REASONS and (unit := _likely_unit(json.loads(sample["raw_first"]).get(name))):
            told.append(f"its {name} is of our days if it is in {unit}: set units: {{{name}: {unit}}}; ")
        elif sample["reason"] == Reason.ABSURD_WATCH_TIME.value:
            told.append("*_s are seconds: if they are milliseconds, set units: {watch_time_s: ms}; ")
        elif name == "gender":
            told.append('words are mapped to numbers, as values: {gender: {F: 0, M: 1, "?": null}}; ')
        elif 2 * sample["count_all"] > read and name in TABLES[table].optional.names:
            told.append(f"where the files mean something else by {name!r}, leave it out: columns: {{{name}: null}}; ")
    return "".join(told)


def _likely_unit(raw: object) -> str | None:
    """The unit in which a whole number is a time of the years 1990 to 2100 since the epoch; there is one at most."""
    text = str(raw).strip().removesuffix(".0")
    if not (text.isascii() and text.isdecimal()) or len(text) > 20:
        return None
    start, end = (datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (1990, 2100))
    return next((unit for unit, parts in _PARTS_OF_SECOND.items() if start <= int(text) / parts < end), None)
