"""Video vectors and requests with the structure of learned ones, for the benchmarks of retrieval.

Videos lie around topics (Zipf sizes), topics around fields, in a space whose axes matter less and less; vectors of
popular videos are longer, as dot-product training makes them. A user watches videos of one to three topics, popular
ones more often, and some from anywhere. The query is the average of what was watched, so queries fall between topics
as those of a trained tower do, and not among the vectors themselves.
"""

from dataclasses import dataclass

import numpy as np

DIMENSION = 64
WATCHES = 50  # of a request
_ELSEWHERE = 0.2  # share of watches outside the user's topics


@dataclass(frozen=True)
class VideoSpace:
    """Video vectors float32 `[N, 64]`, most popular first, and each video's topic int `[N]`."""

    vectors: np.ndarray
    topic: np.ndarray


def video_space(videos: int, seed: int = 0) -> VideoSpace:
    random = np.random.default_rng(seed)
    topics, fields = max(videos // 250, 4), max(videos // 10_000, 2)
    axes = 1 / np.sqrt(1 + np.arange(DIMENSION) / 8)
    centres = random.normal(size=(fields, DIMENSION))[random.integers(0, fields, topics)]
    centres = centres + random.normal(size=(topics, DIMENSION))
    topic = _zipf(random, topics, videos)
    vectors = (centres[topic] + random.normal(size=(videos, DIMENSION))) * axes
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    popularity = 1 / (1 + np.arange(videos))
    length = 1 + 0.1 * np.log(popularity / popularity[-1])
    return VideoSpace((vectors * length[:, np.newaxis]).astype(np.float32), topic)


def watched_rows(space: VideoSpace, users: int, seed: int = 1) -> np.ndarray:
    """int64 `[users, 50]`: rows of the videos that each user watched."""
    random = np.random.default_rng(seed)
    by_topic = np.argsort(space.topic, kind="stable")  # inside a topic the most popular first
    first = np.searchsorted(space.topic[by_topic], np.arange(space.topic.max() + 2))
    watched = np.zeros((users, WATCHES), np.int64)
    for user in range(users):
        interests = space.topic[random.integers(0, len(space.topic), random.integers(1, 4))]
        topic = interests[random.integers(0, len(interests), WATCHES)]
        size = first[topic + 1] - first[topic]
        inside = by_topic[
            first[topic] + np.minimum(np.exp(random.random(WATCHES) * np.log(size + 1)) - 1, size - 1).astype(int)
        ]
        anywhere = _zipf(random, len(space.topic), WATCHES)
        watched[user] = np.where(random.random(WATCHES) < _ELSEWHERE, anywhere, inside)
    return watched


def queries(space: VideoSpace, watched: np.ndarray) -> np.ndarray:
    """float32 `[users, 64]`: the average of the videos watched."""
    return space.vectors[watched].mean(axis=1, dtype=np.float64).astype(np.float32)


def nearest(vectors: np.ndarray, of: np.ndarray, k: int) -> np.ndarray:
    """Rows `[n, k]` of the largest dot products, exactly; in any order."""
    parts = [of[start : start + 64] @ vectors.T for start in range(0, len(of), 64)]
    return np.concatenate([np.argpartition(-scores, k, axis=1)[:, :k] for scores in parts])


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact rows `[n, k]` that were found `[n, k]`."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, exact, strict=True)]))


def _zipf(random: np.random.Generator, n: int, size: int) -> np.ndarray:
    return np.minimum(np.expm1(random.random(size) * np.log(n + 1)).astype(np.int64), n - 1)
