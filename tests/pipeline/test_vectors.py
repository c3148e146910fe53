"""Vectors of all videos of the catalogue, as they are exported and evaluated."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from features.encoding import Encoder
from features.event_windows import ORDER_ONLY
from features.example_reader import ExampleSet
from features.history import VideoTable
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from features.splits import Part, Split
from features.vocabulary import Vocabulary
from models.latent_cross import LatentCross, LatentCrossConfig
from models.new_videos import attribute_design, expected_vectors
from models.sampled_softmax import Loss
from models.two_tower import TwoTower, TwoTowerConfig
from pipeline.vectors import catalogue_vectors, label_counts, represented, trained_vectors
from tests.pipeline.synthetic_examples import publish_examples

DAY_US = 86_400_000_000
T0_US = 100 * DAY_US
SPLIT = Split(T0_US - 4 * DAY_US, T0_US - 4 * DAY_US, T0_US, T0_US, 0.0, 0, True)
WATCHED = Feature("watched_video_ids", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", 4)
UPLOADER = Feature("uploader", Kind.CATEGORICAL, Side.IMPRESSION, "videos.uploader_id", "uploader")
SPEC = FeatureSpec((WATCHED, UPLOADER))
COUNT = Feature("watch_count", Kind.CONTINUOUS, Side.QUERY, "history.watch_count", normaliser=Normaliser.SCALE)
COUNTS = np.array([8, 2])
UPLOADERS = [1, 2, 2, 2, 0, 2]  # the third of its videos is new, the others without a class are not
UPLOADED_US = [0, T0_US, T0_US - DAY_US, T0_US - DAY_US - 1, T0_US, ORDER_ONLY]


def encoder(upload_us: list[int] | None) -> Encoder:
    catalogue = pa.table(
        {
            "video_id": [f"v{i}" for i in range(6)],
            "video": pa.array([1, 2, 0, 0, 0, 0], pa.int32()),
            "uploader_id": pa.array(UPLOADERS, pa.int32()),
        }
    )
    vocabularies = {
        "video": Vocabulary(pa.array(["v0", "v1"]), COUNTS),
        "uploader": Vocabulary(pa.array(["a", "b"]), COUNTS),
    }
    rows = {"video": np.array([1, 2, 0, 0, 0, 0, 0], np.int32)}
    times = None if upload_us is None else np.array([*upload_us, ORDER_ONLY])
    return Encoder(vocabularies, catalogue, VideoTable(rows, upload_us=times))


@pytest.fixture
def examples(tmp_path: Path) -> ExampleSet:
    """The first video was a label eight times, the second twice."""
    labels = np.repeat(np.array([1, 2], np.int32), COUNTS)
    table = pa.table({"label": labels, "watched_video_ids": pa.array([[1]] * len(labels), pa.list_(pa.int32()))})
    return publish_examples(tmp_path / "trained_on", {Part.TRAIN: table}, FeatureSpec((WATCHED,)))


@pytest.fixture
def generator() -> TwoTower:
    config = TwoTowerConfig(dimension=4, depth=0)
    return TwoTower(config, SPEC, {"video": 2, "uploader": 2}, {"uploader": np.array([0, *UPLOADERS[:2]])})


def expected_of_the_second_uploader(classes: np.ndarray) -> np.ndarray:
    design = attribute_design({"uploader": np.array([*UPLOADERS[:2], 2])}, {"uploader": "uploader"}, {"uploader": 2})
    return expected_vectors(classes, design[:2], COUNTS, design[2:])[0]


def test_a_video_that_had_no_time_to_be_watched_gets_what_its_attributes_let_expect(
    generator: TwoTower, examples: ExampleSet
) -> None:
    vectors = catalogue_vectors(generator, encoder(UPLOADED_US), SPLIT, examples)
    classes = generator.class_embeddings(tf.constant([1, 2])).numpy()
    of_uploader = generator.video_tower.attribute_tables["uploader"].embeddings.numpy()
    np.testing.assert_allclose(vectors[:2], classes, rtol=1e-6)
    np.testing.assert_allclose(vectors[2], expected_of_the_second_uploader(classes), rtol=1e-6)
    # Uploaded before, or nobody knows when: not watched for want of interest.
    np.testing.assert_allclose(vectors[[3, 5]], of_uploader[[2, 2]], rtol=1e-6)
    assert represented(vectors).tolist() == [True, True, True, True, False, True]


def test_without_upload_times_no_video_is_new(generator: TwoTower, examples: ExampleSet) -> None:
    of_uploader = generator.video_tower.attribute_tables["uploader"].embeddings.numpy()
    vectors = catalogue_vectors(generator, encoder(None), SPLIT, examples)
    np.testing.assert_allclose(vectors[2:], of_uploader[[2, 2, 0, 2]] * [[1], [1], [0], [1]], rtol=1e-6)


def test_videos_have_the_vectors_of_their_classes_alone_where_the_model_has_no_attributes(examples: ExampleSet) -> None:
    alone = TwoTower(TwoTowerConfig(dimension=4, depth=0), SPEC, {"video": 2, "uploader": 2})
    vectors = catalogue_vectors(alone, encoder(UPLOADED_US), SPLIT, examples)
    assert represented(vectors).tolist() == [True, True, False, False, False, False]


def test_a_sequence_model_answers_new_videos_and_no_other_it_has_not_met(examples: ExampleSet) -> None:
    config = LatentCrossConfig(dimension=4, units=4, loss=Loss.FULL)
    model = LatentCross(config, FeatureSpec((WATCHED, COUNT, UPLOADER)), {"video": 2, "uploader": 2})
    vectors = catalogue_vectors(model, encoder(UPLOADED_US), SPLIT, examples)
    classes = model.class_embeddings(tf.constant([1, 2])).numpy()
    np.testing.assert_allclose(vectors[:2], classes, rtol=1e-6)
    np.testing.assert_allclose(vectors[2], expected_of_the_second_uploader(classes), rtol=1e-6)
    assert represented(vectors).tolist() == [True, True, True, False, False, False]
    # As in the papers it has vectors of its vocabulary alone, and its tower reads no attribute.
    assert represented(trained_vectors(model, encoder(UPLOADED_US))).tolist() == [True, True] + [False] * 4
    assert model.query_inputs == (WATCHED, COUNT)


@pytest.mark.parametrize("of_sequences", [False, True])
def test_labels_are_counted_in_what_is_trained_on(tmp_path: Path, of_sequences: bool) -> None:
    """Of training 3 and 3, of validation 1 and one out of vocabulary; within the first sequence 1 and 2."""
    rows = {"watched_video_ids": pa.array([[1, 0, 1, 2], [3]], pa.list_(pa.int32()))}
    weights = pa.array([[0.0, 1.0, 1.0, 1.0], [0.0]], pa.list_(pa.float32()))
    parts = {
        part: pa.table({**rows, "label": pa.array(labels, pa.int32())})
        for part, labels in ((Part.TRAIN, [3, 3]), (Part.VALIDATION, [1, 0]))
    }
    if of_sequences:
        none = pa.array([[0.0] * 4, [0.0]], weights.type)
        parts = {p: t.append_column("label_weights", weights if p == Part.TRAIN else none) for p, t in parts.items()}
    examples = publish_examples(tmp_path / "examples", parts, FeatureSpec((WATCHED,)))
    trained = [1, 1, 2, 0] if of_sequences else [0, 0, 2, 0]
    assert label_counts(examples, replace(SPLIT, refit=False), 4).tolist() == trained
    assert label_counts(examples, SPLIT, 4).tolist() == [trained[0] + 1, *trained[1:]]
