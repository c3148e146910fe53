"""The two-tower generator: averages, concatenation, tower, video vectors with attributes."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from pydantic import ValidationError

from features.errors import ConfigError
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from models.lazy_adam import LazyAdam
from models.sampled_softmax import Loss
from models.samplers import LABEL_EXPECTED_COUNT, NEGATIVES, NEGATIVES_EXPECTED_COUNT
from models.two_tower import TwoTower, TwoTowerConfig

WATCHED = Feature("watched_video_ids", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", 4)
REGION = Feature("region", Kind.CATEGORICAL, Side.QUERY, "users.region", "region")
AGE = Feature(
    "example_age",
    Kind.CONTINUOUS,
    Side.QUERY,
    "request.example_age",
    normaliser=Normaliser.SCALE,
    low=0.0,
    high=100.0,
    serving_value=0.0,
)
UPLOADER = Feature("uploader", Kind.CATEGORICAL, Side.IMPRESSION, "videos.uploader_id", "uploader")
TOPICS = Feature("topics", Kind.CATEGORICAL, Side.IMPRESSION, "videos.topics", "topic", 2)
SPEC = FeatureSpec((WATCHED, REGION, AGE, UPLOADER, TOPICS))
SIZES = {"video": 5, "region": 3, "uploader": 2, "topic": 4}
ATTRIBUTES = {
    "uploader": np.array([0, 1, 1, 2, 2, 0]),
    "topics": np.array([[0, 0], [1, 0], [1, 2], [3, 4], [4, 0], [0, 0]]),
}
BATCH = {
    "watched_video_ids": tf.constant([[1, 2, 0, 0], [0, 0, 0, 0]]),
    "region": tf.constant([3, 0]),
    "example_age": tf.constant([25.0, np.nan]),
    "label": tf.constant([2, 4]),
    "weight": tf.constant([1.0, 3.0]),
    NEGATIVES: tf.constant([1, 3, 5]),
    NEGATIVES_EXPECTED_COUNT: tf.constant([0.9, 0.5, 0.1]),
    LABEL_EXPECTED_COUNT: tf.constant([0.7, 0.3]),
}


def small(**config: object) -> TwoTower:
    return TwoTower(TwoTowerConfig(**{"dimension": 4, "depth": 1, **config}), SPEC, SIZES, ATTRIBUTES)


def losses_of_steps(model: TwoTower, steps: int) -> list[float]:
    dataset = tf.data.Dataset.from_tensors(BATCH).repeat()
    return model.fit(dataset, steps_per_epoch=1, epochs=steps, verbose=0).history["loss"]


@pytest.mark.parametrize(
    ("depth", "dimension", "widths"),
    [(0, 256, ()), (1, 256, (256,)), (2, 256, (512, 256)), (4, 256, (2048, 1024, 512, 256))],
)
def test_each_layer_is_half_the_one_below_and_the_top_has_the_dimension(depth: int, dimension: int, widths: tuple):
    assert TwoTowerConfig(depth=depth, dimension=dimension).hidden_widths == widths


def test_depth_zero_is_linear_in_the_concatenated_inputs():
    model = small(depth=0)
    video = model.embeddings.tables["video"].embeddings.numpy()
    region = model.embeddings.tables["region"].embeddings.numpy()
    inputs = np.stack(
        [
            np.concatenate([(video[1] + video[2]) / 2, region[3], [0.25, 0.0625, 0.5]]),
            np.concatenate([np.zeros(4), np.zeros(region.shape[1]), [0.5, 0.25, np.sqrt(0.5)]]),
        ]
    )
    kernel, bias = (weight.numpy() for weight in model.hidden[0].weights)
    np.testing.assert_allclose(model.query_embeddings(BATCH), inputs @ kernel + bias, rtol=1e-5, atol=1e-6)


def test_deeper_towers_are_rectified_up_to_the_query_vector():
    model = small(depth=2)
    assert [layer.units for layer in model.hidden] == [8, 4]
    queries = model.query_embeddings(BATCH).numpy()
    assert queries.shape == (2, 4)
    assert (queries >= 0).all()
    below = model.hidden[0]
    assert below.activation is tf_keras.activations.relu


def test_small_id_spaces_get_a_dimension_by_the_logarithm_and_never_more_than_the_model_has():
    model = TwoTower(TwoTowerConfig(dimension=8), SPEC, {"video": 5, "region": 10_000})
    assert model.embeddings.dimension(WATCHED) == 8
    assert model.embeddings.dimension(REGION) == 8
    assert small().embeddings.dimension(REGION) == 3  # 1.6 * log2(3) = 2.5


def test_a_video_vector_is_its_own_embedding_plus_the_average_of_each_attribute():
    model = small()
    tower = model.video_tower
    own = tower.video_table.embeddings.numpy()
    uploader = tower.attribute_tables["uploader"].embeddings.numpy()
    topic = tower.attribute_tables["topic"].embeddings.numpy()
    expected = [own[2] + uploader[1] + (topic[1] + topic[2]) / 2, own[5], own[4] + uploader[2] + topic[4]]
    np.testing.assert_allclose(model.class_embeddings(tf.constant([2, 5, 4])), expected, rtol=1e-5, atol=1e-7)


def test_a_new_video_has_the_vector_of_its_attributes_and_a_known_one_its_class_vector():
    model = small()
    columns = {
        "video": tf.constant([0, 3]),
        "uploader": tf.constant([2, 2]),
        "topics": tf.constant([[3, 0], [3, 4]]),
        "not_used": tf.constant([1, 1]),
    }
    vectors = model.video_embeddings(columns).numpy()
    tower = model.video_tower
    uploader, topic = (tower.attribute_tables[s].embeddings.numpy() for s in ("uploader", "topic"))
    np.testing.assert_allclose(vectors[0], uploader[2] + topic[3], rtol=1e-6)
    np.testing.assert_allclose(vectors[1], model.class_embeddings(tf.constant([3]))[0], rtol=1e-6)
    assert model.video_attributes == ("uploader", "topics")


def test_id_dropout_leaves_attributes_alone_and_is_for_training_only():
    model = small(id_dropout=0.5)
    rows = tf.fill([2000], 2)
    tower = model.video_tower
    attributes_only = model.video_embeddings(
        {"video": tf.constant([0]), "uploader": tf.constant([1]), "topics": tf.constant([[1, 2]])}
    )
    dropped = np.isclose(model.class_embeddings(rows, training=True), attributes_only).all(axis=1)
    assert 0.45 < dropped.mean() < 0.55
    kept = model.class_embeddings(rows, training=True).numpy()
    whole = tower.video_table.embeddings.numpy()[2] + attributes_only.numpy()[0]
    assert (np.isclose(kept, whole).all(axis=1) | np.isclose(kept, attributes_only).all(axis=1)).all()
    assert np.isclose(model.class_embeddings(rows), whole).all()


def test_normalised_vectors_have_length_one_and_the_temperature_is_in_the_query():
    model = small(normalized=True, temperature=0.25)
    model.hidden[0].bias.assign(np.full(4, 2.0))  # a query whose ReLUs are all off has no direction
    np.testing.assert_allclose(np.linalg.norm(model.query_embeddings(BATCH), axis=1), [4, 4], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(model.class_embeddings(tf.range(1, 6)), axis=1), np.ones(5), rtol=1e-5)


def test_history_dropout_leaves_bag_items_out_in_training_only():
    model = small(history_dropout=0.9, depth=0)
    np.testing.assert_array_equal(model.query_embeddings(BATCH), model.query_embeddings(BATCH))
    tf_keras.utils.set_random_seed(1)
    queries = np.stack([model.query_embeddings(BATCH, training=True)[0] for _ in range(30)])
    assert 1 < len(np.unique(queries.round(5), axis=0)) <= 4  # none, either or both of two watches


def test_a_loss_that_needs_the_last_watch_is_refused():
    with pytest.raises(ValidationError, match="loss co_watched is over the videos co-watched with the last watch"):
        small(loss=Loss.CO_WATCHED)


@pytest.mark.parametrize("loss", [loss for loss in Loss if loss != Loss.CO_WATCHED])
@pytest.mark.parametrize("mixed_precision", [False, True])
def test_a_training_step_moves_all_weights_but_the_zero_rows(loss: Loss, mixed_precision: bool):
    before_policy = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16" if mixed_precision else "float32")
    try:
        model = small(loss=loss)
    finally:
        tf_keras.mixed_precision.set_global_policy(before_policy)
    # ReLUs that are off for both examples would stop all gradients.
    model.hidden[0].bias.assign(np.full(4, 2.0))
    model.compile(LazyAdam(0.1))
    before = [weight.numpy() for weight in model.trainable_variables]
    losses = losses_of_steps(model, 4)
    assert losses[-1] < losses[0]
    for weight, old in zip(model.trainable_variables, before, strict=True):
        assert (weight.numpy() != old).any(), weight.name
        if "embeddings" in weight.name:
            np.testing.assert_array_equal(weight.numpy()[0], np.zeros(weight.shape[1]))
    tower = model.video_tower
    np.testing.assert_array_equal(tower.attribute_rows["topics"].numpy(), ATTRIBUTES["topics"])


def test_the_loss_is_the_weighted_mean_and_an_unknown_label_counts_for_nothing():
    model = small(loss=Loss.FULL)
    queries, vectors = model.query_embeddings(BATCH).numpy(), model.class_embeddings(tf.range(1, 6)).numpy()
    logits = queries @ vectors.T
    each = np.log(np.exp(logits).sum(axis=1)) - logits[[0, 1], [1, 3]]
    assert float(model.compute_loss(BATCH)) == pytest.approx((each[0] + 3 * each[1]) / 4, rel=1e-5)
    assert float(model.compute_loss({**BATCH, "label": tf.constant([2, 0])})) == pytest.approx(each[0], rel=1e-5)
    assert float(model.compute_loss({**BATCH, "label": tf.constant([0, 0])})) == 0
    no_weights = {name: value for name, value in BATCH.items() if name != "weight"}
    assert float(model.compute_loss(no_weights)) == pytest.approx(each.mean(), rel=1e-5)


def test_the_compiled_step_computes_what_the_plain_one_does():
    results = []
    for jit_compile in (False, True):
        tf_keras.utils.set_random_seed(3)
        model = small(depth=2)
        model.compile(LazyAdam(0.05), jit_compile=jit_compile)
        losses = losses_of_steps(model, 3)
        results.append((losses, [weight.numpy() for weight in model.trainable_variables]))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    for plain, compiled in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(plain, compiled, atol=1e-5)


def test_a_model_is_rebuilt_from_its_description():
    model = small(depth=2, id_dropout=0.25)
    description = json.loads(json.dumps(model.description()))
    again = TwoTower.from_description(description, SPEC)
    again.set_weights(model.get_weights())
    assert again.config == model.config
    np.testing.assert_array_equal(again.query_embeddings(BATCH), model.query_embeddings(BATCH))
    rows = tf.range(1, 6)
    np.testing.assert_array_equal(again.class_embeddings(rows), model.class_embeddings(rows))


def test_mistakes_are_told():
    with pytest.raises(ValidationError, match="one width per layer"):
        TwoTowerConfig(depth=2, widths=(8,), dimension=4)
    with pytest.raises(ConfigError, match=r"vocabulary of id space 'region', found video"):
        TwoTower(TwoTowerConfig(), SPEC, {"video": 5})
    with pytest.raises(ConfigError, match="expected 6 rows of attribute 'uploader'"):
        TwoTower(TwoTowerConfig(), SPEC, SIZES, {"uploader": np.zeros(4, np.int32)})
    with pytest.raises(ConfigError, match="at least one query feature"):
        TwoTower(TwoTowerConfig(), FeatureSpec(()), SIZES)
