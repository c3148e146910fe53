"""A small platform made by hand: 40 videos, two trained-looking models with random weights, stored examples."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import tensorflow as tf

from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from models.ranker import Ranker, RankerConfig
from models.two_tower import TwoTower, TwoTowerConfig
from models.weighted_logistic_regression import LabelStatistics
from serving.export import ExportConfig, VideoVectors
from serving.index_recall import RecallConfig
from serving.retrieval import RetrievalConfig
from serving.stored_examples import StoredExamples

VIDEOS = np.array(["видео 1", "a b", "🎬", *(f"v{i}" for i in range(37))], dtype=object)
REGIONS = ["NO", "SE"]

WATCHED = Feature("watched_video_ids", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", 4)
REGION = Feature("region", Kind.CATEGORICAL, Side.QUERY, "users.region", "region")
AGE = Feature(
    "example_age",
    Kind.CONTINUOUS,
    Side.QUERY,
    "request.example_age",
    normaliser=Normaliser.SCALE,
    high=100.0,
    serving_value=0.0,
)
HOURS = Feature("hours", Kind.CONTINUOUS, Side.QUERY, "users.hours", normaliser=Normaliser.SCALE, high=10.0)
VIDEO = Feature("video_id", Kind.CATEGORICAL, Side.IMPRESSION, "videos.video_id", "video")

GENERATOR_SPEC = FeatureSpec((WATCHED, REGION, AGE))
RANKER_SPEC = FeatureSpec((WATCHED, HOURS, VIDEO))


class HandMadeFeatures(tf.Module):
    """Looks ids up in the tables above; enough of a transform to export with."""

    INPUTS: Mapping[str, tf.TensorSpec] = {
        "watched_video_ids": tf.TensorSpec([None, None], tf.string),
        "region": tf.TensorSpec([None], tf.string),
        "hours": tf.TensorSpec([None], tf.float32),
        "candidate_ids": tf.TensorSpec([None, None], tf.string),
    }
    NEEDS: Mapping[str, str] = {"video_id": "candidate_ids"}

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.spec = spec
        self.videos = _rows(VIDEOS.tolist())
        self.regions = _rows(REGIONS)

    @property
    def input_specs(self) -> dict[str, tf.TensorSpec]:
        names = [self.NEEDS.get(f.name, f.name) for f in self.spec.features if f.serving_value is None]
        return {name: self.INPUTS[name] for name in names}

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        batch = tf.shape(raw["watched_video_ids"])[0]
        values = {
            "watched_video_ids": lambda: self.videos.lookup(raw["watched_video_ids"])[:, :4],
            "region": lambda: self.regions.lookup(raw["region"]),
            "example_age": lambda: tf.zeros([batch]),
            "hours": lambda: raw["hours"],
            "video_id": lambda: self.videos.lookup(raw["candidate_ids"]),
        }
        return {feature.name: values[feature.name]() for feature in self.spec.features}


def _rows(ids: list[str]) -> tf.lookup.StaticHashTable:
    rows = tf.range(1, len(ids) + 1)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant(ids), rows), 0)


@pytest.fixture(scope="session")
def generator() -> TwoTower:
    tf.keras.utils.set_random_seed(1)
    return TwoTower(TwoTowerConfig(dimension=8, depth=1), GENERATOR_SPEC, {"video": len(VIDEOS), "region": 2})


@pytest.fixture(scope="session")
def ranker() -> Ranker:
    tf.keras.utils.set_random_seed(2)
    return Ranker(
        RankerConfig(hidden_units=(8,)), RANKER_SPEC, {"video": len(VIDEOS)}, {}, LabelStatistics(100, 20, 1000)
    )


@pytest.fixture(scope="session")
def videos(generator: TwoTower) -> VideoVectors:
    """All videos but the third, which is not available."""
    vectors = generator.video_embeddings({"video": tf.range(1, len(VIDEOS) + 1)}).numpy()
    available = np.arange(len(VIDEOS)) != 2
    return VideoVectors(VIDEOS, vectors, np.arange(len(VIDEOS))[::-1], available)


@pytest.fixture(scope="session")
def export_config() -> ExportConfig:
    return ExportConfig(
        retrieval=RetrievalConfig(k=10), recall=RecallConfig(k=10, min_hits=1), warmup_batch_sizes=(1, 2)
    )


@pytest.fixture(scope="session")
def generator_examples() -> StoredExamples:
    return StoredExamples(
        descriptions=["user 'a'", "user 'b'", "user 'c'"],
        inputs={
            "watched_video_ids": np.array([["видео 1", "v3"], ["", ""], ["unknown", "a b"]], object),
            "region": np.array(["SE", "", "NO"], object),
        },
        features={
            "watched_video_ids": np.array([[1, 7, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]], np.int32),
            "region": np.array([2, 0, 1], np.int32),
        },
    )


@pytest.fixture(scope="session")
def ranker_examples() -> StoredExamples:
    return StoredExamples(
        descriptions=["user 'a', video 'v0'", "user 'b', video 'unknown'"],
        inputs={
            "watched_video_ids": np.array([["a b"], [""]], object),
            "hours": np.array([2.5, np.nan], np.float32),
            "candidate_ids": np.array([["v0"], ["unknown"]], object),
        },
        features={
            "watched_video_ids": np.array([[2, 0, 0, 0], [0, 0, 0, 0]], np.int32),
            "hours": np.array([2.5, np.nan], np.float32),
            "video_id": np.array([[4], [0]], np.int32),
        },
    )


def with_feature(examples: StoredExamples, name: str, value: np.ndarray) -> StoredExamples:
    """The examples with one stored feature replaced."""
    return dataclasses.replace(examples, features={**examples.features, name: value})
