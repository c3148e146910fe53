"""The two-tower candidate generator of Covington et al. 2016, sections 3.1 to 3.5 (figure 3).

Query tower: the embeddings of each bag (watches, search tokens) are averaged, all features are concatenated, and ReLU
layers follow, each half as wide as the one below; depth 0 is one linear layer. Video side: output embeddings of their
own, "a separate output video embedding". Query and video vector meet in a dot product.

Beyond the paper, attributes of a video (uploader, topics, ...) may be added to its output vector:
v = E_out[video] + Σ over attributes of the average of E_attribute[rows]. E_out of a video without a class is zero; for
one uploaded too late for training more is expected (`models/new_videos.py`). In training E_out can be dropped at random
(`id_dropout`), which makes the attribute vectors stand alone. And the last watches may have a way of their own into the
query vector (`transitions`, see `models/factorized_transitions.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import tensorflow as tf
import tf_keras
from pydantic import Field, model_validator

from features.errors import ConfigError
from features.settings import Settings
from features.spec import Feature, FeatureSpec, Kind, Side
from models.candidate_generator import CandidateGenerator
from models.co_watch_embeddings import StartVectors
from models.embeddings import EmbeddingTable, SharedEmbeddings, average, embedding_dimension
from models.factorized_transitions import FactorizedTransitions, longest_history
from models.sampled_softmax import Loss, softmax_loss
from models.samplers import NegativeSamplerConfig
from models.scaling import powers, scale


class TwoTowerConfig(Settings):
    """Sizes and loss of the two-tower model."""

    kind: Literal["two_tower"] = "two_tower"
    dimension: int = Field(default=64, ge=1, description="of query and video vectors; 256 in the paper")
    depth: int = Field(default=2, ge=0, le=8, description="hidden ReLU layers; 0 is one linear layer (section 3.5)")
    widths: tuple[int, ...] | None = Field(
        default=None,
        description="widths of the hidden layers, bottom first, the last equal to dimension (unless `projection`); "
        "default: dimension on top, doubling downwards (2048, 1024, 512, 256 for depth 4 and dimension 256)",
    )
    projection: bool = Field(
        default=False,
        description="end in a linear layer above the ReLU layers, so that query vectors have both signs; the paper "
        "ends in the last ReLU layer. Needed where output embeddings start from co-watches",
    )
    transitions: bool = Field(
        default=False,
        description="add the last watches to the query vector, each weighted by its place "
        "(`models/factorized_transitions.py`); needs `projection`",
    )
    large_id_spaces: tuple[str, ...] = Field(
        default=("video", "search_token"), description="id spaces embedded with `dimension` floats each"
    )
    per_doubling: float = Field(
        default=1.6, gt=0, description="dimensions of other id spaces per doubling of their vocabulary"
    )
    power_features: tuple[str, ...] = Field(
        default=("example_age",), description="continuous features that also enter as square and square root"
    )
    id_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of video vectors that lose E_out in a training step"
    )
    history_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of bag items left out in training")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the concatenated inputs dropped in training")
    normalized: bool = Field(default=False, description="scale query and video vectors to length one")
    temperature: float = Field(
        default=0.1, gt=0, description="with `normalized`, logits are cosines divided by it (in the query vector)"
    )
    loss: Loss = Loss.SAMPLED
    sampler: NegativeSamplerConfig = NegativeSamplerConfig()
    bfloat16_matmul: bool = Field(default=False, description="multiply queries and negatives in bfloat16")

    @model_validator(mode="after")
    def _widths_fit(self) -> Self:
        if self.widths is not None and (
            len(self.widths) != self.depth or (not self.projection and self.widths[-1:] not in ((), (self.dimension,)))
        ):
            raise ValueError(
                f"widths {self.widths} do not fit depth {self.depth} and dimension {self.dimension}: "
                "give one width per layer, the last equal to dimension"
            )
        return self

    @model_validator(mode="after")
    def _transitions_find_vectors_of_both_signs(self) -> Self:
        if self.transitions and not (self.projection and "video" in self.large_id_spaces):
            raise ValueError(
                "transitions add input vectors of videos to the query vector: set projection to true, and leave "
                "'video' in large_id_spaces so that both have `dimension` numbers"
            )
        return self

    @model_validator(mode="after")
    def _the_loss_needs_no_sequence(self) -> Self:
        if self.loss == Loss.CO_WATCHED:
            raise ValueError(
                "loss co_watched is over the videos co-watched with the last watch, which generators of sequences "
                "know; set it to sampled or full, or choose kind bag_of_watches"
            )
        return self

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Widths of the ReLU layers, bottom first; empty for depth 0."""
        if self.widths is not None:
            return self.widths
        top = self.dimension * 2 if self.projection else self.dimension
        return tuple(top * 2**above for above in reversed(range(self.depth)))

    @property
    def layers(self) -> tuple[tuple[int, str | None], ...]:
        """Width and activation of every layer of the query tower, bottom first."""
        hidden = tuple((width, "relu") for width in self.hidden_widths)
        return (*hidden, (self.dimension, None)) if self.projection or not hidden else hidden


class VideoTower(tf_keras.layers.Layer):
    """Output video embeddings plus those of the video's attributes.

    Args:
      config: of the model.
      attributes: features of videos whose embeddings are added.
      vocabulary_sizes: id space -> number of ids.
      num_classes: number of videos of the vocabulary.
      class_attributes: as in `TwoTower`.
    """

    def __init__(
        self,
        config: TwoTowerConfig,
        attributes: Sequence[Feature],
        vocabulary_sizes: Mapping[str, int],
        num_classes: int,
        class_attributes: Mapping[str, np.ndarray],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.video_table = EmbeddingTable(num_classes, config.dimension, name="output_video_embeddings")
        used = {feature.name: str(feature.id_space) for feature in attributes}
        self.spaces = used
        self.attribute_tables = {
            space: EmbeddingTable(_size(vocabulary_sizes, space), config.dimension, name=f"output_{space}_embeddings")
            for space in sorted(set(used.values()))
        }
        self.attribute_rows: dict[str, tf.Variable] = {}
        self.attribute_shapes: dict[str, list[int]] = {}
        for name in used:
            rows = np.asarray(class_attributes[name], np.int32)
            if len(rows) != num_classes + 1:
                raise ConfigError(
                    f"two-tower model: expected {num_classes + 1} rows of attribute {name!r} (row 0 and one per "
                    f"video of the vocabulary), found {len(rows)}; make them from the catalogue of the same run"
                )
            self.attribute_rows[name] = self.add_weight(
                f"{name}_rows", shape=rows.shape, dtype=tf.int32, initializer="zeros", trainable=False
            )
            self.attribute_rows[name].assign(rows)
            self.attribute_shapes[name] = list(rows.shape)
        self.built = True

    def attributes_of(self, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        """Attributes of classes: `[n]` rows -> name -> `[n]` or `[n, length]` int32."""
        return {name: tf.nn.embedding_lookup(table, rows) for name, table in self.attribute_rows.items()}

    def call(self, rows: tf.Tensor, attributes: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Vectors of videos.

        Args:
          rows: `[n]` int32, 0 for a video without a class.
          attributes: name -> `[n]` or `[n, length]` int32; further ones are not looked at.
          training: whether `id_dropout` is applied.

        Returns:
          `[n, dimension]` float32.
        """
        vectors = tf.cast(self.video_table(rows), tf.float32)
        if training and self.config.id_dropout and self.spaces:
            kept = tf.random.uniform(tf.shape(rows)) >= self.config.id_dropout
            vectors *= tf.cast(kept, tf.float32)[:, tf.newaxis]
        for name, space in self.spaces.items():
            table, values = self.attribute_tables[space], attributes[name]
            vectors += tf.cast(table(values) if values.shape.rank == 1 else table.bag(values), tf.float32)
        return tf.math.l2_normalize(vectors, axis=1) if self.config.normalized else vectors


class TwoTower(CandidateGenerator):
    """See the module's text.

    Args:
      config: sizes and loss.
      spec: the model's features; those of the query side are its inputs, those of the impression side attributes of
        videos.
      vocabulary_sizes: id space -> number of ids.
      class_attributes: name of an attribute -> int32 rows of each class's, `[num_classes + 1]` or
        `[num_classes + 1, length]` padded with 0, row 0 all zero; an attribute of the specification that is not given
        is left out. `softmax_cluster` is the hierarchical softmax's.

    Raises:
      ConfigError: an id space without a vocabulary, no query feature, or attributes of another length.
    """

    def __init__(
        self,
        config: TwoTowerConfig,
        spec: FeatureSpec,
        vocabulary_sizes: Mapping[str, int],
        class_attributes: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        num_classes = _size(vocabulary_sizes, "video")
        softmax = softmax_loss(config.loss, num_classes, config.dimension, config.bfloat16_matmul, class_attributes)
        super().__init__(spec, num_classes, config.dimension, softmax)
        self.config = config
        self.vocabulary_sizes = dict(vocabulary_sizes)
        self.inputs_of_tower = spec.side(Side.QUERY)
        if not self.inputs_of_tower:
            raise ConfigError("two-tower model: expected at least one query feature in the specification, found none")

        spaces = sorted({str(f.id_space) for f in self.inputs_of_tower if f.kind == Kind.CATEGORICAL})
        self.embeddings = SharedEmbeddings(vocabulary_sizes, {space: self._dimension(space) for space in spaces})
        self.input_dropout = tf_keras.layers.Dropout(config.dropout)
        width = sum(self._width(feature.name) for feature in self.inputs_of_tower)
        self.hidden = []
        for place, (units, activation) in enumerate(config.layers, start=1):
            adds = config.transitions and place == len(config.layers)  # to the transitions, bit by bit
            layer = tf_keras.layers.Dense(
                units, activation=activation, kernel_initializer="zeros" if adds else "glorot_uniform"
            )
            layer.build((None, width))
            self.hidden.append(layer)
            width = units
        self.transitions: FactorizedTransitions | None = None
        if config.transitions:
            self.transitions = FactorizedTransitions(longest_history(self.inputs_of_tower))

        given = class_attributes or {}
        attributes = [feature for feature in spec.side(Side.IMPRESSION) if feature.name in given]
        self.video_tower = VideoTower(config, attributes, self.vocabulary_sizes, num_classes, given)
        self.built = True

    def _dimension(self, space: str) -> int:
        size = _size(self.vocabulary_sizes, space)
        if space in self.config.large_id_spaces:
            return self.config.dimension
        return min(self.config.dimension, embedding_dimension(size, self.config.per_doubling))

    def _width(self, name: str) -> int:
        feature = self.spec[name]
        if feature.kind == Kind.CATEGORICAL:
            return self.embeddings.dimension(feature)
        return 3 if name in self.config.power_features else 1

    def query_embeddings(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        parts: list[tf.Tensor] = []
        followed: tf.Tensor | None = None
        for feature in self.inputs_of_tower:
            values = features[feature.name]
            if feature.kind == Kind.CONTINUOUS:
                scaled = scale(feature, values)
                parts += powers(scaled) if feature.name in self.config.power_features else [scaled]
                continue
            if training and feature.multivalent and self.config.history_dropout:
                kept = tf.random.uniform(tf.shape(values)) >= self.config.history_dropout
                values = tf.where(kept, values, 0)
            if self.transitions is not None and feature == self.transitions.bag:
                vectors = tf.nn.embedding_lookup(self.embeddings.table(feature).embeddings, values)  # once for both
                followed = self.transitions(values, vectors)
                parts.append(average(values, vectors))
            else:
                parts.append(self.embeddings(feature, values))
        queries = self._tower(parts, training)
        if followed is not None:
            queries += tf.cast(self.input_dropout(followed, training=training), tf.float32)
        return tf.math.l2_normalize(queries, axis=1) / self.config.temperature if self.config.normalized else queries

    def _tower(self, parts: Sequence[tf.Tensor], training: bool) -> tf.Tensor:
        columns = [part if part.shape.rank == 2 else part[:, tf.newaxis] for part in parts]
        dtype = self.embeddings.compute_dtype
        activations = self.input_dropout(tf.concat([tf.cast(c, dtype) for c in columns], axis=1), training=training)
        for layer in self.hidden:
            activations = layer(activations)
        return tf.cast(activations, tf.float32)

    def class_embeddings(self, rows: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.video_tower(rows, self.video_tower.attributes_of(rows), training=training)

    def video_embeddings(self, columns: Mapping[str, tf.Tensor]) -> tf.Tensor:
        self.require_dot_products()
        return self.video_tower(columns["video"], columns)

    @property
    def video_attributes(self) -> tuple[str, ...]:
        return tuple(self.video_tower.attribute_rows)

    def start_from(self, vectors: StartVectors) -> None:
        """Sets the input and output embeddings of videos before training.

        Input embeddings of another dimension (`large_id_spaces` without `video`) start as they are.
        """
        self.video_tower.video_table.embeddings.assign(vectors.following)
        table = self.embeddings.tables.get("video")
        if table is not None and table.dimension == self.dimension:
            table.embeddings.assign(vectors.watched)

    def description(self) -> dict[str, Any]:
        """What `from_description` needs besides the specification and the weights; JSON-serialisable."""
        return {
            "config": self.config.model_dump(mode="json"),
            "vocabulary_sizes": dict(self.vocabulary_sizes),
            "attribute_shapes": {name: list(shape) for name, shape in self.video_tower.attribute_shapes.items()},
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any], spec: FeatureSpec) -> Self:
        """A model of the same shape, whose weights (attributes of the classes among them) are loaded afterwards."""
        shapes = description["attribute_shapes"]
        return cls(
            TwoTowerConfig.model_validate(description["config"]),
            spec,
            description["vocabulary_sizes"],
            {name: np.zeros(shape, np.int32) for name, shape in shapes.items()},
        )


def _size(vocabulary_sizes: Mapping[str, int], space: str) -> int:
    if space not in vocabulary_sizes:
        raise ConfigError(
            f"two-tower model: expected a vocabulary of id space {space!r}, found "
            f"{', '.join(sorted(vocabulary_sizes))}; run the analysis stage with this space"
        )
    return vocabulary_sizes[space]
