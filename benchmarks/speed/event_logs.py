"""Logs of any size for the benchmarks of the Beam jobs: canonical tables, made a day at a time with NumPy.

Not the simulator, whose sessions cost far more than the jobs measured: here users (activity log-normal), videos and
queries (Zipf) are drawn independently, so models learn nothing from them. Of 67 events 40 are impressions (8 a page,
18% of them clicked, a click being a watch too), 22 watches and 5 searches, which is the simulator's mix. Every user has
100 events on average however long the log; the catalogue does not grow with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.artifacts import publish
from features.tables import IMPRESSIONS, SEARCHES, TIMESTAMP, USERS, VIDEOS, WATCHES
from pipeline.sources.partitions import DAY_US, write_parts

DAYS = 28
FIRST_DAY_US = 20_000 * DAY_US  # 2024-10-04
END_US = FIRST_DAY_US + DAYS * DAY_US
_EVENTS_PER_USER = 100
_PAGE = 8  # impressions of a request
_CLICK_RATE = 0.18
_EVENTS_PER_REQUEST = 13.4  # 8 impressions, 4.4 watches (1.44 of them clicks), 1 search
_WATCHES_ELSEWHERE = 4.4 - _PAGE * _CLICK_RATE
_PAGES = pa.array(["home", "watch_next", "search"])
_DEVICES = pa.array(["phone", "desktop", "tv"])
_ORIGINS = pa.array(["recommended", "search", "external"])


@dataclass(frozen=True)
class LogSize:
    """How much is made.

    Args:
      events: impressions, watches and searches together, within a per cent.
      videos: of the catalogue; every tenth is an uploader's first.
      queries: distinct ones.
    """

    events: int
    videos: int = 200_000
    queries: int = 50_000


def write_logs(folder: Path, size: LogSize, seed: int = 0) -> int:
    """Publishes canonical tables at `folder`; returns the number of events written."""
    random = np.random.default_rng(seed)
    users = max(size.events // _EVENTS_PER_USER, 10)
    events = 0
    with publish(folder, {"kind": "tables", "events": size.events, "seed": seed}) as target:
        write_parts(target / "users", USERS, _users(users, random))
        write_parts(target / "videos", VIDEOS, _videos(size.videos, random))
        log = _Log(users, size, random)
        for day in range(DAYS):
            requests = round(size.events / _EVENTS_PER_REQUEST * (day + 1) / DAYS) - log.requests
            for table, rows in log.day(FIRST_DAY_US + day * DAY_US, requests):
                write_parts(target / table.name, table, rows)
                events += rows.num_rows
    return events


class _Log:
    """Draws a day of events at a time."""

    def __init__(self, users: int, size: LogSize, random: np.random.Generator) -> None:
        self._random = random
        self._users = _names("u", users)
        self._videos = _names("v", size.videos)
        self._queries = _queries(size.queries, random)
        activity = random.lognormal(0.0, 1.0, users)
        self._activity = np.cumsum(activity / activity.sum())
        self.requests = self._impressions = 0

    def day(self, start_us: int, requests: int) -> Iterator[tuple]:
        """The tables of a day with `requests` pages, each sorted by time."""
        time_us = start_us + np.sort(self._random.integers(0, DAY_US - 1_000_000, requests))
        user, device = self._draw_users(requests), self._random.integers(0, len(_DEVICES), requests)
        shown = self._shown(time_us, user, device)
        yield IMPRESSIONS, shown
        yield WATCHES, self._watches(shown, start_us, round(requests * _WATCHES_ELSEWHERE))
        searches = np.sort(start_us + self._random.integers(0, DAY_US, requests))
        columns = [
            self._users.take(pa.array(self._draw_users(requests))),
            _times(searches),
            self._queries.take(pa.array(_zipf(self._random, len(self._queries), requests))),
        ]
        yield SEARCHES, pa.table(columns, ["user_id", "timestamp", "query"])

    def _draw_users(self, n: int) -> np.ndarray:
        return np.minimum(np.searchsorted(self._activity, self._random.random(n)), len(self._users) - 1)

    def _shown(self, time_us: np.ndarray, user: np.ndarray, device: np.ndarray) -> pa.Table:
        request = np.repeat(np.arange(len(user)), _PAGE)
        n = len(request)
        clicked = self._random.random(n) < _CLICK_RATE
        seconds = self._random.exponential(180.0, n)
        columns = {
            "user_id": self._users.take(pa.array(user[request])),
            "video_id": self._videos.take(pa.array(_zipf(self._random, len(self._videos), n))),
            "timestamp": _times(time_us[request]),
            "clicked": pa.array(clicked),
            "watch_time_s": pa.array(seconds, mask=~clicked),
            "page": _PAGES.take(pa.array(self._random.integers(0, len(_PAGES), len(user))[request])),
            "device": _DEVICES.take(pa.array(device[request])),
            "position": pa.array(np.tile(np.arange(_PAGE), len(user))),
            "request_id": _names("r", self.requests + len(user), self.requests).take(pa.array(request)),
            "impression_id": _names("i", self._impressions + n, self._impressions),
        }
        self.requests += len(user)
        self._impressions += n
        return pa.table(columns)

    def _watches(self, shown: pa.Table, start_us: int, elsewhere: int) -> pa.Table:
        """Clicked impressions, a second later, and watches from elsewhere."""
        clicks = shown.filter(shown["clicked"])
        later = pc.add(clicks["timestamp"].cast(pa.int64()), 1_000_000).cast(TIMESTAMP)
        recommended = pa.array(["recommended"]).take(pa.array(np.zeros(len(clicks), np.int64)))
        seconds = self._random.exponential(180.0, elsewhere)
        kept = ("user_id", "video_id", "watch_time_s", "page", "device", "impression_id")
        led_to = pa.table({**{name: clicks[name] for name in kept}, "timestamp": later, "origin": recommended})
        own = pa.table(
            {
                "user_id": self._users.take(pa.array(self._draw_users(elsewhere))),
                "video_id": self._videos.take(pa.array(_zipf(self._random, len(self._videos), elsewhere))),
                "watch_time_s": pa.array(seconds),
                "page": pa.nulls(elsewhere, pa.string()),
                "device": _DEVICES.take(pa.array(self._random.integers(0, len(_DEVICES), elsewhere))),
                "impression_id": pa.nulls(elsewhere, pa.string()),
                "timestamp": _times(start_us + self._random.integers(0, DAY_US, elsewhere)),
                "origin": _ORIGINS.take(pa.array(self._random.integers(1, len(_ORIGINS), elsewhere))),
            }
        )
        rows = pa.concat_tables([led_to, own])
        rows = rows.append_column("completed", pc.greater(rows["watch_time_s"], 60.0))
        rows = rows.sort_by("timestamp")
        return rows.select([name for name in WATCHES.schema.names if name in rows.column_names])


def _users(n: int, random: np.random.Generator) -> pa.Table:
    return pa.table(
        {
            "user_id": _names("u", n),
            "region": _names("region", 50).take(pa.array(_zipf(random, 50, n))),
            "gender": pa.array(random.integers(0, 2, n).astype(np.float64)),
            "age": pa.array(random.integers(13, 80, n).astype(np.float64)),
            "logged_in": pa.array(random.random(n) < 0.8),
            "language": _names("language", 20).take(pa.array(_zipf(random, 20, n))),
        }
    )


def _videos(n: int, random: np.random.Generator) -> pa.Table:
    uploaders = max(n // 10, 1)
    lengths = random.integers(1, 4, n)
    topics = _names("topic", 500).take(pa.array(_zipf(random, 500, int(lengths.sum()))))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.table(
        {
            "video_id": _names("v", n),
            "uploader_id": _names("c", uploaders).take(pa.array(_zipf(random, uploaders, n))),
            "upload_time": _times(FIRST_DAY_US - random.integers(0, 365 * DAY_US, n)),
            "duration_s": pa.array(np.rint(random.lognormal(5.5, 1.0, n))),
            "language": _names("language", 20).take(pa.array(_zipf(random, 20, n))),
            "topics": pa.ListArray.from_arrays(offsets, topics),
        }
    )


def _queries(n: int, random: np.random.Generator) -> pa.Array:
    """Distinct-looking queries of two words out of 5,000."""
    words = _names("word", 5_000)
    first, second = (words.take(pa.array(_zipf(random, len(words), n))) for _ in range(2))
    return pc.binary_join_element_wise(first, second, " ")


def _zipf(random: np.random.Generator, n: int, size: int) -> np.ndarray:
    """Ranks in 0 to n - 1, P(rank) close to proportional to 1 / (rank + 1)."""
    return np.minimum(np.expm1(random.random(size) * np.log(n + 1)).astype(np.int64), n - 1)


def _names(prefix: str, end: int, start: int = 0) -> pa.Array:
    numbers = pa.array(np.arange(start, end)).cast(pa.string())
    return pc.binary_join_element_wise(prefix, pc.utf8_lpad(numbers, 8, "0"), "")


def _times(time_us: np.ndarray) -> pa.Array:
    return pa.array(time_us).cast(TIMESTAMP)
