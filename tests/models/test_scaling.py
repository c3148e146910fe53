"""Continuous features scaled to [0, 1]."""

import numpy as np
import tensorflow as tf

from features.spec import Feature, Kind, Normaliser, Side
from models.scaling import powers, scale


def feature(serving_value: float | None = None) -> Feature:
    return Feature(
        "x",
        Kind.CONTINUOUS,
        Side.QUERY,
        "users.x",
        normaliser=Normaliser.SCALE,
        low=10,
        high=30,
        serving_value=serving_value,
    )


def test_values_are_scaled_clipped_and_put_in_the_middle_when_missing():
    scaled = scale(feature(), tf.constant([10.0, 15.0, 30.0, -5.0, 99.0, np.nan]))
    np.testing.assert_allclose(scaled, [0, 0.25, 1, 0, 1, 0.5])


def test_a_serving_value_below_the_range_is_not_clipped_to_zero():
    scaled = scale(feature(serving_value=8.0), tf.constant([8.0, 0.0]))
    np.testing.assert_allclose(scaled, [-0.1, -0.1])


def test_powers_are_the_square_and_the_root_with_finite_gradients_at_zero():
    x = tf.constant([0.0, 0.25, -0.1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = powers(x)
        total = tf.add_n(values)
    np.testing.assert_allclose(tf.stack(values), [[0, 0.25, -0.1], [0, 0.0625, 0.01], [0, 0.5, 0]], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(total, x), [1, 1 + 0.5 + 1, 1 - 0.2], rtol=1e-6)
