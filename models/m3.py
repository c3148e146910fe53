"""M3, the multi-temporal-range mixture model of Tang et al. 2019: one model for what tiny, short and long ranges tell.

    z = F_in([Q; c_in])                                         equation 2, of each event
    SE = aggregate(G_T · M_T(Z), G_S · M_S(Z), G_L · M_L(Z))    equations 3 to 5
    q = F_out([SE; c_out])                                      equation 6

The encoders M are in `models/range_encoders.py`, F_in and F_out with their context in `models/sequence_generator.py`;
where d_out differs from the dimension of the output embeddings, a linear map follows F_out. The gates G are an
element-wise sigmoid of a feed-forward layer (equation 16) on the context (contextual-switch, [c_in; c_out], equation
17), or on z of the last event (bottom-switch, equation 18), or fixed at 1. Context here is the concatenated embeddings
that F_in and F_out read too; before the first event c_in and z are zero.

Beyond the paper, its stated next step, sparse gates. With `gate_threshold` a gate below the threshold counts as zero
when serving, and an encoder that no request of the batch needs is not executed; requests are served in batches of one.
Such a model is best trained with `gate_penalty`, which makes small gates pay. Training itself is never sparse.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
import tensorflow as tf
import tf_keras
from pydantic import Field, model_validator

from features.errors import ConfigError
from features.spec import FeatureSpec
from models.candidate_generator import replica_mean
from models.context_features import ContextFeature, Use
from models.range_encoders import ConvolutionRange, LongRange, RecurrentRange, Short, TinyRange, last_event
from models.recurrent import Cell
from models.samplers import NegativeSamplerConfig
from models.sequence_generator import SequenceConfig, SequenceGenerator
from models.sequence_steps import history_lengths, of_last_event


class Encoder(StrEnum):
    """The three temporal ranges."""

    TINY = "tiny"
    SHORT = "short"
    LONG = "long"


class Gate(StrEnum):
    """What the gates depend on (Table 6)."""

    CONTEXTUAL = "contextual"
    BOTTOM = "bottom"
    FIXED = "fixed"  # at 1


class Aggregation(StrEnum):
    """How the gated encodings become one."""

    CONCATENATE = "concatenate"
    SUM = "sum"


class M3Config(SequenceConfig):
    """Sizes, encoders, gates and loss of the mixture model."""

    kind: Literal["m3"] = "m3"
    encoders: tuple[Encoder, ...] = Field(default=tuple(Encoder), min_length=1, description="the ranges that are built")
    encoder_dimension: int = Field(default=32, ge=1, description="d_enc, of every encoder's output")
    short: Short = Field(default=Short.GRU, description="the short range: gru or lstm (M3R), convolution (M3C)")
    short_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of what the short range alone reads dropped in training; `dropout` blurs single events too, "
        "which the tiny and the long range recall",
    )
    convolution_layers: int = Field(default=2, ge=1, description="of M3C; 2 on MovieLens, 3 on YouTube")
    convolution_width: int = Field(default=5, ge=1, description="events that each filter of M3C sees")
    gate: Gate = Gate.BOTTOM
    aggregation: Aggregation = Aggregation.CONCATENATE
    serving_encoders: tuple[Encoder, ...] | None = Field(
        default=None, description="the ranges used when serving; the others then encode as zero; default: all"
    )
    gate_threshold: float | None = Field(
        default=None, gt=0, lt=1, description="gates below count as zero when serving, and save their encoder's work"
    )
    gate_penalty: float = Field(default=0.0, ge=0, description="weight of the mean gate in the training loss")

    @model_validator(mode="after")
    def _encoders_fit(self) -> Self:
        served = self.serving_encoders if self.serving_encoders is not None else self.encoders
        if len(set(self.encoders)) < len(self.encoders) or not served or not set(served) <= set(self.encoders):
            raise ValueError(
                f"encoders {', '.join(self.encoders)} served by {', '.join(served) or 'none'}: name each range once, "
                "and for serving at least one of those that are built"
            )
        return self

    def state_width(self, input_width: int) -> int:
        return self.encoder_dimension * (len(self.encoders) if self.aggregation == Aggregation.CONCATENATE else 1)


class GatingNetwork(tf_keras.layers.Layer):
    """Sigmoid of one feed-forward layer, a gate for each encoder (equation 16), in float32.

    Args:
      inputs: width of what the gates depend on.
      gates: number of encoders.
      penalty: weight of the mean gate in the training loss.
    """

    def __init__(self, inputs: int, gates: int, penalty: float, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.penalty = penalty
        self.layer = tf_keras.layers.Dense(gates, activation="sigmoid", dtype="float32")
        self.layer.build((None, inputs))
        self.built = True

    def call(self, inputs: tf.Tensor, real: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        """`[..., inputs]` -> `[..., gates]`; `real` `[...]` bool says which of them the penalty counts."""
        gates = self.layer(inputs)
        if training and self.penalty and real is not None:
            mean = replica_mean(tf.reduce_mean(gates, axis=-1), tf.cast(real, tf.float32))
            self.add_loss(self.penalty * mean)
        return gates


class M3(SequenceGenerator):
    """See the module's text.

    Args:
      config: sizes, encoders, gates and loss.
      spec, vocabulary_sizes, class_attributes: as in `SequenceGenerator`.

    Raises:
      ConfigError: as there, or contextual gates without concatenated context.
    """

    config: M3Config
    config_type = M3Config

    def __init__(
        self,
        config: M3Config,
        spec: FeatureSpec,
        vocabulary_sizes: Mapping[str, int],
        class_attributes: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(config, spec, vocabulary_sizes, class_attributes)
        self.encoders = {encoder.value: self._encoder(encoder) for encoder in config.encoders}
        self.drop_short = tf_keras.layers.Dropout(config.short_dropout)
        self.gating = None
        if config.gate != Gate.FIXED:
            self.gating = GatingNetwork(self._gate_inputs_width(), len(config.encoders), config.gate_penalty)
        self.built = True

    def _encoder(self, encoder: Encoder) -> tf_keras.layers.Layer:
        config, units, name = self.config, self.config.encoder_dimension, f"{encoder}_range"
        if encoder == Encoder.TINY:
            return TinyRange(self.input_width, units, name=name)
        if encoder == Encoder.LONG:
            return LongRange(self.input_width, units, name=name)
        if config.short == Short.CONVOLUTION:
            layers, width = config.convolution_layers, config.convolution_width
            return ConvolutionRange(self.input_width, units, layers, width, name=name)
        return RecurrentRange(Cell(config.short), self.input_width, units, name=name)

    def _gate_inputs_width(self) -> int:
        if self.config.gate == Gate.BOTTOM:
            return self.input_width
        width = sum(context.width for context in (self.context_before, self.context_after) if context is not None)
        if not width:
            raise ConfigError(
                "M3: contextual gates need concatenated context features, found none; configure some, or gate: bottom"
            )
        return width

    def states(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        lengths = history_lengths(features)
        inputs, context = self.events(features, training)
        # Nothing is encoded at step 0, so gates are those of the steps after each event.
        after = {name: rows[:, 1:] for name, rows in self.step_context(features).items()}
        real = tf.sequence_mask(lengths, tf.shape(inputs)[1])
        gates = self._gates(inputs, context, after, real, training)

        def encode(name: str) -> tf.Tensor:
            return self.encoders[name](self._read_by(name, inputs, training), lengths)

        return of_last_event(self._mixture(gates, encode, training))

    def last_state(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        gates, inputs = self._request_gates(features, training)
        lengths = history_lengths(features)

        def encode(name: str) -> tf.Tensor:
            return self.encoders[name].last(self._read_by(name, inputs, training), lengths)

        return self._mixture(gates, encode, training)

    def _read_by(self, name: str, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """What an encoder reads of all events' inputs."""
        return self.drop_short(inputs, training=training) if name == Encoder.SHORT else inputs

    def gate_values(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The gates of requests, in the order of `config.encoders`: `[batch, number of encoders]` float32 in [0, 1].

        They are those of the gating network (Figure 5), before `gate_threshold` and `serving_encoders`.
        """
        return self._request_gates(features, training=False)[0]

    def _request_gates(self, features: Mapping[str, tf.Tensor], training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        lengths = history_lengths(features)
        inputs, context = self.events(features, training)
        last_context = None if context is None else last_event(context, lengths)
        after = self.request_context(features)
        return self._gates(last_event(inputs, lengths), last_context, after, None, training), inputs

    def _gates(
        self,
        last_input: tf.Tensor,
        last_context: tf.Tensor | None,
        after: Mapping[str, tf.Tensor],
        real: tf.Tensor | None,
        training: bool,
    ) -> tf.Tensor:
        """Gates `[..., encoders]` from the last event's z and c_in `[..., width]` and the rows of c_out `[...]`."""
        if self.gating is None:
            return tf.ones(tf.concat([tf.shape(last_input)[:-1], [len(self.encoders)]], axis=0))
        if self.config.gate == Gate.BOTTOM:
            return self.gating(last_input, real, training=training)
        context = [last_context, None if self.context_after is None else self.context_after(after)]
        known = [tf.cast(part, tf.float32) for part in context if part is not None]
        return self.gating(tf.concat(known, axis=-1), real, training=training)

    def _mixture(self, gates: tf.Tensor, encode: Callable[[str], tf.Tensor], training: bool) -> tf.Tensor:
        """The gated encodings `[..., state width]`; `encode` gives those of one encoder, by name, `[..., d_enc]`."""
        config = self.config
        served = config.encoders if training or config.serving_encoders is None else config.serving_encoders
        parts = [
            self._gated(gates[..., index, tf.newaxis], partial(encode, name), name in served, training)
            for index, name in enumerate(self.encoders)
        ]
        return tf.concat(parts, axis=-1) if config.aggregation == Aggregation.CONCATENATE else tf.add_n(parts)

    def _gated(self, gate: tf.Tensor, encode: Callable[[], tf.Tensor], served: bool, training: bool) -> tf.Tensor:
        """One encoder's part of the mixture, which is computed only where a gate `[..., 1]` is high enough."""
        dtype = self.compute_dtype
        nothing = tf.zeros(tf.concat([tf.shape(gate)[:-1], [self.config.encoder_dimension]], axis=0), dtype)
        if not served:
            return nothing
        if training or self.config.gate_threshold is None:
            return tf.cast(gate, dtype) * encode()
        used = gate >= self.config.gate_threshold
        return tf.cond(
            tf.reduce_any(used),
            lambda: tf.where(used, tf.cast(gate, dtype) * encode(), nothing),
            lambda: nothing,
        )


_MOVIELENS = M3Config(
    dimension=64, embedding_dimension=64, input_widths=(32,), encoder_dimension=32, output_widths=(32,)
)
_YOUTUBE = M3Config(
    dimension=256,
    input_widths=(256,),
    encoder_dimension=256,
    output_widths=(256,),
    convolution_layers=3,
    gate=Gate.CONTEXTUAL,
    sampler=NegativeSamplerConfig(num_sampled=20_000),
    context=(
        ContextFeature(name="page", pre=Use.CONCATENATE, post=Use.CONCATENATE),
        ContextFeature(name="device", pre=Use.CONCATENATE, post=Use.CONCATENATE),
        ContextFeature(name="watch_time", pre=Use.CONCATENATE),
        ContextFeature(name="time_delta", pre=Use.CONCATENATE),
    ),
)

PRESETS: Mapping[str, M3Config] = MappingProxyType(
    {
        # Section 5.1: d_in = d_enc = d_out = 32, embeddings of 64, bottom-switch, no context.
        "movielens_m3r": _MOVIELENS,
        "movielens_m3c": _MOVIELENS.model_copy(update={"short": Short.CONVOLUTION}),
        # Section 5.2: three convolutions, contextual-switch, 20,000 negatives, "device, time-based features (dwelling
        # time)", page. The paper has no sizes here; these are the production model's of Beutel et al. 2018.
        "youtube_m3r": _YOUTUBE,
        "youtube_m3c": _YOUTUBE.model_copy(update={"short": Short.CONVOLUTION}),
    }
)
"""Name -> the paper's model."""
