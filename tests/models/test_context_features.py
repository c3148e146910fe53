"""Context of watches: buckets, alignment with events and steps, the latent cross."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from features.errors import ConfigError
from features.spec import FeatureSpec
from models.context_features import (
    NUM_SECOND_ROWS,
    ConcatenatedContext,
    ContextColumn,
    ContextFeature,
    CrossedContext,
    Use,
    age_rows,
    context_columns,
    hour_of_week_rows,
    scale_rows,
    second_rows,
    watch_ages,
)
from tests.models.sequence_batches import DAY, NAN, SIZES, SPEC, batch, tensors

UNKNOWN = NUM_SECOND_ROWS


def column(name: str) -> ContextColumn:
    (found,), left_out = context_columns([ContextFeature(name=name, pre=Use.BOTH, post=Use.BOTH)], SPEC, SIZES, False)
    assert not left_out
    return found


def test_seconds_fall_into_half_octaves_and_gaps_below_one_second_count_as_one():
    seconds = [0, -3, 0.5, 1, 1.4, 1.5, 2, 2.9, 4, 3600, 4096, 2.0**29, 2.0**30, 2.0**40, np.inf, NAN]
    by_hand = [1, 1, 1, 1, 1, 2, 3, 4, 5, 24, 25, 59, 61, 61, 61, 62]
    np.testing.assert_array_equal(second_rows(tf.constant(seconds, tf.float32)), by_hand)
    assert second_rows(tf.constant([[NAN]])).numpy() == UNKNOWN


def test_scaled_values_fall_into_equal_buckets():
    scaled = tf.constant([-0.2, 0.0, 0.03, 0.04, 0.5, 0.999, 1.0, 0.5])
    missing = tf.constant([False] * 7 + [True])
    np.testing.assert_array_equal(scale_rows(scaled, missing), [1, 1, 1, 2, 17, 32, 32, 33])


def test_the_age_of_a_watch_is_the_example_age_and_the_gaps_since():
    ages = watch_ages(tensors(batch())).numpy()
    np.testing.assert_array_equal(ages[0, :4], [3660, 3600, 3600, 0])
    assert ages[1, 0] == 10
    np.testing.assert_array_equal(ages[2, :2], [1e9, 20])  # float32 has no 1e9 + 20
    # Before a gap that is not known, ages are not either.
    np.testing.assert_array_equal(ages[3], [NAN, NAN, 142, 137, 130, 30])


def test_the_hour_of_the_week_of_a_watch_is_the_requests_less_the_gaps_since():
    """The first request is at 0:30 on Monday, half an hour after midnight and an hour after its last two watches."""
    rows = hour_of_week_rows(tensors(batch())).numpy()
    np.testing.assert_array_equal(rows[0, :4], [168, 168, 168, 1])
    assert rows[1, 0] == 169  # not known
    # 1e9 seconds are 1653 weeks and 73.8 hours: from the end of Sunday back to the hour 94 of a week.
    np.testing.assert_array_equal(rows[2, :2], [95, 168])
    # Three watches are at most 112 seconds before a request at 50:00 sharp; before an unknown gap nothing is known.
    np.testing.assert_array_equal(rows[3], [169, 169, 50, 50, 50, 51])


def row(seconds: float) -> int:
    return int(second_rows(tf.constant(seconds, tf.float32)))


@pytest.mark.parametrize(
    ("name", "events", "steps"),
    [
        ("page", [1, 2, 1], [1, 2, 1, 2]),
        ("device", [1, 1, 2], [1, 1, 2, 1]),
        ("uploader", [1, 0, 2], [0, 1, 0, 2]),
        ("share", [4, 29, 17], [4, 29, 17, 17]),  # tenths: 32 buckets of 0.1, 0.9, 0.5, and 0.5 of the request
        ("time_delta", [row(60), row(0), row(3600)], [UNKNOWN, row(60), row(0), row(3600)]),
        ("watch_time", [row(20), UNKNOWN, row(300)], [UNKNOWN, row(20), UNKNOWN, row(300)]),
        ("watch_age", [row(DAY), row(DAY), row(DAY)], [row(DAY)] * 4),  # all of the last day
        ("time_of_week", [168, 168, 168], [168, 168, 168, 1]),
    ],
)
def test_each_feature_has_rows_by_event_and_by_step(name: str, events: list[int], steps: list[int]):
    features = tensors(batch())
    np.testing.assert_array_equal(column(name).events(features)[0, :3], events)
    np.testing.assert_array_equal(column(name).steps(features)[0, :4], steps)
    assert column(name).events(features).shape == [4, 5]
    assert column(name).steps(features).shape == [4, 6]
    assert int(tf.reduce_max(column(name).steps(features))) <= column(name).size


def hand_set(layer: CrossedContext, factors: dict[str, list[list[float]]]) -> None:
    for name, values in factors.items():
        layer.tables[name].embeddings.assign(np.array([[0.0] * len(values[0]), *values], np.float32))


def test_the_cross_multiplies_by_one_plus_the_sum_over_features():
    layer = CrossedContext([column("page"), column("device")], width=2, stddev=0.1)
    hand_set(layer, {"page": [[0.5, -1.0], [2.0, 0.0]], "device": [[0.25, 0.5], [-3.0, 1.0]]})
    hidden = tf.constant([[[4.0, 8.0], [4.0, 8.0], [4.0, 8.0]]])
    rows = {"page": tf.constant([[1, 2, 0]]), "device": tf.constant([[1, 1, 0]])}
    # (1 + 0.5 + 0.25) * 4, (1 - 1 + 0.5) * 8; (1 + 2 + 0.25) * 4, (1 + 0 + 0.5) * 8; unknown values change nothing.
    np.testing.assert_allclose(layer(hidden, rows), [[[7, 4], [13, 12], [4, 8]]])


def test_the_comparative_form_multiplies_by_w_itself_which_starts_around_one():
    layer = CrossedContext([column("page")], width=2, stddev=0.1, identity=False)
    hand_set(layer, {"page": [[0.5, -1.0], [2.0, 0.0]]})
    crossed = layer(tf.constant([[4.0, 8.0]] * 3), {"page": tf.constant([1, 2, 0])})
    np.testing.assert_allclose(crossed, [[2, -8], [8, 0], [4, 8]])


@pytest.mark.parametrize(("identity", "mean"), [(True, 0.0), (False, 0.5)])
def test_factors_start_from_a_gaussian_and_their_sum_around_the_identity(identity: bool, mean: float):
    layer = CrossedContext([column("time_delta"), column("watch_time")], width=64, stddev=0.1, identity=identity)
    for table in layer.tables.values():
        values = table.embeddings.numpy()
        np.testing.assert_array_equal(values[0], np.zeros(64))
        assert values[1:].mean() == pytest.approx(mean, abs=0.01)
        assert values[1:].std() == pytest.approx(0.1, rel=0.1)
    rows = {"time_delta": tf.constant([3]), "watch_time": tf.constant([UNKNOWN])}
    assert float(tf.reduce_mean(layer(tf.ones([1, 64]), rows))) == pytest.approx(1, abs=0.1)


def test_absent_features_are_named_or_left_out_as_asked():
    without = FeatureSpec(tuple(feature for feature in SPEC.features if feature.name != "watched_page"))
    wanted = [ContextFeature(name=name, pre=Use.CROSS) for name in ("page", "device")]
    with pytest.raises(ConfigError, match=r"context feature 'page': expected features watched_page .* skip_absent"):
        context_columns(wanted, without, SIZES, skip_absent=False)
    found, left_out = context_columns(wanted, without, SIZES, skip_absent=True)
    assert [c.feature.name for c in found] == ["device"]
    assert left_out == ("page",)


def test_after_the_encoder_a_column_needs_the_requests_value_too():
    without = FeatureSpec(tuple(feature for feature in SPEC.features if feature.name != "page"))
    assert len(context_columns([ContextFeature(name="page", pre=Use.CROSS)], without, SIZES, False)[0]) == 1
    with pytest.raises(ConfigError, match="expected features page in"):
        context_columns([ContextFeature(name="page", post=Use.CROSS)], without, SIZES, False)


def test_after_the_encoder_a_columns_values_are_of_one_id_space():
    other = [replace(f, id_space="device") if f.name == "page" else f for f in SPEC.features]
    page = ContextFeature(name="page", post=Use.CROSS)
    with pytest.raises(ConfigError, match=r"'watched_page' and 'page' .* found 'page' and 'device'"):
        context_columns([page], FeatureSpec(tuple(other)), SIZES, False)
    before = page.model_copy(update={"pre": Use.CROSS, "post": Use.NONE})
    assert context_columns([before], FeatureSpec(tuple(other)), SIZES, False)[0]


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match="more than once: page"):
        context_columns([ContextFeature(name="page"), ContextFeature(name="page")], SPEC, SIZES, False)
    with pytest.raises(ConfigError, match="vocabulary of id space 'page', found video"):
        context_columns([ContextFeature(name="page", pre=Use.CROSS)], SPEC, {"video": 3}, False)


@pytest.mark.parametrize(
    ("context", "source", "length", "message"),
    [
        ("page", "watched_page", 4, "expected 'watched_page' of max_length 5, that of 'watched_video_ids'; found 4"),
        ("page", "watched_page", 6, "'watched_page' of max_length 5, .* found 6"),
        ("time_delta", "seconds_to_next_watch", 3, "'seconds_to_next_watch' of max_length 5, .* found 3"),
        ("uploader", "watched_uploader_ids", 9, "'watched_uploader_ids' of max_length 5, .* found 9"),
        ("page", "page", 2, "context feature 'page': expected 'page' of one value, no max_length; found 2"),
    ],
)
def test_lists_that_do_not_stand_beside_the_watches_are_refused(context, source, length, message):
    features = [replace(f, max_length=length) if f.name == source else f for f in SPEC.features]
    wanted = [ContextFeature(name=context, pre=Use.CROSS, post=Use.CROSS)]
    with pytest.raises(ConfigError, match=message):
        context_columns(wanted, FeatureSpec(tuple(features)), SIZES, skip_absent=False)


def test_the_age_that_requests_are_served_at_shares_its_row_with_the_labels_of_the_last_day():
    served = age_rows(tf.zeros(1))
    assert served == age_rows(tf.constant([-5.0])) == age_rows(tf.constant([0.9 * DAY]))
    np.testing.assert_array_equal(age_rows(tf.constant([2.0, 30.0]) * DAY), [row(2 * DAY), row(30 * DAY)])
    assert served < row(2 * DAY) and age_rows(tf.constant([NAN])) == UNKNOWN


def test_what_a_request_does_not_tell_is_that_of_the_last_watch():
    features = tensors(batch() | {"page": np.zeros(4, np.int32)})
    steps = column("page").steps(features).numpy()
    assert [steps[row, length] for row, length in enumerate((3, 0, 1, 5))] == [1, 0, 2, 1]
    np.testing.assert_array_equal(steps[3], [1, 1, 2, 2, 1, 1])


def test_a_number_that_a_request_does_not_tell_is_that_of_the_last_watch_too():
    told = column("share").steps(tensors(batch())).numpy()
    features = tensors(batch() | {"share": np.full(4, NAN, np.float32)})
    steps = column("share").steps(features).numpy()
    missing = column("share").size
    assert steps[0, :4].tolist() == [4, 29, 17, 17]
    assert steps[1, 0] == missing  # no watch yet
    assert [steps[row, length] for row, length in ((2, 1), (3, 5))] == [told[2, 0], told[3, 4]]


@pytest.mark.parametrize("name", ["time_delta", "watch_time", "watch_age", "time_of_week", "share"])
def test_a_missing_value_starts_with_a_vector_that_says_nothing(name: str):
    missing = column(name).size
    assert not ConcatenatedContext([column(name)]).tables[name].embeddings[missing].numpy().any()
    crossed = CrossedContext([column(name), column("page")], width=3, stddev=0.1, identity=False)
    np.testing.assert_allclose(crossed.tables[name].embeddings[missing], [0.5] * 3)
    assert ConcatenatedContext([column("page")]).tables["page"].embeddings[SIZES["page"]].numpy().any()


def test_a_gap_of_years_has_a_bucket_of_its_own():
    assert row(10 * 365 * DAY) > row(365 * DAY) > row(30 * DAY)
