"""Retrieval metrics by hand and against a double loop."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from pipeline.evaluation.bootstrap import BootstrapConfig
from pipeline.evaluation.retrieval_metrics import (
    MISS,
    RetrievalMetricsConfig,
    RetrievalTargets,
    evaluate_retrieval,
    rank_examples,
    target_ranks,
)

CONFIG = RetrievalMetricsConfig(map_at=(2,), recall_at=(2,), ndcg_at=(3,), chunk_size=2)


def examples(users, targets, watched):
    return RetrievalTargets(np.array(users), np.array(targets), sp.csr_matrix(np.array(watched, float)))


def test_metrics_of_three_users_by_hand():
    # Ranks among all: user a 1 and 3, user b 2, user c outside the catalogue.
    scores = np.array([[9.0, 1, 2, 3], [5, 9, 7, 3], [2, 9, 1, 0], [1, 2, 3, 4]])
    # Example 1: the videos above the target (1 and 2) were watched. Example 2: the target itself was watched.
    watched = [[0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    targets = examples(["a", "a", "b", "c"], [0, 0, 0, -1], watched)
    found = {m.name: m.value for m in evaluate_retrieval(lambda rows: scores[rows], targets, CONFIG)}
    assert found["MAP@2"] == pytest.approx(((1 + 0) / 2 + 1 / 2 + 0) / 3)
    assert found["precision@1"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    assert found["recall@2"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["NDCG@3"] == pytest.approx(((1 + 1 / np.log2(4)) / 2 + 1 / np.log2(3) + 0) / 3)
    assert found["MAP@2 unwatched"] == pytest.approx(((1 + 1) / 2 + 0 + 0) / 3)
    assert found["recall@2 unwatched"] == pytest.approx((1 + 0 + 0) / 3)


def test_a_constant_score_ranks_every_target_last():
    targets = examples([1, 2], [0, 2], np.zeros((2, 3)))
    np.testing.assert_array_equal(rank_examples(lambda rows: np.ones((2, 3))[rows], targets).among_all, [3, 3])


def test_a_target_without_a_score_is_a_miss_and_another_video_without_one_is_below():
    nan = np.nan
    ranks = target_ranks(np.array([[nan, 0.0, 1.0], [0.0, nan, 1.0]]), examples([1, 2], [0, 0], np.zeros((2, 3))))
    np.testing.assert_array_equal(ranks.among_all, [MISS, 2])


def test_a_video_that_a_generator_never_answers_is_a_miss_however_few_videos_there_are():
    scores = np.array([[0.0, -np.inf, 1.0], [-np.inf] * 3, [np.nan] * 3])
    ranks = target_ranks(scores, examples([1, 2, 3], [1, 1, 1], np.array([[1, 0, 1], [0, 0, 0], [0, 0, 0]])))
    np.testing.assert_array_equal(ranks.among_all, [MISS] * 3)
    np.testing.assert_array_equal(ranks.among_unwatched, [MISS] * 3)


@settings(max_examples=60)
@given(st.data())
def test_ranks_equal_a_double_loop(data):
    n, videos = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    value = st.sampled_from([0.0, 1.0, 2.0, -1.0, np.nan, np.inf, -np.inf])
    scores = np.array(data.draw(st.lists(st.lists(value, min_size=videos, max_size=videos), min_size=n, max_size=n)))
    seen = np.array(
        data.draw(st.lists(st.lists(st.booleans(), min_size=videos, max_size=videos), min_size=n, max_size=n))
    )
    targets = np.array(data.draw(st.lists(st.integers(-1, videos - 1), min_size=n, max_size=n)))
    found = rank_examples(lambda rows: scores[rows], examples(np.arange(n), targets, seen), chunk_size=2)
    for i, target in enumerate(targets):
        of = [-np.inf if np.isnan(s) else s for s in scores[i]]
        scored = target >= 0 and of[target] > -np.inf
        above = [j for j in range(videos) if scored and j != target and of[j] >= of[target]]
        assert found.among_all[i] == (1 + len(above) if scored else MISS)
        hit = scored and not seen[i, target]
        assert found.among_unwatched[i] == (1 + sum(not seen[i, j] for j in above) if hit else MISS)


def test_users_count_the_same_however_many_examples_they_have():
    scores = np.eye(2)[[0, 0, 0, 1]]
    targets = examples(["heavy", "heavy", "heavy", "light"], [0, 0, 0, 0], np.zeros((4, 2)))
    found = {m.name: m for m in evaluate_retrieval(lambda rows: scores[rows], targets, CONFIG)}
    assert found["precision@1"].value == 0.5
    assert found["precision@1"].n == 2


def test_scores_of_the_wrong_shape_are_refused():
    with pytest.raises(DataError, match=r"shape \(1, 2\); expected \(1, 3\)"):
        rank_examples(lambda rows: np.zeros((1, 2)), examples([1], [0], np.zeros((1, 3))))


def test_targets_beyond_the_catalogue_are_refused():
    with pytest.raises(DataError, match="expected −1"):
        examples([1], [3], np.zeros((1, 3)))


def test_no_examples_is_a_clear_error():
    with pytest.raises(DataError, match="no examples"):
        evaluate_retrieval(lambda rows: np.zeros((0, 3)), examples([], [], np.zeros((0, 3))), CONFIG)


def test_examples_are_scored_so_few_at_once_that_memory_does_not_grow_with_the_videos():
    config = RetrievalMetricsConfig(bootstrap=BootstrapConfig(resamples=10))
    assert [config.rows_at_once(videos) for videos in (0, 60_000, 1_000_000, 10**12)] == [512, 512, 33, 1]
    assert CONFIG.rows_at_once(1_000_000) == 2
    videos, n = 1_000_000, 70
    watched = sp.csr_matrix((n, videos), dtype=np.float32)
    asked = []

    def scorer(rows):
        asked.append(rows.stop - rows.start)
        return np.broadcast_to(np.arange(videos, dtype=np.float32), (asked[-1], videos))

    found = evaluate_retrieval(scorer, RetrievalTargets(np.arange(n), np.full(n, videos - 2), watched), config)
    assert asked == [33, 33, 4]
    assert {m.name: m.value for m in found}["MAP@20"] == 0.5
