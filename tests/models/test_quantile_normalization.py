"""The layer against the NumPy oracle the Beam job is tested with."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.errors import ConfigError
from features.quantiles import Quantiles, normalise
from models.quantile_normalization import QuantileNormalization


def quantiles(boundaries) -> Quantiles:
    return Quantiles(np.asarray(boundaries, np.float64), 100, 0, 0.0)


def test_by_hand():
    layer = QuantileNormalization({"a": quantiles([0, 2, 2, 2, 4]), "constant": quantiles([7, 7, 7, 7, 7])})
    values = tf.constant([[1.0, 7.0], [2.0, 6.0], [3.0, 8.0], [np.nan, np.nan], [-1.0, 7.0], [4.0, np.inf]])
    below_one = 1 - 2**-24
    np.testing.assert_array_equal(
        layer(values).numpy(),
        np.array(
            [[0.125, 0.5], [0.5, 0.0], [0.875, below_one], [0.0, 0.0], [0.0, 0.5], [below_one, below_one]], np.float32
        ),
    )


@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 3, 4), (0,)])
def test_any_leading_shape_gives_what_numpy_gives(shape):
    random = np.random.default_rng(0)
    boundaries = [
        np.sort(random.normal(size=21)),
        np.sort(random.integers(0, 5, 21)),
        np.sort(random.lognormal(8, 3, 21)),
    ]
    layer = QuantileNormalization({str(i): quantiles(b) for i, b in enumerate(boundaries)})
    values = np.stack(
        [random.normal(size=shape), random.integers(-1, 7, shape), random.lognormal(8, 4, shape)], axis=-1
    ).astype(np.float32)
    expected = np.stack([normalise(values[..., i], b) for i, b in enumerate(boundaries)], axis=-1)
    np.testing.assert_array_equal(layer(values).numpy(), expected.astype(np.float32))


@settings(max_examples=60)
@given(
    st.lists(st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False), min_size=4, max_size=4),
    st.lists(st.floats(width=32, allow_subnormal=False), min_size=1, max_size=5),
)
@example([-2.8579206404366865e-34, 8105.0, 8105.0, 8105.0], [0.0])
def test_wild_values_give_what_numpy_gives(boundaries, values):
    boundaries = np.sort(np.array(boundaries))
    values = np.array([*values, *boundaries], np.float32)
    layer = QuantileNormalization({"a": quantiles(boundaries)})
    # TensorFlow takes what is below the smallest normal float32 for zero
    np.testing.assert_allclose(
        layer(values[:, np.newaxis]).numpy()[:, 0],
        normalise(values, boundaries).astype(np.float32),
        rtol=0,
        atol=np.finfo(np.float32).tiny,
    )


def test_half_precision_policy_does_not_round_the_inputs():
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        layer = QuantileNormalization({"a": quantiles([0, 1_000_000])})
        np.testing.assert_allclose(layer(tf.constant([[123_457.0]])), [[0.123457]], rtol=1e-6)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


def test_compiles_under_xla():
    layer = QuantileNormalization({"a": quantiles([0, 2, 2, 2, 4]), "b": quantiles([0, 1, 2, 3, 4])})
    values = tf.constant([[[1.0, 1.0], [2.0, np.nan]]])
    np.testing.assert_allclose(tf.function(layer, jit_compile=True)(values), [[[0.125, 0.25], [0.5, 0.0]]], rtol=1e-6)


def test_features_of_different_numbers_of_boundaries_are_refused():
    with pytest.raises(ConfigError, match=r"equally many boundaries; found \[2, 3\] for a, b"):
        QuantileNormalization({"a": quantiles([0, 1]), "b": quantiles([0, 1, 2])})
