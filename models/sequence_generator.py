"""What sequence models share: watches and their context in, an encoder's states, what is predicted at each step out.

Figure 1 of Beutel et al. 2018, which M3 (Tang et al. 2019, equations 1 to 7) has too. With f_i and f_o feed-forward:

    x(τ)  = [video embedding; concatenated context]          of each watch
    h0(τ) = f_i(x(τ)), then the pre-fusion cross
    h1(τ) = the encoder's state after watch τ                the models' own: a recurrent cell, a mixture of ranges
    q(τ)  = f_o([cross of h1(τ - 1); concatenated context])  of what is predicted, c(τ)

and a softmax over videos, q · v. Video vectors are a table of their own, apart from the embeddings of watches.

Training predicts at every step that has a weight; a query is the prediction at the last step. `attach_step_labels`
lays labels and weights out by step in the input pipeline; see `models/sequence_steps.py` for what a step is.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow as tf
import tf_keras
from pydantic import Field

from features.errors import ConfigError
from features.settings import Settings
from features.spec import Feature, FeatureSpec, Side
from models.candidate_generator import (
    LABEL,
    LAST_WATCH,
    STEP_LABELS,
    STEP_WEIGHTS,
    WEIGHT,
    CandidateGenerator,
    replica_mean,
)
from models.co_watch_embeddings import StartVectors
from models.context_features import (
    ConcatenatedContext,
    ContextFeature,
    CrossedContext,
    Use,
    context_columns,
    features_needed,
)
from models.embeddings import EmbeddingTable
from models.sampled_softmax import Loss, softmax_loss
from models.samplers import LABEL_EXPECTED_COUNT, NegativeSamplerConfig
from models.sequence_steps import (
    WATCH_COUNT,
    WATCHED_VIDEOS,
    at_request,
    history_lengths,
    of_last_event,
    of_next_event,
)

LABEL_WEIGHTS = "label_weights"  # [batch, L] float32: of each watch as a label of the watches before it, 0: no label


def attach_step_labels(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """For `tf.data.Dataset.map`: adds what each step predicts and how much that counts.

    Args:
      batch: query features, `label` `[batch]` int32, optional `weight` `[batch]` float32 (1) and optional
        `label_weights` `[batch, L]` float32 (0: only the request's label is one).

    Returns:
      The batch with `step_labels` `[batch, L + 1]` int32 and `step_weights` `[batch, L + 1]` float32. Padding and steps
      whose video is out of the vocabulary have label 0 and weight 0.
    """
    watched, label, lengths = batch[WATCHED_VIDEOS], batch[LABEL], history_lengths(batch)
    weight = tf.cast(batch[WEIGHT], tf.float32) if WEIGHT in batch else tf.ones_like(label, tf.float32)
    of_watches = batch[LABEL_WEIGHTS] if LABEL_WEIGHTS in batch else tf.zeros_like(watched, tf.float32)
    labels = of_next_event(watched, label, lengths)
    weights = of_next_event(tf.cast(of_watches, tf.float32), weight, lengths)
    counted = (tf.range(tf.shape(labels)[1])[tf.newaxis] <= lengths[:, tf.newaxis]) & (labels > 0)
    return {**batch, STEP_LABELS: tf.where(counted, labels, 0), STEP_WEIGHTS: tf.where(counted, weights, 0.0)}


class SequenceConfig(Settings):
    """Sizes, context and loss of a sequence model."""

    dimension: int = Field(default=64, ge=1, description="of query and video vectors, that is output embeddings")
    embedding_dimension: int | None = Field(
        default=None, ge=1, description="of the embeddings of watched videos; default: dimension"
    )
    shared_embeddings: bool = Field(
        default=False, description="watched videos are embedded by the video vectors; both papers have a table for each"
    )
    input_widths: tuple[int, ...] = Field(default=(), description="ReLU layers below the encoder; none is the identity")
    output_widths: tuple[int, ...] = Field(default=(), description="ReLU layers above the encoder")
    projection: bool = Field(
        default=False,
        description="end in a linear layer, so that query vectors have both signs; without it there is one only where "
        "the last width differs from dimension",
    )
    context: tuple[ContextFeature, ...] = Field(default=(), description="which context enters where")
    skip_absent: bool = Field(default=False, description="leave out context that the examples do not have")
    cross_stddev: float = Field(default=0.1, ge=0, description="of the Gaussian that latent crosses start from")
    cross_identity: bool = Field(default=True, description="cross by (1 + w), not by w (section 7.1 of Latent Cross)")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of each watch's inputs and of f_o's dropped in training"
    )
    output_dropout: float | None = Field(
        default=None, ge=0, lt=1, description="share of f_o's inputs; default: that of dropout"
    )
    loss: Loss = Loss.SAMPLED
    sampler: NegativeSamplerConfig = NegativeSamplerConfig()
    bfloat16_matmul: bool = Field(default=False, description="multiply queries and negatives in bfloat16")

    @property
    def watch_dimension(self) -> int:
        """Length of the embeddings of watched videos."""
        return self.embedding_dimension or self.dimension

    def state_width(self, input_width: int) -> int:
        """Length of the encoder's states, given that of what it reads."""
        raise NotImplementedError


class Events(NamedTuple):
    """What the encoder reads of each watch.

    `inputs`: h0 `[batch, L, width]`; `context`: the concatenated context alone `[batch, L, width]`, None without any.
    """

    inputs: tf.Tensor
    context: tf.Tensor | None


class SequenceGenerator(CandidateGenerator):
    """Base of the sequence models; see the module's text.

    A batch has the query features of the specification, among them `watched_video_ids` `[batch, L]` int32 (L > 0) and
    `watch_count` `[batch]` float32, and for training what `attach_step_labels` adds.

    Args:
      config: sizes and loss.
      spec: the model's features.
      vocabulary_sizes: id space -> number of ids.
      class_attributes: name -> rows of each class's attribute; only those of the losses are used: `softmax_cluster`
        (`models/hierarchical_softmax.py`) and `co_watched` (`models/co_watched_softmax.py`).

    Raises:
      ConfigError: an id space has no vocabulary, a feature is absent, or shared embeddings of two dimensions.
    """

    config_type: type[SequenceConfig]

    def __init__(
        self,
        config: SequenceConfig,
        spec: FeatureSpec,
        vocabulary_sizes: Mapping[str, int],
        class_attributes: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if "video" not in vocabulary_sizes:
            raise ConfigError(
                f"sequence model: expected a vocabulary of id space 'video', found "
                f"{', '.join(sorted(vocabulary_sizes)) or 'none'}; run the analysis stage with this space"
            )
        num_classes = vocabulary_sizes["video"]
        softmax = softmax_loss(config.loss, num_classes, config.dimension, config.bfloat16_matmul, class_attributes)
        super().__init__(spec, num_classes, config.dimension, softmax)
        for name in (WATCHED_VIDEOS, WATCH_COUNT):
            if name not in spec:
                raise ConfigError(
                    f"sequence model: expected feature {name!r}, found "
                    f"{', '.join(f.name for f in spec.features)}; build sequence examples"
                )
        self.config = config
        self.vocabulary_sizes = dict(vocabulary_sizes)
        read = FeatureSpec(spec.side(Side.QUERY))  # an attribute of videos may have the name of a context feature
        columns, self.left_out = context_columns(config.context, read, vocabulary_sizes, config.skip_absent)
        self.columns_before = tuple(column for column in columns if column.feature.pre != Use.NONE)
        self.columns_after = tuple(column for column in columns if column.feature.post != Use.NONE)

        self.video_table = EmbeddingTable(num_classes, config.dimension, name="output_video_embeddings")
        self.watch_table = self._watch_table()
        self.drop_inputs = tf_keras.layers.Dropout(config.dropout)
        self.drop_outputs = tf_keras.layers.Dropout(
            config.dropout if config.output_dropout is None else config.output_dropout
        )
        before = [column for column in self.columns_before if column.feature.pre.concatenated]
        self.context_before = ConcatenatedContext(before, name="context_before") if before else None
        width = config.watch_dimension + (self.context_before.width if self.context_before else 0)
        self.input_layers, self.input_width = _relu_layers(config.input_widths, width, "input")
        self.cross_before = self._cross([c for c in self.columns_before if c.feature.pre.crossed], self.input_width)

        state_width = config.state_width(self.input_width)
        self.cross_after = self._cross([c for c in self.columns_after if c.feature.post.crossed], state_width)
        after = [column for column in self.columns_after if column.feature.post.concatenated]
        self.context_after = ConcatenatedContext(after, name="context_after") if after else None
        width = state_width + (self.context_after.width if self.context_after else 0)
        self.output_layers, width = _relu_layers(config.output_widths, width, "output")
        if config.projection or width != config.dimension:
            self.output_layers.append(_dense(config.dimension, width, None, "query"))
        self.built = True

    def _watch_table(self) -> EmbeddingTable:
        config = self.config
        if not config.shared_embeddings:
            return EmbeddingTable(self.num_classes, config.watch_dimension, name="watched_video_embeddings")
        if config.watch_dimension != config.dimension:
            raise ConfigError(
                f"sequence model: shared_embeddings have one dimension, found embedding_dimension "
                f"{config.watch_dimension} and dimension {config.dimension}; leave embedding_dimension out"
            )
        return self.video_table

    def _cross(self, columns: list, width: int) -> CrossedContext | None:
        config = self.config
        return CrossedContext(columns, width, config.cross_stddev, config.cross_identity) if columns else None

    @property
    def query_inputs(self) -> tuple[Feature, ...]:
        of_context = (features_needed(c) for c in self.config.context if c.name not in self.left_out)
        read = {WATCHED_VIDEOS, WATCH_COUNT}.union(*of_context)
        return tuple(feature for feature in super().query_inputs if feature.name in read)

    def states(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The encoder's state at each step, after the events before it: `[batch, L + 1, state width]`.

        Of an empty history, at step 0, it is zero.
        """
        raise NotImplementedError

    def last_state(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The state at the request, `[batch, state width]`."""
        return at_request(self.states(features, training=training), history_lengths(features))

    def events(self, features: Mapping[str, tf.Tensor], training: bool = False) -> Events:
        """What the encoder reads of each watch, from its video and its context."""
        rows = {column.feature.name: column.events(features) for column in self.columns_before}
        hidden = self.watch_table(features[WATCHED_VIDEOS])
        context = None
        if self.context_before is not None:
            context = self.context_before(rows)
            hidden = tf.concat([hidden, context], axis=-1)
        hidden = self.drop_inputs(hidden, training=training)
        for layer in self.input_layers:
            hidden = layer(hidden)
        return Events(hidden if self.cross_before is None else self.cross_before(hidden, rows), context)

    def step_context(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Rows of the post-fusion context at each step: feature -> `[batch, L + 1]` int32."""
        return {column.feature.name: column.steps(features) for column in self.columns_after}

    def request_context(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The same of the request: feature -> `[batch]` int32."""
        lengths = history_lengths(features)
        return {name: at_request(rows, lengths) for name, rows in self.step_context(features).items()}

    def fuse(self, state: tf.Tensor, context: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The network after the encoder, f_o: `[..., state width]` and context rows `[...]` -> `[..., dimension]`."""
        hidden = state if self.cross_after is None else self.cross_after(state, context)
        if self.context_after is not None:
            hidden = tf.concat([hidden, self.context_after(context)], axis=-1)
        hidden = self.drop_outputs(hidden, training=training)
        for layer in self.output_layers:
            hidden = layer(hidden)
        return tf.cast(hidden, tf.float32)

    def query_embeddings(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return self.fuse(self.last_state(features, training=training), self.request_context(features), training)

    def class_embeddings(self, rows: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.cast(self.video_table(rows), tf.float32)

    def video_embeddings(self, columns: Mapping[str, tf.Tensor]) -> tf.Tensor:
        self.require_dot_products()
        return self.class_embeddings(columns["video"])

    def compute_loss(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Weighted mean of the softmax cross-entropy over the batch's steps that have a label and a weight."""
        labels = inputs[STEP_LABELS]
        weights = tf.where(labels > 0, inputs[STEP_WEIGHTS], 0.0)
        counted = tf.where(weights > 0)  # [steps, 2]
        # A batch without any is one step of weight zero: no loss has to cope with none.
        counted = tf.pad(counted, [[0, tf.cast(tf.shape(counted)[0] == 0, tf.int32)], [0, 0]])
        states = tf.gather_nd(self.states(inputs, training=training), counted)
        context = {name: tf.gather_nd(rows, counted) for name, rows in self.step_context(inputs).items()}
        last = of_last_event(inputs[WATCHED_VIDEOS])
        of_steps = {**inputs, LABEL: tf.gather_nd(labels, counted), LAST_WATCH: tf.gather_nd(last, counted)}
        if LABEL_EXPECTED_COUNT in inputs:
            of_steps[LABEL_EXPECTED_COUNT] = tf.gather_nd(inputs[LABEL_EXPECTED_COUNT], counted)
        losses = self.softmax(self, self.fuse(states, context, training), of_steps, training)
        weights = tf.gather_nd(weights, counted)
        self.cross_entropy.update_state(losses, sample_weight=weights)
        return replica_mean(losses, weights)

    def start_from(self, vectors: StartVectors) -> None:
        """Sets the embeddings of watched videos and the video vectors before training, those of their dimension."""
        for table, start in ((self.watch_table, vectors.watched), (self.video_table, vectors.following)):
            if table.dimension == start.shape[1]:
                table.embeddings.assign(start)

    def description(self) -> dict[str, Any]:
        """What `from_description` needs besides the specification and the weights; JSON-serialisable."""
        return {"config": self.config.model_dump(mode="json"), "vocabulary_sizes": dict(self.vocabulary_sizes)}

    @classmethod
    def from_description(cls, description: Mapping[str, Any], spec: FeatureSpec) -> Self:
        """A model of the same shape, whose weights are loaded afterwards."""
        return cls(cls.config_type.model_validate(description["config"]), spec, description["vocabulary_sizes"])


def _relu_layers(widths: tuple[int, ...], inputs: int, name: str) -> tuple[list[tf_keras.layers.Layer], int]:
    """ReLU layers, bottom first, and the width of what they give."""
    layers = []
    for depth, units in enumerate(widths, start=1):
        layers.append(_dense(units, inputs, "relu", f"{name}_{depth}"))
        inputs = units
    return layers, inputs


def _dense(units: int, inputs: int, activation: str | None, name: str) -> tf_keras.layers.Dense:
    layer = tf_keras.layers.Dense(units, activation=activation, name=name)
    layer.build((None, inputs))
    return layer
