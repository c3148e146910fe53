"""Baselines of the sequence papers, over the same input, context and output as the models they are compared with.

- `BagOfWatches`: the average of all watches so far (DeepBoW of Tang et al. 2019, section 5.1; BOW of Beutel et al.
  2018, section 7.1) that are in the vocabulary, zero without any. With `last_watches` the embeddings of the last few
  are put beside the average: "a bag-of-watches, each of the last three videos watched" (BOW+Time), and DeepYouTube's
  last event and average of all (Tang et al. 2019, section 5.2), where context such as the time to the prediction is
  concatenated by `context`.
- `Caser` (Tang and Wang 2018, WSDM, without its user embeddings, as Tang et al. 2019 use it): horizontal filters over
  the last watches, each filter's largest answer kept, and vertical filters, weighted sums over the last watches.

Others need no class of their own: GRU4Rec is a latent cross model without context, RRN one with concatenated Δt, FMC a
mixture of the tiny range alone (`models/latent_cross.py`, `models/m3.py`: presets).
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import tensorflow as tf
import tf_keras
from pydantic import Field

from features.spec import FeatureSpec
from models.sequence_generator import SequenceConfig, SequenceGenerator
from models.sequence_steps import WATCHED_VIDEOS, of_last_event


class BagOfWatchesConfig(SequenceConfig):
    """Sizes, context and loss of the bag of watches."""

    kind: Literal["bag_of_watches"] = "bag_of_watches"
    last_watches: int = Field(default=0, ge=0, description="last watches that stand beside the average, each by itself")

    def state_width(self, input_width: int) -> int:
        return input_width * (1 + self.last_watches)


class BagOfWatches(SequenceGenerator):
    """See the module's text.

    Args:
      config: sizes, context and loss.
      spec, vocabulary_sizes, class_attributes: as in `SequenceGenerator`.
    """

    config: BagOfWatchesConfig
    config_type = BagOfWatchesConfig

    def states(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        inputs = self.events(features, training).inputs
        known = tf.cast(features[WATCHED_VIDEOS] != 0, tf.float32)[:, :, tf.newaxis]
        # Sums of many halves lose their last bits, so they are added up in float32.
        total = tf.cumsum(tf.cast(inputs, tf.float32) * known, axis=1)
        average = tf.math.divide_no_nan(total, tf.cumsum(known, axis=1))
        parts = [tf.cast(average, inputs.dtype)]
        parts += [shifted(inputs, steps) for steps in range(self.config.last_watches)]
        return of_last_event(tf.concat(parts, axis=-1))


class CaserConfig(SequenceConfig):
    """Sizes, context and loss of Caser."""

    kind: Literal["caser"] = "caser"
    last_watches: int = Field(default=10, ge=1, description="last watches that the filters see")
    horizontal_filters: int = Field(default=16, ge=1, description="of each height; the M3 paper tries 16, 32, 64")
    heights: tuple[int, ...] = Field(
        default=(3, 5, 7), min_length=1, description="watches that a horizontal filter spans, at most `last_watches`"
    )
    vertical_filters: int = Field(default=4, ge=1, description="the M3 paper tries 2, 4, 8")

    def state_width(self, input_width: int) -> int:
        return self.horizontal_filters * len(self._heights) + self.vertical_filters * input_width

    @property
    def _heights(self) -> tuple[int, ...]:
        return tuple(sorted({min(height, self.last_watches) for height in self.heights}))


class Caser(SequenceGenerator):
    """See the module's text. Before the first watches the filters see zeros, and where a horizontal filter lies wholly
    before them its answer is 0, whatever its bias.

    Args:
      config: sizes, context and loss.
      spec, vocabulary_sizes, class_attributes: as in `SequenceGenerator`.
    """

    config: CaserConfig
    config_type = CaserConfig

    def __init__(
        self,
        config: CaserConfig,
        spec: FeatureSpec,
        vocabulary_sizes: Mapping[str, int],
        class_attributes: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(config, spec, vocabulary_sizes, class_attributes)
        self.horizontal = []
        for height in config._heights:
            filters = tf_keras.layers.Conv1D(config.horizontal_filters, height, padding="causal", activation="relu")
            filters.build((None, None, self.input_width))
            self.horizontal.append(filters)
        self.vertical = tf_keras.layers.Dense(config.vertical_filters, use_bias=False, name="vertical")
        self.vertical.build((None, config.last_watches))
        self.built = True

    def states(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        inputs, window = self.events(features, training).inputs, self.config.last_watches
        parts = []
        for height, filters in zip(self.config._heights, self.horizontal, strict=True):
            answers = filters(inputs)
            # The largest over the places that a filter has inside the window.
            places = [shifted(answers, steps) for steps in range(window - height + 1)]
            parts.append(tf.reduce_max(tf.stack(places), axis=0))
        last = tf.stack([shifted(inputs, steps) for steps in reversed(range(window))], axis=-1)
        sums = self.vertical(last)  # [batch, L, width, filters]
        shape = tf.shape(sums)
        parts.append(tf.reshape(sums, [shape[0], shape[1], self.input_width * self.config.vertical_filters]))
        return of_last_event(tf.concat(parts, axis=-1))


def shifted(events: tf.Tensor, steps: int) -> tf.Tensor:
    """What was `steps` events earlier, zero before the first: `[batch, L, width]` -> `[batch, L, width]`."""
    if not steps:
        return events
    return tf.pad(events, [[0, 0], [steps, 0], [0, 0]])[:, :-steps]
