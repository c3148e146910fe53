"""Vectors of new videos: what attributes explain of output vectors."""

import numpy as np
from scipy.sparse import csr_matrix

from models.new_videos import attribute_design, by_space, explain


def test_the_design_averages_each_attribute_and_adds_those_of_one_space():
    rows = {
        "topics": np.array([[1, 2], [2, 0], [0, 0]]),
        "uploader": np.array([2, 0, 1]),
        "second_topic": np.array([1, 0, 2]),
    }
    spaces = {"topics": "topic", "uploader": "uploader", "second_topic": "topic"}
    design = attribute_design(rows, spaces, {"topic": 2, "uploader": 2})
    np.testing.assert_array_equal(design.toarray(), [[1.5, 0.5, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0]])


def test_the_regression_is_the_ridge_solution_of_the_weighted_residuals():
    random = np.random.default_rng(1)
    vectors = random.normal(size=(40, 3))
    design = random.integers(0, 2, (40, 5)) * random.random((40, 5))
    labels = random.integers(0, 9, 40)
    level, effects = explain(vectors, csr_matrix(design), labels, shrinkage=2.0)
    mean = (labels[:, None] * vectors).sum(0) / labels.sum()
    weighted = design.T * labels
    expected = np.linalg.solve(weighted @ design + 2 * np.eye(5), weighted @ (vectors - mean))
    np.testing.assert_allclose(level, mean, rtol=1e-6)
    np.testing.assert_allclose(effects, expected, rtol=1e-4, atol=1e-5)


def test_the_solution_is_exact_where_one_attribute_has_a_million_labels_and_another_one():
    random = np.random.default_rng(2)
    labels = 10 ** random.integers(0, 7, 60)
    design = random.integers(0, 2, (60, 12)).astype(float)
    vectors = random.normal(size=(60, 2))
    level, effects = explain(vectors, csr_matrix(design), labels)
    weighted = design.T * labels
    expected = np.linalg.solve(weighted @ design + 300 * np.eye(12), weighted @ (vectors - level.astype(float)))
    np.testing.assert_allclose(effects, expected, rtol=1e-2, atol=1e-3)


def test_an_attribute_with_few_labels_stays_near_the_level():
    design = csr_matrix(np.eye(2))
    _, effects = explain(np.array([[1.0], [-1.0]]), design, np.array([300, 300]))
    np.testing.assert_allclose(effects, [[0.5], [-0.5]], rtol=1e-4)
    _, effects = explain(np.array([[1.0], [-1.0]]), design, np.array([3, 3]))
    np.testing.assert_allclose(effects, [[3 / 303], [-3 / 303]], rtol=1e-4)


def test_effects_are_cut_by_id_space_with_a_row_of_zeros():
    first, second = by_space(np.arange(6.0).reshape(3, 2), [1, 2])
    np.testing.assert_array_equal(first, [[0, 0], [0, 1]])
    np.testing.assert_array_equal(second, [[0, 0], [2, 3], [4, 5]])
