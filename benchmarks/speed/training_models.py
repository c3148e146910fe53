"""The models, batches and steps that `training_step.py` times."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import tensorflow as tf
import tf_keras

from features.feature_lists import FeatureListConfig, default_candidate_features
from features.spec import FeatureSpec, Kind, Side
from models.candidate_generator import LABEL, WEIGHT, CandidateGenerator
from models.embeddings import EmbeddingTable
from models.sampled_softmax import SampledSoftmax
from models.samplers import (
    Distribution,
    NegativeSamplerConfig,
    attach_negatives,
    make_sampler,
)
from models.two_tower import TwoTower, TwoTowerConfig

COLUMNS = {"watches": ("user_id", "video_id", "timestamp"), "searches": ("user_id", "timestamp", "query")}
"""What the specification of the timed models is made of: bags of watches and of search tokens, example age."""


@dataclass(frozen=True)
class SoftmaxSizes:
    """Of the sampled softmax alone."""

    videos: int
    batch: int
    dimension: int

    def batch_of(self, sampled: int) -> dict[str, tf.Tensor]:
        """Queries, and labels and negatives drawn log-uniformly, so that some negatives are labels."""
        random = np.random.default_rng(0)
        labels = tf.constant(zipf_rows(random, self.videos, self.batch))
        queries = tf.constant(random.normal(size=(self.batch, self.dimension)), tf.float32)
        return with_negatives({"queries": queries, LABEL: labels}, self.videos, sampled)

    def as_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class TowerSizes:
    """Of a two-tower model and its batch."""

    videos: int = 1_000_000
    tokens: int = 100_000
    dimension: int = 64
    widths: tuple[int, ...] = (128, 64)
    length: int = 50
    batch: int = 1024
    sampled: int = 2_000

    def with_videos(self, videos: int) -> Self:
        return replace(self, videos=videos)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def zipf_rows(random: np.random.Generator, videos: int, size: int | tuple[int, ...]) -> np.ndarray:
    """int32 rows in 1 to `videos`, P(row) close to proportional to 1 / row."""
    return np.minimum(np.exp(random.random(size) * np.log(videos + 1)).astype(np.int32), videos)


def with_negatives(batch: Mapping[str, tf.Tensor], videos: int, sampled: int) -> dict[str, tf.Tensor]:
    config = NegativeSamplerConfig(distribution=Distribution.LOG_UNIFORM, num_sampled=sampled)
    return attach_negatives(make_sampler(config, np.ones(videos), seed=0))(batch)


class _Videos(CandidateGenerator):
    """Video vectors without a query tower."""

    def __init__(self, sizes: SoftmaxSizes) -> None:
        super().__init__(FeatureSpec(()), sizes.videos, sizes.dimension, SampledSoftmax())
        self.table = EmbeddingTable(sizes.videos, sizes.dimension)

    def class_embeddings(self, rows: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.table(rows)


def video_generator(sizes: SoftmaxSizes) -> _Videos:
    """The same vectors each time."""
    tf_keras.utils.set_random_seed(0)
    return _Videos(sizes)


def tower_spec(length: int) -> FeatureSpec:
    without = ("recent_watched_video_ids",)  # the paper's inputs, which the peer's model has too
    lists = FeatureListConfig(watch_window=length, max_watched_videos=length, max_search_tokens=length, without=without)
    return default_candidate_features(COLUMNS, lists).spec


def two_tower(sizes: TowerSizes) -> TwoTower:
    """The model without attributes of videos."""
    config = TwoTowerConfig(dimension=sizes.dimension, depth=len(sizes.widths), widths=sizes.widths)
    vocabularies = {"video": sizes.videos, "search_token": sizes.tokens}
    return TwoTower(config, tower_spec(sizes.length), vocabularies)


def tower_batch(sizes: TowerSizes, spec: FeatureSpec, drawn_from: int | None = None) -> dict[str, tf.Tensor]:
    """A full batch: bags of greatest length, labels and negatives log-uniform.

    Args:
      sizes: of the batch and the vocabularies.
      spec: the model's features.
      drawn_from: watches and labels are so many different videos at most, spread evenly over the table; None: all.
    """
    random = np.random.default_rng(0)
    drawn = drawn_from or sizes.videos
    stride = sizes.videos // drawn
    batch: dict[str, tf.Tensor] = {}
    for feature in spec.side(Side.QUERY):
        if feature.kind == Kind.CONTINUOUS:
            batch[feature.name] = tf.constant(random.random(sizes.batch), tf.float32)
        else:
            shape = (sizes.batch, sizes.length)
            videos = feature.id_space == "video"
            rows = zipf_rows(random, drawn, shape) * stride if videos else zipf_rows(random, sizes.tokens, shape)
            batch[feature.name] = tf.constant(rows)
    labels = zipf_rows(random, drawn, sizes.batch) * stride
    batch |= {LABEL: tf.constant(labels), WEIGHT: tf.ones(sizes.batch)}
    return with_negatives(batch, sizes.videos, sizes.sampled)


def bare_step(model: tf_keras.Model, batch: Mapping[str, tf.Tensor]) -> Callable[[], object]:
    """One step of Keras's own training function on a batch that is in memory."""
    function = model.make_train_function()
    endless = iter(tf.data.Dataset.from_tensors(dict(batch)).repeat())
    return lambda: tf.nest.map_structure(lambda value: value.numpy(), function(endless))


def compiled_tower(sizes: TowerSizes) -> TwoTower:
    model = two_tower(sizes)
    model.compile(tf_keras.optimizers.Adagrad(0.1, jit_compile=False))
    return model


def two_tower_step(sizes: TowerSizes) -> Callable[[], object]:
    """A compiled model's training step."""
    model = compiled_tower(sizes)
    return bare_step(model, tower_batch(sizes, model.spec))
