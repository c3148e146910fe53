"""Random histories with every awkward case: as the example jobs store their features, and as a client sends them."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import tensorflow as tf

from features.encoding import Encoder, make_encoder
from features.event_windows import ORDER_ONLY, Events
from features.example_features import FeatureColumns, RequestRows
from features.feature_lists import FeatureListConfig
from features.history import REQUIREMENTS, Requests
from features.search_tokens import search_tokens
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from features.vocabulary import Vocabulary
from models.raw_features import RawFeatures

VIDEO_IDS = [f"video {n}" if n % 3 else f"видео 🎬 {n}" for n in range(30)]
QUERIES = ["Café del Mar", "café", "!!!", "how to cook", "cook del mar 🎬", "İstanbul", "unheard of"]
NOW_US = 1_650_812_741_436_123
LISTS = FeatureListConfig(watch_window=6, impression_window=5, search_window=3)
UTC_OFFSET_S = 8 * 3600.0


def bag(name: str, source: str, space: str, length: int, side: Side = Side.QUERY) -> Feature:
    return Feature(name, Kind.CATEGORICAL, side, source, space, length)


def one(name: str, source: str, space: str, side: Side = Side.QUERY, **more: object) -> Feature:
    return Feature(name, Kind.CATEGORICAL, side, source, space, **more)


def number(name: str, source: str, side: Side = Side.QUERY, **more: object) -> Feature:
    return Feature(name, Kind.CONTINUOUS, side, source, normaliser=Normaliser.QUANTILE, **more)


SPEC = FeatureSpec(
    (
        bag("watched", "history.watched_video_ids", "clicked_video", 4),
        bag("watched_long", "history.watched_video_ids", "video", 50),
        one("last", "history.last_watched_video_id", "clicked_video"),
        bag("watched_uploader_ids", "history.watched_uploader_ids", "uploader", 4),
        bag("watched_page", "watches.page", "page", 4),
        number("watched_speed", "watches.speed", max_length=4),
        number("seconds_to_next_watch", "history.seconds_to_next_watch", max_length=4),
        number("watched_time_s", "history.watched_time_s", max_length=50),
        bag("shown", "history.shown_video_ids", "clicked_video", 3),
        bag("tokens", "history.search_tokens", "search_token", 5),
        bag("last_tokens", "history.last_search_tokens", "search_token", 5),
        one("seed", "request.seed_video_id", "clicked_video"),
        one("page", "request.page", "page"),
        one("hour", "request.hour", "hour"),
        one("language", "users.language", "language"),
        number("age", "users.age"),
        bag("hobbies", "users.hobbies", "hobby", 2),
        one("video_id", "videos.video_id", "clicked_video", Side.IMPRESSION),
        one("uploader", "videos.uploader_id", "uploader", Side.IMPRESSION),
        bag("topics", "videos.topics", "topic", 2, Side.IMPRESSION),
        number("duration_s", "videos.duration_s", Side.IMPRESSION),
        bag("sources", "request.candidate_sources", "source", 2, Side.IMPRESSION),
        number("score", "request.candidate_scores", Side.IMPRESSION),
        *[
            number(d.value, f"history.{d}", need.side)
            for d, need in REQUIREMENTS.items()
            if need.kind == Kind.CONTINUOUS and not need.bag
        ],
    )
)


def encoder(random: np.random.Generator, longest: int = 3) -> Encoder:
    """Twenty-six of the thirty videos are in the catalogue, twenty in the vocabulary; one has `longest` topics."""
    spaces = {
        "video": VIDEO_IDS[:20],
        "clicked_video": VIDEO_IDS[19::-1],
        "uploader": ["u1", "u2", "u3"],
        "topic": ["t1", "t2", "t3", "t4"],
        "search_token": ["cafe", "del mar", "mar", "cook", "how to", "del"],
        "page": ["home", "watch next"],
        "hour": [str(hour) for hour in range(24)],
        "language": ["de", "tr"],
        "hobby": ["chess", "go"],
        "source": ["two_tower", "co watch"],
    }
    vocabularies = {space: Vocabulary.of(ids) for space, ids in spaces.items()}
    ids = pa.array(VIDEO_IDS[:26])
    topics = [random.integers(0, 5, random.integers(0, 4)).tolist() for _ in range(26)]
    if longest > 3:
        topics[4], topics[7] = [*[0] * (longest - 2), 3, 4], random.integers(0, 3, longest // 2).tolist()
    upload_us = NOW_US - random.integers(0, 10**12, 26)
    catalogue = pa.table(
        {
            "video_id": ids,
            "video": vocabularies["video"].lookup(ids),
            "clicked_video": vocabularies["clicked_video"].lookup(ids),
            "uploader_id": random.integers(0, 4, 26).astype(np.int32),
            "topics": pa.array(topics, pa.list_(pa.int32())),
            "duration_s": pa.array(random.choice([12.5, 100.25, np.nan], 26), pa.float32()),
            "upload_time": pa.array(upload_us, pa.timestamp("us", tz="UTC"), mask=random.random(26) < 0.2),
        }
    )
    return make_encoder(vocabularies, catalogue)


class Log:
    """Random histories of some users, one request of each, and its candidates.

    Times are few, so that events meet each other and the request; some events are known by order only.
    """

    def __init__(self, random: np.random.Generator, users: int, candidates: int) -> None:
        self.users, self.candidates = users, candidates
        self.now_us = NOW_US + random.integers(0, 3 * 10**6, users)
        self.watches = [self._events(random, user) for user in range(users)]
        self.shown = [self._events(random, user) for user in range(users)]
        self.searches = [
            [(str(q), ORDER_ONLY) for q in random.choice(QUERIES, random.integers(0, 6))] for _ in range(users)
        ]
        self.watch_time_s = [
            random.choice([0.5, 2.0, 3.1, 7000.7, np.nan], len(w)).astype(np.float32) for w in self.watches
        ]
        self.pages = [random.choice(["home", "watch next", "elsewhere", ""], len(w)).tolist() for w in self.watches]
        self.speeds = [random.choice([0.5, 2.0, np.nan], len(w)).astype(np.float32) for w in self.watches]
        self.clicked = [random.choice([0, 1, np.nan], len(s)).astype(np.float32) for s in self.shown]
        self.candidate_ids = random.choice(VIDEO_IDS, (users, candidates))
        n = users * candidates
        self.requests = pa.table(
            {
                "page": pa.array(random.choice(["home", "watch next", "elsewhere"], n), mask=random.random(n) < 0.2),
                "seed_video_id": pa.array(random.choice(VIDEO_IDS, n), mask=random.random(n) < 0.5),
                "candidate_sources": [
                    random.choice(["two_tower", "co watch", "other"], random.integers(0, 4)).tolist() for _ in range(n)
                ],
                "candidate_scores": random.choice([0.25, -1.5, np.nan], n).astype(np.float32),
            }
        )
        for name in ("page", "seed_video_id"):  # a column of the request: the same for all its candidates
            index = np.repeat(np.arange(users) * candidates, candidates)
            self.requests = self.requests.set_column(
                self.requests.column_names.index(name), name, self.requests[name].take(index)
            )
        self.user_table = pa.table(
            {
                "language": pa.array(random.choice(["de", "tr", "fr"], users), mask=random.random(users) < 0.3),
                "age": pa.array(random.choice([20.5, np.nan], users)),
                "hobbies": [random.choice(["chess", "go", "tv"], random.integers(0, 4)).tolist() for _ in range(users)],
            }
        )

    def _events(self, random: np.random.Generator, user: int) -> list[tuple[str, int]]:
        count = random.integers(0, 10)
        times = np.sort(
            self.now_us[user] + random.integers(-6, 2, count) * 10**6 + random.choice([0, 0, 1, -333_333], count)
        )
        times[: random.integers(0, count + 1) if random.random() < 0.4 else 0] = ORDER_ONLY
        return [(str(video), int(time)) for video, time in zip(random.choice(VIDEO_IDS, count), times, strict=True)]

    def events(self, encoder: Encoder, histories: list, **columns: list) -> Events:
        """One kind of events as the example job holds them."""
        flat = [event for history in histories for event in history]
        offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
        positions = encoder.positions(pa.array([video for video, _ in flat], pa.string()))
        more = {name: np.concatenate(values) for name, values in columns.items()}
        return Events(offsets, np.array([time for _, time in flat], np.int64), positions, **more)

    def examples(self, encoder: Encoder) -> Mapping[str, pa.Array]:
        """What the example job writes: one row per candidate."""
        queries = pa.array([query for history in self.searches for query, _ in history], pa.string())
        tokens = search_tokens(queries)
        searches = self.events(encoder, self.searches)
        searches = Events(
            searches.offsets,
            searches.time_us,
            searches.video,
            tokens=encoder.vocabularies["search_token"].lookup(tokens.flatten()),
            token_offsets=tokens.offsets.to_numpy().astype(np.int64),
        )
        user = np.arange(self.users)
        windows = [
            self.events(encoder, self.watches, watch_time_s=self.watch_time_s).window(
                user, self.now_us, LISTS.watch_window
            ),
            self.events(encoder, self.shown, clicked=self.clicked).window(user, self.now_us, LISTS.impression_window),
            searches.window(user, self.now_us, LISTS.search_window),
        ]
        request = np.repeat(user, self.candidates)
        candidate = encoder.positions(pa.array(self.candidate_ids.reshape(-1)))
        requests = Requests(self.now_us, *windows, encoder.videos, request, candidate)
        rows = RequestRows(self.requests, request, self.now_us[request])
        watches = pa.table(
            {
                "page": pa.array([page or None for pages in self.pages for page in pages], pa.string()),
                "speed": pa.array(np.concatenate(self.speeds)),
            }
        )
        columns = FeatureColumns(SPEC.features, encoder, self.user_table, rows, UTC_OFFSET_S, watches)
        return columns.of(requests, np.arange(len(request)))

    def raw(self) -> dict[str, np.ndarray]:
        """What a client sends: whole histories, also beyond the windows and after the request."""
        shape = (self.users, self.candidates)
        sources = padded(self.requests["candidate_sources"].to_pylist(), "")
        return {
            "watched_video_ids": padded([[v for v, _ in h] for h in self.watches], ""),
            "watched_timestamps": padded([[seconds(t) for _, t in h] for h in self.watches], np.nan),
            "watched_watch_time_s": padded(self.watch_time_s, np.nan).astype(np.float32),
            "watched_page": padded(self.pages, ""),
            "watched_speed": padded(self.speeds, np.nan).astype(np.float32),
            "shown_video_ids": padded([[v for v, _ in h] for h in self.shown], ""),
            "shown_timestamps": padded([[seconds(t) for _, t in h] for h in self.shown], np.nan),
            "shown_clicked": padded(self.clicked, np.nan).astype(np.float32),
            "search_queries": padded([[q for q, _ in h] for h in self.searches], ""),
            "request_timestamp": self.now_us / 1e6,
            "candidate_ids": self.candidate_ids.astype(object),
            "candidate_sources": sources.reshape(*shape, sources.shape[-1]),
            "candidate_scores": self.requests["candidate_scores"].to_numpy().reshape(shape),
            "page": strings(self.requests["page"])[:: self.candidates],
            "seed_video_id": strings(self.requests["seed_video_id"])[:: self.candidates],
            "user_language": strings(self.user_table["language"]),
            "age": self.user_table["age"].to_numpy().astype(np.float32),
            "hobbies": padded(self.user_table["hobbies"].to_pylist(), ""),
        }


def seconds(time_us: int) -> float:
    return np.nan if time_us == ORDER_ONLY else time_us / 1e6


def strings(column: pa.ChunkedArray) -> np.ndarray:
    return np.array([value or "" for value in column.to_pylist()], object)


def padded(lists: list, padding: object) -> np.ndarray:
    width = max(map(len, lists), default=0)
    rows = [[*values, *[padding] * (width - len(values))] for values in lists]
    return np.array(rows, object if padding == "" else np.float64).reshape(len(lists), width)


def tensors(raw: Mapping[str, np.ndarray], features: RawFeatures) -> dict[str, tf.Tensor]:
    return {name: tf.constant(raw[name], spec.dtype) for name, spec in features.input_specs.items()}


def assert_equals_examples(found: Mapping[str, tf.Tensor], examples: Mapping[str, pa.Array], log: Log) -> None:
    for feature in SPEC.features:
        value = found[feature.name].numpy()
        if feature.side == Side.QUERY:
            value = np.repeat(value, log.candidates, axis=0)
        else:
            value = value.reshape(log.users * log.candidates, *value.shape[2:])
        column = examples[feature.name]
        if feature.multivalent:
            absent = np.float32(np.nan) if feature.kind == Kind.CONTINUOUS else np.int32(0)
            expected = np.full((len(column), value.shape[1]), absent)
            for row, rows in zip(expected, column.to_pylist(), strict=True):
                row[: len(rows)] = rows
        else:
            expected = column.to_numpy(zero_copy_only=False)
        assert value.dtype == expected.dtype, feature.name
        np.testing.assert_array_equal(value, expected, err_msg=feature.name)
