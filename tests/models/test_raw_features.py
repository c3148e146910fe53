"""The graph's features against the example job's columns, on random histories with every awkward case."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from features.encoding import Encoder, make_encoder
from features.errors import ConfigError
from features.event_windows import ORDER_ONLY, Events
from features.example_features import FeatureColumns, RequestRows
from features.feature_lists import FeatureListConfig
from features.history import REQUIREMENTS, Requests
from features.search_tokens import search_tokens
from features.spec import RESERVED_INPUTS, Feature, FeatureSpec, Kind, Normaliser, Side
from features.vocabulary import Vocabulary
from models.raw_features import RawFeatures
from models.raw_inputs import SPECS, raw_inputs

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


def encoder(random: np.random.Generator) -> Encoder:
    """Twenty-six of the thirty videos are in the catalogue, twenty in the vocabulary."""
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
    upload_us = NOW_US - random.integers(0, 10**12, 26)
    catalogue = pa.table(
        {
            "video_id": ids,
            "video": vocabularies["video"].lookup(ids),
            "clicked_video": vocabularies["clicked_video"].lookup(ids),
            "uploader_id": random.integers(0, 4, 26).astype(np.int32),
            "topics": pa.array(
                [random.integers(0, 5, random.integers(0, 4)).tolist() for _ in range(26)], pa.list_(pa.int32())
            ),
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


@pytest.mark.parametrize("seed", range(4))
def test_every_feature_equals_the_example_jobs(seed):
    random = np.random.default_rng(seed)
    tables, log = encoder(random), Log(random, users=150, candidates=3)
    features = RawFeatures(SPEC, tables, LISTS, UTC_OFFSET_S)
    assert set(features.input_specs) == set(log.raw())
    examples = log.examples(tables)
    for derivation in REQUIREMENTS:  # the cases are there: no derivation is always missing or zero
        if derivation.value in SPEC:
            column = examples[derivation.value]
            found = (column.flatten() if pa.types.is_list(column.type) else column).to_numpy()
            assert np.isfinite(found).any() and np.any(found != 0)
    assert_equals_examples(tf.function(features)(tensors(log.raw(), features)), examples, log)


def test_a_saved_model_gives_the_same_without_our_code(tmp_path):
    random = np.random.default_rng(10)
    tables, log = encoder(random), Log(random, users=20, candidates=2)
    features = RawFeatures(SPEC, tables, LISTS, UTC_OFFSET_S)
    call = tf.function(lambda **raw: features(raw)).get_concrete_function(
        **{name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in features.input_specs.items()}
    )
    tf.saved_model.save(features, str(tmp_path), signatures=call)
    loaded = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    assert_equals_examples(loaded(**tensors(log.raw(), features)), log.examples(tables), log)


def test_users_without_any_history():
    tables = encoder(np.random.default_rng(0))
    log = Log(np.random.default_rng(0), users=3, candidates=2)
    log.watches, log.shown, log.searches = [[]] * 3, [[]] * 3, [[]] * 3
    log.watch_time_s, log.clicked, log.speeds = ([np.zeros(0, np.float32)] * 3 for _ in range(3))
    log.pages = [[]] * 3
    features = RawFeatures(SPEC, tables, LISTS, UTC_OFFSET_S)
    assert_equals_examples(features(tensors(log.raw(), features)), log.examples(tables), log)


def test_candidates_beyond_the_catalogue_and_padding_have_their_features_missing():
    log = Log(np.random.default_rng(1), users=2, candidates=2)
    log.candidate_ids = np.array([["", "no such video"]] * 2)
    features = RawFeatures(SPEC, encoder(np.random.default_rng(1)), LISTS, UTC_OFFSET_S)
    found = features(tensors(log.raw(), features))
    for name in ("video_id", "uploader", "topics", "video_watch_count", "topic_watch_count"):
        assert not found[name].numpy().any(), name
    for name in ("duration_s", "video_age_s", "seconds_since_video_impression"):
        assert np.isnan(found[name]).all(), name


@pytest.mark.parametrize(
    ("timestamps", "seconds_to_next"),
    [
        ([50.0], [[np.nan, np.nan, np.nan, np.nan]]),  # the second watch's time is missing
        ([50.0, 90.0, 95.0], [[40.0, 10.0, np.nan, np.nan]]),  # the third is of no watch
        ([100.0], [[np.nan] * 4]),  # only the first watch is known to be at the request's moment: it is left out
        ([], [[np.nan] * 4]),
    ],
)
def test_times_of_another_number_than_the_watches_are_missing_at_their_end(timestamps, seconds_to_next):
    spec = FeatureSpec((SPEC["seconds_to_next_watch"], SPEC["watched"], SPEC["watched_time_s"]))
    found = RawFeatures(spec, encoder(np.random.default_rng(0)), LISTS)(
        {
            "watched_video_ids": tf.constant([VIDEO_IDS[:2]]),
            "watched_timestamps": tf.constant([timestamps], tf.float64),
            "watched_watch_time_s": tf.constant([[3.0, 4.0, 5.0]]),
            "request_timestamp": tf.constant([100.0], tf.float64),
        }
    )
    np.testing.assert_array_equal(found["seconds_to_next_watch"], seconds_to_next)
    # Rows of clicked_video descend: video n has row 20 - n.
    kept = [19, 0, 0, 0] if timestamps == [100.0] else [20, 19, 0, 0]
    assert found["watched"].numpy().tolist() == [kept]


def test_only_the_inputs_a_spec_needs_are_asked_for():
    features = RawFeatures(FeatureSpec((SPEC["watched"], SPEC["page"])), encoder(np.random.default_rng(0)), LISTS)
    assert features.input_specs == {
        "watched_video_ids": tf.TensorSpec([None, None], tf.string),
        "page": tf.TensorSpec([None], tf.string),
    }
    ids = [VIDEO_IDS[n] for n in (5, 4, 29, 3, 2)]
    found = features({"watched_video_ids": tf.constant([ids]), "page": tf.constant(["watch next"])})
    # Rows of clicked_video descend: video n has row 20 - n; the last four watches, of which one is unknown.
    assert found["watched"].numpy().tolist() == [[16, 0, 17, 18]]
    assert found["page"].numpy().tolist() == [2]


def test_serving_values_replace_logged_ones():
    spec = FeatureSpec(
        (
            one("page", "request.page", "page", serving_value="watch next"),
            number("position", "request.position", Side.IMPRESSION, serving_value=0.0),
            number("autoplay", "request.autoplay", serving_value=True),
            one("slot", "request.slot", "hour", serving_value=7),
            SPEC["video_id"],
        )
    )
    features = RawFeatures(spec, encoder(np.random.default_rng(0)), LISTS)
    assert set(features.input_specs) == {"candidate_ids"}
    found = features({"candidate_ids": tf.constant([[VIDEO_IDS[0], "", VIDEO_IDS[1]]])})
    assert found["page"].numpy().tolist() == [2]
    assert found["position"].numpy().tolist() == [[0.0, 0.0, 0.0]]
    assert found["autoplay"].numpy().tolist() == [1.0]
    assert found["slot"].numpy().tolist() == [8]  # the eighth of the ids "0" to "23"


def test_hour_is_local():
    spec = FeatureSpec((SPEC["hour"],))
    tables = encoder(np.random.default_rng(0))
    midnight = tf.constant([1_650_844_800.0 - 1e-6, 1_650_844_800.0], tf.float64)  # 2022-04-25 00:00 UTC
    for offset_s, rows in ((0.0, [24, 1]), (-3600.0, [23, 24]), (5.5 * 3600, [6, 6])):
        found = RawFeatures(spec, tables, LISTS, offset_s)({"request_timestamp": midnight})
        assert found["hour"].numpy().tolist() == rows  # row of hour h is h + 1


def test_the_week_begins_on_local_monday():
    """Five in the morning of a Tuesday in UTC; four hours to the west it is one, and ten to the east three p.m."""
    now = tf.constant([1_650_949_200.25], tf.float64)  # 2022-04-26 05:00:00.25 UTC
    for side, shape in ((Side.QUERY, 1), (Side.IMPRESSION, 3)):
        time_of_week = number("time_of_week", "request.time_of_week", side)
        spec = FeatureSpec((time_of_week, *([SPEC["video_id"]] if shape > 1 else [])))
        raw = {"request_timestamp": now, "candidate_ids": tf.constant([VIDEO_IDS[:3]])}
        for offset_hours, hours in ((0, 29), (-4, 25), (10, 39), (-6, 23), (-30, 167)):
            features = RawFeatures(spec, encoder(np.random.default_rng(0)), LISTS, offset_hours * 3600)
            found = features(raw)["time_of_week"].numpy().ravel()
            np.testing.assert_array_equal(found, [hours * 3600 + 0.25] * shape)


def test_every_input_that_is_no_column_is_reserved():
    assert {*SPECS, "excluded_video_ids"} == RESERVED_INPUTS


def test_features_that_cannot_be_served_are_refused():
    with pytest.raises(ConfigError, match="describes the video scored; set its side"):
        raw_inputs(one("uploader", "videos.uploader_id", "uploader"))
    constant = FeatureSpec((number("position", "request.position", serving_value=0.0),))
    with pytest.raises(ConfigError, match="at least one feature that is made of raw inputs"):
        RawFeatures(constant, encoder(np.random.default_rng(0)), LISTS)


def test_a_gap_before_a_time_that_is_not_known_is_not_known():
    spec = FeatureSpec((SPEC["seconds_to_next_watch"],))
    features = RawFeatures(spec, encoder(np.random.default_rng(0)), LISTS)
    raw = {
        "watched_video_ids": tf.constant([VIDEO_IDS[:3]]),
        "watched_timestamps": tf.constant([[100.0, np.nan, 160.0]], tf.float64),
        "request_timestamp": tf.constant([200.0], tf.float64),
    }
    np.testing.assert_array_equal(features(raw)["seconds_to_next_watch"], [[np.nan, np.nan, 40.0, np.nan]])
