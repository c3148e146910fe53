"""The generated platform: its users, uploaders, series and videos, and how popularity moves through the window.

Videos are numbered in the order of their upload, so that the videos available in popularity bin b are exactly
`0 .. available[b] - 1`.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from scipy import sparse

from pipeline.sources.simulator_config import SimulatorConfig

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000

PAGES = ("home", "watch_next", "search", "external")
HOME, WATCH_NEXT, SEARCH, EXTERNAL = range(4)
DEVICES = ("phone", "desktop", "tv", "tablet")
DEVICE_SHARES = np.array([0.5, 0.25, 0.15, 0.1])
REGIONS = ("US", "GB", "DE", "BR", "IN", "JP")
REGION_SHARES = np.array([0.35, 0.15, 0.12, 0.15, 0.15, 0.08])
LANGUAGES = ("en", "de", "pt", "hi", "ja")
# rows: regions, columns: languages of the users there
LANGUAGE_BY_REGION = np.array(
    [
        [0.97, 0.01, 0.02, 0.0, 0.0],
        [0.97, 0.02, 0.0, 0.01, 0.0],
        [0.15, 0.85, 0.0, 0.0, 0.0],
        [0.1, 0.0, 0.9, 0.0, 0.0],
        [0.45, 0.0, 0.0, 0.55, 0.0],
        [0.08, 0.0, 0.0, 0.0, 0.92],
    ]
)
VIDEO_LANGUAGE_SHARES = np.array([0.6, 0.1, 0.12, 0.1, 0.08])
FAVOURITES = 3  # favourite uploaders of a user
HEAVY_FACTOR = 20.0  # steps of a very heavy user, as a multiple of the median user's
OUT_OF_ORDER = 0.15  # popularity of an episode after the first among people who do not follow its series


@dataclass(frozen=True)
class Platform:
    """Latent truth of the platform; U users, V videos, K topics, G uploaders. Arrays are drawn once per seed."""

    config: SimulatorConfig
    # topics and context
    topic_base: np.ndarray  # [K] how liked a topic is by everybody, in logits
    topic_hour: np.ndarray  # [24, K] what the hour adds to it
    gate: np.ndarray  # [pages, devices, K] factors on the user's own taste
    # users
    taste: np.ndarray  # [U, K] stable taste, in logits, what demographics explain included
    favourites: np.ndarray  # [U, FAVOURITES] uploaders
    activity: np.ndarray  # [U] expected number of steps
    user_region: np.ndarray  # [U]
    user_language: np.ndarray  # [U]
    user_gender: np.ndarray  # [U] 0 or 1
    user_age: np.ndarray  # [U] years
    user_logged_in: np.ndarray  # [U]
    user_device: np.ndarray  # [U] the main device
    # videos
    uploader: np.ndarray  # [V]
    topic: np.ndarray  # [V] first topic
    second_topic: np.ndarray  # [V] second topic, -1 none
    upload_us: np.ndarray  # [V] since epoch
    duration_s: np.ndarray  # [V]
    video_language: np.ndarray  # [V]
    quality: np.ndarray  # [V] standard normal
    clickbait: np.ndarray  # [V] bool
    decay_days: np.ndarray  # [V]
    evergreen: np.ndarray  # [V] share of the peak's popularity that never decays
    series: np.ndarray  # [V] -1 none
    episode: np.ndarray  # [V] from 1, 0 none
    next_episode: np.ndarray  # [V] video, -1 none

    @property
    def device_names(self) -> list[str]:
        """`[D]` kinds of devices, numbered by model where there are several."""
        models = self.config.device_models
        if models == 1:
            return list(DEVICES)
        return [f"{kind} {model}" for kind in DEVICES for model in range(1, models + 1)]

    def device_kind(self, device: np.ndarray) -> np.ndarray:
        """Places in `DEVICES` of devices."""
        return device // self.config.device_models

    @cached_property
    def start_us(self) -> int:
        return int(self.config.start.timestamp()) * 1_000_000

    @cached_property
    def end_us(self) -> int:
        return self.start_us + self.config.days * DAY_US

    @cached_property
    def bin_us(self) -> int:
        return int(self.config.popularity_bin_hours * HOUR_US)

    @cached_property
    def bin_starts_us(self) -> np.ndarray:
        return np.arange(self.start_us, self.end_us, self.bin_us)

    @cached_property
    def available(self) -> np.ndarray:
        """`[bins]` number of videos uploaded by the start of the bin."""
        return np.searchsorted(self.upload_us, self.bin_starts_us, side="right")

    @cached_property
    def popularity(self) -> np.ndarray:
        """`[bins, V]` share of every video in the general demand; zero before it is uploaded. Rows sum to 1."""
        config = self.config
        age = (self.bin_starts_us[:, None] - self.upload_us[None, :]) / DAY_US
        grown = np.maximum(age, 0.0)
        curve = self.evergreen + (1 - self.evergreen) * (1 - np.exp(-grown / 0.5)) * np.exp(-grown / self.decay_days)
        weight = np.where(age >= 0, curve**config.freshness * np.exp(self.quality), 0.0)
        weight *= np.where(self.episode > 1, 1 - config.series * (1 - OUT_OF_ORDER), 1.0)
        return weight / weight.sum(1, keepdims=True)

    @cached_property
    def newness(self) -> np.ndarray:
        """`[bins, V]` 1 at upload, falling with a time constant of two days; zero without freshness."""
        age = np.maximum(self.bin_starts_us[:, None] - self.upload_us[None, :], 0) / DAY_US
        return (self.config.freshness * np.exp(-age / 2.0)).astype(np.float32)

    @cached_property
    def topic_share(self) -> sparse.csr_array:
        """`[K, V]` how much of a video belongs to a topic; columns sum to 1."""
        both = np.flatnonzero(self.second_topic >= 0)
        share = np.concatenate([np.where(self.second_topic >= 0, 0.7, 1.0), np.full(len(both), 0.3)])
        topic = np.concatenate([self.topic, self.second_topic[both]])
        video = np.concatenate([np.arange(len(self.topic)), both])
        return sparse.csr_array((share, (topic, video)), shape=(self.config.topics, len(self.topic)))

    def spread_topics(self, weight: np.ndarray) -> np.ndarray:
        """`[n, V]` weights of videos from `[n, K]` weights of topics."""
        # sparse products stay on one core; threads of a dense one would wait for each other on small chunks
        return np.ascontiguousarray((self.topic_share.T @ weight.T).T)

    def gather_topics(self, weight: np.ndarray) -> np.ndarray:
        """`[n, K]` sums over topics of `[n, V]` weights of videos."""
        return (self.topic_share @ weight.T).T

    @cached_property
    def long_term(self) -> np.ndarray:
        """`[U, K]` topic probabilities of the stable taste alone: what a recommender knows of a user."""
        return softmax(self.topic_base + self.taste)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every drawn array by name, to be stored; with the configuration they are the whole platform."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "config"}


def of_models(shares: np.ndarray, config: SimulatorConfig) -> np.ndarray:
    """`[..., 4]` shares of the kinds of devices -> `[..., D]` those of their models, which are alike."""
    return np.repeat(shares / config.device_models, config.device_models, axis=-1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def draw_rows(rng: np.random.Generator, cumulative: np.ndarray) -> np.ndarray:
    """One category per row of `[n, c]` cumulative probabilities."""
    r = rng.random(len(cumulative)) * cumulative[:, -1]
    return np.minimum((r[:, None] >= cumulative).sum(1), cumulative.shape[1] - 1)


def generate_platform(config: SimulatorConfig) -> Platform:
    """Draws the platform of a seed."""
    topics = np.random.default_rng([config.seed, 1])
    K = config.topics
    topic_base = 0.5 * topics.standard_normal(K)
    hours = 2 * np.pi * (np.arange(24)[:, None] - topics.uniform(0, 24, K)) / 24
    devices = len(DEVICES) * config.device_models
    gate = topics.normal(0, 0.45, (len(PAGES), 1, K)) + topics.normal(0, 0.45, (1, devices, K))
    turned = np.random.default_rng([config.seed, 6]).random((1, devices, K)) < config.reversal
    uploaders = _draw_uploaders(np.random.default_rng([config.seed, 2]), config, topic_base)
    videos = _draw_videos(np.random.default_rng([config.seed, 3]), config, uploaders)
    users = _draw_users(np.random.default_rng([config.seed, 4]), config, topic_base, uploaders)
    return Platform(
        config=config,
        topic_base=topic_base,
        topic_hour=0.8 * config.time_of_day * np.cos(hours),
        gate=np.exp(config.context * gate) * np.where(turned, -1.0, 1.0),
        **users,
        **videos,
    )


def _draw_uploaders(rng: np.random.Generator, config: SimulatorConfig, topic_base: np.ndarray) -> dict[str, np.ndarray]:
    G, K = config.uploaders, config.topics
    return {
        # the first K uploaders cover all topics
        "topic": np.concatenate([np.arange(K), rng.choice(K, G - K, p=softmax(topic_base))]),
        "language": rng.choice(len(LANGUAGES), G, p=VIDEO_LANGUAGE_SHARES),
        "quality": rng.normal(0, 0.5, G),
        "output": softmax(rng.standard_normal(G)),
        "series_length": rng.integers(4, 11, G),
    }


def _draw_videos(
    rng: np.random.Generator, config: SimulatorConfig, uploaders: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    V, G, K = config.videos, config.uploaders, config.topics
    start_us = int(config.start.timestamp()) * 1_000_000
    # every uploader has one video from before the window, so that there is always something to find
    uploader = np.concatenate([np.arange(G), rng.choice(G, V - G, p=uploaders["output"])])
    old = rng.random(V) < (config.back_catalogue * V - G) / max(V - G, 1)
    old[:G] = True
    age_days = np.where(old, rng.exponential(120.0, V) + 0.01, -rng.uniform(0, config.days, V))
    upload_us = start_us - (age_days * DAY_US).astype(np.int64)
    order = np.argsort(upload_us, kind="stable")
    upload_us, uploader = upload_us[order], uploader[order]
    rank = _rank_within(uploader)
    series, episode, next_episode = _series(rng, uploader, rank, uploaders["series_length"])

    own = (rank == 0) | (rng.random(V) < 0.8)
    topic = np.where(own, uploaders["topic"][uploader], rng.integers(0, K, V))
    second = np.where(rng.random(V) < 0.4, rng.integers(0, K, V), -1)
    spread = config.durations
    log_duration = np.log(420.0) + spread * rng.normal(0, 0.4, K)[topic] + spread * rng.normal(0, 0.8, V)
    quality = (rng.normal(0, 0.87, V) + uploaders["quality"][uploader]).astype(np.float64)
    first = _first_of_series(series)  # what all episodes of a series share
    topic, second, log_duration = topic[first], second[first], log_duration[first] + spread * rng.normal(0, 0.05, V)
    second = np.where(second == topic, -1, second)
    return {
        "uploader": uploader,
        "topic": topic,
        "second_topic": second,
        "upload_us": upload_us,
        "duration_s": np.round(np.clip(np.exp(log_duration), 20, 7200)),
        "video_language": uploaders["language"][uploader],
        "quality": np.where(series >= 0, quality[first], quality),
        "clickbait": (rng.random(V) < 0.08) & (series < 0),
        "decay_days": np.exp(rng.normal(np.log(4.0), 0.5, V)),
        "evergreen": rng.beta(1.5, 12, V),
        "series": series,
        "episode": episode,
        "next_episode": next_episode,
    }


def _rank_within(group: np.ndarray) -> np.ndarray:
    """Position of each element among those of its group, in the order given."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    begin = np.searchsorted(ordered, ordered, side="left")
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - begin
    return rank


def _series(
    rng: np.random.Generator, uploader: np.ndarray, rank: np.ndarray, length: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts every uploader's videos into blocks of consecutive uploads and makes a third of the blocks series."""
    V = len(uploader)
    block = rank // length[uploader]
    key = uploader * (int(block.max()) + 1) + block
    blocks, member = np.unique(key, return_inverse=True)
    chosen = (rng.random(len(blocks)) < 0.35) & (np.bincount(member) > 1)
    number = np.where(chosen, np.cumsum(chosen) - 1, -1)
    series = number[member]
    episode = np.where(series >= 0, rank % length[uploader] + 1, 0)
    next_episode = np.full(V, -1)
    order = np.lexsort((episode, series))
    follows = (series[order][1:] == series[order][:-1]) & (series[order][1:] >= 0)
    next_episode[order[:-1][follows]] = order[1:][follows]
    return series, episode, next_episode


def _first_of_series(series: np.ndarray) -> np.ndarray:
    """For an episode the video number of its series' first episode, otherwise the video itself."""
    first = np.arange(len(series))
    numbers, begin = np.unique(series, return_index=True)
    lookup = dict(zip(numbers.tolist(), begin.tolist(), strict=True))
    lookup.pop(-1, None)
    if lookup:
        begin_of = np.full(max(lookup) + 1, 0)
        begin_of[list(lookup)] = list(lookup.values())
        first = np.where(series >= 0, begin_of[series], first)
    return first


def _draw_users(
    rng: np.random.Generator, config: SimulatorConfig, topic_base: np.ndarray, uploaders: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    U, K = config.users, config.topics
    region = rng.choice(len(REGIONS), U, p=REGION_SHARES)
    language = draw_rows(rng, np.cumsum(LANGUAGE_BY_REGION[region], 1))
    gender = rng.integers(0, 2, U)
    age = np.clip(np.round(13 + rng.gamma(3.0, 8.0, U)), 13, 90)
    explained = rng.standard_normal((len(REGIONS), K))[region]
    explained += np.where(gender == 1, 1, -1)[:, None] * rng.standard_normal(K)
    explained += ((age - 37) / 14)[:, None] * rng.standard_normal(K)
    own = 1.3 * config.long_term_taste * rng.standard_normal((U, K))
    taste = 0.4 * config.demographics * explained + own
    activity = np.minimum(np.exp(rng.normal(0, 0.8, U)), 8.0)
    heavy = rng.random(U) < 0.01 * config.heavy_users
    activity[heavy] = HEAVY_FACTOR * np.exp(rng.normal(0, 0.2, heavy.sum()))
    return {
        "taste": taste,
        "favourites": _draw_favourites(rng, softmax(topic_base + taste), language, uploaders),
        "activity": activity * config.steps_per_user / activity.mean(),
        "user_region": region,
        "user_language": language,
        "user_gender": gender,
        "user_age": age,
        "user_logged_in": rng.random(U) < 0.85,
        "user_device": rng.choice(len(DEVICES) * config.device_models, U, p=of_models(DEVICE_SHARES, config)),
    }


def _draw_favourites(
    rng: np.random.Generator, topics: np.ndarray, language: np.ndarray, uploaders: dict[str, np.ndarray]
) -> np.ndarray:
    """Favourite uploaders come from liked topics, and from the user's language if one of four tries finds it."""
    by_topic = np.argsort(uploaders["topic"], kind="stable")
    begin = np.searchsorted(uploaders["topic"][by_topic], np.arange(topics.shape[1] + 1))
    cumulative = np.cumsum(topics, 1)
    favourites = []
    for _ in range(FAVOURITES):
        tries = []
        for _ in range(4):
            k = draw_rows(rng, cumulative)
            tries.append(by_topic[begin[k] + (rng.random(len(k)) * (begin[k + 1] - begin[k])).astype(int)])
        options = np.stack(tries, 1)
        pick = np.argmax(uploaders["language"][options] == language[:, None], 1)
        favourites.append(np.take_along_axis(options, pick[:, None], 1)[:, 0])
    return np.stack(favourites, 1)
