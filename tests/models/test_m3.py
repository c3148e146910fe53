"""The mixture of temporal ranges: each encoder by hand, gates, subsets, what is not executed."""

import json
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from pydantic import ValidationError

from features.errors import ConfigError
from models.lazy_adam import LazyAdam
from models.m3 import M3, PRESETS, Aggregation, Encoder, Gate, M3Config
from models.range_encoders import ConvolutionRange, LongRange, RecurrentRange, Short, TinyRange, attention
from models.recurrent import Cell
from pipeline.model_folder import weights_checkpoint
from tests.models.sequence_batches import SIZES, SPEC, batch, changed, cut, tensors, training_batch
from tests.models.small_m3 import small

LENGTHS = (3, 0, 1, 5)
T, S, L = Encoder
SUBSETS = [(T,), (S,), (L,), (T, S), (T, L), (S, L), (T, S, L)]


@cache
def read_only() -> M3:
    """The default model, for tests that change nothing in it."""
    return small()


def predictions(model: M3, arrays: dict[str, np.ndarray]) -> np.ndarray:
    features = tensors(arrays)
    return model.fuse(model.states(features), model.step_context(features)).numpy()


RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(2, 4, 3)).astype(np.float32)
HISTORY_LENGTHS = tf.constant([4, 2])


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


def test_the_tiny_range_is_the_last_event_itself_or_its_projection():
    same = TinyRange(3, 3)
    assert not same.weights
    np.testing.assert_array_equal(same(INPUTS, HISTORY_LENGTHS), INPUTS)
    np.testing.assert_array_equal(same.last(INPUTS, HISTORY_LENGTHS), [INPUTS[0, 3], INPUTS[1, 1]])
    wider = TinyRange(3, 5)
    kernel, bias = wider.weights
    bias.assign([1.0, 2, 3, 4, 5])
    np.testing.assert_allclose(
        wider(INPUTS, HISTORY_LENGTHS), INPUTS @ kernel.numpy() + [1, 2, 3, 4, 5], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("units", [3, 5])
def test_the_long_range_attends_from_each_event_to_all_up_to_it(units: int):
    layer = LongRange(3, units)
    (weight,) = layer.weights
    z = INPUTS * 3**0.25 if units == 3 else INPUTS @ weight.numpy()
    encodings = layer(INPUTS, HISTORY_LENGTHS).numpy()
    for row, length in enumerate((4, 2)):
        for step in range(length):
            past = z[row, : step + 1]
            weights = softmax(past @ z[row, step] / np.sqrt(units))
            np.testing.assert_allclose(encodings[row, step], weights @ past, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        layer.last(INPUTS, HISTORY_LENGTHS), [encodings[0, 3], encodings[1, 1]], rtol=1e-6, atol=1e-6
    )


def test_an_events_attention_to_itself_starts_near_one_in_logits():
    tf_keras.utils.set_random_seed(1)
    layer = LongRange(80, 64)
    z = RANDOM.normal(size=(1000, 80)) / np.sqrt(80)  # of length 1, as embeddings start
    values = z @ layer.weights[0].numpy()
    own = (values * values).sum(1) / np.sqrt(64)
    # Glorot's variance 2 / (80 + 64) times √64, over 64 elements of inputs of length 1, over √64
    assert own.mean() == pytest.approx(8 * 2 / 144 * 64 / 8, rel=0.1)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32])
def test_attention_is_finite_in_half_precision_and_zero_over_nothing(dtype: tf.DType):
    values = tf.constant(RANDOM.normal(size=(3, 4, 64)) * 600, dtype)  # products beyond float16's 65504
    allowed = tf.sequence_mask([4, 1, 0], 4)[:, tf.newaxis]
    encoded = attention(values[:, :1], values, allowed)
    assert encoded.dtype == dtype
    assert np.isfinite(encoded.numpy().astype(np.float32)).all()
    np.testing.assert_array_equal(encoded[1, 0], values[1, 0])
    np.testing.assert_array_equal(encoded[2, 0], np.zeros(64))


def test_gradients_of_attention_over_nothing_are_finite():
    values = tf.constant(INPUTS)
    with tf.GradientTape() as tape:
        tape.watch(values)
        encoded = attention(values, values, tf.zeros([2, 4, 4], tf.bool))
    np.testing.assert_array_equal(tape.gradient(encoded, values), np.zeros_like(INPUTS))


def test_convolutions_see_the_last_events_of_their_receptive_field_and_nothing_later():
    layer = ConvolutionRange(1, 1, layers=2, width=3)
    for convolution in layer.convolutions:
        convolution.set_weights([np.array([100.0, 10.0, 1.0]).reshape(3, 1, 1), np.array([0.0])])
    events = tf.reshape(tf.constant([0.0, 0, 1, 0, 0, 0, 0, 0]), [1, 8, 1])
    # An impulse through (1, 10, 100) twice: the square of the polynomial 1 + 10 x + 100 x².
    np.testing.assert_array_equal(tf.reshape(layer(events, tf.constant([8])), [-1]), [0, 0, 1, 20, 300, 2000, 10000, 0])
    np.testing.assert_array_equal(layer(-events, tf.constant([8])), np.zeros((1, 8, 1)))  # rectified


def test_the_recurrent_range_projects_the_state_without_a_bias():
    layer = RecurrentRange(Cell.GRU, 3, 5)
    assert layer.recurrent.units == 3
    np.testing.assert_allclose(
        layer(INPUTS, HISTORY_LENGTHS), layer.recurrent(INPUTS).numpy() @ layer.projection.kernel.numpy(), atol=1e-6
    )
    assert layer.projection.bias is None


@pytest.mark.parametrize("aggregation", list(Aggregation))
def test_gated_encodings_are_concatenated_or_summed(aggregation: Aggregation):
    model = small(aggregation=aggregation)
    features = tensors(cut(batch(), 3, 5))
    inputs, context = model.events(features)
    kernel, bias = (weight.numpy() for weight in model.gating.layer.weights)
    page = model.context_after.tables["page"].embeddings.numpy()[1]
    gates = 1 / (1 + np.exp(-(np.concatenate([context[0, -1], page]) @ kernel + bias)))
    np.testing.assert_allclose(model.gate_values(features)[0], gates, rtol=1e-5)
    encodings = [encoder.last(inputs, tf.constant([5]))[0] for encoder in model.encoders.values()]
    parts = [gate * encoding for gate, encoding in zip(gates, encodings, strict=True)]
    expected = np.concatenate(parts) if aggregation == Aggregation.CONCATENATE else np.sum(parts, axis=0)
    np.testing.assert_allclose(model.last_state(features)[0], expected, rtol=1e-5, atol=1e-6)


def test_gates_may_depend_on_the_last_input_or_be_one():
    features = tensors(batch())
    bottom = small(gate=Gate.BOTTOM, context=[])
    kernel, bias = (weight.numpy() for weight in bottom.gating.layer.weights)
    last = bottom.events(features).inputs.numpy()[[0, 2, 3], [2, 0, 4]]
    expected = 1 / (1 + np.exp(-(last @ kernel + bias)))
    np.testing.assert_allclose(bottom.gate_values(features).numpy()[[0, 2, 3]], expected, rtol=1e-5)
    np.testing.assert_allclose(bottom.gate_values(features)[1], 1 / (1 + np.exp(-bias)), rtol=1e-5)  # no last input
    np.testing.assert_array_equal(small(gate=Gate.FIXED).gate_values(features), np.ones((4, 3)))


@pytest.mark.parametrize("short", list(Short))
@pytest.mark.parametrize("gate", list(Gate))
def test_the_last_state_is_the_state_at_the_last_step(short: Short, gate: Gate):
    model, features = small(short=short, gate=gate), tensors(batch())
    states = model.states(features).numpy()
    np.testing.assert_allclose(model.last_state(features), states[range(4), LENGTHS], atol=1e-6)
    np.testing.assert_array_equal(states[:, 0], np.zeros((4, 9)))  # nothing was seen yet


@pytest.mark.parametrize("short", list(Short))
def test_a_padded_request_and_the_unpadded_one_have_the_same_outputs(short: Short):
    model = small(short=short)
    padded, queries = predictions(model, batch()), model.query_embeddings(tensors(batch())).numpy()
    for row, length in enumerate(LENGTHS):
        alone = cut(batch(), row, max(length, 1))
        np.testing.assert_allclose(predictions(model, alone)[0, : length + 1], padded[row, : length + 1], atol=1e-6)
        np.testing.assert_allclose(model.query_embeddings(tensors(alone))[0], queries[row], atol=1e-6)


@pytest.mark.parametrize("short", [Short.GRU, Short.CONVOLUTION])
def test_an_event_moves_no_prediction_before_it_but_by_its_context_its_own(short: Short):
    model = small(short=short)
    for name, value, first in (("watched_video_ids", 1, 3), ("watched_page", 1, 2)):
        before, after = predictions(model, batch()), predictions(model, changed(name, 3, 2, value))
        assert np.flatnonzero((before[3] != after[3]).any(axis=1))[0] == first, name
        np.testing.assert_array_equal(before[:3], after[:3])


def test_the_requests_context_reaches_the_gates_of_the_request_alone():
    model = read_only()
    before, after = (model.states(tensors(b)).numpy() for b in (batch(), changed("page", 3, None, 2)))
    assert np.flatnonzero((before[3] != after[3]).any(axis=1)).tolist() == [5]


@pytest.mark.parametrize("encoders", SUBSETS)
def test_every_subset_of_the_ranges_is_a_model(encoders: tuple[Encoder, ...]):
    model, features = small(encoders=encoders), tensors(batch())
    assert list(model.encoders) == list(encoders)
    assert model.gate_values(features).shape == [4, len(encoders)]
    assert model.last_state(features).shape == [4, 3 * len(encoders)]
    assert float(model.compute_loss(training_batch())) > 0


def test_a_range_switched_off_encodes_as_zero_when_serving_and_learns_in_training():
    whole, features = read_only(), tensors(batch())
    served = small(serving_encoders=(T, L))
    expected = whole.last_state(features).numpy()
    expected[:, 3:6] = 0
    np.testing.assert_array_equal(served.last_state(features), expected)
    np.testing.assert_array_equal(served.states(features, training=True), whole.states(features, training=True))


def by_page(model: M3) -> M3:
    """Gates by the request's page alone: after page 1 the short range is off, after page 2 the long one."""
    high, low = 1.0, -2.0
    kernel = np.zeros(model.gating.layer.kernel.shape, np.float32)
    page = model.context_after.tables["page"]
    vectors = np.zeros(page.embeddings.shape, np.float32)
    vectors[1, 0], vectors[2, 1] = 1, 1
    page.embeddings.assign(vectors)
    kernel[-page.dimension] = [high, low, high]
    kernel[1 - page.dimension] = [high, high, low]
    model.gating.layer.set_weights([kernel, np.zeros(3, np.float32)])
    return model


def test_gates_below_the_threshold_count_as_zero_row_by_row():
    arrays = batch() | {"page": np.array([1, 2, 1, 2], np.int32)}
    sparse, dense = by_page(small(gate_threshold=0.3)), by_page(small())
    np.testing.assert_allclose(dense.gate_values(tensors(arrays))[0], [0.7310586, 0.1192029, 0.7310586], rtol=1e-5)
    expected = dense.last_state(tensors(arrays)).numpy()
    expected[[0, 2], 3:6] = 0
    expected[[1, 3], 6:9] = 0
    np.testing.assert_array_equal(sparse.last_state(tensors(arrays)), expected)
    np.testing.assert_array_equal(
        sparse.states(tensors(arrays), training=True), dense.states(tensors(arrays), training=True)
    )


def test_an_encoder_runs_once_for_a_batch_that_needs_it_and_not_at_all_for_others():
    model = by_page(small(gate_threshold=0.3))
    with mock.patch.object(RecurrentRange, "last", autospec=True, side_effect=RecurrentRange.last) as short:
        model.last_state(tensors(batch() | {"page": np.array([1, 1, 1, 1], np.int32)}))
        assert short.call_count == 0
        model.last_state(tensors(batch() | {"page": np.array([1, 1, 2, 1], np.int32)}))
        assert short.call_count == 1


def test_a_skipped_encoder_executes_no_operation_in_the_exported_model(tmp_path: Path):
    """Operations as TensorFlow's own trace of an exported model counts them, request by request."""
    model = by_page(small(gate_threshold=0.3))
    request = cut(batch(), 3, 5)
    served = tf.Module()
    served.kept = model.variables
    signature = {name: tf.TensorSpec(value.shape, value.dtype, name) for name, value in tensors(request).items()}
    function = tf.function(lambda features: {"query": model.query_embeddings(features)})
    tf.saved_model.save(served, str(tmp_path), function.get_concrete_function(signature))

    executed = {page: executed_operations(tmp_path, request | {"page": np.array([page], np.int32)}) for page in (1, 2)}
    loops = {page: sum("while" in name for name in names) for page, names in executed.items()}
    attentions = {page: sum("Softmax" in name for name in names) for page, names in executed.items()}
    assert (attentions[1], attentions[2]) == (1, 0)
    assert loops[1] == 0
    assert loops[2] > 5 * 5  # five steps of a recurrent cell of several operations
    assert len(executed[2]) > len(executed[1])


def executed_operations(folder: Path, request: dict[str, np.ndarray]) -> list[str]:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        signature = meta_graph.signature_def["serving_default"]
        traced = tf.compat.v1.RunMetadata()
        session.run(
            signature.outputs["query"].name,
            {tensor.name: request[name] for name, tensor in signature.inputs.items()},
            options=tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.FULL_TRACE),
            run_metadata=traced,
        )
        names = [node.node_name for device in traced.step_stats.dev_stats for node in device.node_stats]
    return [name for name in names if not name.startswith(("_", "Func/"))]


def test_the_penalty_is_the_mean_of_the_gates_that_are_applied_and_for_training_only():
    """At step 0 nothing is encoded, so the gates there open nothing: 3 + 0 + 1 + 5 steps count."""
    model, plain, inputs = small(gate_penalty=2.0), read_only(), training_batch()
    model.compute_loss(inputs)
    assert not model.losses
    model.compute_loss(inputs, training=True)
    gates = []
    for row, length in enumerate(LENGTHS):
        for step in range(1, length + 1):
            alone = cut(batch(), row, 5)
            alone["watch_count"][:] = step
            alone["page"] = alone["watched_page"][:, step] if step < length else alone["page"]
            gates.append(plain.gate_values(tensors(alone))[0])
    assert len(gates) == 3 + 0 + 1 + 5
    (penalty,) = model.losses
    assert float(penalty) == pytest.approx(2 * np.mean(gates), rel=1e-5)
    plain.compute_loss(inputs, training=True)
    assert not plain.losses


def test_the_penalty_by_hand_where_the_gates_of_the_first_watch_are_three_quarters():
    """One request after one watch, whose gates are 3/4 each; at step 0, where none is applied, they would be 1/2."""
    model = small(gate_penalty=1.0, gate=Gate.BOTTOM, context=[], input_widths=())
    kernel, bias = model.gating.layer.weights
    kernel.assign(np.full(kernel.shape, np.log(3.0)))  # σ(log 3) = 3/4
    bias.assign(np.zeros(bias.shape))
    model.watch_table.embeddings.assign(np.eye(8, 4, -2))  # video 2 is (1, 0, 0, 0)
    model.compute_loss(training_batch(cut(batch(), 2, 5)), training=True)
    assert float(model.losses[0]) == pytest.approx(0.75, rel=1e-5)


@pytest.mark.parametrize(
    ("short", "mixed_precision", "eager"),
    [(Short.GRU, True, True), (Short.CONVOLUTION, False, False)],
)
def test_a_training_step_moves_all_weights_but_the_zero_rows(short: Short, mixed_precision: bool, eager: bool):
    before_policy = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16" if mixed_precision else "float32")
    try:
        model = small(short=short, gate_penalty=0.1)
    finally:
        tf_keras.mixed_precision.set_global_policy(before_policy)
    model.compile(LazyAdam(0.05), run_eagerly=eager)  # tracing takes most of the time
    before = [weight.numpy() for weight in model.trainable_variables]
    dataset = tf.data.Dataset.from_tensors(training_batch()).repeat()
    losses = model.fit(dataset, steps_per_epoch=1, epochs=6, verbose=0).history["total_loss"]
    assert losses[-1] < losses[0]
    for weight, old in zip(model.trainable_variables, before, strict=True):
        assert (weight.numpy() != old).any(), weight.name
        if "embeddings" in weight.name:
            np.testing.assert_array_equal(weight.numpy()[0], np.zeros(weight.shape[1]))


def test_the_long_range_without_a_projection_learns_its_scale_in_half_precision_too():
    before_policy = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        layer = LongRange(3, 3)
    finally:
        tf_keras.mixed_precision.set_global_policy(before_policy)
    (scale,) = layer.trainable_weights
    with tf.GradientTape() as tape:
        inputs = tf.constant(INPUTS, tf.bfloat16)
        last = layer.last(inputs, HISTORY_LENGTHS)
        assert last.dtype == tf.bfloat16
        total = tf.reduce_sum(tf.cast(last, tf.float32))
    assert scale.dtype == tf.float32
    assert float(tape.gradient(total, scale)) != 0
    np.testing.assert_allclose(
        tf.cast(last, tf.float32)[0], tf.cast(layer(inputs, HISTORY_LENGTHS), tf.float32)[0, 3], rtol=0.02
    )


def test_a_model_is_rebuilt_from_its_description_and_its_checkpoint(tmp_path: Path):
    model = small(short=Short.CONVOLUTION, gate_threshold=0.3, serving_encoders=(T, S))
    again = M3.from_description(json.loads(json.dumps(model.description())), SPEC)
    assert again.config == model.config
    weights_checkpoint(model).write(str(tmp_path / "weights"))
    weights_checkpoint(again).read(str(tmp_path / "weights")).assert_consumed()
    features = tensors(batch())
    np.testing.assert_array_equal(again.query_embeddings(features), model.query_embeddings(features))


def test_the_presets_are_the_papers():
    for name, preset in PRESETS.items():
        model = M3(preset, SPEC, SIZES)
        assert model.query_embeddings(tensors(batch())).shape == [4, preset.dimension]
        # d_in = d_enc: neither the tiny nor the long range projects.
        assert not model.encoders["tiny"].weights
        assert [weight.shape for weight in model.encoders["long"].weights] == [()]
        if name.endswith("c"):
            layers = model.encoders["short"].convolutions
            assert {(layer.kernel_size, layer.dilation_rate) for layer in layers} == {((5,), (1,))}
            assert len(layers) == (2 if name.startswith("movielens") else 3)
    movielens = PRESETS["movielens_m3r"]
    assert (movielens.input_widths, movielens.encoder_dimension, movielens.output_widths) == ((32,), 32, (32,))
    assert (movielens.dimension, movielens.watch_dimension, movielens.gate) == (64, 64, Gate.BOTTOM)
    assert PRESETS["youtube_m3r"].gate == Gate.CONTEXTUAL


def test_mistakes_are_told():
    with pytest.raises(ConfigError, match="contextual gates need concatenated context"):
        small(context=[])
    for encoders, served in (((T, T), None), ((T, S), (L,)), ((T, S), ())):
        with pytest.raises(ValidationError, match="name each range once"):
            M3Config(encoders=encoders, serving_encoders=served)
    with pytest.raises(ValidationError, match="at least 1"):
        M3Config(encoders=())
