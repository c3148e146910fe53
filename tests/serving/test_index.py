"""The index against NumPy, and the recall that decides about its export."""

import numpy as np
import pytest
import tensorflow as tf

from features.errors import ExportError
from serving.index import ExactSearcher, Index, IndexConfig, ScannSearcher
from serving.index_recall import RecallConfig, SliceRecall, check_recall, popularity_slices, recall_by_slice

CONFIG = IndexConfig()


def vectors(size: int, dimensions: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, dimensions)).astype(np.float32)


def names(size: int) -> np.ndarray:
    return np.array([f"v{i}" for i in range(size)], dtype=object)


def strings(ids: tf.Tensor) -> list[list[str]]:
    return [[value.decode() for value in row] for row in ids.numpy()]


def no_exclusions(batch: int) -> tf.Tensor:
    return tf.zeros([batch, 0], tf.int32)


def test_exact_index_answers_the_largest_dot_products_in_order():
    X, Q = vectors(300), vectors(7, seed=1)
    ids, scores = Index(X, names(300), CONFIG).search(tf.constant(Q), no_exclusions(7), 10)
    products = Q @ X.T
    order = np.argsort(-products, axis=1)[:, :10]
    assert strings(ids) == [[f"v{i}" for i in row] for row in order]
    np.testing.assert_allclose(scores.numpy(), np.take_along_axis(products, order, 1), rtol=1e-5)


def test_equal_scores_are_answered_in_index_order():
    ids, _ = Index(np.ones((6, 2), np.float32), names(6), CONFIG).search(tf.ones([1, 2]), tf.constant([[1]]), 3)
    assert strings(ids) == [["v0", "v2", "v3"]]


@pytest.mark.parametrize("config", [CONFIG, IndexConfig(exact_below=0, reorder=1000)], ids=["exact", "hashing"])
def test_excluded_videos_are_removed_before_the_cut(config):
    X, Q = vectors(1000), vectors(3, seed=1)
    order = np.argsort(-(Q @ X.T), axis=1)
    excluded = np.full((3, 8), -1, np.int32)
    excluded[0, :5] = order[0, :5]  # the five best of the first query only
    excluded[2, [0, 3]] = order[2, [1, 1]]  # named twice
    ids, _ = Index(X, names(1000), config).search(tf.constant(Q), tf.constant(excluded), 10)
    expected = [order[0, 5:15], order[1, :10], np.delete(order[2], 1)[:10]]
    assert strings(ids) == [[f"v{i}" for i in row] for row in expected]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_answered_are_the_best_of_those_not_excluded(seed):
    """Against lists in Python: repeated and unknown videos, padding anywhere, rows the searcher has none for, ties."""
    random = np.random.default_rng(seed)
    videos, batch, width, k = 80, 12, int(random.integers(0, 90)), 20
    X, Q = random.integers(-2, 3, (videos, 3)).astype(np.float32), random.integers(-2, 3, (batch, 3)).astype(np.float32)
    excluded = random.integers(-1, videos, (batch, width)).astype(np.int32)
    excluded[: batch // 2] = np.where(random.random((batch // 2, width)) < 0.6, -1, excluded[: batch // 2])
    index = Index(X, names(videos), CONFIG)
    if seed % 2:
        index.searcher = _WithGaps(index.searcher)
    rows, scores = tf.function(lambda q, x: index.search_rows(q, x, k))(tf.constant(Q), tf.constant(excluded))
    count = k + int((excluded >= 0).sum(axis=1).max(initial=0))
    for b, products in enumerate(Q @ X.T):
        order = np.argsort(-products, kind="stable")[:count].tolist()
        left = [row for row in order if row not in excluded[b] and not (seed % 2 and row % 5 == 0)][:k]
        assert rows.numpy()[b].tolist() == left + [-1] * (k - len(left))
        assert scores.numpy()[b].tolist() == [products[row] for row in left] + [-np.inf] * (k - len(left))


class _WithGaps:
    """A searcher that has no video, row -1, where another one has every fifth row."""

    def __init__(self, searcher: ExactSearcher) -> None:
        self.searcher = searcher

    def search(self, query: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows, scores = self.searcher.search(query, count)
        return tf.where(rows % 5 == 0, -1, rows), scores


def test_no_answer_is_compared_with_each_exclusion():
    """Nothing in the graph is `[B, answers, exclusions]`, which 64 requests of 2,000 would make 280 MB."""
    index = Index(vectors(300), names(300), CONFIG)
    call = tf.function(lambda query, excluded: index.search_rows(query, excluded, 10)).get_concrete_function(
        tf.TensorSpec([None, 16]), tf.TensorSpec([None, None], tf.int32)
    )
    ranks = {
        tensor.name: tensor.shape.rank for operation in call.graph.get_operations() for tensor in operation.outputs
    }
    assert max(rank for rank in ranks.values() if rank is not None) == 2
    assert not [name for name, rank in ranks.items() if rank is None]


@pytest.mark.parametrize("config", [CONFIG, IndexConfig(exact_below=0)], ids=["exact", "hashing"])
def test_fewer_videos_than_columns_are_padded_with_empty_ids_and_minus_infinity(config):
    X = vectors(40)
    ids, scores = Index(X, names(40), config).search(tf.constant(X[:2]), tf.constant([[0, 1], [5, -1]]), 50)
    assert ids.shape == scores.shape == (2, 50)
    answered = [set(row) - {""} for row in strings(ids)]
    assert answered == [set(names(40)) - {"v0", "v1"}, set(names(40)) - {"v5"}]
    assert np.isneginf(scores.numpy()[0, 38:]).all() and np.isfinite(scores.numpy()[0, :38]).all()
    assert strings(ids)[1][39:] == [""] * 11


def test_unavailable_videos_are_not_indexed():
    X = vectors(50)
    available = np.arange(50) % 2 == 0
    index = Index(X, names(50), CONFIG, available=available)
    ids, _ = index.search(tf.constant(X[1:2]), no_exclusions(1), 30)
    assert index.size == 25
    assert set(strings(ids)[0]) == set(names(50)[available]) | {""}


def test_ids_are_any_utf8_text():
    ids = ["видео 1", "猫", "a b", "🎬é"]
    found, _ = Index(np.eye(4, dtype=np.float32), ids, CONFIG).search(tf.eye(4), no_exclusions(4), 1)
    assert [row[0] for row in strings(found)] == ids


def test_hashing_index_finds_what_exact_search_finds():
    X, Q = vectors(25_000, 32), vectors(50, 32, seed=1)
    index = Index(X, names(25_000), IndexConfig(reorder=1000))
    assert not index.is_exact
    counts = np.arange(25_000)[::-1]
    recalls = recall_by_slice(index, X, Q, counts, RecallConfig(k=50))
    assert recalls["all"].recall > 0.9
    assert sum(recalls[name].expected for name in ("head", "torso", "tail")) == recalls["all"].expected == 50 * 50


def test_tree_index_fills_all_columns_when_the_leaves_searched_hold_too_few():
    X, Q = vectors(3000), vectors(9, seed=1)
    config = IndexConfig(exact_below=0, tree_from=1, num_leaves=100, leaves_to_search=1, reorder=3000)
    index = Index(X, names(3000), config)
    assert index.searcher.num_leaves == 100
    ids, scores = index.search(tf.constant(Q), no_exclusions(9), 2000)
    assert all(len(set(row) - {""}) == 2000 for row in strings(ids))
    best = np.sort(-(Q @ X.T), axis=1)[:, :2000]
    np.testing.assert_allclose(scores.numpy(), -best, rtol=1e-4, atol=1e-4)
    one_leaf, _ = index.search(tf.constant(Q), no_exclusions(9), 1)
    assert all(row[0] for row in strings(one_leaf))


def test_only_queries_whose_leaves_hold_too_few_search_all_leaves(monkeypatch):
    config = IndexConfig(exact_below=0, tree_from=1, num_leaves=10, leaves_to_search=2)
    searcher = ScannSearcher(vectors(300), config)
    nan = np.nan
    answers = {
        -1: ([[5, 6, 7], [8, 0, 0]], [[9.0, 8.0, 7.0], [6.0, nan, nan]]),  # the second found one, filled with row 0
        10: ([[1, 2, 3], [8, 4, 9]], [[9.9, 9.8, 9.7], [6.0, 5.0, 4.0]]),
    }

    def search(handle, query, count, reordered, leaves, parallel):
        rows, scores = answers[leaves]
        return tf.constant(rows), tf.constant(scores, tf.float32)

    monkeypatch.setattr("serving.index.scann_ops.scann_search_batched", search)
    rows, scores = searcher.search(tf.zeros([2, 16]), tf.constant(3))
    assert rows.numpy().tolist() == [[5, 6, 7], [8, 4, 9]]
    assert scores.numpy().tolist() == [[9, 8, 7], [6, 5, 4]]


def test_scores_of_a_hashing_index_are_exact_dot_products():
    X, Q = vectors(2000), vectors(2, seed=1)
    ids, scores = Index(X, names(2000), IndexConfig(exact_below=0)).search(tf.constant(Q), no_exclusions(2), 5)
    rows = [[int(name[1:]) for name in row] for row in strings(ids)]
    np.testing.assert_allclose(scores.numpy(), [[Q[b] @ X[i] for i in rows[b]] for b in range(2)], rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused_with_the_videos_id(value):
    X = vectors(5)
    X[3, 2] = value
    with pytest.raises(ExportError, match="'v3' is not finite"):
        Index(X, names(5), CONFIG)


def test_a_vector_that_is_not_finite_is_refused_only_where_it_would_be_indexed():
    X = vectors(5)
    X[3, 2] = np.nan
    assert Index(X, names(5), CONFIG, available=np.arange(5) != 3).size == 4


def test_repeated_or_empty_ids_and_wrong_lengths_are_refused():
    with pytest.raises(ExportError, match="'v1' twice"):
        Index(vectors(3), ["v0", "v1", "v1"], CONFIG)
    with pytest.raises(ExportError, match="'' twice or empty"):
        Index(vectors(2), ["v0", ""], CONFIG)
    with pytest.raises(ExportError, match="2 ids"):
        Index(vectors(3), ["v0", "v1"], CONFIG)
    with pytest.raises(ExportError, match="found none among 2: all are unavailable or have zero vectors"):
        Index(vectors(2), ["v0", "v1"], CONFIG, available=np.zeros(2, bool))


def test_popularity_slices_hold_a_third_of_the_watches_each():
    # 95 watches. Watched before each in the order of popularity: 0, 40, 60, 75, 90; a third is 31.7, two are 63.3.
    assert popularity_slices(np.array([5, 40, 0, 20, 15, 15])).tolist() == [2, 0, 2, 1, 1, 2]
    assert popularity_slices(np.zeros(3)).tolist() == [2, 2, 2]


class _FixedSearcher:
    """Answers the same rows to every query."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = rows

    def search(self, query: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = query.shape[0]
        rows = tf.repeat(tf.constant([self.rows]), batch, axis=0)
        return rows, tf.zeros(tf.shape(rows))


def test_recall_counts_each_slice_alone():
    X = np.eye(4, dtype=np.float32)
    index = Index(X, names(4), CONFIG)
    index.searcher = _FixedSearcher([0, 1])
    counts = np.array([50, 1, 40, 1])  # head v0, torso v2, tail v1 and v3
    queries = np.array([[4, 3, 2, 1], [4, 1, 3, 2], [1, 2, 3, 4]], np.float32)  # exact: {0, 1}, {0, 2}, {3, 2}
    recalls = recall_by_slice(index, X, queries, counts, RecallConfig(k=2))
    assert recalls == {
        "head": SliceRecall(videos=1, expected=2, recall=1.0),
        "torso": SliceRecall(videos=1, expected=2, recall=0.0),
        "tail": SliceRecall(videos=2, expected=2, recall=0.5),
        "all": SliceRecall(videos=4, expected=6, recall=0.5),
    }


@pytest.mark.parametrize("config", [CONFIG, IndexConfig(exact_below=0, reorder=2000)], ids=["exact", "hashing"])
def test_videos_of_equal_vectors_are_found_as_well_as_any_other(config):
    """Nearly all videos share a few vectors, as new videos of one uploader do: which of them is found is no matter."""
    X = np.concatenate([vectors(300), np.repeat(3 * vectors(20, seed=1), 235, axis=0)])
    index = Index(X, names(len(X)), config)
    recalls = recall_by_slice(index, X, vectors(64, seed=2), np.zeros(len(X)), RecallConfig(k=100))
    assert recalls["all"].recall == recalls["tail"].recall == 1.0
    assert recalls["all"].expected == 6400


def test_equal_scores_do_not_hide_that_a_better_video_was_missed():
    X = np.array([[3, 0], [2, 0], [2, 0], [2, 0], [2, 0], [1, 0]], np.float32)
    index = Index(X, names(6), CONFIG)
    counts = np.array([9, 0, 0, 0, 0, 0])  # head v0, tail the others
    for found, head, everywhere in (
        ([0, 3, 4], 1.0, 1.0),  # any two of the four that are equal
        ([2, 3, 4], 0.0, 2 / 3),  # three of the four in place of the best
        ([0, 3, 5], 1.0, 2 / 3),  # the worst in place of one of the four
        ([0], 1.0, 1 / 3),
    ):
        index.searcher = _FixedSearcher(found)
        recalls = recall_by_slice(index, X, np.ones((2, 2), np.float32), counts, RecallConfig(k=3))
        assert recalls["head"] == SliceRecall(videos=1, expected=2, recall=head)
        assert recalls["all"].expected == 6
        assert recalls["all"].recall == pytest.approx(everywhere)


def test_an_approximate_index_is_not_exported_unmeasured():
    X, nothing = vectors(300), np.zeros((0, 16), np.float32)
    with pytest.raises(ExportError, match="expected validation queries to measure its recall with, found none"):
        recall_by_slice(Index(X, names(300), IndexConfig(exact_below=0)), X, nothing, np.ones(300), RecallConfig())
    recalls = recall_by_slice(Index(X, names(300), CONFIG), X, nothing, np.ones(300), RecallConfig())
    assert {found.recall for found in recalls.values()} == {None}


def test_export_is_refused_below_the_floor_naming_the_slice():
    recalls = {
        "head": SliceRecall(10, 500, 0.99),
        "torso": SliceRecall(20, 50, 0.1),
        "tail": SliceRecall(900, 400, 0.5),
        "all": SliceRecall(930, 950, 0.92),
    }
    with pytest.raises(
        ExportError, match=r"recall@100 of exact search is below the floor of 0.9 in tail 0.500 \(900 videos\)"
    ):
        check_recall(recalls, RecallConfig())
    check_recall(recalls, RecallConfig(floor=0.5))
