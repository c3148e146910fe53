"""Videos watched after each other start with vectors that say so, and in which order."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse import csr_matrix

from features.spec import Feature, FeatureSpec, Kind, Side
from models.co_watch_embeddings import StartVectors
from models.transition_embeddings import TransitionStartConfig, transition_counts, transition_embeddings
from models.two_tower import TwoTower, TwoTowerConfig


def cycle(num_videos: int = 20, times: int = 30) -> csr_matrix:
    """Each video is followed by the next one, the last by the first."""
    rows = np.tile(np.arange(1, num_videos + 1, dtype=np.int32), times)
    return transition_counts(rows, np.array([len(rows)]), np.ones(len(rows), bool), num_videos, 0.01)


def counts(sequences: list[list[int]], decay: float, counted: list[bool] | None = None) -> np.ndarray:
    rows = np.concatenate([np.array(s, np.int32) for s in sequences])
    lengths = np.array([len(s) for s in sequences])
    chosen = np.ones(len(rows), bool) if counted is None else np.array(counted)
    return transition_counts(rows, lengths, chosen, 4, decay).toarray()


def test_later_watches_count_less_and_sequences_do_not_mix():
    expected = np.zeros((4, 4))
    expected[0, 1], expected[1, 2], expected[0, 2] = 1, 1, 0.5  # 1, 2, 3
    expected[3, 0] = 1  # 4, 1
    np.testing.assert_allclose(counts([[1, 2, 3], [4, 1]], 0.5), expected)


def test_an_unknown_video_keeps_its_place_and_a_video_may_follow_itself():
    expected = np.zeros((4, 4))
    expected[0, 1] = 0.5  # 1, unknown, 2
    expected[2, 2] = 1
    np.testing.assert_allclose(counts([[1, 0, 2], [3, 3]], 0.5), expected)


def test_transitions_to_watches_that_are_not_counted_are_left_out():
    expected = np.zeros((4, 4))
    expected[1, 2], expected[0, 2] = 1, 0.5
    np.testing.assert_allclose(counts([[1, 2, 3]], 0.5, [True, False, True]), expected)


@pytest.mark.parametrize("sequences", [[[1]], [[0, 0]]])
def test_without_a_transition_all_vectors_are_zero(sequences: list[list[int]]):
    rows = np.concatenate(sequences).astype(np.int32)
    found = transition_counts(rows, np.array([len(rows)]), np.ones(len(rows), bool), 4, 0.8)
    for vectors in transition_embeddings(found, 3, TransitionStartConfig()):
        assert vectors.shape == (5, 3) and not vectors.any()


def test_directions_equal_a_dense_factorization_and_lengths_are_their_roots():
    rng = np.random.default_rng(0)
    dense = rng.poisson(2.0, (12, 12)).astype(float)
    damped = dense / np.sqrt(dense.sum(1, keepdims=True) + 10) / np.sqrt(dense.sum(0) + 10)
    left, strengths, right = np.linalg.svd(damped)
    found = transition_embeddings(csr_matrix(dense), 3, TransitionStartConfig(length=2.0))
    expected = []
    for side in (left[:, :3] * np.sqrt(strengths[:3]), right[:3].T * np.sqrt(strengths[:3])):
        lengths = np.linalg.norm(side, axis=1, keepdims=True)
        expected.append(2.0 * side / lengths * np.sqrt(lengths / np.sqrt(np.mean(lengths**2))))
    product = found.watched[1:] @ found.following[1:].T  # the same whatever the signs of the singular vectors
    np.testing.assert_allclose(product, expected[0] @ expected[1].T, atol=1e-5)


def test_what_comes_next_scores_above_what_came_before_and_above_the_video_itself():
    found = transition_embeddings(cycle(), 19, TransitionStartConfig())
    scores = found.watched[1:] @ found.following[1:].T
    assert (scores.argmax(axis=1) == np.roll(np.arange(20), -1)).all()


@pytest.mark.parametrize(("damping", "power"), [(0.0, 1.0), (1.0, 0.0)])
def test_lengths_stay_in_proportion_or_become_equal(damping: float, power: float):
    rng = np.random.default_rng(1)
    transitions = csr_matrix(rng.poisson(3.0, (10, 10)).astype(float))
    found = transition_embeddings(transitions, 9, TransitionStartConfig(length=2.0, damping=damping))
    root = transition_embeddings(transitions, 9, TransitionStartConfig(length=2.0))
    for vectors, rooted in zip(found, root, strict=True):
        lengths, undamped = np.linalg.norm(vectors[1:], axis=1), np.linalg.norm(rooted[1:], axis=1) ** 2 / 2
        np.testing.assert_allclose(lengths, 2 * (undamped / 2) ** power, rtol=1e-5)


def test_a_typical_vector_has_the_length_that_is_asked_for():
    for vectors in transition_embeddings(cycle(), 4, TransitionStartConfig(length=0.5)):
        assert np.mean(np.linalg.norm(vectors[1:], axis=1) ** 4) ** 0.25 == pytest.approx(0.5, rel=1e-5)


def test_row_0_and_unseen_videos_are_zero():
    seen = cycle().tocoo()
    more = csr_matrix((seen.data, (seen.row, seen.col)), shape=(25, 25))
    for vectors in transition_embeddings(more, 4, TransitionStartConfig(damping=1)):
        assert vectors[1:21].any(axis=1).all()
        assert not vectors[0].any() and not vectors[21:].any()


def test_dimensions_that_few_videos_cannot_fill_are_zero():
    for vectors in transition_embeddings(cycle(5), 8, TransitionStartConfig()):
        assert vectors[1:, :4].any(axis=1).all() and not vectors[:, 4:].any()


WATCHED = Feature("watched", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", 5)


def start(dimension: int) -> StartVectors:
    values = np.random.default_rng(0).normal(size=(2, 21, dimension)).astype(np.float32)
    values[:, 0] = 0
    return StartVectors(*values)


def test_input_embeddings_of_another_dimension_start_as_they_are():
    config = TwoTowerConfig(dimension=8, depth=0, large_id_spaces=())
    model = TwoTower(config, FeatureSpec((WATCHED,)), {"video": 20})
    before = model.embeddings(WATCHED, tf.constant([[3, 0, 0, 0, 0]]))
    assert before.shape == [1, 7]  # 1.6 times the binary logarithm of 20
    model.start_from(start(8))
    np.testing.assert_array_equal(model.class_embeddings(tf.range(1, 21)), start(8).following[1:])
    np.testing.assert_array_equal(model.embeddings(WATCHED, tf.constant([[3, 0, 0, 0, 0]])), before)


def test_a_two_tower_model_starts_from_them_on_both_sides():
    model = TwoTower(TwoTowerConfig(dimension=4, depth=0), FeatureSpec((WATCHED,)), {"video": 20})
    model.start_from(start(4))
    np.testing.assert_array_equal(model.class_embeddings(tf.range(1, 21)), start(4).following[1:])
    found = model.embeddings(WATCHED, tf.constant([[3, 0, 0, 0, 0]]))
    np.testing.assert_array_equal(found, start(4).watched[3:4])
