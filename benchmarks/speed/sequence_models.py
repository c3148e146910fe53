"""The sequence models and batches that `sequence_step.py` times."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import tensorflow as tf
import tf_keras

from benchmarks.speed.training_models import bare_step, with_negatives, zipf_rows
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from models.candidate_generator import LABEL, WEIGHT
from models.latent_cross import LatentCross, LatentCrossConfig
from models.m3 import M3, M3Config
from models.range_encoders import Short
from models.sequence_generator import LABEL_WEIGHTS, SequenceGenerator, attach_step_labels
from models.sequence_steps import WATCH_COUNT, WATCHED_VIDEOS


@dataclass(frozen=True)
class SequenceSizes:
    """Of a sequence model and its batch; every watch is predicted from those before it.

    Args:
      videos: of the vocabulary.
      embedding: dimension of the embeddings of watched videos.
      units: of the layer below the encoder, and of the encoder.
      dimension: of query and video vectors.
      length, batch: of full histories.
      sampled: negatives.
    """

    videos: int = 500_000
    embedding: int = 64
    units: int = 256
    dimension: int = 256
    length: int = 100
    batch: int = 128
    sampled: int = 2_000

    def with_videos(self, videos: int) -> Self:
        return replace(self, videos=videos)

    def with_sampled(self, sampled: int) -> Self:
        return replace(self, sampled=sampled)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sequence_spec(length: int) -> FeatureSpec:
    """Watched videos and their number."""
    videos = Feature(WATCHED_VIDEOS, Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", length)
    scale = Normaliser.SCALE
    count = Feature(WATCH_COUNT, Kind.CONTINUOUS, Side.QUERY, "history.watch_count", normaliser=scale, high=1.0)
    return FeatureSpec((videos, count))


def gru(sizes: SequenceSizes) -> LatentCross:
    """ReLU layer, GRU, ReLU layer; no context."""
    config = LatentCrossConfig(
        dimension=sizes.dimension,
        embedding_dimension=sizes.embedding,
        input_widths=(sizes.units,),
        units=sizes.units,
        output_widths=(sizes.dimension,),
    )
    return LatentCross(config, sequence_spec(sizes.length), {"video": sizes.videos})


def m3(sizes: SequenceSizes, short: Short) -> M3:
    """The same with three ranges and gates in the place of the GRU."""
    config = M3Config(
        dimension=sizes.dimension,
        embedding_dimension=sizes.embedding,
        input_widths=(sizes.units,),
        encoder_dimension=sizes.units,
        short=short,
        output_widths=(sizes.dimension,),
    )
    return M3(config, sequence_spec(sizes.length), {"video": sizes.videos})


def sequence_batch(sizes: SequenceSizes, drawn_from: int | None = None) -> dict[str, tf.Tensor]:
    """A batch of full histories, with what each step predicts and with negatives drawn log-uniformly.

    Args:
      sizes: of the batch and the vocabulary.
      drawn_from: watches and labels are so many different videos at most, spread evenly over the table; None: all.
    """
    random = np.random.default_rng(0)
    drawn = drawn_from or sizes.videos
    events = zipf_rows(random, drawn, (sizes.batch, sizes.length + 1)) * (sizes.videos // drawn)
    batch = {
        WATCHED_VIDEOS: events[:, :-1],
        WATCH_COUNT: np.full(sizes.batch, sizes.length, np.float32),
        LABEL: events[:, -1],
        WEIGHT: np.ones(sizes.batch, np.float32),
        LABEL_WEIGHTS: np.ones((sizes.batch, sizes.length), np.float32),
    }
    steps = attach_step_labels({name: tf.constant(values) for name, values in batch.items()})
    return with_negatives(steps, sizes.videos, sizes.sampled)


def sequence_step(model: SequenceGenerator, batch: dict[str, tf.Tensor]) -> Callable[[], object]:
    """A compiled model's training step, with Adagrad."""
    model.compile(tf_keras.optimizers.Adagrad(0.1, jit_compile=False))
    return bare_step(model, batch)
