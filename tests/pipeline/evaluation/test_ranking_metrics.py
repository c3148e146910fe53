"""Ranking metrics by hand, against double loops, and on scores that deserve nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from pipeline.evaluation.bootstrap import BootstrapConfig, UserBootstrap
from pipeline.evaluation.ranking_metrics import (
    Impressions,
    click_auc,
    click_log_loss,
    evaluate_ranking,
    grouped_click_auc,
    mispredicted_pairs,
    weighted_per_user_loss,
)

# User a has pages 1 and 2, user b page 3, user c page 4 (nothing clicked).
PAGES = Impressions(
    users=np.array(["a", "a", "a", "a", "a", "b", "b", "b", "c"]),
    groups=np.array([1, 1, 1, 2, 2, 3, 3, 3, 4]),
    clicked=np.array([1, 0, 0, 1, 0, 1, 1, 0, 0], bool),
    watch_time_s=np.array([10.0, 0, 0, 20, 0, 30, 40, 0, 0]),
)
SCORES = np.array([0.5, 0.9, 0.1, 0.3, 0.2, 0.4, 0.8, 0.6, 1.0])


def bootstrap_of(impressions, resamples=50):
    return UserBootstrap(impressions.users, BootstrapConfig(resamples=resamples))


def test_weighted_per_user_loss_by_hand():
    # Pairs: page 1 (10 s: 0.5 < 0.9 wrong, 0.5 > 0.1 right), page 2 (20 s right), page 3 (30 s wrong, 40 s right).
    loss = weighted_per_user_loss(SCORES, PAGES, bootstrap_of(PAGES))
    assert loss.value == pytest.approx((10 + 30) / (10 + 10 + 20 + 30 + 40))
    assert loss.n == 2


def test_a_constant_score_loses_half():
    bootstrap = bootstrap_of(PAGES)
    measured = {m.name: m.value for m in evaluate_ranking(np.zeros(9), PAGES, bootstrap)}
    assert measured == pytest.approx({"weighted per-user loss": 0.5, "click AUC": 0.5, "click GAUC": 0.5})


def test_nan_scores_are_the_worst_on_either_side():
    bootstrap = bootstrap_of(PAGES)
    nothing = np.full(9, np.nan)
    assert weighted_per_user_loss(nothing, PAGES, bootstrap).value == 1.0
    assert click_auc(nothing, PAGES, bootstrap).value == 0.0
    only_clicked = np.where(PAGES.clicked, np.nan, -np.inf)
    assert weighted_per_user_loss(only_clicked, PAGES, bootstrap).value == 1.0
    only_unclicked = np.where(PAGES.clicked, np.inf, np.nan)
    assert weighted_per_user_loss(only_unclicked, PAGES, bootstrap).value == 1.0


def test_a_monotone_transformation_changes_nothing():
    bootstrap = bootstrap_of(PAGES)
    one = evaluate_ranking(SCORES, PAGES, bootstrap)
    other = evaluate_ranking(np.exp(5 * SCORES), PAGES, bootstrap)
    assert [m.value for m in one] == [m.value for m in other]


def test_grouped_auc_by_hand():
    # Page 1 (3 shown): 1 of 2 pairs right; page 2 (2 shown): 1 of 1; page 3 (3 shown): 1 of 2; page 4 has no pair.
    auc = grouped_click_auc(SCORES, PAGES, bootstrap_of(PAGES))
    assert auc.value == pytest.approx((3 * 1 / 2 + 2 * 1 + 3 * 1 / 2) / 8)
    assert auc.n == 2


def test_what_is_equal_within_a_page_earns_nothing_by_differing_between_pages():
    by_page = np.array([0.1, 0.1, 0.1, 0.9, 0.9, 0.4, 0.4, 0.4, 0.0])
    bootstrap = bootstrap_of(PAGES)
    assert grouped_click_auc(by_page, PAGES, bootstrap).value == 0.5
    assert weighted_per_user_loss(by_page, PAGES, bootstrap).value == 0.5


def test_log_loss_by_hand_and_with_nan():
    impressions = Impressions(np.array([1, 2]), np.array([1, 2]), np.array([True, False]), np.array([1.0, 0.0]))
    loss = click_log_loss(np.array([0.8, 0.4]), impressions, bootstrap_of(impressions))
    assert loss.value == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    worst = click_log_loss(np.array([np.nan, np.nan]), impressions, bootstrap_of(impressions))
    assert worst.value == pytest.approx(-np.log(1e-7))


impression = st.tuples(
    st.integers(0, 3),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([0.0, 1.0, 7.5]),
    st.sampled_from([0.0, 0.5, 1.0, np.nan, np.inf, -np.inf]),
)


@settings(max_examples=60)
@given(st.lists(impression, min_size=1, max_size=25))
def test_pairs_and_auc_equal_double_loops(rows):
    user, page, clicked, seconds, score = (np.array(column) for column in zip(*rows, strict=True))
    group = user * 10 + page
    impressions = Impressions(user, group, clicked, np.where(clicked, seconds, 0.0))

    def wrong(i, j):
        if np.isnan(score[i]) or np.isnan(score[j]):
            return 1.0
        return 1.0 if score[j] > score[i] else 0.5 if score[j] == score[i] else 0.0

    pairs = [(i, j) for i in range(len(user)) for j in range(len(user)) if clicked[i] and not clicked[j]]
    of_page = [(i, j) for i, j in pairs if group[i] == group[j]]
    above, unclicked = mispredicted_pairs(group, score, clicked)
    for i in range(len(user)):
        assert above[i] == sum(wrong(*pair) for pair in of_page if pair[0] == i)
        assert unclicked[i] == sum(pair[0] == i for pair in of_page)
    bootstrap = bootstrap_of(impressions, 2)
    total = sum(seconds[i] for i, _ in of_page)
    expected = sum(seconds[i] * wrong(i, j) for i, j in of_page) / total if total else np.nan
    assert weighted_per_user_loss(score, impressions, bootstrap).value == pytest.approx(expected, nan_ok=True)
    expected = 1 - np.mean([wrong(*pair) for pair in pairs]) if pairs else np.nan
    assert click_auc(score, impressions, bootstrap).value == pytest.approx(expected, nan_ok=True)


def test_resampled_auc_is_the_auc_of_the_resampled_rows():
    rng = np.random.default_rng(3)
    n = 60
    impressions = Impressions(rng.integers(0, 6, n), np.arange(n), rng.random(n) < 0.5, np.zeros(n))
    scores = rng.integers(0, 9, n).astype(float)
    bootstrap = bootstrap_of(impressions, 5)
    auc = click_auc(scores, impressions, bootstrap)
    for sample, counts in zip(auc.samples, np.concatenate(list(bootstrap.draws())), strict=True):
        rows = np.repeat(np.arange(n), counts.astype(int)[bootstrap.user_of_row])
        drawn = Impressions(*(np.asarray(column)[rows] for column in vars(impressions).values()))
        assert sample == pytest.approx(click_auc(scores[rows], drawn, bootstrap_of(drawn, 2)).value)


def test_large_groups_do_not_need_a_matrix_of_pairs():
    rng = np.random.default_rng(0)
    n = 200_000  # in one group: 10^10 pairs
    above, unclicked = mispredicted_pairs(np.zeros(n, int), rng.random(n), rng.random(n) < 0.4)
    assert 0.49 < above.sum() / unclicked.sum() < 0.51


def test_bad_watch_times_are_refused_with_the_row():
    with pytest.raises(DataError, match="the first in row 1"):
        Impressions(np.array([1, 1]), np.array([1, 1]), np.array([True, True]), np.array([1.0, np.nan]))


def test_scores_of_another_length_are_refused():
    with pytest.raises(DataError, match="expected one per impression"):
        mispredicted_pairs(np.zeros(3), np.zeros(2), np.zeros(3, bool))
