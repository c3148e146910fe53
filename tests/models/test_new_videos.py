"""Vectors of new videos: what the trained vectors of videos with the same attributes let expect."""

import numpy as np
from scipy.sparse import csr_matrix

from models.new_videos import attribute_design, expected_vectors


def ridge(vectors: np.ndarray, design: np.ndarray, watches: np.ndarray, shrinkage: float) -> tuple[np.ndarray, ...]:
    level = (watches[:, None] * vectors).sum(0) / watches.sum()
    weighted = design.T * watches
    return level, np.linalg.solve(weighted @ design + shrinkage * np.eye(design.shape[1]), weighted @ (vectors - level))


def test_the_design_averages_each_attribute_and_adds_those_of_one_space():
    rows = {
        "topics": np.array([[1, 2], [2, 0], [0, 0]]),
        "uploader": np.array([2, 0, 1]),
        "second_topic": np.array([1, 0, 2]),
    }
    spaces = {"topics": "topic", "uploader": "uploader", "second_topic": "topic"}
    design = attribute_design(rows, spaces, {"topic": 2, "uploader": 2})
    np.testing.assert_array_equal(design.toarray(), [[1.5, 0.5, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0]])


def test_a_new_video_gets_the_ridge_solution_of_the_weighted_residuals():
    random = np.random.default_rng(1)
    vectors = random.normal(size=(40, 3))
    design = random.integers(0, 2, (40, 5)) * random.random((40, 5))
    watches = random.integers(0, 9, 40)
    new = random.random((6, 5))
    level, effects = ridge(vectors, design, watches, 2.0)
    found = expected_vectors(vectors, csr_matrix(design), watches, csr_matrix(new), shrinkage=2.0)
    np.testing.assert_allclose(found, level + new @ effects, rtol=1e-4, atol=1e-5)


def test_the_solution_holds_where_one_attribute_has_a_million_watches_and_another_one():
    random = np.random.default_rng(2)
    watches = 10 ** random.integers(0, 7, 60)
    design = random.integers(0, 2, (60, 12)).astype(float)
    vectors = random.normal(size=(60, 2))
    level, effects = ridge(vectors, design, watches, 100.0)
    found = expected_vectors(vectors, csr_matrix(design), watches, csr_matrix(np.eye(12)))
    np.testing.assert_allclose(found, level + effects, rtol=1e-2, atol=1e-3)


def test_an_attribute_with_few_watches_stays_near_the_level():
    design = csr_matrix(np.eye(2))
    vectors = np.array([[1.0], [-1.0]])
    np.testing.assert_allclose(
        expected_vectors(vectors, design, np.array([100, 100]), design), [[0.5], [-0.5]], rtol=1e-4
    )
    np.testing.assert_allclose(
        expected_vectors(vectors, design, np.array([1, 1]), design), [[1 / 101], [-1 / 101]], rtol=1e-4
    )


def test_what_shares_no_attribute_with_a_watched_video_has_no_vector():
    vectors, design = np.array([[1.0, 2.0], [3.0, 5.0]]), csr_matrix([[1.0, 0, 0], [0, 1.0, 0]])
    new = csr_matrix([[0, 0, 0], [0, 0, 1.0], [0, 1.0, 0], [0.5, 0, 0.5]])
    found = expected_vectors(vectors, design, np.array([7, 0]), new)
    np.testing.assert_array_equal(found[:3], np.zeros((3, 2)))
    np.testing.assert_allclose(found[3], [1, 2], rtol=1e-6)  # the level: the only watched video
