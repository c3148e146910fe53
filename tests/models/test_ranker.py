"""The ranker's structure: shared tables, zero rows, the split first layer, and what it learns."""

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from features.errors import ConfigError
from features.quantiles import Quantiles
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from models.calibration import CalibrationConfig
from models.ranker import Ranker, RankerConfig, RankerOutput
from models.weighted_logistic_regression import LabelStatistics, Objective

VIDEOS, PAGES = 6, 2
SPEC = FeatureSpec(
    (
        Feature("watched", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "clicked_video", 3),
        Feature("page", Kind.CATEGORICAL, Side.QUERY, "request.page", "page"),
        Feature("watch_count", Kind.CONTINUOUS, Side.QUERY, "history.watch_count", normaliser=Normaliser.QUANTILE),
        Feature("gender", Kind.CONTINUOUS, Side.QUERY, "users.gender", normaliser=Normaliser.SCALE),
        Feature("video_id", Kind.CATEGORICAL, Side.IMPRESSION, "videos.video_id", "clicked_video"),
        Feature("duration", Kind.CONTINUOUS, Side.IMPRESSION, "videos.duration_s", normaliser=Normaliser.QUANTILE),
    )
)
SIZES = {"clicked_video": VIDEOS, "page": PAGES}
QUANTILES = {
    "watch_count": Quantiles(np.array([0.0, 5.0, 10.0]), 100, 0, 0.0),
    "duration": Quantiles(np.array([0.0, 100.0, 1000.0]), 100, 0, 0.0),
}
LABELS = LabelStatistics(impressions=100, clicks=20, watch_time_s=600)


def ranker(labels: LabelStatistics = LABELS, spec: FeatureSpec = SPEC, **settings: Any) -> Ranker:
    tf_keras.utils.set_random_seed(0)
    return Ranker(RankerConfig(**{"hidden_units": (8, 4), **settings}), spec, SIZES, QUANTILES, labels)


def batch(n: int = 32, seed: int = 0) -> dict[str, tf.Tensor]:
    random = np.random.default_rng(seed)
    clicked = random.random(n) < 0.4
    return {
        "watched": tf.constant(random.integers(0, VIDEOS + 1, (n, 3)), tf.int32),
        "page": tf.constant(random.integers(0, PAGES + 1, n), tf.int32),
        "watch_count": tf.constant(random.uniform(0, 12, n), tf.float32),
        "gender": tf.constant(random.choice([0.0, 1.0, np.nan], n), tf.float32),
        "video_id": tf.constant(random.integers(0, VIDEOS + 1, n), tf.int32),
        "duration": tf.constant(random.choice([10.0, 500.0, np.nan], n), tf.float32),
        "clicked": tf.constant(clicked, tf.float32),
        "watch_time_s": tf.constant(np.where(clicked, random.exponential(30, n), 0), tf.float32),
    }


def fit(model: Ranker, data: dict[str, tf.Tensor], epochs: int, learning_rate: float = 0.05) -> None:
    model.compile(optimizer=tf_keras.optimizers.Adagrad(learning_rate, initial_accumulator_value=0.01))
    model.fit(tf.data.Dataset.from_tensors(data).repeat(epochs), verbose=0)


def test_features_of_one_id_space_share_one_table():
    model = ranker()
    tables = [v for v in model.trainable_variables if "embeddings" in v.name]
    assert sorted(tuple(v.shape) for v in tables) == [(PAGES + 1, 2), (VIDEOS + 1, 5)]  # ceil(1.6 log2 6) = 5
    # Only the bag sees row 3, only the candidate sees row 5: both rows of the one table move.
    data = batch(4) | {"watched": tf.fill([4, 3], 3), "video_id": tf.fill([4], 5)}
    table = model.embeddings.tables["clicked_video"].embeddings
    before = table.numpy()
    fit(model, data, epochs=1)
    assert np.flatnonzero((table.numpy() != before).any(axis=1)).tolist() == [3, 5]


def test_each_feature_of_a_space_is_fed_separately():
    model = ranker()
    # Two bag or candidate dimensions (5 each), page (2), x̃ x̃² √x̃ of one feature, a scaled one, missing flags.
    assert model.query_inputs.width == 5 + 2 + 3 + 1 + 2
    assert model.impression_inputs.width == 5 + 3 + 1


def test_out_of_vocabulary_rows_stay_zero_through_training():
    model = ranker(embedding_l2=0.01, id_dropout=0.3, dropout=0.1, l2=0.01)
    fit(model, batch(), epochs=20)
    for table in model.embeddings.tables.values():
        assert (table.embeddings.numpy()[0] == 0).all()
        assert (table.embeddings.numpy()[1:] != 0).any()


def test_inputs_of_the_network_by_hand():
    model = ranker()
    row = {
        "watched": tf.constant([[2, 4, 0]]),
        "page": tf.constant([1]),
        "watch_count": tf.constant([2.5]),  # a quarter of the way up
        "gender": tf.constant([np.nan]),
        "video_id": tf.constant([0]),
        "duration": tf.constant([np.nan]),
    }
    videos = model.embeddings.tables["clicked_video"].embeddings.numpy()
    pages = model.embeddings.tables["page"].embeddings.numpy()
    expected = [*((videos[2] + videos[4]) / 2), *pages[1], 0.5, 0.25, 0.0625, 0.5, 1, 0]
    np.testing.assert_allclose(model.query_inputs(row)[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(model.impression_inputs(row)[0], [0] * 5 + [0, 0, 0, 1])


def test_powers_can_be_left_out():
    assert ranker(powers=False).impression_inputs.width == 5 + 1 + 1


@pytest.mark.parametrize("hidden_units", [(), (8,), (8, 4, 4)])
def test_split_first_layer_is_one_dense_layer_on_the_concatenation(hidden_units):
    model = ranker(hidden_units=hidden_units)
    data = batch()
    x = np.concatenate([model.query_inputs(data), model.impression_inputs(data)], axis=1)
    kernel = np.concatenate([model.query_dense.kernel, model.impression_dense.kernel])
    x = x @ kernel + model.first_bias.bias
    for layer in [*model.hidden, *([model.heads] if model.heads else [])]:
        x = np.maximum(x, 0) @ layer.kernel + layer.bias
    output = model(data)
    np.testing.assert_allclose(output.logit, x[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.click_logit, x[:, 1], rtol=1e-4, atol=1e-5)


def test_candidates_of_a_request_score_as_single_impressions():
    model = ranker()
    data = batch(12)
    query = {f.name: data[f.name][:3] for f in SPEC.side(Side.QUERY)}
    candidates = {f.name: tf.reshape(data[f.name], [3, 4]) for f in SPEC.side(Side.IMPRESSION)}
    together = model.score(model.query_activations(query), candidates)
    repeated = {name: tf.repeat(value, 4, axis=0) for name, value in query.items()}
    alone = model({**data, **repeated})
    assert together.logit.shape == (3, 4)
    np.testing.assert_allclose(tf.reshape(together.logit, [-1]), alone.logit, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tf.reshape(together.click_logit, [-1]), alone.click_logit, rtol=1e-5, atol=1e-6)


def test_loss_by_hand():
    # All weights zero but the bias: every logit is ln 7.5 (600 s / 80 unclicked) and every click logit ln(20 / 80).
    model = ranker(hidden_units=(), click_loss_weight=0.5, watch_time_cap_s=40)
    for layer in (model.query_dense, model.impression_dense):
        layer.kernel.assign(tf.zeros_like(layer.kernel))
    data = batch(2) | {
        "clicked": tf.constant([1.0, 0.0]),
        "watch_time_s": tf.constant([50.0, 0.0]),
        "weight": tf.constant([3.0, 1.0]),
    }
    p, click = 7.5 / 8.5, 0.2
    mean_weight = (600 + 80) / 100
    clicked_loss = -40 * np.log(p) / mean_weight - 0.5 * np.log(click)
    unclicked_loss = -np.log(1 - p) / mean_weight - 0.5 * np.log(1 - click)
    assert float(model.compute_loss(data)) == pytest.approx((3 * clicked_loss + unclicked_loss) / 4, rel=1e-5)


def test_l2_penalises_dense_weights_in_training_only():
    model, plain = ranker(l2=0.1), ranker()
    squares = sum(
        float(tf.reduce_sum(layer.kernel**2))
        for layer in (model.query_dense, model.impression_dense, *model.hidden, model.heads)
    )
    penalty = float(model.compute_loss(batch(), training=True) - plain.compute_loss(batch(), training=True))
    assert penalty == pytest.approx(0.1 * squares, rel=1e-4)
    assert float(model.compute_loss(batch())) == pytest.approx(float(plain.compute_loss(batch())))


@pytest.mark.parametrize(
    ("objective", "odds"), [(Objective.WEIGHTED, 7.5), (Objective.EXACT_ODDS, 6.0), (Objective.UNWEIGHTED, 0.25)]
)
def test_untrained_predictions_are_the_average_impression(objective, odds):
    # P = 0.2 and E[T] = 600 / 100 = 6 s, by every objective.
    model = ranker(hidden_units=(), objective=objective)
    for layer in (model.query_dense, model.impression_dense):
        layer.kernel.assign(tf.zeros_like(layer.kernel))
    prediction = model.predictions(model(batch(1)))
    assert float(prediction.score[0]) == pytest.approx(odds, rel=1e-5)
    assert float(prediction.click_probability[0]) == pytest.approx(0.2, rel=1e-5)
    assert float(prediction.expected_watch_time_s[0]) == pytest.approx(6.0, rel=1e-5)


def groups(n: int = 6000, seed: int = 1) -> tuple[dict[str, tf.Tensor], np.ndarray, np.ndarray]:
    """Impressions of videos whose click probability and watch time differ; their truth per video."""
    random = np.random.default_rng(seed)
    probability = np.array([0.05, 0.1, 0.3, 0.5, 0.7, 0.8])
    length_s = np.array([100, 20, 40, 8, 30, 10])
    video = random.integers(0, VIDEOS, n)
    clicked = random.random(n) < probability[video]
    data = batch(n) | {
        "video_id": tf.constant(video + 1, tf.int32),
        "clicked": tf.constant(clicked, tf.float32),
        "watch_time_s": tf.constant(np.where(clicked, random.exponential(length_s[video]), 0), tf.float32),
    }
    one_hot = np.eye(VIDEOS)[video]
    seen = one_hot.sum(axis=0)
    watched = one_hot.T @ np.asarray(data["watch_time_s"])
    return data, watched / seen, one_hot.T @ clicked / seen


@pytest.mark.parametrize("objective", [Objective.WEIGHTED, Objective.EXACT_ODDS])
def test_logistic_regression_recovers_every_groups_odds(objective):
    """Depth none, one id as the only feature: the optimum is known per video (section 4.2)."""
    data, mean_watch_time_s, click_rate = groups()
    spec = FeatureSpec((SPEC["video_id"],))
    labels = LabelStatistics.of(np.asarray(data["clicked"]), np.asarray(data["watch_time_s"]))
    model = ranker(labels, spec, hidden_units=(), objective=objective, embedding_dimensions={"clicked_video": 8})
    fit(model, data, epochs=400, learning_rate=0.5)
    prediction = model.predictions(model({"video_id": tf.range(1, VIDEOS + 1)}))
    odds = mean_watch_time_s if objective == Objective.EXACT_ODDS else mean_watch_time_s / (1 - click_rate)
    np.testing.assert_allclose(prediction.score, odds, rtol=0.02)
    np.testing.assert_allclose(prediction.click_probability, click_rate, rtol=0.02)
    np.testing.assert_allclose(prediction.expected_watch_time_s, mean_watch_time_s, rtol=0.02)


def test_down_sampled_negatives_do_not_move_the_odds():
    data, mean_watch_time_s, click_rate = groups(20_000)
    random = np.random.default_rng(2)
    kept = (np.asarray(data["clicked"]) > 0) | (random.random(20_000) < 0.25)
    data = {name: tf.boolean_mask(value, kept) for name, value in data.items()}
    labels = LabelStatistics.of(np.asarray(data["clicked"]), np.asarray(data["watch_time_s"]), 1.0, 0.25)
    model = ranker(
        labels,
        FeatureSpec((SPEC["video_id"],)),
        hidden_units=(),
        negative_keep_rate=0.25,
        embedding_dimensions={"clicked_video": 8},
    )
    fit(model, data, epochs=400, learning_rate=0.5)
    prediction = model.predictions(model({"video_id": tf.range(1, VIDEOS + 1)}))
    np.testing.assert_allclose(prediction.score, mean_watch_time_s / (1 - click_rate), rtol=0.12)
    np.testing.assert_allclose(prediction.click_probability, click_rate, rtol=0.12)


def test_the_graph_of_inference_is_traced_once_for_batches_of_any_size_and_follows_the_weights(monkeypatch):
    model = ranker(dropout=0.5)
    traced = []
    call = Ranker.call
    monkeypatch.setattr(Ranker, "call", lambda self, *args, **kwargs: traced.append(1) or call(self, *args, **kwargs))
    first, second = model.infer(batch(5)), model.infer(batch(32))
    assert len(traced) == 1
    np.testing.assert_allclose(first.logit, model(batch(5)).logit, atol=1e-6)
    np.testing.assert_allclose(second.click_logit, model(batch(32)).click_logit, atol=1e-6)
    model.heads.bias.assign_add([1.0, 0.0])
    np.testing.assert_allclose(model.infer(batch(5)).logit, first.logit + 1, atol=1e-6)


def test_calibration_makes_totals_agree_and_leaves_the_scores_alone():
    model = ranker(calibration=CalibrationConfig(bins=4, min_watched_per_bin=10))
    data = batch(400)
    before = model.predictions(model(data))
    model.calibrate(model.expectations(tf.data.Dataset.from_tensor_slices(data).batch(64)))
    after = model.predictions(model(data))
    assert float(tf.reduce_sum(after.expected_watch_time_s)) == pytest.approx(
        float(tf.reduce_sum(data["watch_time_s"])), rel=1e-4
    )
    assert float(tf.reduce_sum(before.expected_watch_time_s)) != pytest.approx(
        float(tf.reduce_sum(data["watch_time_s"])), rel=0.05
    )
    np.testing.assert_array_equal(before.score, after.score)


def test_ranker_is_rebuilt_from_its_description_and_weights(tmp_path):
    model = ranker(calibration=CalibrationConfig(bins=4, min_watched_per_bin=10), objective=Objective.UNWEIGHTED)
    model.calibrate(model.expectations([batch(400)]))
    tf.train.Checkpoint(layers=list(model.layers)).write(str(tmp_path / "weights"))
    other = Ranker.from_description(json.loads(json.dumps(model.description())), SPEC)
    tf.train.Checkpoint(layers=list(other.layers)).read(str(tmp_path / "weights")).assert_consumed()
    assert other.description() == model.description()
    for expected, found in zip(model.predictions(model(batch())), other.predictions(other(batch())), strict=True):
        np.testing.assert_array_equal(expected, found)


def test_missing_vocabularies_and_quantiles_are_named():
    with pytest.raises(ConfigError, match="vocabulary of id space 'page', found clicked_video"):
        Ranker(RankerConfig(), SPEC, {"clicked_video": 3}, QUANTILES, LABELS)
    with pytest.raises(ConfigError, match="quantiles of feature 'watch_count', found none"):
        Ranker(RankerConfig(), SPEC, SIZES, {}, LABELS)


def test_served_odds_are_bounded():
    model = ranker(max_log_odds=5.0)
    prediction = model.predictions(RankerOutput(tf.constant([50.0, -50.0]), tf.constant([0.0, 0.0])))
    np.testing.assert_allclose(prediction.score, np.exp([5.0, -5.0]), rtol=1e-5)


def test_missing_values_give_finite_scores_and_gradients():
    model = ranker()
    data = batch() | {"watch_count": tf.fill([32], np.nan), "duration": tf.fill([32], np.nan)}
    fit(model, data, epochs=2)
    assert np.isfinite(model(data).logit).all()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_ends_in_float32_logits_close_to_single_precision(policy):
    full = ranker()(batch())
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        half = ranker()(batch())
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert half.logit.dtype == tf.float32
    np.testing.assert_allclose(half.logit, full.logit, atol=0.05)


def test_training_step_reports_metrics():
    model = ranker()
    model.compile(optimizer=tf_keras.optimizers.Adagrad(0.05))
    history = model.fit(tf.data.Dataset.from_tensors(batch()).repeat(3), verbose=0).history
    assert {"watch_time_loss", "click_loss", "click_auc", "loss"} <= set(history)


def test_query_features_alone_are_refused():
    with pytest.raises(ConfigError, match="at least one impression feature"):
        ranker(spec=FeatureSpec(SPEC.side(Side.QUERY)))


def test_compiles_under_xla():
    model = ranker()
    expected = model.compute_loss(batch())
    # Padding is static, so the loss and its gradients compile; metrics and all.
    found = tf.function(lambda data: model.compute_loss(data), jit_compile=True)(batch())
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
