"""The best possible result: nothing beats it, and its expectation is arithmetic."""

import numpy as np
import pytest
import scipy.sparse as sp

from pipeline.evaluation.best_possible import (
    best_possible_ranking,
    best_possible_retrieval,
    expected_best_retrieval,
    share_of_best,
)
from pipeline.evaluation.bootstrap import BootstrapConfig, UserBootstrap
from pipeline.evaluation.figures import Figure
from pipeline.evaluation.ranking_metrics import Impressions, evaluate_ranking
from pipeline.evaluation.retrieval_metrics import RetrievalMetricsConfig, RetrievalTargets, evaluate_retrieval

CONFIG = RetrievalMetricsConfig(
    map_at=(2,), recall_at=(2,), ndcg_at=(2,), chunk_size=100, bootstrap=BootstrapConfig(resamples=100)
)


def test_expected_metrics_by_hand():
    p = np.array([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]])
    watched = sp.csr_matrix(np.array([[0, 1.0, 0], [0, 0, 0]]))
    examples = RetrievalTargets(np.array(["a", "b"]), np.array([0, 0]), watched)
    found = {m.name: m.value for m in expected_best_retrieval(lambda rows: p[rows], examples, CONFIG)}
    assert found["MAP@2"] == pytest.approx(((0.6 + 0.3 / 2) + (0.5 + 0.25 / 2)) / 2)
    assert found["recall@2"] == pytest.approx((0.9 + 0.75) / 2)
    assert found["MAP@2 unwatched"] == pytest.approx(((0.3 + 0.1 / 2) + (0.5 + 0.25 / 2)) / 2)
    np.testing.assert_array_equal(p[0], [0.1, 0.6, 0.3])


def test_the_truth_is_the_best_scorer_and_meets_its_expectation():
    rng = np.random.default_rng(0)
    n, videos = 3000, 30
    p = rng.dirichlet(np.full(videos, 0.3), n)
    targets = np.minimum((rng.random((n, 1)) > np.cumsum(p, axis=1)).sum(axis=1), videos - 1)
    examples = RetrievalTargets(np.arange(n), targets, sp.csr_matrix((n, videos)))
    best = best_possible_retrieval(lambda rows: p[rows], examples, CONFIG)
    expected = expected_best_retrieval(lambda rows: p[rows], examples, CONFIG)
    noisy = evaluate_retrieval(lambda rows: (p + rng.normal(0, 0.1, p.shape))[rows], examples, CONFIG)
    for b, e, m in zip(best, expected, noisy, strict=True):
        assert b.value == pytest.approx(e.value, abs=0.03)
        assert b.value > m.value + 0.02


def test_true_expected_watch_time_beats_true_click_probability_when_clicks_deceive():
    rng = np.random.default_rng(1)
    n = 10_000
    click, seconds = rng.uniform(0.05, 0.9, n), rng.gamma(1.0, 50.0, n)
    seconds[click > 0.6] /= 10  # clickbait
    clicked = rng.random(n) < click
    impressions = Impressions(np.arange(n) // 50, np.arange(n) // 10, clicked, np.where(clicked, seconds, 0.0))
    bootstrap = UserBootstrap(impressions.users, BootstrapConfig(resamples=100))
    best = best_possible_ranking(click, seconds, impressions, bootstrap)[0]
    by_click = evaluate_ranking(click, impressions, bootstrap)[0]
    assert best.figure.high < by_click.figure.low


def test_share_of_best():
    assert share_of_best(Figure("r", 0.2, 0, 1, 5), Figure("r", 0.5, 0, 1, 5)) == pytest.approx(0.4)
    assert np.isnan(share_of_best(Figure("r", 0.2, 0, 1, 5), Figure("r", 0.0, 0, 1, 5)))
