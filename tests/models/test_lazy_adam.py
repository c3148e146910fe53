"""Lazy Adam: each row by itself is Adam on the row's own gradients."""

import numpy as np
import pytest
import tensorflow as tf

from models.lazy_adam import LazyAdam


def adam_by_hand(value: float, gradients: list[float], rate: float = 0.1) -> float:
    """Kingma and Ba 2014, algorithm 1."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        value -= rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    return value


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_row_moves_only_when_it_has_a_gradient_and_then_as_adam_would_move_it_alone(jit_compile: bool):
    table = tf.Variable([[1.0], [2.0], [3.0], [4.0]])
    optimizer = LazyAdam(0.1)
    optimizer.build([table])

    @tf.function(jit_compile=jit_compile)
    def step(values: tf.Tensor, rows: tf.Tensor) -> None:
        optimizer.apply_gradients([(tf.IndexedSlices(values, rows, tf.constant([4, 1])), table)])

    step(tf.constant([[0.5], [0.1]]), tf.constant([1, 2]))
    step(tf.constant([[-0.2], [0.3]]), tf.constant([1, 1]))  # duplicates add up to 0.1
    step(tf.constant([[0.7], [0.4]]), tf.constant([3, 1]))
    expected = [
        [1.0],
        [adam_by_hand(2.0, [0.5, 0.1, 0.4])],
        [adam_by_hand(3.0, [0.1])],
        [adam_by_hand(4.0, [0.7])],
    ]
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-6)


def test_dense_gradients_are_adam():
    weights = tf.Variable([1.0, 2.0])
    optimizer = LazyAdam(0.1)
    gradients = [[0.5, 0.1], [-0.2, 0.0], [0.3, 0.4]]
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient), weights)])
    expected = [adam_by_hand(value, [g[i] for g in gradients]) for i, value in enumerate([1.0, 2.0])]
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


def test_the_configuration_survives_a_round_trip():
    optimizer = LazyAdam(0.02, beta_1=0.8, beta_2=0.95, epsilon=1e-6)
    again = LazyAdam.from_config(optimizer.get_config())
    assert (float(again.learning_rate), again.beta_1, again.beta_2, again.epsilon) == (
        pytest.approx(0.02),
        0.8,
        0.95,
        1e-6,
    )
