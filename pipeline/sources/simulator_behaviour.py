"""How simulated users behave: the formulas, shared by the simulation and by the truth computed from it.

Everything here is a deterministic function of the platform, the users' state at a moment and the videos in question;
chance enters only in `simulator_sessions.py`. The constants were set once for plausible logs.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.sources.simulator_platform import Platform, softmax

SHORT_TERM_PULL = 2.2  # logits added to the topic a user is currently into
CLICK_BASE = -2.3
COMPLETION_BASE = -0.1
PREFERRED_DURATION_S = np.array([240.0, 600.0, 1800.0, 480.0])  # by kind of device
COMPLETED_SHARE = 0.9  # watched to this share of its length, a watch counts as completed
MINIMUM_ACCEPTANCE = 0.05
MEMORY = 64  # how many watches, and how many ignored impressions, a user remembers
FOLLOWED = 3  # how many series a user follows at a time


@dataclass(frozen=True)
class Moment:
    """State of n users as each takes a step. Times are microseconds since epoch; videos -1 where there is none."""

    user: np.ndarray  # [n]
    time_us: np.ndarray  # [n]
    bin: np.ndarray  # [n] popularity bin
    hour: np.ndarray  # [n] UTC
    device: np.ndarray  # [n]
    focus: np.ndarray  # [n] topic the user is currently into
    followed: np.ndarray  # [n, FOLLOWED] next episodes that are waiting and available
    seed: np.ndarray  # [n] video watched just before in this session
    cherished: np.ndarray  # [n] first video the user completed of the seed's uploader; -1 none, or the seed itself

    def __getitem__(self, rows: np.ndarray) -> "Moment":
        return Moment(
            self.user[rows],
            self.time_us[rows],
            self.bin[rows],
            self.hour[rows],
            self.device[rows],
            self.focus[rows],
            self.followed[rows],
            self.seed[rows],
            self.cherished[rows],
        )

    def __len__(self) -> int:
        return len(self.user)


def preference(platform: Platform, moment: Moment, page: np.ndarray) -> np.ndarray:
    """`[n, K]` the users' own liking of topics in logits: (taste + current topic) × gate of page and device."""
    own = platform.taste[moment.user]
    own[np.arange(len(own)), moment.focus] += SHORT_TERM_PULL * platform.config.short_term_taste
    return own * platform.gate[page, moment.device]


def topic_probabilities(platform: Platform, moment: Moment, page: np.ndarray) -> np.ndarray:
    """`[n, K]` which topic users turn to by themselves."""
    shared = platform.topic_base + platform.topic_hour[moment.hour]
    return softmax(shared + preference(platform, moment, page))


def examination(platform: Platform) -> np.ndarray:
    """`[slots]` probability that a place of the page is looked at."""
    return (1.0 + np.arange(platform.config.slots)) ** (-0.35 * platform.config.position)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


@dataclass(frozen=True)
class Pairs:
    """Users of a moment beside videos, and what follows from the two.

    Args:
      platform, moment: n users.
      page: int `[n]`.
      videos: int `[n, m]`, or `[1, m]` for the same videos beside every user.
      ignored: `[n, m]` how many of the last `MEMORY` ignored impressions were of this video.
      watched: bool `[n, m]` among the user's last `MEMORY` watches.
    """

    platform: Platform
    moment: Moment
    page: np.ndarray
    videos: np.ndarray
    ignored: np.ndarray
    watched: np.ndarray

    @cached_property
    def match(self) -> np.ndarray:
        """Liking of the video's topics, squashed to (-2, 2)."""
        videos = self.videos
        liking = preference(self.platform, self.moment, self.page)
        rows = np.arange(len(liking))[:, None]
        second = self.platform.second_topic[videos]
        first_liking = liking[rows, self.platform.topic[videos]]
        mixed = 0.7 * first_liking + 0.3 * liking[rows, second]
        return 2.0 * np.tanh(np.where(second >= 0, mixed, first_liking) / 2.0)

    @cached_property
    def misfit(self) -> np.ndarray:
        """How wrong the duration is for the device: squared log ratio, at most 3; zero with the switch off."""
        ratio = (
            np.log(self.platform.duration_s)[self.videos]
            - np.log(PREFERRED_DURATION_S)[self.platform.device_kind(self.moment.device)][:, None]
        )
        return self.platform.config.duration_fit * np.minimum(0.5 * ratio**2, 3.0)

    @cached_property
    def loyal(self) -> np.ndarray:
        """1 for videos of the user's favourite uploaders (times the switch)."""
        uploader = self.platform.uploader[self.videos]
        favourites = self.platform.favourites[self.moment.user]
        hit = np.zeros(np.broadcast_shapes(uploader.shape, (len(favourites), 1)), bool)
        for j in range(favourites.shape[1]):
            hit |= uploader == favourites[:, j, None]
        return self.platform.config.loyalty * hit

    @cached_property
    def continues(self) -> np.ndarray:
        """1 for the next episode of a followed series (times the switch)."""
        hit = np.zeros(np.broadcast_shapes(self.videos.shape, (len(self.moment), 1)), bool)
        for j in range(self.moment.followed.shape[1]):
            hit |= self.videos == self.moment.followed[:, j, None]
        return self.platform.config.series * hit

    @cached_property
    def foreign(self) -> np.ndarray:
        """1 for videos in another language than the user's (times the switch)."""
        language = self.platform.user_language[self.moment.user][:, None]
        return self.platform.config.language * (self.platform.video_language[self.videos] != language)

    def acceptance(self) -> np.ndarray:
        """`[n, m]` probability that a video found outside the recommendations is watched once found."""
        repeated = 2.3 * self.platform.config.rewatch * self.watched
        return np.maximum(np.exp(-1.4 * self.foreign - 0.5 * self.misfit - repeated), MINIMUM_ACCEPTANCE)

    def appeal(self) -> np.ndarray:
        """`[n, m]` probability of a click on an impression that is looked at."""
        platform, config = self.platform, self.platform.config
        logit = (
            CLICK_BASE
            # topic and duration work together: a liked topic in the wrong length for the device wins little
            + 1.1 * self.match * np.exp(-0.5 * self.misfit)
            - 0.25 * self.misfit
            + 1.2 * self.loyal
            + 1.6 * self.continues
            - 1.0 * self.foreign
            + 0.25 * platform.quality[self.videos]
            + 0.5 * platform.newness[self.moment.bin[:, None], self.videos]
            + 1.6 * config.clickbait * platform.clickbait[self.videos]
            - 0.7 * config.churn * np.minimum(self.ignored, 4)
            - 1.2 * config.rewatch * self.watched
        )
        return sigmoid(logit)

    def completion(self) -> np.ndarray:
        """`[n, m]` probability that a watch is completed."""
        platform = self.platform
        logit = (
            COMPLETION_BASE
            + 0.8 * self.match
            - 0.5 * self.misfit
            + 0.8 * self.loyal
            + 0.9 * self.continues
            - 0.6 * self.foreign
            + 0.3 * platform.quality[self.videos]
            - 2.5 * platform.config.clickbait * platform.clickbait[self.videos]
            - 0.4 * np.log(platform.duration_s[self.videos] / 420.0)
        )
        return sigmoid(logit)

    def abandonment(self) -> np.ndarray:
        """`[n, m]` shape s of an abandoned watch: its share of the length is `COMPLETED_SHARE` × uniform^s."""
        bait = 4.0 * self.platform.config.clickbait * self.platform.clickbait[self.videos]
        return 1.0 + 2.0 * sigmoid(-self.match) + bait


def mean_watched_share(completion: np.ndarray, abandonment: np.ndarray) -> np.ndarray:
    """Expected share of the length that is watched.

    A completed watch ends anywhere in the last tenth, an abandoned one at `COMPLETED_SHARE` × uniform^s, whose mean is
    `COMPLETED_SHARE / (1 + s)`.
    """
    return completion * (1 + COMPLETED_SHARE) / 2 + (1 - completion) * COMPLETED_SHARE / (1 + abandonment)
