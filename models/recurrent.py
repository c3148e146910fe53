"""The recurrent cells of sequence models, in the form that has a cuDNN kernel.

On a GPU, `tf_keras` runs its GRU and LSTM on cuDNN where all of this holds: the activations are tanh and sigmoid, there
is no recurrent dropout and no unrolling, biases are used, the GRU's reset gate acts after the matrix product, and the
input is not masked. The layers below meet all of it. They need no mask: histories are padded on the right, so what
follows the last event never reaches a state that is used.
"""

from enum import StrEnum

import tf_keras


class Cell(StrEnum):
    """Kinds of recurrent cells."""

    GRU = "gru"
    LSTM = "lstm"


def recurrent_layer(cell: Cell, units: int, inputs: int, name: str) -> tf_keras.layers.Layer:
    """A built layer from `[batch, L, inputs]` to the output after each event, `[batch, L, units]`."""
    kind = tf_keras.layers.GRU if cell == Cell.GRU else tf_keras.layers.LSTM
    layer = kind(units, return_sequences=True, name=name)
    layer.build((None, None, inputs))
    return layer
