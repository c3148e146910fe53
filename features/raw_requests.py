"""Raw requests as a client would send them, rebuilt from the canonical tables for users and moments of the past.

They feed the parity check (stored example against raw rows through the exported model) and the recommendations for
users of a log. This is deliberately a second, plain reading of the tables, not the one that the example jobs use.

Arrays are padded on the right with "" or NaN, oldest event first:

| input | value |
| --- | --- |
| watched_video_ids, watched_timestamps, watched_watch_time_s | the last `watch_window` watches |
| watched_page, watched_device, ... | columns of the same watches |
| shown_video_ids, shown_timestamps, shown_clicked | the last `impression_window` impressions |
| search_queries | the last `search_window` searches |
| request_timestamp | the request's moment |
| user_language and the other columns of `users` | what is known of the user |
| the other inputs | columns of the request itself |

Times are float64 seconds since the epoch, NaN where only the order is known. Events at or after the request's moment
are not sent, nor the watch time of a watch that had not ended.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from features.errors import DataError
from features.feature_lists import FeatureListConfig
from features.tables import has_table, table_columns, table_files

_ORDER_ONLY = np.iinfo(np.int64).min
_HISTORIES = {
    "watches": {
        "watched_video_ids": "video_id",
        "watched_timestamps": "timestamp",
        "watched_watch_time_s": "watch_time_s",
    },
    "impressions": {"shown_video_ids": "video_id", "shown_timestamps": "timestamp", "shown_clicked": "clicked"},
    "searches": {"search_queries": "query"},
}
_USER_COLUMNS = {"user_language": "language"}


class RawInput(NamedTuple):
    """Dtype (object for strings) and number of axes of a raw input."""

    dtype: np.dtype
    rank: int


def raw_requests(
    tables: Path, requests: pa.Table, inputs: Mapping[str, RawInput], config: FeatureListConfig
) -> dict[str, np.ndarray]:
    """The raw inputs of requests.

    Args:
      tables: the run's `tables` folder.
      requests: `user_id` string and `request_timestamp` (timestamp in microseconds), and a column for every input that
        is neither history nor of the user: a list column gives `[B, n]`, lists of lists `[B, n, m]`. An input without
        a column is missing.
      inputs: the inputs wanted.
      config: the lengths of the histories.

    Returns:
      input -> `[B]`, `[B, n]` or `[B, n, m]`.
    """
    snapshots_us = requests["request_timestamp"].cast(pa.int64()).to_numpy()
    users = requests["user_id"].combine_chunks()
    windows = {
        "watches": config.watch_window,
        "impressions": config.impression_window,
        "searches": config.search_window,
    }
    found: dict[str, np.ndarray] = {}
    if "request_timestamp" in inputs:
        found["request_timestamp"] = snapshots_us / 1e6
    for name, columns in _histories_of(inputs, requests).items():
        wanted = {given: column for given, column in columns.items() if given in inputs}
        if wanted:
            found |= _histories(tables, name, wanted, users, snapshots_us, windows[name])
    user_inputs = [name for name in inputs if name not in found and name not in requests.column_names]
    found |= _user_values(tables, {name: inputs[name].rank for name in user_inputs}, users)
    for name, given in inputs.items():
        if name not in found:
            found[name] = _request_values(requests, name, given.rank)
    return {name: _typed(found[name], np.dtype(given.dtype)) for name, given in inputs.items()}


def _histories_of(inputs: Mapping[str, RawInput], requests: pa.Table) -> dict[str, dict[str, str]]:
    """Event table -> raw input -> its column; a list `watched_<column>` is any further column of the watches."""
    histories = {name: dict(columns) for name, columns in _HISTORIES.items()}
    for name, given in inputs.items():
        if name.startswith("watched_") and given.rank == 2 and name not in requests.column_names:
            histories["watches"].setdefault(name, name.removeprefix("watched_"))
    return histories


def logged_requests(tables: Path, table: str, examples: pa.Table, columns: Sequence[str]) -> dict[str, pa.Array]:
    """What the log says of the requests that examples were made of.

    Args:
      tables: the run's `tables` folder.
      table: `impressions` or `watches`.
      examples: `user_id`, `video_id`, `timestamp` of the examples' events, and `impression_id` where it is known.
      columns: columns of the table wanted; those it does not have are left out of the answer.

    Raises:
      DataError: an example's event is not in the table.
    """
    present = [column for column in columns if column in table_columns(tables, table)]
    named = "impression_id" in examples.column_names and "impression_id" in table_columns(tables, table)
    keys = ["user_id", "video_id", "timestamp", *(["impression_id"] if named else [])]
    events = _events_of(tables, table, examples["user_id"].combine_chunks(), [*keys, *present])
    first: dict[tuple, int] = {}
    for row, (user, video, time, *impression) in enumerate(_tuples(events, keys)):
        for key in ((user, *impression), (user, video, time)):
            first.setdefault(key, row)
    rows = []
    for user, video, time, *impression in _tuples(examples, keys):
        key = (user, *impression) if any(impression) else (user, video, time)
        if key not in first:
            raise DataError(
                f"{tables}/{table}: expected the row of user {user!r}, video {video!r} at {time}, found none"
            )
        rows.append(first[key])
    return {column: events[column].take(pa.array(rows, pa.int64())).combine_chunks() for column in present}


def _tuples(table: pa.Table, columns: Sequence[str]) -> Iterator[tuple]:
    return zip(*(table[column].to_pylist() for column in columns), strict=True)


def _events_of(tables: Path, name: str, users: pa.Array, columns: Sequence[str]) -> pa.Table:
    dataset = ds.dataset([str(file) for file in table_files(tables, name)], format="parquet")
    return dataset.to_table(columns=list(columns), filter=pc.field("user_id").isin(pc.unique(users)))


def _histories(
    tables: Path, name: str, wanted: Mapping[str, str], users: pa.Array, snapshots_us: np.ndarray, window: int
) -> dict[str, np.ndarray]:
    """The last events before each snapshot, padded to the longest."""
    if not has_table(tables, name):
        return {given: np.empty((len(users), 0), object) for given in wanted}
    columns = table_columns(tables, name)
    needed = {*wanted.values(), "user_id", "timestamp", "video_id", "impression_id", "time_known", "order"}
    events = _in_order(_events_of(tables, name, users, [c for c in columns if c in needed]))
    time_us = _times(events)
    by_user: dict[str, list[int]] = {}
    for row, user in enumerate(events["user_id"].to_pylist()):
        by_user.setdefault(user, []).append(row)
    chosen = []
    for user, snapshot_us in zip(users.to_pylist(), snapshots_us, strict=True):
        rows = np.array(by_user.get(user, []), np.int64)
        chosen.append(rows[time_us[rows] < snapshot_us][-window:])
    padded = np.full((len(chosen), max(map(len, chosen), default=0)), -1, np.int64)
    for request, positions in enumerate(chosen):
        padded[request, : len(positions)] = positions
    return {given: _history_values(events, column, padded, time_us, snapshots_us) for given, column in wanted.items()}


def _in_order(events: pa.Table) -> pa.Table:
    """Oldest first: order-only events by their order, then timed ones by time and order; a row told twice once."""
    time_us = _times(events)
    has_order = "order" in events.column_names
    order = events["order"].fill_null(0).to_numpy() if has_order else np.zeros(len(events), np.int64)
    by_time = np.lexsort((order, time_us))
    events = events.take(by_time)
    if "video_id" not in events.column_names:
        return events
    moments: list[Hashable] = [
        time if time != _ORDER_ONLY else ("order", rank) if has_order else None
        for time, rank in zip(time_us[by_time].tolist(), order[by_time].tolist(), strict=True)
    ]
    return events.take(np.flatnonzero(~_told_again(events, moments)))


def _told_again(events: pa.Table, moments: Sequence[Hashable]) -> np.ndarray:
    """bool `[rows]`: the same `impression_id` of a user as an earlier row or, where one of two rows has none, the same
    user, video and moment."""
    users, videos = events["user_id"].to_pylist(), events["video_id"].to_pylist()
    impressions = [None] * len(events)
    if "impression_id" in events.column_names:
        impressions = events["impression_id"].to_pylist()
    rows = list(zip(users, videos, impressions, moments, strict=True))
    seen: set[tuple] = {(user, video, moment) for user, video, impression, moment in rows if impression is not None}
    again = np.zeros(len(rows), bool)
    for row, (user, video, impression, moment) in enumerate(rows):
        if impression is None and moment is None:
            continue
        key = (user, video, moment) if impression is None else (user, impression)
        again[row] = key in seen
        seen.add(key)
    return again


def _times(events: pa.Table) -> np.ndarray:
    """int64 microseconds; the least number where only the order is known."""
    times = events["timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    if "time_known" in events.column_names:
        times = pc.if_else(events["time_known"].fill_null(True), times, None)
    return times.fill_null(_ORDER_ONLY).to_numpy()


def _history_values(
    events: pa.Table, column: str, positions: np.ndarray, time_us: np.ndarray, snapshots_us: np.ndarray
) -> np.ndarray:
    """Values `[B, n]` of one column at event positions, None where padded or not known."""
    if column not in events.column_names:
        return np.full(positions.shape, None, object)
    if column == "timestamp":
        values = np.where(time_us == _ORDER_ONLY, np.nan, time_us / 1e6).astype(object)
    else:
        values = np.array([*events[column].to_pylist(), None], object)[:-1]
    result = np.append(values, np.array([None], object))[positions]
    if column == "watch_time_s":
        length_s = np.where(_absent(result), np.nan, result).astype(np.float32)
        start_us = np.append(time_us, _ORDER_ONLY)[positions]
        timed = (start_us != _ORDER_ONLY) & ~np.isnan(length_s)
        length_us = np.rint(np.where(timed, length_s, 0).astype(np.float64) * 1e6).astype(np.int64)
        result[timed & (start_us + length_us > snapshots_us[:, None])] = None
    return result


def _user_values(tables: Path, inputs: Mapping[str, int], users: pa.Array) -> dict[str, np.ndarray]:
    """Values of the columns of `users`, by input of rank 1 or 2, None where the user or the value is not known."""
    if not inputs or not has_table(tables, "users"):
        return {}
    columns = table_columns(tables, "users")
    present = {name: _USER_COLUMNS.get(name, name) for name in inputs if _USER_COLUMNS.get(name, name) in columns}
    known = _events_of(tables, "users", users, ["user_id", *present.values()])
    row_of = {user: row for row, user in enumerate(known["user_id"].to_pylist())}
    rows = [row_of.get(user, -1) for user in users.to_pylist()]
    result = {}
    for name, column in present.items():
        values = [*known[column].to_pylist(), None]
        result[name] = _padded([values[row] for row in rows], inputs[name])
    return result


def _request_values(requests: pa.Table, name: str, rank: int) -> np.ndarray:
    """A column of the requests, nested lists padded; without a column one missing value, for candidates one each."""
    if name in requests.column_names:
        return _padded(requests[name].to_pylist(), rank)
    candidates = (
        _padded(requests["candidate_ids"].to_pylist(), 2).shape[1] if "candidate_ids" in requests.column_names else 1
    )
    return np.full((len(requests), candidates, 1)[:rank], None, object)


def _padded(values: list, rank: int) -> np.ndarray:
    """Lists nested `rank - 1` deep as one array of objects, None where a list is shorter than the longest.

    One value in the place of a list is a list of it, as the example jobs take it.
    """
    if rank == 1:
        return _objects(values)
    lists = [[] if inner is None else inner if isinstance(inner, list) else [inner] for inner in values]
    width = max(map(len, lists), default=0)
    flat = [inner for one in lists for inner in [*one, *[None] * (width - len(one))]]
    inner = _padded(flat, rank - 1)
    return inner.reshape(len(values), width, *inner.shape[1:])


def _objects(values: list) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _absent(values: np.ndarray) -> np.ndarray:
    """bool, of the shape of an array of objects: where it holds None."""
    return np.frompyfunc(lambda value: value is None, 1, 1)(values).astype(bool)


def _typed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Missing values become "" or NaN; booleans 1 and 0, as ids "true" and "false"."""
    if dtype.kind == "O":
        values = _texts(values)
    missing: str | float = "" if dtype.kind == "O" else np.nan
    if values.dtype == object:
        values = np.where(_absent(values), missing, values)
    return values.astype(dtype)


def _texts(values: np.ndarray) -> np.ndarray:
    """Ids of any type as texts, written as the example jobs write them."""
    flat = values.reshape(-1).tolist()
    if not all(value is None or isinstance(value, str) for value in flat):
        flat = pa.array(flat).cast(pa.string()).to_pylist()
    return _objects(flat).reshape(values.shape)
