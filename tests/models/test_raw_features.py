"""The graph's features against the example job's columns, on random histories with every awkward case."""

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from features.errors import ConfigError
from features.history import REQUIREMENTS
from features.spec import RESERVED_INPUTS, FeatureSpec, Side
from models.raw_features import RawFeatures
from models.raw_inputs import SPECS, raw_inputs
from tests.models.raw_logs import (
    LISTS,
    SPEC,
    UTC_OFFSET_S,
    VIDEO_IDS,
    Log,
    assert_equals_examples,
    encoder,
    number,
    one,
    tensors,
)


def shuffled(raw: dict[str, np.ndarray], kind: str, random: np.random.Generator) -> dict[str, np.ndarray]:
    """The lists of one kind of events in any order, but that of equal times; padding anywhere between them."""
    times = raw[f"{kind}_timestamps"]
    key = random.random(times.shape)
    for row, time in zip(key, np.where(np.isnan(times), -1, times), strict=True):
        for same in (np.flatnonzero(time == moment) for moment in np.unique(time)):
            row[same] = np.sort(row[same])
    order = np.argsort(key, axis=1)
    lists = {name: values for name, values in raw.items() if name.startswith(f"{kind}_")}
    return raw | {name: np.take_along_axis(values, order, axis=1) for name, values in lists.items()}


@pytest.mark.parametrize("seed", range(2))
def test_events_that_are_sent_in_another_order_than_that_of_their_times_change_nothing(seed):
    random = np.random.default_rng(seed)
    tables, log = encoder(random), Log(random, users=150, candidates=3)
    raw = shuffled(shuffled(log.raw(), "watched", random), "shown", random)
    for name in ("watched_timestamps", "shown_timestamps"):
        assert (np.diff(np.nan_to_num(raw[name]), axis=1) < 0).any(axis=1).mean() > 0.5
    features = RawFeatures(SPEC, tables, LISTS, UTC_OFFSET_S)
    assert_equals_examples(tf.function(features)(tensors(raw, features)), log.examples(tables), log)


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


def test_topics_of_videos_with_very_long_lists_are_those_of_the_example_job():
    """The longest list matches at its end alone, where no other video has a topic."""
    random = np.random.default_rng(11)
    tables, log = encoder(random, longest=60), Log(random, users=150, candidates=3)
    features = RawFeatures(SPEC, tables, LISTS, UTC_OFFSET_S)
    found = tf.function(features)(tensors(log.raw(), features))
    assert_equals_examples(found, log.examples(tables), log)


def test_the_graph_is_the_same_however_many_topics_a_video_has():
    sizes = []
    for longest in (3, 300):
        features = RawFeatures(SPEC, encoder(np.random.default_rng(0), longest), LISTS)
        call = tf.function(features).get_concrete_function(dict(features.input_specs))
        sizes.append(len(call.graph.get_operations()))
    assert sizes[0] == sizes[1]


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
        ([50.0], [[np.nan, 50.0, np.nan, np.nan]]),  # the second watch's time is missing: it comes first
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
    kept = {(50.0,): [19, 20, 0, 0], (100.0,): [19, 0, 0, 0]}.get(tuple(timestamps), [20, 19, 0, 0])
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


def test_watches_of_unknown_time_come_first_and_the_gap_after_them_is_not_known():
    spec = FeatureSpec((SPEC["seconds_to_next_watch"],))
    features = RawFeatures(spec, encoder(np.random.default_rng(0)), LISTS)
    raw = {
        "watched_video_ids": tf.constant([VIDEO_IDS[:3]]),
        "watched_timestamps": tf.constant([[100.0, np.nan, 160.0]], tf.float64),
        "request_timestamp": tf.constant([200.0], tf.float64),
    }
    np.testing.assert_array_equal(features(raw)["seconds_to_next_watch"], [[np.nan, 60.0, 40.0, np.nan]])


@pytest.mark.parametrize(("time_s", "kept"), [(1e15, 1), (np.inf, 1), (-np.inf, 2), (-1e15, 2), (np.nan, 2)])
def test_a_watch_of_any_time_after_the_request_is_left_out(time_s, kept):
    spec = FeatureSpec((SPEC["watch_count"], SPEC["seconds_to_next_watch"]))
    features = RawFeatures(spec, encoder(np.random.default_rng(0)), LISTS)
    raw = {
        "watched_video_ids": tf.constant([VIDEO_IDS[:2]]),
        "watched_timestamps": tf.constant([[100.0, time_s]], tf.float64),
        "request_timestamp": tf.constant([200.0], tf.float64),
    }
    assert features(raw)["watch_count"].numpy().tolist() == [kept]


@pytest.mark.parametrize("unknown", [-1.0, -1e30, np.inf, -np.inf, np.nan])
def test_a_watch_time_that_no_log_may_have_is_not_known(unknown):
    features = RawFeatures(FeatureSpec((SPEC["watched_time_s"],)), encoder(np.random.default_rng(0)), LISTS)
    raw = {
        "watched_video_ids": tf.constant([VIDEO_IDS[:3]]),
        "watched_timestamps": tf.constant([[100.0, 150.0, 160.0]], tf.float64),
        "watched_watch_time_s": tf.constant([[unknown, 10.0, 1e30]]),  # the last had not ended
        "request_timestamp": tf.constant([200.0], tf.float64),
    }
    np.testing.assert_array_equal(features(raw)["watched_time_s"][0, :3], [np.nan, 10, np.nan])


def test_where_the_time_of_the_request_is_unknown_the_whole_history_is_before_it():
    """The same request as one at a moment after everything, but for what is measured from that moment."""
    random = np.random.default_rng(5)
    tables, log = encoder(random), Log(random, users=60, candidates=3)
    features = RawFeatures(SPEC, tables, LISTS, -UTC_OFFSET_S)
    raw = tensors(log.raw(), features)
    later = raw["request_timestamp"] + 1e9
    call = tf.function(features)
    unknown = call(raw | {"request_timestamp": later * np.nan})
    known = call(raw | {"request_timestamp": later})
    for name in SPEC_OF_THE_MOMENT:
        found = unknown.pop(name).numpy()
        assert (found == 0).all() if name == "hour" else np.isnan(found).all(), name
        assert np.any(known.pop(name).numpy() != found), name
    # From a watch to the next; from the last to the request only is it unknown.
    gaps, known_gaps = unknown.pop("seconds_to_next_watch").numpy(), known.pop("seconds_to_next_watch").numpy()
    np.testing.assert_array_equal(gaps, np.where(known_gaps > 1e8, np.nan, known_gaps))
    assert (known_gaps > 1e8).any()
    assert len(unknown) == len(SPEC.features) - len(SPEC_OF_THE_MOMENT) - 1
    for name, values in unknown.items():
        np.testing.assert_array_equal(values, known[name], name)


SPEC_OF_THE_MOMENT = ("hour", "video_age_s", *(d.value for d in REQUIREMENTS if d.value.startswith("seconds_since_")))


def test_the_time_of_the_week_of_an_unknown_moment_is_missing():
    spec = FeatureSpec((number("time_of_week", "request.time_of_week"),))
    now = tf.constant([np.nan, 1_650_949_200.0], tf.float64)  # Tuesday, 2022-04-26 05:00 UTC
    found = RawFeatures(spec, encoder(np.random.default_rng(0)), LISTS)({"request_timestamp": now})
    np.testing.assert_array_equal(found["time_of_week"], [np.nan, 29 * 3600])
