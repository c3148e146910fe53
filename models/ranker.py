"""The ranker: a deep network that scores impressions by watch time (Covington et al. 2016, section 4, Figure 7).

Categorical features are embedded, one table per id space shared by all its features, each fed separately; bags are
averaged; continuous features are fed as x̃, x̃², √x̃ of their cumulative distribution. A ReLU tower ends in two
logits: the odds of the weighted logistic regression, which order the list, and a click head on the same tower.

The first layer is one dense layer on the concatenation of query and impression inputs, computed as
`W_q · query + W_i · impression + b`: the query part once per request, the impression part per candidate.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow as tf
import tf_keras
from pydantic import Field

from features.errors import ConfigError
from features.quantiles import Quantiles, quantiles_as_json, quantiles_from_json
from features.settings import Settings
from features.spec import FeatureSpec, Normaliser, Side
from models.calibration import CalibrationConfig, Expectations, WatchTimeCalibration, fit_watch_time_calibration
from models.candidate_generator import WEIGHT, TrainedModel, batch_signature, replica_mean, replicas
from models.embeddings import SharedEmbeddings, embedding_dimension
from models.side_inputs import SideInputs
from models.weighted_logistic_regression import (
    LabelStatistics,
    Objective,
    click_loss,
    expected_watch_time,
    weighted_logistic_loss,
)

CLICKED = "clicked"  # label: 1 where the impression was clicked, else 0
WATCH_TIME_S = "watch_time_s"  # label: seconds, 0 where not clicked


class RankerConfig(Settings):
    """Shape, objective and regularisation of the ranker. The defaults are the paper's where it states them."""

    # Widths of the ReLU layers, first to last; empty: logistic regression on the inputs (Table 1's "None").
    hidden_units: tuple[int, ...] = (1024, 512, 256)
    # Feed x̃² and √x̃ beside x̃ (without them the paper's loss rises by 0.2%).
    powers: bool = True
    objective: Objective = Objective.WEIGHTED
    # Share of the unclicked impressions that were kept in the whole log, training and validation; 1: all.
    negative_keep_rate: float = Field(default=1.0, gt=0, le=1)
    # Weight of the click head's cross-entropy beside the watch-time loss.
    click_loss_weight: float = Field(default=1.0, ge=0)
    # Watch times above this many seconds count as this many in the loss (None: no cap); calibration removes the bias.
    watch_time_cap_s: float | None = Field(default=None, gt=0)
    # Embedding dimensions added each time a vocabulary doubles; 1.6 gives the paper's 32 for a million ids.
    embedding_dimensions_per_doubling: float = Field(default=1.6, gt=0)
    # Id space -> dimension, in place of the rule above.
    embedding_dimensions: dict[str, int] = Field(default_factory=dict)
    # Standard deviation of initial embeddings; None: 1 / sqrt(dimension). Small, so that rare ids start near
    # out-of-vocabulary and not at noise: on KuaiRand 0.02 in place of None raises click AUC by 0.007.
    embedding_stddev: float | None = Field(default=0.02, ge=0)
    # Share of ids that training replaces by out-of-vocabulary, each by itself, so that no id is relied on alone.
    id_dropout: float = Field(default=0.0, ge=0, lt=1)
    # Share of hidden units dropped after each ReLU layer in training.
    dropout: float = Field(default=0.0, ge=0, lt=1)
    # Weight of the squared dense weights in the training loss.
    l2: float = Field(default=0.0, ge=0)
    # Weight of the mean squared length of the embeddings that a batch uses in the training loss.
    embedding_l2: float = Field(default=0.0, ge=0)
    # The odds are clipped to e^±this when serving: e^12 s is 45 hours.
    max_log_odds: float = Field(default=12.0, gt=0)
    calibration: CalibrationConfig = CalibrationConfig()


class RankerOutput(NamedTuple):
    """The two logits of each impression, float32 `[batch]` or `[batch, candidates]`."""

    logit: tf.Tensor
    click_logit: tf.Tensor


class RankerPrediction(NamedTuple):
    """What is served for each impression, float32 like the logits.

    `score`: the odds `exp(logit)`, which order the list; `click_probability`; `expected_watch_time_s`: calibrated
    seconds per impression.
    """

    score: tf.Tensor
    click_probability: tf.Tensor
    expected_watch_time_s: tf.Tensor


class Ranker(TrainedModel):
    """The ranking network of Covington et al. 2016, section 4.

    A batch is a dict: the features of the spec (univalent rows `[batch]` int32, multivalent rows `[batch, length]`
    int32 padded with 0, continuous `[batch]` float32 with NaN for missing), and for training `clicked` and
    `watch_time_s` `[batch]` float32 and optionally `weight` `[batch]` float32. When serving, impression features have
    one more axis after the first: `[batch, candidates]`, `[batch, candidates, length]`.

    Args:
      config: see `RankerConfig`.
      spec: the features, of both sides.
      vocabulary_sizes: id space -> number of ids.
      quantiles: feature name -> its quantiles, for every feature of `Normaliser.QUANTILE`.
      labels: sums over the training impressions; they set the loss's scale and the heads' initial bias.
    """

    def __init__(
        self,
        config: RankerConfig,
        spec: FeatureSpec,
        vocabulary_sizes: Mapping[str, int],
        quantiles: Mapping[str, Quantiles],
        labels: LabelStatistics,
    ) -> None:
        super().__init__(name="ranker", autocast=False)
        if not spec.side(Side.IMPRESSION):
            raise ConfigError("the ranker needs at least one impression feature; found query features only")
        _require("a vocabulary of id space", spec.id_spaces, vocabulary_sizes)
        normalised = [f.name for f in spec.features if f.normaliser == Normaliser.QUANTILE]
        _require("quantiles of feature", normalised, quantiles)
        self.config = config
        self.spec = spec
        self.labels = labels
        description = {
            "config": config.model_dump(mode="json"),
            "vocabulary_sizes": {space: vocabulary_sizes[space] for space in spec.id_spaces},
            "quantiles": quantiles_as_json({name: quantiles[name] for name in normalised}),
            "labels": asdict(labels),
        }
        self._description = json.dumps(description)  # Keras would wrap a dict
        dimensions = {
            space: config.embedding_dimensions.get(space)
            or embedding_dimension(vocabulary_sizes[space], config.embedding_dimensions_per_doubling)
            for space in spec.id_spaces
        }
        self.embeddings = SharedEmbeddings(vocabulary_sizes, dimensions, stddev=config.embedding_stddev)
        self.query_inputs, self.impression_inputs = (
            SideInputs(
                spec.side(side),
                self.embeddings,
                quantiles,
                powers=config.powers,
                id_dropout=config.id_dropout,
                embedding_l2=config.embedding_l2,
                name=f"{side}_inputs",
            )
            for side in (Side.QUERY, Side.IMPRESSION)
        )
        prior = tf_keras.initializers.Constant([labels.prior_logit(config.objective), labels.prior_click_logit()])
        first = config.hidden_units[0] if config.hidden_units else 2
        bias = "zeros" if config.hidden_units else prior
        dtype = None if config.hidden_units else "float32"  # the logits are never computed in half precision
        fan_in = self.query_inputs.width + self.impression_inputs.width
        self.query_dense = _dense(first, self.query_inputs.width, "query_dense", None, dtype, fan_in)
        self.impression_dense = _dense(first, self.impression_inputs.width, "impression_dense", None, dtype, fan_in)
        self.first_bias = Bias(first, bias, name="first_bias", dtype=dtype)
        self.hidden = [
            _dense(units, below, f"hidden_{depth}")
            for depth, (below, units) in enumerate(pairwise(config.hidden_units), start=2)
        ]
        self.heads = _dense(2, config.hidden_units[-1], "heads", prior, "float32") if config.hidden_units else None
        self.drop = tf_keras.layers.Dropout(config.dropout)
        self.calibration = WatchTimeCalibration(config.calibration.bins)
        self.watch_time_loss = tf_keras.metrics.Mean("watch_time_loss")
        self.click_loss = tf_keras.metrics.Mean("click_loss")
        self.click_auc = tf_keras.metrics.AUC(name="click_auc", from_logits=True)

    def query_activations(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The query's part of the first layer, once per request: `[batch]` features -> `[batch, units]`, no bias."""
        return self.query_dense(self.query_inputs(features, training=training))

    def score(
        self, query_activations: tf.Tensor, features: Mapping[str, tf.Tensor], training: bool = False
    ) -> RankerOutput:
        """The logits of impressions.

        Args:
          query_activations: `[batch, units]` of `query_activations`.
          features: impression features, `[batch]` or `[batch, candidates]` (bags have one more axis).
          training: whether dropout is applied.
        """
        activations = self.impression_dense(self.impression_inputs(features, training=training))
        if activations.shape.rank == 3:
            query_activations = query_activations[:, tf.newaxis, :]
        logits = self.first_bias(query_activations + activations)
        if self.heads is not None:
            activations = self.drop(tf.nn.relu(logits), training=training)
            for layer in self.hidden:
                activations = self.drop(tf.nn.relu(layer(activations)), training=training)
            logits = self.heads(activations)
        logits = tf.cast(logits, tf.float32)
        return RankerOutput(logits[..., 0], logits[..., 1])

    def call(self, features: Mapping[str, tf.Tensor], training: bool = False) -> RankerOutput:
        """Both sides at once: the logits of each impression of a batch."""
        return self.score(self.query_activations(features, training=training), features, training=training)

    @cached_property
    def infer(self) -> Callable[[Mapping[str, Any]], RankerOutput]:
        """The logits by the present weights as a graph, which is traced once for batches of any size."""
        names = [feature.name for feature in self.spec.features]
        graph = tf.function(lambda batch: self(batch), [batch_signature(self.spec.features)], autograph=False)
        return lambda batch: graph({name: batch[name] for name in names})

    def predictions(self, output: RankerOutput) -> RankerPrediction:
        """What is served for the logits: see `RankerPrediction`."""
        return RankerPrediction(
            score=tf.exp(self._clipped(output.logit)),
            click_probability=tf.sigmoid(output.click_logit),
            expected_watch_time_s=self.calibration(self.raw_expected_watch_time_s(output)),
        )

    def raw_expected_watch_time_s(self, output: RankerOutput) -> tf.Tensor:
        """Seconds per impression before calibration, like the logits."""
        labels = self.labels
        return expected_watch_time(
            self._clipped(output.logit),
            output.click_logit,
            self.config.objective,
            labels.watch_time_s / labels.clicks,
        )

    def _clipped(self, logit: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(logit, -self.config.max_log_odds, self.config.max_log_odds)

    @tf.autograph.experimental.do_not_convert  # converting it takes longer than tracing it
    def compute_loss(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Mean of the weighted logistic loss and the click head's; in training also the penalty on dense weights."""
        config = self.config
        clicked = tf.cast(inputs[CLICKED], tf.float32)
        weight = tf.cast(inputs[WEIGHT], tf.float32) if WEIGHT in inputs else tf.ones_like(clicked)
        output = self(inputs, training=training)
        watch, click = self.impression_losses(output, inputs)
        self.watch_time_loss.update_state(watch, sample_weight=weight)
        self.click_loss.update_state(click, sample_weight=weight)
        self.click_auc.update_state(clicked, output.click_logit, sample_weight=weight)
        loss = replica_mean(watch + config.click_loss_weight * click, weight)
        if training and config.l2:
            dense = (self.query_dense, self.impression_dense, *self.hidden, *([self.heads] if self.heads else []))
            loss += config.l2 * tf.add_n([tf.nn.l2_loss(layer.kernel) * 2 for layer in dense]) / replicas()
        return loss

    def impression_losses(self, output: RankerOutput, inputs: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """The weighted logistic loss, scaled to a mean weight of one, and the click head's, of each impression."""
        config = self.config
        clicked = tf.cast(inputs[CLICKED], tf.float32)
        watch_time_s = tf.cast(inputs[WATCH_TIME_S], tf.float32)
        if config.watch_time_cap_s:
            watch_time_s = tf.minimum(watch_time_s, config.watch_time_cap_s)
        watch = weighted_logistic_loss(
            output.logit, clicked, watch_time_s, config.objective, config.negative_keep_rate
        ) / self.labels.mean_weight(config.objective)
        return watch, click_loss(output.click_logit, clicked, config.negative_keep_rate)

    def description(self) -> dict[str, Any]:
        """What `from_description` needs besides the specification and the weights; JSON-serialisable."""
        return json.loads(self._description)

    @classmethod
    def from_description(cls, description: Mapping[str, Any], spec: FeatureSpec) -> Self:
        """A ranker of the same shape, whose weights (the calibration among them) are loaded afterwards."""
        return cls(
            RankerConfig.model_validate(description["config"]),
            spec,
            description["vocabulary_sizes"],
            quantiles_from_json(description["quantiles"]),
            LabelStatistics(**description["labels"]),
        )

    def expectations(self, batches: Iterable[Mapping[str, tf.Tensor]]) -> Expectations:
        """Raw expectations of labelled batches, with what happened."""
        columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for batch in batches:
            clicked = np.asarray(batch[CLICKED])
            weight = np.asarray(batch[WEIGHT]) if WEIGHT in batch else np.ones_like(clicked)
            weight = weight * np.where(clicked > 0, 1, 1 / self.config.negative_keep_rate)
            raw_s = self.raw_expected_watch_time_s(self.infer(batch)).numpy()
            columns.append((raw_s, np.where(clicked > 0, batch[WATCH_TIME_S], 0.0), weight))
        return Expectations(*(np.concatenate(column) for column in zip(*columns, strict=True)))

    def calibrate(self, expectations: Expectations) -> None:
        """Fits the calibration of expected watch time.

        Args:
          expectations: of impressions the ranker was not trained on; or those of a ranker that was not, brought to
            this one's level by `models.calibration.at_equal_rank`.

        Raises:
          DataError: there is no watch time in them, or the ranker diverged.
        """
        points = fit_watch_time_calibration(
            expectations.raw_s, expectations.watch_time_s, self.config.calibration, expectations.weight
        )
        self.calibration.assign(points)


def _require(what: str, names: Iterable[str], found: Mapping[str, Any]) -> None:
    for name in names:
        if name not in found:
            raise ConfigError(
                f"ranker: expected {what} {name!r}, found {', '.join(sorted(found)) or 'none'}; run the earlier stages"
            )


class Bias(tf_keras.layers.Layer):
    """Added once products are summed: TensorFlow 2.20 with oneDNN cannot fuse a product, its bias, a sum and a ReLU."""

    def __init__(self, units: int, initializer: str | tf_keras.initializers.Initializer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bias = self.add_weight("bias", (units,), initializer=initializer)
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.bias_add(inputs, self.bias)


def _dense(
    units: int,
    inputs: int,
    name: str,
    bias: str | tf_keras.initializers.Initializer | None = "zeros",
    dtype: str | None = None,
    fan_in: int | None = None,
) -> tf_keras.layers.Dense:
    """A linear layer, built at once so that weights can be loaded before the first call.

    `fan_in` is the number of inputs that share the layer's output, where these are only some of them: Glorot's bound
    is that of the whole.
    """
    bound = math.sqrt(6 / ((fan_in or inputs) + units))
    layer = tf_keras.layers.Dense(
        units,
        kernel_initializer=tf_keras.initializers.RandomUniform(-bound, bound),
        bias_initializer=bias,
        use_bias=bias is not None,
        name=name,
        dtype=dtype,
    )
    layer.build((None, inputs))
    return layer
