"""As-of joins: for many examples at once, the user's last events strictly before a moment.

A user's events of one kind (watches, impressions, searches) are held oldest first: order-only events first by their
order, then timed events by (time, order). An example's window is a range of positions found by bisection over all
examples together; no Python loop runs per event, user or example.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

ORDER_ONLY = np.iinfo(np.int64).min
"""The time of an event whose order is known but not its time; sorts before every time."""


@dataclass(frozen=True)
class Events:
    """One kind of events of many users, each user's oldest first.

    Args:
      offsets: int64 `[users + 1]`, user `u` has the events `offsets[u]:offsets[u + 1]`.
      time_us: int64 `[events]`, microseconds since the epoch, `ORDER_ONLY` where not known.
      video: int32 `[events]`, position in the catalogue, -1 where it holds no such video (or for searches).
      watch_time_s: float32 `[events]` or None, NaN where not known (watches).
      clicked: float32 `[events]` or None, 1 or 0, NaN where not known (impressions).
      tokens: int32 rows of the search tokens, and `token_offsets` int64 `[events + 1]` (searches).
    """

    offsets: np.ndarray
    time_us: np.ndarray
    video: np.ndarray
    watch_time_s: np.ndarray | None = None
    clicked: np.ndarray | None = None
    tokens: np.ndarray | None = None
    token_offsets: np.ndarray | None = None

    @staticmethod
    def none(users: int) -> "Events":
        """No events of any user."""
        rows = np.zeros(0, np.int32)
        seconds = np.zeros(0, np.float32)
        offsets = np.zeros(users + 1, np.int64)
        return Events(offsets, np.zeros(0, np.int64), rows, seconds, seconds, rows, np.zeros(1, np.int64))

    def before(self, user: np.ndarray, snapshot_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions `[first, last)` of the events of `user` `[n]` strictly before `snapshot_us` `[n]`."""
        first = self.offsets[user]
        low, high = first.copy(), self.offsets[user + 1]
        if len(self.time_us) == 0:
            return first, low
        while (searching := low < high).any():
            middle = (low + high) >> 1
            earlier = searching & (self.time_us[np.minimum(middle, len(self.time_us) - 1)] < snapshot_us)
            low = np.where(earlier, middle + 1, low)
            high = np.where(searching & ~earlier, middle, high)
        return first, low

    def window(self, user: np.ndarray, snapshot_us: np.ndarray, size: int) -> "Window":
        """The last `size` events of `user` `[n]` strictly before `snapshot_us` `[n]`."""
        first, last = self.before(user, snapshot_us)
        return self.slices(np.maximum(first, last - size), last, size)

    def slices(self, first: np.ndarray, last: np.ndarray, size: int) -> "Window":
        """The events `first:last` `[n]`, at most `size` of each."""
        return Window(self, first, last, size)


@dataclass(frozen=True)
class Window:
    """For `n` examples at most `size` events each, oldest first, padded on the right.

    Args:
      events: where they come from.
      first, last: int64 `[n]`, the positions as a range.
      size: the window's length.
    """

    events: Events
    first: np.ndarray
    last: np.ndarray
    size: int

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 `[n]`."""
        return (self.last - self.first).astype(np.int32)

    @cached_property
    def low(self) -> int:
        """The first position in any of the windows."""
        return int(self.first.min()) if len(self.first) else 0

    @cached_property
    def high(self) -> int:
        """The end of the positions in any of the windows."""
        return int(self.last.max()) if len(self.last) else 0

    @cached_property
    def index(self) -> np.ndarray:
        """int64 `[n, size]`: positions relative to `low`; `high - low` where padded."""
        positions = np.arange(self.size) + (self.first - self.low)[:, None]
        positions[~self.valid] = self.high - self.low
        return positions

    def gather(self, values: np.ndarray, padding: float) -> np.ndarray:
        """`values` `[events]` as `[n, size]`, `padding` beyond the lengths."""
        return np.append(values[self.low : self.high], np.asarray(padding, values.dtype))[self.index]

    def last_of(self, values: np.ndarray, missing: float) -> np.ndarray:
        """`values` `[events]` of the last event `[n]`, `missing` where there is none."""
        position = np.where(self.lengths > 0, self.last - 1 - self.low, self.high - self.low)
        return np.append(values[self.low : self.high], np.asarray(missing, values.dtype))[position]

    @cached_property
    def valid(self) -> np.ndarray:
        """bool `[n, size]`: inside the lengths."""
        return np.arange(self.size) < self.lengths[:, None]

    @cached_property
    def time_us(self) -> np.ndarray:
        return self.gather(self.events.time_us, ORDER_ONLY)

    @cached_property
    def video(self) -> np.ndarray:
        return self.gather(self.events.video, -1)


@dataclass(frozen=True)
class Bags:
    """Ragged rows: `values[offsets[i]:offsets[i + 1]]` belong to example `i`."""

    values: np.ndarray
    offsets: np.ndarray

    @staticmethod
    def of_ranges(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> "Bags":
        """The slices `values[first[i]:last[i]]` one after another."""
        lengths = last - first
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        index = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
        return Bags(values[index], offsets)

    @property
    def example(self) -> np.ndarray:
        """int64 `[values]`: the example of every value."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def sorted(self) -> "Bags":
        """The same bags, ascending inside each."""
        order = np.sort((self.example << 32) | self.values.astype(np.int64))
        return Bags((order & 0xFFFFFFFF).astype(np.int32), self.offsets)
