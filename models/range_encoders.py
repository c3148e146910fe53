"""M3's three sequence encoders, each for a temporal range of its own (Tang et al. 2019, section 4.2).

Each reads the processed inputs z of all events, `[batch, L, d_in]`, and gives an encoding of the history after each
event, `[batch, L, d_enc]`; `last` gives the one after the last event alone, zero for an empty history. No encoding
depends on a later event, nor, up to the length of the history, on its padding.
"""

import math
from enum import StrEnum
from typing import Any

import tensorflow as tf
import tf_keras

from models.recurrent import Cell, recurrent_layer


class Short(StrEnum):
    """What the short range is encoded by: M3R has a recurrent cell, M3C convolutions."""

    GRU = "gru"
    LSTM = "lstm"
    CONVOLUTION = "convolution"


def last_event(events: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Of the last event of each history, zero where there is none: `[batch, L, width]` -> `[batch, width]`."""
    last = tf.gather(events, tf.maximum(lengths - 1, 0), axis=1, batch_dims=1)
    return tf.where(lengths[:, tf.newaxis] > 0, last, tf.zeros([], events.dtype))


class TinyRange(tf_keras.layers.Layer):
    """The last event alone: z itself, or z W + b where the dimensions differ (equation 8).

    Args:
      inputs: d_in.
      units: d_enc.
    """

    def __init__(self, inputs: int, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.projection = _linear(inputs, units, "projection", bias=True) if inputs != units else None
        self.built = True

    def call(self, inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return inputs if self.projection is None else self.projection(inputs)

    def last(self, inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return last_event(self(inputs, lengths), lengths)


class RecurrentRange(tf_keras.layers.Layer):
    """The short range by a recurrent cell of d_in units: h W (equations 9 and 10).

    Args:
      cell: which.
      inputs: d_in.
      units: d_enc.
    """

    def __init__(self, cell: Cell, inputs: int, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recurrent = recurrent_layer(cell, inputs, inputs, "recurrent")
        self.projection = _linear(inputs, units, "projection")
        self.built = True

    def call(self, inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return self.projection(self.recurrent(inputs))

    def last(self, inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return self.projection(last_event(self.recurrent(inputs), lengths))


class ConvolutionRange(tf_keras.layers.Layer):
    """The short range by causal convolutions over time, without dilation, ReLU after each (equations 11 and 12).

    The encoding depends on the last `layers * (width - 1) + 1` events.

    Args:
      inputs: d_in.
      units: d_enc, filters of each layer.
      layers: how many are stacked.
      width: events that each filter sees.
    """

    def __init__(self, inputs: int, units: int, layers: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.convolutions = []
        for _ in range(layers):
            convolution = tf_keras.layers.Conv1D(units, width, padding="causal", activation="relu")
            convolution.build((None, None, inputs))
            self.convolutions.append(convolution)
            inputs = units
        self.built = True

    def call(self, inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        for convolution in self.convolutions:
            inputs = convolution(inputs)
        return inputs

    def last(self, inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return last_event(self(inputs, lengths), lengths)


class LongRange(tf_keras.layers.Layer):
    """The long range by scaled dot-product attention of the last event on all (equations 13 to 15).

    Where d_in and d_enc differ, the inputs are projected first and the projections are queries, keys and values: the
    paper writes the values of equation 15 as z, and asks for outputs of d_enc.

    The 1/√d of equation 13 keeps dot products of elements of variance 1 small; embeddings start with length 1 here, and
    attention would start even over all events, and stay so beside a range that learns sooner. So the projection starts
    d_enc^(1/4) times as large as other layers, and where there is none the inputs are multiplied by one learned number,
    which starts there: in the product of query and key that undoes the 1/√d. The values are as much larger.

    Args:
      inputs: d_in.
      units: d_enc.
    """

    def __init__(self, inputs: int, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        gain = units**0.25
        self.projection = _linear(inputs, units, "projection", gain=gain) if inputs != units else None
        if self.projection is None:
            self.scale = self.add_weight("scale", shape=(), initializer=tf_keras.initializers.Constant(gain))
        self.built = True

    def call(self, inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        values = self._projected(inputs)
        position = tf.range(tf.shape(inputs)[1])
        causal = position[tf.newaxis, :] <= position[:, tf.newaxis]
        return attention(values, values, causal[tf.newaxis] & _real(inputs, lengths))

    def last(self, inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        values = self._projected(inputs)
        query = last_event(values, lengths)[:, tf.newaxis]
        return tf.squeeze(attention(query, values, _real(inputs, lengths)), axis=1)

    def _projected(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.projection is not None:
            return self.projection(inputs)
        return inputs * tf.cast(self.scale, inputs.dtype)


def attention(queries: tf.Tensor, values: tf.Tensor, allowed: tf.Tensor) -> tf.Tensor:
    """Σ softmax(query · value / √d) value over the allowed values; zero where none is.

    Weights are computed in float32 whatever the type of the values, since their dot products overflow half precision.

    Args:
      queries: `[batch, q, d]`.
      values: `[batch, L, d]`, keys as well.
      allowed: `[batch, q, L]` bool, or broadcast to it.

    Returns:
      `[batch, q, d]`, of the values' type.
    """
    scale = 1 / math.sqrt(values.shape[-1])
    raw = tf.matmul(tf.cast(queries, tf.float32) * scale, tf.cast(values, tf.float32), transpose_b=True)
    weights = tf.nn.softmax(tf.where(allowed, raw, raw.dtype.min))
    return tf.matmul(tf.cast(tf.where(allowed, weights, 0.0), values.dtype), values)


def _real(inputs: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Which values are events and not padding, `[batch, 1, L]` bool."""
    return tf.sequence_mask(lengths, tf.shape(inputs)[1])[:, tf.newaxis]


def _linear(inputs: int, units: int, name: str, bias: bool = False, gain: float = 1.0) -> tf_keras.layers.Dense:
    """A linear layer that starts from Glorot's uniform distribution times `gain`."""
    start = tf_keras.initializers.VarianceScaling(gain**2, mode="fan_avg", distribution="uniform")
    layer = tf_keras.layers.Dense(units, use_bias=bias, name=name, kernel_initializer=start)
    layer.build((None, inputs))
    return layer
