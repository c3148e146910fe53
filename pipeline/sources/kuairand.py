"""KuaiRand (Gao et al., CIKM 2022): a short-video log with impressions, clicks and play time.

Two layouts are read: the original CSV files (`log_standard_*.csv`, `user_features_*.csv`,
`video_features_basic_*.csv`, and `log_random_*.csv` by choice), and a reduced form (`impressions.parquet`,
`earlier_impressions.parquet`, `users.parquet`, `videos.parquet`). `video_features_statistic_*.csv` is not read: its
counts are taken over the whole month, so they know the future.

What a click means depends on the page (`tab`): on tab 0, a grid of covers, a real click (about 9% of impressions);
on the feeds of tabs 1, 2, 4 and 6 "played for about 7 s or more"; on tabs 9 and 10 nearly everything is clicked. A
watch is a clicked impression or a long view, by configuration. The play time of an impression that was not clicked is
left out: it is part of the outcome. A click without play time is kept, its watch time unknown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.errors import ConfigError
from features.settings import Settings
from pipeline.sources.conversion import convert, mask_of, plain
from pipeline.sources.readers import FileChunk, column_names, read_chunks
from pipeline.sources.source import RawChunk, Unit, file_fingerprints, nearest, settings_of

Feedback = Literal["is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_profile_enter"]

_UNITS: dict[str, Unit] = {"timestamp": "ms", "watch_time_s": "ms", "duration_s": "ms", "upload_time": "iso"}
_EVENT_COLUMNS = {"user_id": "user_id", "video_id": "video_id", "time_ms": "timestamp", "tab": "page"}
_UNKNOWN_CODE = "-124"  # the log's code for a user attribute that is not known
_USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_VIDEO_CATEGORIES = ("video_type", "upload_type", "music_id", "music_type", "visible_status")
_VIDEO_NUMBERS = ("server_width", "server_height")


class KuaiRandConfig(Settings):
    """KuaiRand as a source."""

    kind: Literal["kuairand"] = "kuairand"
    path: str = Field(description="the folder with the files; relative to the current directory")
    click: Feedback = Field(default="is_click", description="the column that says whether an impression was clicked")
    watch: Literal["click", "long_view"] = Field(
        default="click", description="which impressions are watches: the clicked ones, or those viewed for long"
    )
    earlier_watches: Literal["long_watch_seq", "watch_seq", "none"] = Field(
        default="long_watch_seq",
        description="reduced form: which earlier videos, known by order only, are watches (clicks were not kept)",
    )
    random_exposures: bool = Field(
        default=False, description="original form: also the impressions that were drawn at random (log_random_*.csv)"
    )
    upload_utc_offset_hours: int = Field(default=8, ge=-12, le=14, description="time zone of the upload days")


@dataclass(frozen=True)
class _Layout:
    logs: Sequence[Path]
    users: Sequence[Path]
    videos: Sequence[Path]
    earlier: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [*self.logs, *self.users, *self.videos, *([self.earlier] if self.earlier else [])]


@dataclass(frozen=True)
class KuaiRandSource:
    """Reads what a `KuaiRandConfig` names."""

    config: KuaiRandConfig

    def tables(self) -> Mapping[str, Iterator[RawChunk]]:
        """Watches, impressions, users and videos.

        Raises:
          ConfigError: the folder has neither layout, or a file lacks a column.
          DataError: a file cannot be read.
        """
        layout = _find_layout(self.config)
        for log in layout.logs:
            _require(log, [*_EVENT_COLUMNS, "play_time_ms", "duration_ms", "long_view", self.config.click])
        for user_file in layout.users:
            _require(user_file, ["user_id"])
        for video_file in layout.videos:
            _require(video_file, ["video_id", "author_id", "upload_dt", "video_duration", "tag"])
        tables = {"watches": self._watches(layout), "impressions": self._impressions(layout)}
        if layout.users:
            tables["users"] = _users(layout.users)
        if layout.videos:
            tables["videos"] = _videos(layout, self.config.upload_utc_offset_hours)
        return tables

    def fingerprint(self) -> dict[str, Any]:
        files = file_fingerprints(_find_layout(self.config).files)
        return {"source": "kuairand", "config": settings_of(self.config), "files": files}

    def _impressions(self, layout: _Layout) -> Iterator[RawChunk]:
        if layout.earlier:
            yield from _earlier(layout.earlier, "watch_seq", {"clicked": pa.nulls(1, pa.bool_())})
        for chunk in _read_logs(layout, ["play_time_ms", self.config.click]):
            clicked = chunk.data[self.config.click]
            data = _events(chunk.data, _play_time(chunk.data, _true(clicked))).append_column("clicked", clicked)
            yield RawChunk(data, str(chunk.path), chunk.rows, _UNITS, malformed=chunk.malformed)

    def _watches(self, layout: _Layout) -> Iterator[RawChunk]:
        if layout.earlier and self.config.earlier_watches != "none":
            yield from _earlier(layout.earlier, self.config.earlier_watches, {"origin": pa.array(["recommended"])})
        watch = self.config.click if self.config.watch == "click" else "long_view"
        for chunk in _read_logs(layout, ["play_time_ms", watch]):
            watched = _true(chunk.data[watch])
            data = _events(chunk.data, _play_time(chunk.data, watched)).filter(pa.array(watched))
            data = data.append_column("origin", pa.repeat("recommended", data.num_rows))
            yield RawChunk(data, str(chunk.path), chunk.rows[watched], _UNITS)


def _read_logs(layout: _Layout, columns: Sequence[str]) -> Iterator[FileChunk]:
    for path in layout.logs:
        yield from read_chunks(path, [*_EVENT_COLUMNS, *columns])


def _events(log: pa.Table, watch_time: pa.Array) -> pa.Table:
    events = log.select(list(_EVENT_COLUMNS)).rename_columns(list(_EVENT_COLUMNS.values()))
    return events.append_column("watch_time_s", watch_time)


def _play_time(log: pa.Table, counts: np.ndarray) -> pa.Array:
    """Play time (ms) of the rows that count, missing where it is zero."""
    played = log["play_time_ms"]
    return pc.if_else(pa.array(counts & (_number(played) != 0)), played, None)


def _find_layout(config: KuaiRandConfig) -> _Layout:
    given = Path(config.path).expanduser()
    if not given.is_dir():
        raise ConfigError(f"{config.path}: no such folder (looked for {given.absolute()}); correct source.path")
    for folder in (given, given / "data"):
        if (folder / "impressions.parquet").is_file():
            optional = {name: folder / f"{name}.parquet" for name in ("users", "videos", "earlier_impressions")}
            found = {name: [path] if path.is_file() else [] for name, path in optional.items()}
            return _Layout(
                [folder / "impressions.parquet"],
                found["users"],
                found["videos"],
                next(iter(found["earlier_impressions"]), None),
            )
        logs = sorted(folder.glob("log_standard_*.csv"))
        if logs:
            if config.random_exposures:
                logs += sorted(folder.glob("log_random_*.csv"))
            users = sorted(folder.glob("user_features_*.csv"))
            return _Layout(logs, users, sorted(folder.glob("video_features_basic_*.csv")))
    found_names = ", ".join(sorted(path.name for path in given.iterdir())[:8]) or "nothing"
    raise ConfigError(
        f"{config.path}: expected impressions.parquet or log_standard_*.csv, found {found_names}; "
        f"set source.path to the folder with KuaiRand's files"
    )


def _require(path: Path, columns: Sequence[str]) -> None:
    present = column_names(path)
    for column in columns:
        if column not in present:
            raise ConfigError(f"{path}: no column {column!r}, {nearest(column, present)}; is this KuaiRand's file?")


def _earlier(path: Path, column: str, constants: Mapping[str, pa.Array]) -> Iterator[RawChunk]:
    """Per user, videos in order of showing without times, as one row each; `rows` number the users."""
    _require(path, ["user_id", column])
    for chunk in read_chunks(path, ["user_id", column]):
        lists = plain(chunk.data[column])[0]
        users = pc.list_parent_indices(lists).to_numpy()
        starts = np.searchsorted(users, users, side="left")
        data = {
            "user_id": chunk.data["user_id"].take(pa.array(users)),
            "video_id": pc.list_flatten(lists),
            "time_known": pa.repeat(False, len(users)),
            "order": pa.array(np.arange(len(users)) - starts),
            **{name: pa.repeat(value[0], len(users)) for name, value in constants.items()},
        }
        yield RawChunk(pa.table(data), str(path), chunk.rows[users])


def _users(paths: Sequence[Path]) -> Iterator[RawChunk]:
    for path in paths:
        for chunk in read_chunks(path):
            columns = {}
            types = {}
            for name in chunk.data.column_names:
                if name in _USER_COUNTS:
                    columns[name], types[name] = chunk.data[name], pa.float64()
                elif name == "user_id":
                    columns[name] = chunk.data[name]
                else:
                    code = _category(chunk.data[name])
                    columns[name] = pc.if_else(pc.equal(code, _UNKNOWN_CODE), None, code)
            yield RawChunk(pa.table(columns), str(path), chunk.rows, types=types, malformed=chunk.malformed)


def _videos(layout: _Layout, utc_offset_hours: int) -> Iterator[RawChunk]:
    midnight = f"T00:00:00{utc_offset_hours:+03d}:00"
    logged_ids, logged_durations = _logged_durations(layout.logs)
    for path in layout.videos:
        for chunk in read_chunks(path):
            videos = chunk.data
            ids = _category(videos["video_id"])
            duration = _number(videos["video_duration"])
            duration[duration == 0] = np.nan
            logged = logged_durations.take(pc.index_in(ids, value_set=logged_ids)).to_numpy(zero_copy_only=False)
            day = convert(plain(videos["upload_dt"])[0], pa.string())[0]
            columns = {
                "video_id": videos["video_id"],
                "uploader_id": _category(videos["author_id"]),
                "upload_time": pc.binary_join_element_wise(day, midnight, ""),
                "duration_s": pa.array(np.where(np.isnan(duration), logged, duration)),
                "topics": convert(plain(videos["tag"])[0], pa.string())[0],
            }
            columns |= {n: _category(videos[n]) for n in _VIDEO_CATEGORIES if n in videos.column_names}
            columns |= {n: videos[n] for n in _VIDEO_NUMBERS if n in videos.column_names}
            yield RawChunk(
                data=pa.table(columns),
                origin=str(path),
                rows=chunk.rows,
                units=_UNITS,
                separators={"topics": ","},
                types=dict.fromkeys(_VIDEO_NUMBERS, pa.float64()),
                malformed=chunk.malformed,
            )


def _logged_durations(logs: Sequence[Path]) -> tuple[pa.Array, pa.Array]:
    """Video ids and the durations (ms) the log gives them, for videos whose own row has none."""
    found = pa.table({"id": pa.array([], pa.string()), "duration_max": pa.array([], pa.float64())})
    for path in logs:
        for chunk in read_chunks(path, ["video_id", "duration_ms"]):
            seen = pa.table(
                {"id": _category(chunk.data["video_id"]), "duration": pa.array(_number(chunk.data["duration_ms"]))}
            )
            seen = seen.filter(pc.greater(seen["duration"], 0))
            seen = pa.concat_tables([seen, found.rename_columns(["id", "duration"])])
            found = seen.group_by("id", use_threads=False).aggregate([("duration", "max")])
    return found["id"].combine_chunks(), found["duration_max"].combine_chunks()


def _true(column: pa.ChunkedArray) -> np.ndarray:
    return mask_of(convert(plain(column)[0], pa.bool_())[0])


def _number(column: pa.ChunkedArray) -> np.ndarray:
    """A column as float64, NaN where there is no number."""
    return convert(plain(column)[0], pa.float64())[0].to_numpy(zero_copy_only=False).copy()


def _category(column: pa.ChunkedArray) -> pa.Array:
    """Codes as text; "3.0", as a CSV writes the codes of a column with gaps, is "3"."""
    return pc.replace_substring_regex(convert(plain(column)[0], pa.string())[0], r"^(-?\d+)\.0$", r"\1")
