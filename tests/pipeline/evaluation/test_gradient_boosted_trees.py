"""The trees learn what can be learnt, stop and choose on validation, and predict in the units they promise."""

import numpy as np
import pytest

from features.errors import DataError
from pipeline.evaluation.bootstrap import BootstrapConfig, UserBootstrap
from pipeline.evaluation.calibration import calibration_ratio
from pipeline.evaluation.gradient_boosted_trees import (
    RANKING_VARIANTS,
    TreesConfig,
    TreeVariant,
    best_variant,
    expected_watch_time_s,
    fit_trees,
    query_sizes,
    relevance,
    tree_settings,
)
from pipeline.evaluation.ranking_metrics import Impressions, evaluate_ranking
from pipeline.evaluation.tree_features import RankingData

CONFIG = TreesConfig(trials=2, max_rounds=60, stopping_rounds=10, threads=1)


def log(seed, n=6000):
    """A continuous feature lowers the watch time that a category's clicks bring: clickbait."""
    rng = np.random.default_rng(seed)
    category, bait = rng.integers(0, 20, n), rng.random(n)
    click = 0.1 + 0.5 * bait
    seconds_if_clicked = np.where(category % 2 == 0, 60.0, 20.0) * (1.2 - bait)
    clicked = rng.random(n) < click
    seconds = np.where(clicked, rng.exponential(seconds_if_clicked), 0.0)
    groups = rng.permutation(np.arange(n) // 8)  # rows of a page view are not side by side
    impressions = Impressions(groups // 4, groups, clicked, seconds)
    matrix = np.stack([category, bait, rng.random(n)], axis=1).astype(np.float32)
    return RankingData(matrix, ("category", "bait", "noise"), ("category",), impressions), click, seconds_if_clicked


@pytest.fixture(scope="module")
def fitted():
    return fit_trees(log(0)[0], log(1, 3000)[0], CONFIG)


def test_every_ranking_variant_beats_the_click_model_by_watch_time(fitted):
    test, click, seconds = log(2)
    bootstrap = UserBootstrap(test.impressions.users, BootstrapConfig(resamples=50))
    loss = {v: evaluate_ranking(fitted[v].predict(test), test.impressions, bootstrap)[0].value for v in fitted}
    best = evaluate_ranking(click * seconds, test.impressions, bootstrap)[0].value
    for variant in RANKING_VARIANTS:
        assert best - 0.02 < loss[variant] < loss[TreeVariant.CLICK] - 0.03, loss


def test_expected_watch_time_is_in_seconds_and_calibrated(fitted):
    test, click, seconds = log(2)
    bootstrap = UserBootstrap(test.impressions.users, BootstrapConfig(resamples=50))
    expected = expected_watch_time_s(fitted, test)
    assert set(expected) == {TreeVariant.WATCH_TIME, TreeVariant.WEIGHTED_BINARY}
    ratio = {v: calibration_ratio(predicted, click * seconds, bootstrap).value for v, predicted in expected.items()}
    assert ratio[TreeVariant.WATCH_TIME] == pytest.approx(1.0, abs=0.1)
    # Few trees fit the log of the odds, whose exponential has a mean below theirs.
    assert ratio[TreeVariant.WEIGHTED_BINARY] == pytest.approx(1.0, abs=0.25)
    # The odds themselves are E[T] / (1 − P), far above E[T] where clicks are frequent.
    odds = fitted[TreeVariant.WEIGHTED_BINARY].predict(test)
    assert calibration_ratio(odds, click * seconds, bootstrap).value > 1.3 * ratio[TreeVariant.WEIGHTED_BINARY]


def test_click_probabilities_are_probabilities(fitted):
    test, click, _ = log(2)
    predicted = fitted[TreeVariant.CLICK].predict(test)
    assert ((predicted > 0) & (predicted < 1)).all()
    assert np.abs(predicted - click).mean() < 0.06


def test_trials_are_sorted_and_stop_within_the_budget(fitted):
    for trees in fitted.values():
        assert len(trees.trials) == CONFIG.trials
        assert trees.validation_loss == min(trial.validation_loss for trial in trees.trials)
        assert trees.booster.num_trees() == trees.trials[0].rounds <= CONFIG.max_rounds
    assert best_variant(fitted) == min(RANKING_VARIANTS, key=lambda variant: fitted[variant].validation_loss)


def test_the_reported_validation_loss_is_that_of_the_metric():
    train, validation = log(0, 2000)[0], log(1, 2000)[0]
    config = TreesConfig(trials=1, max_rounds=8, stopping_rounds=100, threads=1)
    # Fitting again on training and validation must not be part of the validation loss.
    trees = fit_trees(train, validation, config, (TreeVariant.CLICK,))[TreeVariant.CLICK]
    share = validation.impressions.clicked.mean()
    constant = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert constant - 0.1 < trees.validation_loss < constant


def with_position(data, places):
    matrix = np.concatenate([data.matrix, np.asarray(places, np.float32)[:, None]], axis=1)
    return RankingData(matrix, (*data.names, "position"), data.categorical, data.impressions)


def test_trees_are_chosen_at_serving_and_fitted_as_logged():
    """The position tells whether a row was clicked: as logged nothing is left to lose, at serving it says nothing."""
    config = TreesConfig(trials=1, max_rounds=1, threads=1)  # one round each, so that only the rows fitted differ
    train, validation = log(0, 2000)[0], log(1, 2000)[0]
    train, logged = (with_position(data, data.impressions.clicked) for data in (train, validation))
    serving = with_position(validation, np.zeros(len(validation)))

    def fit(fitted, judged=None):
        variants = (TreeVariant.WATCH_TIME,)
        return fit_trees(train, fitted, config, variants, validation_at_serving=judged)[TreeVariant.WATCH_TIME]

    both = fit(logged, serving)
    assert both.validation_loss == fit(serving).validation_loss > 0.3
    assert fit(logged).validation_loss < 0.05
    np.testing.assert_array_equal(both.predict(logged), fit(logged).predict(logged))
    assert not np.array_equal(both.predict(logged), fit(serving).predict(logged))


def test_a_second_fit_is_the_same():
    train, validation = log(0, 2000)[0], log(1, 1000)[0]
    config = TreesConfig(trials=1, max_rounds=10, threads=1)
    one, other = (fit_trees(train, validation, config, (TreeVariant.LAMBDARANK,)) for _ in range(2))
    np.testing.assert_array_equal(
        one[TreeVariant.LAMBDARANK].predict(validation), other[TreeVariant.LAMBDARANK].predict(validation)
    )


def test_rows_of_a_page_need_not_be_side_by_side():
    data, validation = log(0, 2000)[0], log(1, 1000)[0]
    together = data.take(np.argsort(data.impressions.groups, kind="stable"))
    place_on_page = np.arange(len(together)) % 8
    apart = together.take(np.argsort(place_on_page, kind="stable"))
    config = TreesConfig(trials=1, max_rounds=10, threads=1)
    one, other = (
        fit_trees(train, validation, config, (TreeVariant.LAMBDARANK,))[TreeVariant.LAMBDARANK]
        for train in (together, apart)
    )
    np.testing.assert_array_equal(one.predict(validation), other.predict(validation))


def test_long_groups_are_cut_and_others_kept():
    groups = np.repeat([3, 5, 8, 9], [4, 5, 11, 1])
    np.testing.assert_array_equal(query_sizes(groups, most=5), [4, 5, 5, 5, 1, 1])
    np.testing.assert_array_equal(query_sizes(groups), [4, 5, 11, 1])


def test_a_page_view_of_more_than_ten_thousand_impressions_is_fitted():
    train, validation = log(0, 12_000)[0], log(1, 1000)[0]
    shown = train.impressions
    groups = np.where(np.arange(len(train)) < 10_001, 0, 1 + shown.groups)
    one_view = Impressions(shown.users, groups, shown.clicked, shown.watch_time_s)
    train = RankingData(train.matrix, train.names, train.categorical, one_view)
    config = TreesConfig(trials=1, max_rounds=2, threads=1)
    trees = fit_trees(train, validation, config, (TreeVariant.LAMBDARANK,))[TreeVariant.LAMBDARANK]
    assert np.isfinite(trees.predict(validation)).all()


def test_relevance_by_hand():
    reference = Impressions(np.zeros(5), np.zeros(5), np.array([1, 1, 1, 1, 0], bool), np.array([1.0, 2, 3, 10, 0]))
    grades, gains = relevance(reference, reference)
    np.testing.assert_array_equal(grades, [1, 2, 3, 4, 0])
    assert gains == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4, 10 / 4])


def test_settings_are_the_same_budget_for_every_variant():
    config = TreesConfig(trials=5)
    settings = {variant: tree_settings(variant, config) for variant in TreeVariant}
    assert [s["objective"] for s in settings[TreeVariant.WATCH_TIME]] == ["tweedie", "regression"] * 2 + ["tweedie"]
    assert settings[TreeVariant.CLICK] == settings[TreeVariant.LAMBDARANK]
    assert len({tuple(s.items()) for s in settings[TreeVariant.CLICK]}) == 5


def test_one_kind_of_impression_only_is_a_clear_error():
    data = log(0, 100)[0]
    shown = data.impressions
    always = Impressions(shown.users, shown.groups, np.ones(100, bool), shown.watch_time_s)
    with pytest.raises(DataError, match="100 of 100 training impressions are clicked"):
        fit_trees(RankingData(data.matrix, data.names, data.categorical, always), data, CONFIG)
