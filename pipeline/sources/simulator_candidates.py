"""Where videos come from: the sources that nominate for a page, and how people find videos by themselves.

Each source has two sides that must agree: `draw` (a video at random) and `probabilities` (of every video), both
proportional to the general popularity of the popularity bin within a topic or an uploader.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.sources.simulator_behaviour import Moment
from pipeline.sources.simulator_platform import EXTERNAL, HOME, PAGES, SEARCH, WATCH_NEXT, Platform, draw_rows

FAVOURITE_SHARES = np.array([0.5, 0.3, 0.2])
_CUMULATIVE_FAVOURITES = np.cumsum(FAVOURITE_SHARES)[:-1]
RELATED_BY_TOPIC = 0.6  # a related video shares the seed's first topic, otherwise its uploader


# What nominates a video. Plain integers: the simulation compares whole arrays with them thousands of times.
SOURCE_NAMES = ("taste", "popular", "uploader", "series", "related", "exploration")
TASTE, POPULAR, UPLOADER, SERIES, RELATED, EXPLORATION = range(6)
# share of each source, in the order of `SOURCE_NAMES`
MIXES = {
    HOME: (0.4, 0.25, 0.15, 0.1, 0.0, 0.1),
    WATCH_NEXT: (0.15, 0.15, 0.1, 0.1, 0.45, 0.05),
    SEARCH: (0.5, 0.0, 0.25, 0.25, 0.0, 0.0),  # here the source is what the query asks for
    EXTERNAL: (0.45, 0.1, 0.25, 0.2, 0.0, 0.0),
}


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
        table = np.zeros((len(PAGES), 2, len(SOURCE_NAMES)))
        for page, shares in MIXES.items():
            table[page] = shares
        keep = np.ones((2, len(SOURCE_NAMES)))
        keep[:, UPLOADER] = config.loyalty
        keep[:, SERIES] = [0.0, config.series]
        keep[:, RELATED] = config.related
        kept = table * keep
        kept[..., TASTE] += (table - kept).sum(-1)
        return kept

    @cached_property
    def groups(self) -> "GroupedDraws":
        """Draws by group: topic k is group k, uploader g is group K + g, and `everything` is all videos."""
        platform, config = self.platform, self.platform.config
        by_topic = platform.topic_share.tocoo()
        topic, video, share = by_topic.row, by_topic.col, by_topic.data
        by_uploader = np.argsort(platform.uploader, kind="stable")
        group = np.concatenate([topic, config.topics + platform.uploader[by_uploader]])
        video = np.concatenate([video, by_uploader])
        weight = platform.popularity[:, video] * np.concatenate([share, np.ones(len(by_uploader))])
        return GroupedDraws(group, video, weight, config.topics + config.uploaders, spanned=config.topics)

    @property
    def everything(self) -> int:
        return self.platform.config.topics + self.platform.config.uploaders

    @cached_property
    def _cumulative_mixes(self) -> np.ndarray:
        return np.cumsum(self.mixes, -1)[..., :-1]

    def draw_sources(self, rng: np.random.Generator, moment: Moment, page: np.ndarray, m: int) -> np.ndarray:
        """`[n, m]` independent sources."""
        waiting = (moment.followed >= 0).any(1).astype(int)
        cumulative = self._cumulative_mixes[page, waiting]
        r = rng.random((len(page), m))
        source = np.zeros(r.shape, np.int64)
        for j in range(cumulative.shape[1]):
            source += r >= cumulative[:, j, None]
        return source

    def draw(
        self, rng: np.random.Generator, moment: Moment, source: np.ndarray, cumulative_topics: np.ndarray
    ) -> np.ndarray:
        """One video for each source.

        Args:
          moment: n users.
          source: `[n, m]`.
          cumulative_topics: `[n, K]` cumulative topic probabilities for `TASTE`.
        """
        rows = np.repeat(np.arange(len(source)), source.shape[1])
        flat = source.ravel()
        group, video = self.draw_groups(rng, moment, flat, rows, cumulative_topics)
        bins = moment.bin[rows]
        at = np.flatnonzero(flat == EXPLORATION)
        video[at] = rng.random(len(at)) * self.platform.available[bins[at]]
        at = np.flatnonzero(group >= 0)
        video[at] = self.groups.draw(bins[at], group[at], rng.random(len(at)))
        return video.reshape(source.shape)

    def draw_groups(
        self,
        rng: np.random.Generator,
        moment: Moment,
        source: np.ndarray,
        rows: np.ndarray,
        cumulative_topics: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What sources `[e]` of the users `rows` `[e]` narrow the choice to.

        Returns:
          the group to draw from, -1 where there is none, and the video, where a source names one (else -1).
        """
        platform = self.platform
        K = platform.config.topics
        group = np.where(source == POPULAR, self.everything, -1)
        video = np.full(len(source), -1)
        at = np.flatnonzero(source == TASTE)
        group[at] = draw_rows(rng, cumulative_topics[rows[at]])
        at = np.flatnonzero(source == UPLOADER)
        place = np.searchsorted(_CUMULATIVE_FAVOURITES, rng.random(len(at)), side="right")
        group[at] = K + platform.favourites[moment.user[rows[at]], place]
        at = np.flatnonzero(source == SERIES)
        if len(at):
            video[at] = draw_episode(rng, moment.followed[rows[at]])
        at = np.flatnonzero(source == RELATED)
        if len(at):
            seed = moment.seed[rows[at]]
            by_topic = rng.random(len(at)) < RELATED_BY_TOPIC
            group[at] = np.where(by_topic, platform.topic[seed], K + platform.uploader[seed])
        return group, video

    def probabilities(self, moment: Moment, page: int, topics: np.ndarray) -> np.ndarray:
        """`[n, V]` probability of one draw on a page; `topics` are the `[n, K]` probabilities of `TASTE`."""
        platform = self.platform
        n = len(moment)
        rows = np.arange(n)
        mix = self.mixes[page, (moment.followed >= 0).any(1).astype(int)]
        mass = self.groups.mass[moment.bin]
        topic_mass, uploader_mass = mass[:, : platform.config.topics], mass[:, platform.config.topics :]
        topic_coefficient = mix[:, TASTE, None] * topics / topic_mass
        uploader_coefficient = np.zeros((n, platform.config.uploaders))
        for j, share in enumerate(FAVOURITE_SHARES):
            favourite = platform.favourites[moment.user, j]
            uploader_coefficient[rows, favourite] += mix[:, UPLOADER] * share / uploader_mass[rows, favourite]
        if MIXES[page][RELATED]:
            topic, uploader = platform.topic[moment.seed], platform.uploader[moment.seed]
            related = mix[:, RELATED]
            topic_coefficient[rows, topic] += related * RELATED_BY_TOPIC / topic_mass[rows, topic]
            uploader_coefficient[rows, uploader] += related * (1 - RELATED_BY_TOPIC) / uploader_mass[rows, uploader]
        q = platform.spread_topics(topic_coefficient)
        q += uploader_coefficient[:, platform.uploader]
        q += mix[:, POPULAR, None]
        q *= platform.popularity[moment.bin]
        available = platform.available[moment.bin]
        everything = np.arange(len(platform.topic)) < available[:, None]
        q += everything * (mix[:, EXPLORATION] / available)[:, None]
        return q + mix[:, SERIES, None] * episode_probabilities(moment.followed, q.shape[1])


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
      weight: `[bins, E]`.
      groups: number of groups; one more group spans all entries of the groups from `spanned` on.
    """

    def __init__(self, group: np.ndarray, video: np.ndarray, weight: np.ndarray, groups: int, spanned: int) -> None:
        self._video = video
        self._entries = len(video)
        edges = np.searchsorted(group, np.arange(groups + 1))
        self._first = np.append(edges[:-1], edges[spanned])
        self._end = np.append(edges[1:], edges[groups])
        cumulative = np.cumsum(weight, axis=1)
        total = cumulative[:, -1:].copy()
        cumulative /= total
        padded = np.concatenate([np.zeros((len(weight), 1)), cumulative], axis=1)
        self._low, self._width = padded[:, self._first], padded[:, self._end] - padded[:, self._first]
        # row b occupies [b, b + 1), so that one search serves draws from all bins
        cumulative += np.arange(len(weight))[:, None]
        self._flat = cumulative.ravel()
        self.mass = (self._width * total)[:, :groups]  # [bins, groups] sum of the weights

    def draw(self, bins: np.ndarray, group: np.ndarray, r: np.ndarray) -> np.ndarray:
        """A video of each group, in proportion to the weights of the bin; `r` uniform in [0, 1)."""
        key = bins + self._low[bins, group] + r * self._width[bins, group]
        order = np.argsort(key)  # searching in ascending order walks the table instead of jumping through it
        entry = np.empty(len(key), np.int64)
        entry[order] = np.searchsorted(self._flat, key[order], side="right")
        entry -= bins * self._entries
        # rounding may leave the group by one entry
        return self._video[np.minimum(np.maximum(entry, self._first[group]), self._end[group] - 1)]
