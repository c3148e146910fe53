"""What exported modules share, by hand."""

import numpy as np
import tensorflow as tf

from serving.signatures import signature, variables_read


def test_variables_are_listed_in_the_order_in_which_they_are_first_read() -> None:
    """So that two exports of one model have the same files, whatever addresses its variables have in a process."""
    order = np.random.default_rng(0).permutation(24)
    variables = [tf.Variable(float(number)) for number in range(len(order))]
    first = signature(lambda raw: {"sum": sum((variables[i] for i in order[:20]), raw["x"])}, X)
    again = signature(lambda raw: {"sum": raw["x"] + sum(variables[i] for i in order[:3:-1])}, X)
    read = variables_read([first, again])
    assert [float(variable) for variable in read] == [*order[:20], *order[:19:-1]]


X = {"x": tf.TensorSpec([], tf.float32)}
