"""The last watches' own way into the query vector: weights by place, padding, unknown videos."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from pydantic import ValidationError

from features.errors import ConfigError
from features.spec import Feature, FeatureSpec, Kind, Side
from models.factorized_transitions import FactorizedTransitions
from models.lazy_adam import LazyAdam
from models.two_tower import TwoTower, TwoTowerConfig

WATCHED = Feature("watched_video_ids", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", 4)
LAST_TWO = Feature("recent_watched_video_ids", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", 2)
REGION = Feature("region", Kind.CATEGORICAL, Side.QUERY, "users.region", "region")


def bag_of(length: int) -> Feature:
    return replace(WATCHED, max_length=length)


CONFIG = TwoTowerConfig(dimension=3, depth=1, projection=True, transitions=True)


def two_tower(*features: Feature, **config: object) -> TwoTower:
    sizes = {"video": 6, "region": 2}
    return TwoTower(CONFIG.model_copy(update=config), FeatureSpec(features), sizes)


def test_watches_weigh_by_their_place_from_the_last_and_by_the_root_of_their_number():
    layer = FactorizedTransitions(bag_of(4))
    layer.log_weights.assign(np.log([1.0, 0.5, 0.25, 0.125]))
    layer.scale.assign(2.0)
    vectors = np.zeros((2, 4, 1), np.float32)
    vectors[0, :3, 0] = 1.0, 10.0, 100.0  # the last of three is 100
    vectors[1, 0, 0] = 7.0
    found = layer(tf.constant([[3, 1, 2, 0], [5, 0, 0, 0]]), vectors)
    np.testing.assert_allclose(found, [[2 * (100 + 5 + 0.25) / np.sqrt(1.75)], [14.0]], rtol=1e-6)


def test_unknown_videos_and_padding_take_no_place():
    layer = FactorizedTransitions(bag_of(5))
    vectors = np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
    rows = tf.constant([[2, 0, 4, 0, 0]])
    left = layer(tf.constant([[0, 0, 0, 2, 4]]), tf.gather(vectors, [1, 3, 4, 0, 2], axis=1))
    np.testing.assert_allclose(layer(rows, vectors), left, rtol=1e-6)
    np.testing.assert_allclose(layer(tf.constant([[2, 4]]), tf.gather(vectors, [0, 2], axis=1)), left, rtol=1e-6)


def test_a_history_without_known_videos_adds_zeros_and_gradients_stay_finite():
    layer = FactorizedTransitions(bag_of(3))
    vectors = tf.Variable(tf.ones([1, 3, 2]))
    with tf.GradientTape() as tape:
        added = layer(tf.zeros([1, 3], tf.int32), vectors)
        total = tf.reduce_sum(added)
    assert not added.numpy().any()
    for gradient in tape.gradient(total, [vectors, *layer.trainable_variables]):
        assert np.isfinite(gradient).all()


def test_before_training_the_query_is_what_the_last_watches_add():
    model = two_tower(WATCHED, REGION)
    watched = tf.constant([[4, 2, 0, 0]])
    table = model.embeddings.table(WATCHED).embeddings.numpy()
    expected = (table[2] + 0.9 * table[4]) / np.sqrt(1.9)
    query = model.query_embeddings({"watched_video_ids": watched, "region": tf.constant([1])})
    np.testing.assert_allclose(query[0], expected, rtol=1e-5)


def test_the_longest_bag_of_watches_is_followed():
    model = two_tower(LAST_TWO, WATCHED)
    assert model.transitions.bag == WATCHED
    assert model.transitions.log_weights.shape == (4,)


def test_weights_of_places_are_trained():
    model = two_tower(WATCHED, loss="full")
    batch = {"watched_video_ids": tf.constant([[1, 2, 0, 0], [3, 4, 5, 0]]), "label": tf.constant([3, 6])}
    before = model.transitions.log_weights.numpy()
    model.compile(optimizer=LazyAdam(0.1))
    model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
    moved = model.transitions.log_weights.numpy() - before
    assert moved[:3].all() and moved[3] == 0  # nobody has a fourth watch


def test_queries_are_computed_in_full_precision_beside_a_tower_of_half():
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = two_tower(WATCHED)
        watched = tf.constant([[1, 2, 3, 4]])
        query = model.query_embeddings({"watched_video_ids": watched})
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    weights = 0.9 ** np.arange(4)[::-1]
    table = model.embeddings.table(WATCHED).embeddings.numpy()
    np.testing.assert_allclose(query[0], weights @ table[1:5] / np.sqrt(weights.sum()), rtol=0.02, atol=0.02)
    assert query.dtype == tf.float32


@pytest.mark.parametrize("changes", [{"projection": False}, {"large_id_spaces": ()}])
def test_settings_that_do_not_fit_are_refused(changes: dict):
    with pytest.raises(ValidationError, match="transitions add input vectors of videos to the query vector"):
        TwoTowerConfig(**{"depth": 1, "projection": True, "transitions": True, **changes})


def test_a_model_that_sees_no_watches_is_refused():
    with pytest.raises(ConfigError, match="transitions need a bag of watched videos"):
        two_tower(REGION)
