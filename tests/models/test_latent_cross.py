"""The recurrent generator: what each step may know, its loss, its presets, its kernel."""

import json
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from features.errors import ConfigError
from features.spec import Feature, FeatureSpec, Kind, Side
from models.candidate_generator import STEP_LABELS, STEP_WEIGHTS
from models.co_watch_embeddings import StartVectors
from models.context_features import ContextFeature, Use
from models.latent_cross import PRESETS, LatentCross, LatentCrossConfig
from models.lazy_adam import LazyAdam
from models.recurrent import Cell
from models.sampled_softmax import Loss
from models.samplers import NegativeSamplerConfig, attach_negatives, make_sampler
from pipeline.model_folder import weights_checkpoint
from tests.models.sequence_batches import SIZES, SPEC, batch, changed, cut, tensors, training_batch

WITHOUT_TIME = [ContextFeature(name=n, pre=Use.BOTH, post=Use.BOTH) for n in ("uploader", "page", "device", "share")]
WITH_TIME = [ContextFeature(name=n, pre=Use.BOTH, post=Use.BOTH) for n in ("time_delta", "watch_time", "watch_age")]
LENGTHS = (3, 0, 1, 5)


def small(**config: object) -> LatentCross:
    """A model whose biases are not zero, so that a step without inputs is not zero by chance."""
    tf_keras.utils.set_random_seed(1)
    sizes = {"dimension": 4, "units": 6, "input_widths": (5,), "output_widths": (4,), "loss": Loss.FULL}
    model = LatentCross(LatentCrossConfig(**{**sizes, "context": (*WITHOUT_TIME, *WITH_TIME), **config}), SPEC, SIZES)
    for weight in model.trainable_variables:
        if "bias" in weight.name:
            weight.assign(tf.random.uniform(weight.shape, 0.1, 1.0))
    return model


@cache
def read_only() -> LatentCross:
    """The default model, for tests that change nothing in it."""
    return small()


def predictions(model: LatentCross, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What is predicted at every step, `[batch, L + 1, dimension]`."""
    features = tensors(arrays)
    return model.fuse(model.states(features), model.step_context(features)).numpy()


def moved(before: np.ndarray, after: np.ndarray) -> list[int]:
    """Steps of one history whose vectors differ."""
    return np.flatnonzero((before != after).any(axis=-1)).tolist()


@pytest.mark.parametrize("name", ["watched_video_ids", "watched_uploader_ids"])
def test_a_watched_video_moves_no_prediction_before_it_is_watched(name: str):
    model = read_only()
    before, after = predictions(model, batch()), predictions(model, changed(name, 3, 2, 1))
    assert moved(before[3], after[3]) == [3, 4, 5]
    assert not (before[:3] != after[:3]).any()


@pytest.mark.parametrize(("name", "value"), [("watched_page", 1), ("watched_device", 1), ("watched_share", 0.0)])
def test_the_context_of_an_event_moves_its_own_prediction_and_only_later_states(name: str, value: float):
    model = read_only()
    features, other = tensors(batch()), tensors(changed(name, 3, 2, value))
    assert moved(model.states(features)[3].numpy(), model.states(other)[3].numpy()) == [3, 4, 5]
    assert moved(predictions(model, batch())[3], predictions(model, changed(name, 3, 2, value))[3]) == [2, 3, 4, 5]


@pytest.mark.parametrize(("name", "value"), [("page", 2), ("device", 1), ("share", 9.0)])
def test_the_requests_context_moves_no_state_and_only_the_requests_prediction(name: str, value: float):
    model = read_only()
    features, other = tensors(batch()), tensors(changed(name, 3, None, value))
    np.testing.assert_array_equal(model.states(features), model.states(other))
    assert moved(predictions(model, batch())[3], predictions(model, changed(name, 3, None, value))[3]) == [5]


def slow_batch() -> dict[str, np.ndarray]:
    """Gaps of days in place of hours."""
    return batch() | {"seconds_to_next_watch": 100 * batch()["seconds_to_next_watch"]}


def time_of_event_moved(later_s: float, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Event 2 of the first history happens later: the gap before it grows, the gap after it shrinks."""
    arrays = {name: array.copy() for name, array in arrays.items()}
    arrays["seconds_to_next_watch"][0, 1] += later_s
    arrays["seconds_to_next_watch"][0, 2] -= later_s
    return arrays


def test_the_time_of_the_next_event_moves_nothing_earlier_but_what_is_fed_by_the_gap():
    # Event 2 and the prediction of it learn from the gap how long ago event 1 was, and so does the state after event 1.
    gap = small(context=[ContextFeature(name="time_delta", pre=Use.BOTH)])
    assert moved(predictions(gap, batch())[0], predictions(gap, time_of_event_moved(1800, batch()))[0])[0] == 2
    age = small(context=[ContextFeature(name="watch_age", pre=Use.BOTH, post=Use.BOTH)])
    later = time_of_event_moved(180_000, slow_batch())
    assert moved(predictions(age, slow_batch())[0], predictions(age, later)[0])[0] == 2
    timeless = small(context=WITHOUT_TIME)
    np.testing.assert_array_equal(
        predictions(timeless, batch()), predictions(timeless, time_of_event_moved(1800, batch()))
    )


def test_the_age_of_what_is_predicted_acts_after_the_encoder_alone():
    model = small(context=[*WITHOUT_TIME, ContextFeature(name="watch_age", post=Use.BOTH)])
    arrays = batch() | {"example_age": batch()["example_age"] + np.float32(1e6)}
    np.testing.assert_array_equal(model.states(tensors(batch())), model.states(tensors(arrays)))
    assert moved(predictions(model, batch())[0], predictions(model, arrays)[0])[:4] == [0, 1, 2, 3]


@pytest.mark.parametrize("cell", list(Cell))
def test_a_padded_request_and_the_unpadded_one_have_the_same_outputs(cell: Cell):
    model = small(cell=cell)
    padded, queries = predictions(model, batch()), model.query_embeddings(tensors(batch())).numpy()
    for row, length in enumerate(LENGTHS):
        alone = cut(batch(), row, max(length, 1))
        np.testing.assert_allclose(predictions(model, alone)[0, : length + 1], padded[row, : length + 1], atol=1e-6)
        np.testing.assert_allclose(model.query_embeddings(tensors(alone))[0], queries[row], atol=1e-6)
        np.testing.assert_allclose(padded[row, length], queries[row], atol=1e-6)


def test_what_stands_in_the_padding_changes_nothing():
    model = read_only()
    arrays = batch()
    padding = np.arange(5) >= np.array(LENGTHS)[:, np.newaxis]
    for name, value in (("watched_video_ids", 4), ("watched_page", 2), ("seconds_to_next_watch", 50.0)):
        arrays[name][padding] = value
    np.testing.assert_array_equal(model.query_embeddings(tensors(arrays)), model.query_embeddings(tensors(batch())))
    losses = [float(model.compute_loss(training_batch(b))) for b in (arrays, batch())]
    assert losses[0] == losses[1]


def test_an_out_of_vocabulary_watch_is_a_step_with_its_context():
    model = read_only()
    arrays = batch()
    arrays["watched_video_ids"][2, 0] = arrays["watched_uploader_ids"][2, 0] = 0
    unknown = model.query_embeddings(tensors(arrays))[2].numpy()
    arrays["watch_count"][2] = 0
    assert np.abs(unknown - model.query_embeddings(tensors(arrays))[2]).max() > 1e-3
    arrays["watch_count"][2] = 1
    arrays["watched_device"][2, 0] = 1
    assert np.abs(unknown - model.query_embeddings(tensors(arrays))[2]).max() > 1e-3


def test_an_empty_history_has_the_zero_state_and_is_answered_from_the_requests_context():
    model = read_only()
    features = tensors(batch())
    np.testing.assert_array_equal(model.last_state(features)[1], np.zeros(6))
    first, other = (model.query_embeddings(tensors(changed("page", 1, None, page)))[1].numpy() for page in (1, 2))
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("loss", [Loss.FULL, Loss.SAMPLED, Loss.IN_BATCH])
def test_labels_that_are_all_out_of_the_vocabulary_give_loss_zero_and_finite_gradients(loss: Loss):
    model = small(loss=loss)
    arrays = batch() | {"label": np.zeros(4, np.int32), "label_weights": np.zeros((4, 5), np.float32)}
    inputs = with_negatives(training_batch(arrays))
    with tf.GradientTape() as tape:
        value = model.compute_loss(inputs, training=True)
    assert float(value) == 0
    for gradient in tape.gradient(value, model.trainable_variables, unconnected_gradients="zero"):
        assert np.isfinite(tf.convert_to_tensor(gradient)).all()


def with_negatives(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    sampler = make_sampler(NegativeSamplerConfig(num_sampled=3), np.arange(7, 0, -1), seed=1)
    return attach_negatives(sampler)(inputs)


def test_the_loss_is_the_weighted_mean_over_all_steps_with_a_label():
    model, inputs = read_only(), training_batch()
    logits = predictions(model, batch()) @ model.class_embeddings(tf.range(1, 8)).numpy().T
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    total = weight = 0.0
    for row in range(4):
        for step in range(6):
            label = int(inputs[STEP_LABELS][row, step])
            counts = float(inputs[STEP_WEIGHTS][row, step])
            total -= counts * log_probabilities[row, step, label - 1]
            weight += counts
    assert weight == pytest.approx(9.75)
    assert float(model.compute_loss(inputs)) == pytest.approx(total / weight, rel=1e-5)


def test_the_sampled_loss_sees_each_step_with_the_expected_count_of_its_label():
    model, inputs = small(loss=Loss.SAMPLED), with_negatives(training_batch())
    queries = predictions(model, batch())
    vectors = model.class_embeddings(tf.range(8)).numpy()
    negatives = inputs["negatives"].numpy()
    total = weight = 0.0
    for row in range(4):
        for step in range(6):
            label, counts = int(inputs[STEP_LABELS][row, step]), float(inputs[STEP_WEIGHTS][row, step])
            own = queries[row, step] @ vectors[label] - np.log(inputs["label_expected_count"][row, step])
            others = queries[row, step] @ vectors[negatives].T - np.log(inputs["negatives_expected_count"])
            total += counts * (np.log(np.exp(own) + np.exp(others[negatives != label]).sum()) - own)
            weight += counts
    assert float(model.compute_loss(inputs)) == pytest.approx(total / weight, rel=1e-4)


def test_one_step_of_the_gru_by_hand():
    """One watch, a pre-fusion and a post-fusion cross, in NumPy."""
    context = [ContextFeature(name="time_delta", pre=Use.CROSS), ContextFeature(name="device", post=Use.CROSS)]
    model = small(context=context, input_widths=(), units=4, output_widths=())
    query = model.query_embeddings(tensors(cut(batch(), 2, 1)))[0].numpy()
    # Row 2: video 2, a gap of 1e9 s (half-octave 59), requested from device 2.
    w_gap = model.cross_before.tables["time_delta"].embeddings.numpy()[60]
    w_device = model.cross_after.tables["device"].embeddings.numpy()[2]
    x = (1 + w_gap) * model.watch_table.embeddings.numpy()[2]
    kernel, _, biases = (weight.numpy() for weight in model.recurrent.weights)
    z, _, candidate = np.split(x @ kernel + biases[0], 3)
    z_bias, r_bias, candidate_bias = np.split(biases[1], 3)
    update = 1 / (1 + np.exp(-(z + z_bias)))
    reset = 1 / (1 + np.exp(-(np.split(x @ kernel + biases[0], 3)[1] + r_bias)))
    h = (1 - update) * np.tanh(candidate + reset * candidate_bias)  # the state before is zero
    np.testing.assert_allclose(query, (1 + w_device) * h, rtol=1e-5)


def test_the_layers_around_the_cell_are_rectified_and_a_linear_one_follows_where_it_must():
    assert [layer.activation.__name__ for layer in small().output_layers] == ["relu"]
    widths = small(output_widths=(8, 5), input_widths=(5, 3))
    assert [(layer.units, layer.activation.__name__) for layer in widths.output_layers] == [
        (8, "relu"),
        (5, "relu"),
        (4, "linear"),
    ]
    assert [layer.units for layer in widths.input_layers] == [5, 3]
    assert small(context=[], output_widths=(), units=4).output_layers == []
    assert [layer.activation.__name__ for layer in small(projection=True).output_layers] == ["relu", "linear"]


@pytest.mark.parametrize(("cell", "mixed_precision", "eager"), [(Cell.GRU, True, False), (Cell.LSTM, False, True)])
def test_a_training_step_moves_all_weights_but_the_zero_rows(cell: Cell, mixed_precision: bool, eager: bool):
    before_policy = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16" if mixed_precision else "float32")
    try:
        model = small(cell=cell, loss=Loss.SAMPLED, context=[WITHOUT_TIME[1], WITH_TIME[0]])
    finally:
        tf_keras.mixed_precision.set_global_policy(before_policy)
    model.compile(LazyAdam(0.05), run_eagerly=eager)  # tracing takes most of the time
    before = [weight.numpy() for weight in model.trainable_variables]
    dataset = tf.data.Dataset.from_tensors(with_negatives(training_batch())).repeat()
    losses = model.fit(dataset, steps_per_epoch=1, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for weight, old in zip(model.trainable_variables, before, strict=True):
        assert (weight.numpy() != old).any(), weight.name
        if "embeddings" in weight.name or "factors" in weight.name:
            np.testing.assert_array_equal(weight.numpy()[0], np.zeros(weight.shape[1]))


def test_dropout_is_for_training_only():
    model = small(dropout=0.5)
    features = tensors(batch())
    np.testing.assert_array_equal(model.query_embeddings(features), model.query_embeddings(features))
    assert np.abs(model.states(features, training=True) - model.states(features)).max() > 0


def test_shared_embeddings_are_the_video_vectors():
    model = small(shared_embeddings=True)
    assert [weight.shape for weight in model.weights].count([8, 4]) == 1
    assert [weight.shape for weight in small().weights].count([8, 4]) == 2
    with pytest.raises(ConfigError, match="embedding_dimension 3 and dimension 4"):
        small(shared_embeddings=True, embedding_dimension=3)


def test_given_vectors_start_both_tables():
    model = small()
    following = np.arange(32, dtype=np.float32).reshape(8, 4)
    model.start_from(StartVectors(following + 100, following))
    np.testing.assert_array_equal(model.watch_table(tf.constant([3])), [[112, 113, 114, 115]])
    np.testing.assert_array_equal(model.video_embeddings({"video": tf.constant([2, 0])}), [[8, 9, 10, 11], [0] * 4])


def test_an_attribute_of_videos_is_not_taken_for_the_context_of_its_name():
    attribute = Feature("device", Kind.CATEGORICAL, Side.IMPRESSION, "videos.device", "device")
    spec = FeatureSpec((*(feature for feature in SPEC.features if feature.name != "device"), attribute))
    config = LatentCrossConfig(context=[ContextFeature(name="device", post=Use.CROSS)])
    with pytest.raises(ConfigError, match="context feature 'device': expected features device"):
        LatentCross(config, spec, SIZES)
    assert LatentCross(LatentCrossConfig(), spec, SIZES).video_attributes == ("device",)


def test_a_model_is_rebuilt_from_its_description_and_its_checkpoint(tmp_path):
    model = small(skip_absent=True, context=[*WITHOUT_TIME, ContextFeature(name="origin", pre=Use.CROSS)])
    assert model.left_out == ("origin",)
    again = LatentCross.from_description(json.loads(json.dumps(model.description())), SPEC)
    assert again.config == model.config
    weights_checkpoint(model).write(str(tmp_path / "weights"))
    weights_checkpoint(again).read(str(tmp_path / "weights")).assert_consumed()
    features = tensors(batch())
    np.testing.assert_array_equal(again.query_embeddings(features), model.query_embeddings(features))


def traced_operations(model: LatentCross) -> set[str]:
    function = tf.function(model.query_embeddings).get_concrete_function(tensors(batch()))
    library = function.graph.as_graph_def().library.function
    return {node.op for part in library for node in part.node_def}


@pytest.mark.parametrize("cell", list(Cell))
def test_the_traced_model_holds_the_cudnn_kernel_for_a_gpu(cell: Cell):
    assert "CudnnRNNV3" in traced_operations(small(cell=cell, context=[]))
    # A mask or another activation takes it away.
    model = small(context=[])
    model.recurrent = tf_keras.layers.LSTM(6, activation="relu", return_sequences=True)
    assert "CudnnRNNV3" not in traced_operations(model)


def test_the_presets_are_the_papers():
    def uses(name: str) -> dict[str, tuple[str, str]]:
        return {f.name: (f.pre.value, f.post.value) for f in PRESETS[name].context}

    baseline = {
        "uploader": ("concatenate", "none"),
        "page": ("concatenate", "concatenate"),
        "device": ("concatenate", "concatenate"),
        "watch_time": ("concatenate", "none"),
        "time_delta": ("concatenate", "none"),
        "watch_age": ("none", "concatenate"),
    }
    assert uses("production_baseline") == baseline
    assert uses("production_crosses") == baseline | {
        "page": ("both", "both"),
        "device": ("concatenate", "both"),
        "time_delta": ("both", "none"),
    }
    uploader = {"uploader": ("concatenate", "none")}
    assert uses("page_none") == uploader
    assert uses("page_concatenated") == uploader | {"page": ("concatenate", "concatenate")}
    assert uses("page_cross") == uploader | {"page": ("none", "cross")}
    assert uses("page_both") == uploader | {"page": ("concatenate", "both")}
    for name in ("production_baseline", "production_crosses", "page_none"):
        preset = PRESETS[name]
        assert (preset.input_widths, preset.units, preset.output_widths) == ((256,), 256, (256,))
        assert (preset.cell, preset.sampler.num_sampled) == (Cell.GRU, 20_000)
    assert uses("rnn_latent_cross") == {"time_delta": ("cross", "none")}
    assert uses("rrn") == {"time_delta": ("concatenate", "none")}
    assert uses("rnn") == {}
    for name in ("rnn_latent_cross", "rrn", "rnn"):
        preset = PRESETS[name]
        assert (preset.cell, preset.input_widths, preset.output_widths) == (Cell.LSTM, (), ())
        assert not preset.cross_identity
        assert preset.loss == Loss.HIERARCHICAL


@pytest.mark.parametrize("name", ["production_crosses", "rnn_latent_cross", "rrn"])
def test_a_preset_is_a_model(name: str):
    model = LatentCross(PRESETS[name], SPEC, SIZES)
    assert model.query_embeddings(tensors(batch())).shape == [4, 256]


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match="expected feature 'watch_count'"):
        LatentCross(LatentCrossConfig(), FeatureSpec(SPEC.features[:1]), SIZES)
    with pytest.raises(ConfigError, match="id space 'video', found page"):
        LatentCross(LatentCrossConfig(), SPEC, {"page": 2})
    with pytest.raises(ConfigError, match="context feature 'origin'"):
        small(context=[ContextFeature(name="origin", pre=Use.CROSS)])


def test_a_query_needs_the_watches_and_the_features_of_its_context_alone():
    before, after = ContextFeature(name="page", pre=Use.CONCATENATE), ContextFeature(name="watch_age", post=Use.CROSS)
    model = small(context=(before, after, ContextFeature(name="device", pre=Use.BOTH, post=Use.CROSS)))
    read = {"watched_video_ids", "watch_count", "watched_page", "watched_device", "device"}
    read |= {"seconds_to_next_watch", "example_age"}
    assert {feature.name for feature in model.query_inputs} == read
    features = tensors(batch())
    alone = {name: features[name] for name in read}
    np.testing.assert_array_equal(model.query_embeddings(alone), model.query_embeddings(features))
