"""Where videos come from: the sources that nominate for a page, and how people find videos by themselves.

Each source has two sides that must agree: `draw` (a video at random) and `probabilities` (of every video), both
proportional to the general popularity of the popularity bin within a topic or an uploader.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from pipeline.sources.simulator_behaviour import Moment
from pipeline.sources.simulator_platform import EXTERNAL, HOME, SEARCH, WATCH_NEXT, Platform, draw_rows

FAVOURITE_SHARES = np.array([0.5, 0.3, 0.2])
RELATED_BY_TOPIC = 0.6  # a related video shares the seed's first topic, otherwise its uploader


class Source(IntEnum):
    """What nominates a video."""

    TASTE = 0  # topics the user likes
    POPULAR = 1
    UPLOADER = 2  # favourite uploaders
    SERIES = 3  # the next episode of a followed series
    RELATED = 4  # to the video just watched
    EXPLORATION = 5  # any available video


SOURCE_NAMES = tuple(source.name.lower() for source in Source)
# share of each source, in the order of `Source`
MIXES = {
    HOME: (0.4, 0.25, 0.15, 0.1, 0.0, 0.1),
    WATCH_NEXT: (0.15, 0.15, 0.1, 0.1, 0.45, 0.05),
    SEARCH: (0.5, 0.0, 0.25, 0.25, 0.0, 0.0),  # here the source is what the query asks for
    EXTERNAL: (0.45, 0.1, 0.25, 0.2, 0.0, 0.0),
}


class Target(IntEnum):
    """What a source narrows the choice to before popularity decides."""

    TOPIC = 0
    UPLOADER = 1
    VIDEO = 2
    ANY = 3
    UNIFORM = 4


@dataclass(frozen=True)
class Candidates:
    """Draws from, and probabilities of, the sources of a platform."""

    platform: Platform

    @cached_property
    def mixes(self) -> np.ndarray:
        """`[pages, 2, sources]` shares by page and by whether a next episode is waiting.

        A source that is switched off, or a series source without an episode, leaves its share to `TASTE`.
        """
        config = self.platform.config
        table = np.zeros((4, 2, len(Source)))
        for page, shares in MIXES.items():
            table[page] = shares
        keep = np.ones((2, len(Source)))
        keep[:, Source.UPLOADER] = config.loyalty
        keep[:, Source.SERIES] = [0.0, config.series]
        kept = table * keep
        kept[..., Source.TASTE] += (table - kept).sum(-1)
        return kept

    @cached_property
    def by_topic(self) -> "GroupedDraws":
        share = self.platform.topic_share
        topic, video = np.nonzero(share)
        return GroupedDraws(topic, video, self.platform.popularity[:, video] * share[topic, video], len(share))

    @cached_property
    def by_uploader(self) -> "GroupedDraws":
        platform = self.platform
        video = np.argsort(platform.uploader, kind="stable")
        return GroupedDraws(platform.uploader[video], video, platform.popularity[:, video], platform.config.uploaders)

    def draw_sources(self, rng: np.random.Generator, moment: Moment, page: np.ndarray, m: int) -> np.ndarray:
        """`[n, m]` independent sources."""
        waiting = (moment.followed >= 0).any(1).astype(int)
        cumulative = np.cumsum(self.mixes, -1)[page, waiting]
        r = rng.random((len(page), m))
        return (r[..., None] >= cumulative[:, None, :-1]).sum(-1)

    def draw(
        self, rng: np.random.Generator, moment: Moment, source: np.ndarray, cumulative_topics: np.ndarray
    ) -> np.ndarray:
        """One video for each source.

        Args:
          moment: n users.
          source: `[n, m]`.
          cumulative_topics: `[n, K]` cumulative topic probabilities for `Source.TASTE`.
        """
        rows = np.repeat(np.arange(len(source)), source.shape[1])
        target, value = self.draw_targets(rng, moment, source.ravel(), rows, cumulative_topics)
        return self.draw_target(rng, target, value, moment.bin[rows]).reshape(source.shape)

    def draw_targets(
        self,
        rng: np.random.Generator,
        moment: Moment,
        source: np.ndarray,
        rows: np.ndarray,
        cumulative_topics: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Targets `[e]` and their values (topic, uploader or video) of sources `[e]` of the users `rows` `[e]`."""
        platform = self.platform
        target = np.full(len(source), Target.ANY)
        value = np.zeros(len(source), np.int64)
        at = np.flatnonzero(source == Source.TASTE)
        target[at], value[at] = Target.TOPIC, draw_rows(rng, cumulative_topics[rows[at]])
        at = np.flatnonzero(source == Source.UPLOADER)
        place = np.searchsorted(np.cumsum(FAVOURITE_SHARES)[:-1], rng.random(len(at)), side="right")
        target[at], value[at] = Target.UPLOADER, platform.favourites[moment.user[rows[at]], place]
        at = np.flatnonzero(source == Source.SERIES)
        target[at], value[at] = Target.VIDEO, draw_episode(rng, moment.followed[rows[at]])
        at = np.flatnonzero(source == Source.RELATED)
        seed = moment.seed[rows[at]]
        by_topic = rng.random(len(at)) < RELATED_BY_TOPIC
        target[at] = np.where(by_topic, Target.TOPIC, Target.UPLOADER)
        value[at] = np.where(by_topic, platform.topic[seed], platform.uploader[seed])
        target[source == Source.EXPLORATION] = Target.UNIFORM
        return target, value

    def draw_target(
        self, rng: np.random.Generator, target: np.ndarray, value: np.ndarray, bins: np.ndarray
    ) -> np.ndarray:
        """One video for each target (topic, uploader, video, any)."""
        r = rng.random(len(target))
        video = value.copy()
        at = np.flatnonzero(target == Target.TOPIC)
        video[at] = self.by_topic.draw(bins[at], value[at], r[at])
        at = np.flatnonzero(target == Target.UPLOADER)
        video[at] = self.by_uploader.draw(bins[at], value[at], r[at])
        at = np.flatnonzero(target == Target.ANY)
        video[at] = self.by_uploader.draw_any(bins[at], r[at])
        at = np.flatnonzero(target == Target.UNIFORM)
        video[at] = (r[at] * self.platform.available[bins[at]]).astype(np.int64)
        return video

    def probabilities(self, moment: Moment, page: int, topics: np.ndarray) -> np.ndarray:
        """`[n, V]` probability of one draw on a page; `topics` are the `[n, K]` probabilities of `Source.TASTE`."""
        platform = self.platform
        n = len(moment)
        rows = np.arange(n)
        mix = self.mixes[page, (moment.followed >= 0).any(1).astype(int)]
        topic_coefficient = mix[:, Source.TASTE, None] * topics / self.by_topic.mass[moment.bin]
        uploader_coefficient = np.zeros((n, platform.config.uploaders))
        uploader_mass = self.by_uploader.mass[moment.bin]
        for j, share in enumerate(FAVOURITE_SHARES):
            favourite = platform.favourites[moment.user, j]
            uploader_coefficient[rows, favourite] += mix[:, Source.UPLOADER] * share / uploader_mass[rows, favourite]
        if MIXES[page][Source.RELATED]:
            topic, uploader = platform.topic[moment.seed], platform.uploader[moment.seed]
            related = mix[:, Source.RELATED]
            topic_coefficient[rows, topic] += related * RELATED_BY_TOPIC / self.by_topic.mass[moment.bin, topic]
            uploader_coefficient[rows, uploader] += related * (1 - RELATED_BY_TOPIC) / uploader_mass[rows, uploader]
        q = topic_coefficient @ platform.topic_share
        q += uploader_coefficient[:, platform.uploader]
        q += mix[:, Source.POPULAR, None]
        q *= platform.popularity[moment.bin]
        available = platform.available[moment.bin]
        everything = np.arange(len(platform.topic)) < available[:, None]
        q += everything * (mix[:, Source.EXPLORATION] / available)[:, None]
        return q + mix[:, Source.SERIES, None] * episode_probabilities(moment.followed, q.shape[1])


def draw_episode(rng: np.random.Generator, followed: np.ndarray) -> np.ndarray:
    """One of the waiting episodes of each row, all alike; -1 where none is waiting."""
    waiting = followed >= 0
    if not len(followed):
        return np.zeros(0, np.int64)
    score = np.where(waiting, rng.random(followed.shape), -1.0)
    return followed[np.arange(len(followed)), score.argmax(1)]


def episode_probabilities(followed: np.ndarray, videos: int) -> np.ndarray:
    """`[n, videos]` what `draw_episode` draws; a row of zeros where none is waiting."""
    waiting = followed >= 0
    p = np.zeros((len(followed), videos))
    rows, places = np.nonzero(waiting)
    np.add.at(p, (rows, followed[rows, places]), 1.0 / waiting.sum(1)[rows])
    return p


class GroupedDraws:
    """Draws within groups of weighted entries by inverting cumulative sums, one row of weights per popularity bin.

    Args:
      group: `[E]` ascending group of each entry.
      video: `[E]` video of each entry.
      weight: `[bins, E]`; each row sums to 1.
      groups: number of groups.
    """

    def __init__(self, group: np.ndarray, video: np.ndarray, weight: np.ndarray, groups: int) -> None:
        self._video = video
        self._entries = len(video)
        self._edges = np.searchsorted(group, np.arange(groups + 1))
        cumulative = np.cumsum(weight, axis=1)
        cumulative /= cumulative[:, -1:]
        padded = np.concatenate([np.zeros((len(weight), 1)), cumulative], axis=1)
        self._bounds = padded[:, self._edges]  # [bins, groups + 1]
        # row b occupies [b, b + 1), so that one search serves draws from all bins
        self._flat = (cumulative + np.arange(len(weight))[:, None]).ravel()
        self.mass = np.diff(self._bounds, axis=1)  # [bins, groups]

    def draw(self, bins: np.ndarray, group: np.ndarray, r: np.ndarray) -> np.ndarray:
        """A video of the group, in proportion to the weights of the bin; `r` uniform in [0, 1)."""
        low, high = self._bounds[bins, group], self._bounds[bins, group + 1]
        entry = self._search(bins, low + r * (high - low))
        return self._video[np.clip(entry, self._edges[group], self._edges[group + 1] - 1)]

    def draw_any(self, bins: np.ndarray, r: np.ndarray) -> np.ndarray:
        """A video of any group."""
        return self._video[np.clip(self._search(bins, r), 0, self._entries - 1)]

    def _search(self, bins: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._flat, bins + x, side="right") - bins * self._entries
