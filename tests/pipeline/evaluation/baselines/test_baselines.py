"""Each peer's scores by hand, or by a direct NumPy formula."""

import numpy as np
import pytest
import scipy.sparse as sp

from pipeline.evaluation.baselines import item_knn
from pipeline.evaluation.baselines.als import AlsConfig, fit_als
from pipeline.evaluation.baselines.co_watch import fit_co_watch, fit_recent_co_watch, next_watch_counts
from pipeline.evaluation.baselines.ease import fit_ease
from pipeline.evaluation.baselines.interactions import US_PER_DAY, Histories, Interactions
from pipeline.evaluation.baselines.item_knn import fit_item_knn
from pipeline.evaluation.baselines.popularity import (
    Popularity,
    PopularityConfig,
    decayed_counts,
    recent_popularities,
    total_counts,
    window_counts,
)
from pipeline.evaluation.baselines.recency_weighting import RecencyWeighted, weigh_by_popularity


def histories(*lists):
    lengths = [len(entry) for entry in lists]
    return Histories(
        np.array([v for entry in lists for v in entry], np.int32), np.concatenate([[0], np.cumsum(lengths)])
    )


def watches(rows, num_videos):
    """Rows of (user, video, days)."""
    users, videos, days = (np.array(column) for column in zip(*rows, strict=True))
    return Interactions.of(users, videos, (days * US_PER_DAY).astype(np.int64), num_videos)


# Users 1, 2, 3 watch 0→1→2, 0→1, 1→0→0.
THREE_USERS = watches(
    [(1, 0, 1), (1, 1, 2), (1, 2, 3), (2, 0, 1), (2, 1, 10), (3, 1, 7), (3, 0, 8), (3, 0, 9)], num_videos=4
)


def test_popularity_of_all_the_last_days_and_decayed_by_hand():
    np.testing.assert_array_equal(total_counts(THREE_USERS), [4, 3, 1, 0])
    np.testing.assert_array_equal(window_counts(THREE_USERS, 2.5), [2, 1, 0, 0])
    np.testing.assert_allclose(
        decayed_counts(THREE_USERS, 1.0), [2**-9 + 2**-9 + 2**-2 + 2**-1, 2**-8 + 2**-3 + 1, 2**-7, 0]
    )
    scores = Popularity(total_counts(THREE_USERS)).score(histories([0], []))
    np.testing.assert_array_equal(scores, [[4, 3, 1, 0]] * 2)


def test_watches_of_unknown_time_are_popular_but_never_recent():
    mixed = Interactions.of(
        np.array([1, 1]), np.array([0, 1]), np.array([0, US_PER_DAY]), 2, time_known=np.array([False, True])
    )
    np.testing.assert_array_equal(total_counts(mixed), [1, 1])
    np.testing.assert_array_equal(window_counts(mixed, 1e6), [0, 1])
    np.testing.assert_array_equal(decayed_counts(mixed, 1.0), [0, 1])


def test_recent_popularities_are_named_by_what_they_are():
    config = PopularityConfig(window_days=(2.5,), half_life_days=(1,))
    assert list(recent_popularities(THREE_USERS, config)) == ["last 2.5 days", "half-life 1 days"]


def test_co_watch_counts_and_back_off_by_hand():
    # User 3 watched 0 again; nothing leads from one user to the next.
    np.testing.assert_array_equal(
        next_watch_counts(THREE_USERS).toarray(), [[1, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    )
    popularity = np.array([4, 3, 1, 0]) / 8
    scores = fit_co_watch(THREE_USERS, backoff=2.0).score(histories([1, 0], [0, 2], [], [1]))
    np.testing.assert_allclose(scores[0], (np.array([1, 2, 0, 0]) + 2 * popularity) / 5, rtol=1e-6)
    np.testing.assert_allclose(scores[1], popularity, rtol=1e-6)
    np.testing.assert_allclose(scores[2], popularity, rtol=1e-6)
    np.testing.assert_allclose(scores[3], (np.array([1, 0, 1, 0]) + 2 * popularity) / 4, rtol=1e-6)


def test_recent_co_watch_averages_over_the_history_the_older_the_less():
    """Transitions 0→1 twice, 0→0, 1→0 and 1→2 once; γ = 1/2 over 2, 1, 0 gives weights 1/4, 1/2 and 1."""
    popularity, of_last = np.array([4, 3, 1, 0]) / 8, fit_co_watch(THREE_USERS, backoff=2.0)
    after = {video: of_last.score(histories([video]))[0] for video in (0, 1, 2)}
    recent = fit_recent_co_watch(THREE_USERS, decay=0.5, backoff=2.0)
    scores = recent.score(histories([2, 1, 0], [], [1, 0, 1], [0]))
    np.testing.assert_allclose(scores[0], (after[0] + after[1] / 2 + after[2] / 4) / 1.75, rtol=1e-6)
    np.testing.assert_allclose(scores[1], popularity, rtol=1e-6)
    np.testing.assert_allclose(scores[2], (1.25 * after[1] + after[0] / 2) / 1.75, rtol=1e-6)  # 1 is watched twice
    np.testing.assert_allclose(scores[3], after[0], rtol=1e-6)
    assert scores.dtype == np.float32


def test_item_knn_by_hand():
    # n = (3, 3, 1, 0) users; 0 and 1 share 3, 0 and 2 share 1, 1 and 2 share 1.
    knn = fit_item_knn(THREE_USERS, neighbours=10, shrinkage=1.0)
    root = np.sqrt(3)
    np.testing.assert_allclose(
        knn.similarity.toarray(),
        [[0, 3 / 4, 1 / (root + 1), 0], [3 / 4, 0, 1 / (root + 1), 0], [1 / (root + 1)] * 2 + [0, 0], [0] * 4],
        rtol=1e-6,
    )
    scores = knn.score(histories([1, 2, 1], []))
    np.testing.assert_allclose(scores[0, :3], [3 / 4 + 1 / (root + 1), 1 / (root + 1), 1 / (root + 1)], rtol=1e-6)
    assert -1 <= scores[0, 3] < 0
    np.testing.assert_allclose(scores[1], np.array([4, 3, 1, 0]) / 8)


def test_item_knn_keeps_the_nearest_only():
    knn = fit_item_knn(THREE_USERS, neighbours=1, shrinkage=0.0)
    np.testing.assert_array_equal((knn.similarity.toarray() > 0).sum(axis=1), [1, 1, 1, 0])
    assert knn.similarity[0, 1] == pytest.approx(1.0)


@pytest.mark.parametrize("neighbours", [1, 3, 6])
def test_of_equally_near_videos_the_first_are_kept(neighbours):
    rng = np.random.default_rng(3)
    users, videos = np.nonzero(rng.random((12, 9)) < 0.4)
    train = Interactions.of(users, videos, np.ones(len(users)), 9)
    whole = fit_item_knn(train, 9, 0.0).similarity.toarray()
    assert any(len(set(row[row > 0])) < np.count_nonzero(row) for row in whole)  # there are ties
    expected = np.zeros_like(whole)
    for row, values in enumerate(whole):
        kept = sorted(range(9), key=lambda j: (-values[j], j))[:neighbours]
        expected[row, kept] = values[kept]
    np.testing.assert_array_equal(fit_item_knn(train, neighbours, 0.0).similarity.toarray(), expected)


def test_item_knn_counts_few_pairs_at_once_and_finds_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(30), 8)
    train = Interactions.of(users, rng.integers(0, 40, len(users)), np.arange(len(users)), 40)
    whole = fit_item_knn(train, 5, 1.0).similarity
    counted = []
    honest = item_knn._largest_of_each_row

    def largest_of_each_row(starts, values, k):
        counted.append(len(values))
        return honest(starts, values, k)

    monkeypatch.setattr(item_knn, "_largest_of_each_row", largest_of_each_row)
    monkeypatch.setattr(item_knn, "_PAIRS_AT_ONCE", 100)
    again = fit_item_knn(train, 5, 1.0).similarity
    assert max(counted) <= 100 < sum(counted)
    np.testing.assert_array_equal(again.toarray(), whole.toarray())


def test_videos_without_similarity_follow_by_popularity():
    apart = watches([(1, 0, 1), (1, 1, 1), (2, 2, 1), (3, 2, 1), (4, 3, 1)], num_videos=4)
    scores = fit_item_knn(apart, neighbours=5, shrinkage=0.0).score(histories([0]))[0]
    assert list(np.argsort(-scores)) == [1, 2, 0, 3] or list(np.argsort(-scores)) == [1, 2, 3, 0]
    assert scores[1] > 0 > scores[2] > scores[3] == scores[0]


@pytest.mark.parametrize("num_users", [40, 4])  # more and fewer than videos
@pytest.mark.parametrize("regularisation", [0.5, 20.0])
def test_ease_equals_the_closed_form_in_double_precision(regularisation, num_users):
    rng = np.random.default_rng(0)
    users, videos = np.nonzero(rng.random((num_users, 9)) < 0.3)
    train = Interactions.of(users, videos, np.ones(len(users)), 9)
    X = np.zeros((num_users, 9))
    X[users, videos] = 1
    P = np.linalg.inv(X.T @ X + regularisation * np.eye(9))
    B = -P / np.diag(P)
    np.fill_diagonal(B, 0.0)
    ease = fit_ease(train, regularisation)
    np.testing.assert_allclose(ease.weights, B, atol=1e-5)
    np.testing.assert_allclose(ease.score(histories([2, 5], [2, 2]))[0], B[2] + B[5], atol=1e-5)
    np.testing.assert_allclose(ease.score(histories([2, 2]))[0], B[2], atol=1e-5)


def test_ease_predicts_each_column_from_the_others_as_ridge_regression():
    rng = np.random.default_rng(1)
    X = (rng.random((60, 5)) < 0.4).astype(float)
    users, videos = np.nonzero(X)
    ease = fit_ease(Interactions.of(users, videos, np.ones(len(users)), 5), 3.0)
    others = X[:, [0, 1, 3, 4]]
    ridge = np.linalg.solve(others.T @ others + 3.0 * np.eye(4), others.T @ X[:, 2])
    np.testing.assert_allclose(ease.weights[[0, 1, 3, 4], 2], ridge, atol=1e-5)


def test_als_folds_histories_in_by_the_normal_equations():
    rng = np.random.default_rng(2)
    users, videos = np.nonzero(rng.random((50, 12)) < 0.3)
    train = Interactions.of(users, videos, np.ones(len(users)), 12)
    als = fit_als(train, factors=4, regularisation=0.5, confidence=3.0, config=AlsConfig(iterations=5, threads=1))
    Y = als.model.item_factors.astype(np.float64)
    history = [1, 7]
    A = Y.T @ Y + sum(2.0 * np.outer(Y[i], Y[i]) for i in history) + 0.5 * np.eye(4)
    user = np.linalg.solve(A, sum(3.0 * Y[i] for i in history))
    scores = als.score(histories(history, []))
    np.testing.assert_allclose(scores[0], Y @ user, atol=1e-4)
    np.testing.assert_allclose(scores[1], train.watch_counts / train.watch_counts.sum(), rtol=1e-6)


def test_als_is_the_same_at_every_fit():
    one, other = (fit_als(THREE_USERS, 2, 1.0, 4.0, AlsConfig(threads=1)) for _ in range(2))
    np.testing.assert_array_equal(one.model.item_factors, other.model.item_factors)


def test_every_peer_prefers_what_the_groups_of_videos_say():
    # Two groups of users and of videos; a history in one group must bring that group up.
    rng = np.random.default_rng(3)
    users = np.repeat(np.arange(200), 6)
    videos = rng.integers(0, 10, 1200) + 10 * (users % 2)
    train = Interactions.of(users, videos, np.arange(1200), 20)
    peers = [
        fit_co_watch(train, 10.0),
        fit_item_knn(train, 20, 1.0),
        fit_ease(train, 10.0),
        fit_als(train, 4, 1.0, 8.0, AlsConfig(threads=1)),
    ]
    for peer in peers:
        scores = peer.score(histories([1, 3], [11, 14]))
        assert set(np.argsort(-scores[0])[:7]) <= set(range(10)), type(peer)
        assert set(np.argsort(-scores[1])[:7]) <= set(range(10, 20)), type(peer)


def test_recency_weighting_by_hand():
    scores = np.array([[2.0, 1.0, 0.0, -3.0]], np.float32)
    weighted = weigh_by_popularity(scores, np.array([0.0, 8.0, 3.0, 0.0]), 0.5)
    np.testing.assert_allclose(weighted, [[2.0, 3.0, 4e-6, 2e-6]], rtol=1e-5)


def test_recency_weighting_orders_by_popularity_where_there_is_no_evidence():
    weighted = weigh_by_popularity(np.array([[-1.0, -2.0, -0.5]]), np.array([0.0, 5.0, 2.0]), 1.0)
    assert list(np.argsort(-weighted[0])) == [1, 2, 0]


def test_recency_weighted_peer_weighs_the_scores_of_its_peer():
    peer = RecencyWeighted(Popularity(np.array([1.0, 2.0])), np.array([3.0, 0.0]), 1.0)
    np.testing.assert_allclose(peer.score(histories([0])), [[4.0, 2.0]])


def test_scores_do_not_change_the_fitted_peer():
    knn = fit_item_knn(THREE_USERS, 5, 0.0)
    before = knn.similarity.copy()
    knn.score(histories([0], []))
    assert sp.csr_matrix(before != knn.similarity).nnz == 0
