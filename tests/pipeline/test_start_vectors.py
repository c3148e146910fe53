"""What starting vectors are factorized from."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.candidate_examples import SEQUENCE
from features.spec import Feature, FeatureSpec, Kind, Side
from features.splits import Part
from models.candidate_generator import LABEL
from models.sequence_generator import LABEL_WEIGHTS
from pipeline.config import GeneratorConfig
from pipeline.model_stages import co_watched_clusters
from pipeline.start_vectors import start_vectors, watched_sequences
from tests.pipeline.synthetic_examples import publish_examples

WATCHED = Feature(SEQUENCE, Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", 5)


def history_table(users: list[str], times: list[int], histories: list[list[int]], labels: list[int]) -> pa.Table:
    columns = {
        "user_id": pa.array(users),
        "label_timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
        SEQUENCE: pa.array(histories, pa.list_(pa.int32())),
        LABEL: pa.array(labels, pa.int32()),
    }
    return pa.table(columns)


def test_transitions_within_a_history_count_once_for_each_user() -> None:
    table = history_table(["u", "v", "u"], [20, 5, 10], [[1, 2, 3], [], [1, 2]], [4, 5, 3])
    rows, lengths, counted = watched_sequences(table)
    assert (rows.tolist(), lengths.tolist()) == ([1, 2, 3, 4, 5, 1, 2, 3], [4, 1, 3])
    assert counted.tolist() == [False, False, False, True, True, True, True, True]


def test_labels_within_a_sequence_are_counted_where_they_have_a_weight() -> None:
    table = history_table(["u", "u"], [10, 20], [[1, 2], [2, 3, 4]], [3, 5])
    weights = pa.array([[0.0, 1.0], [0.0, 0.0, 1.0]], pa.list_(pa.float32()))
    rows, lengths, counted = watched_sequences(table.append_column(LABEL_WEIGHTS, weights))
    assert (rows.tolist(), lengths.tolist()) == ([1, 2, 3, 2, 3, 4, 5], [3, 4])
    assert counted.tolist() == [True, True, True, False, False, True, True]


@pytest.mark.parametrize("start", ["transition_start", "co_watch_start"])
def test_only_the_first_examples_are_counted(tmp_path: Path, start: str) -> None:
    table = history_table(["u", "v", "w"], [1, 2, 3], [[1, 2], [3, 4], [5, 6]], [2, 4, 6])
    examples = publish_examples(tmp_path / "s", {Part.TRAIN: table}, FeatureSpec((WATCHED,)), "candidate_generator", 1)
    told: list[str] = []
    for most, seen in ((2, [1, 2, 3, 4]), (3, [1, 2, 3, 4, 5, 6])):
        model = {"kind": "two_tower", "dimension": 4, "depth": 0}
        config = GeneratorConfig.model_validate({"model": model, start: {"max_examples": most}})
        found = start_vectors(examples, (Part.TRAIN,), 6, config, told.append)
        assert found is not None
        assert set(np.flatnonzero(found.watched.any(axis=1))) <= set(seen)
        assert found.watched[seen[-1]].any() or found.following[seen[-1]].any()
    assert len(told) == 2


@pytest.mark.parametrize("start", ["transition_start", "co_watch_start"])
def test_videos_first_watched_in_the_validation_days_start_as_the_others_where_these_are_trained_on(
    tmp_path: Path, start: str
) -> None:
    train = history_table(["u", "v"], [1, 2], [[1, 2], [2, 3]], [3, 1])
    late = history_table(["u", "v"], [5, 6], [[1, 2, 3], [2, 3, 1]], [4, 4])
    examples = publish_examples(tmp_path / "s", {Part.TRAIN: train, Part.VALIDATION: late}, FeatureSpec((WATCHED,)))
    config = GeneratorConfig.model_validate({"model": {"kind": "two_tower", "dimension": 3, "depth": 0}, start: {}})
    found = [
        start_vectors(examples, parts, 4, config, lambda text: None)
        for parts in ((Part.TRAIN,), (Part.TRAIN, Part.VALIDATION))
    ]
    assert [vectors.following[4].any() for vectors in found if vectors is not None] == [False, True]
    assert all(vectors.following[3].any() for vectors in found if vectors is not None)


def test_the_tree_of_the_hierarchical_softmax_puts_together_what_the_same_users_watch(tmp_path: Path) -> None:
    # By frequency 1 would be beside 2.
    table = history_table(["u", "v"], [0, 1], [[1, 3, 1, 3], [2, 4]], [1, 2])
    examples = publish_examples(tmp_path / "s", {Part.TRAIN: table}, FeatureSpec((WATCHED,)), "candidate_generator", 1)
    clusters = co_watched_clusters(examples, 4, lambda text: None)
    assert (clusters[0], clusters[1], clusters[2]) == (0, clusters[3], clusters[4])
    assert sorted(clusters[1:]) == [1, 1, 2, 2]
