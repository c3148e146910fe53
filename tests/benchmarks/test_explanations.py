"""What explains a result that does not reproduce: forms of a curve, learning rates, the lowest tenth, by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.covington2016.age_forms import AGE, CONSTANT, forms, most_likely
from benchmarks.covington2016.features_and_depth import depth_claims
from benchmarks.covington2016.learning_rates import Tried, at_best_rate, claim_at_own_rates, loss_among
from benchmarks.covington2016.ranker_layers import simulator_settings
from benchmarks.covington2016.watch_time_weighting import ratio_of_lowest
from benchmarks.experiments import Outcome, Request, Scale, SourceName, configuration
from benchmarks.rankers import HeldOutImpressions
from pipeline.evaluation.bootstrap import Measurement
from pipeline.evaluation.ranking_metrics import Impressions
from pipeline.run import Run

AGES = np.array([0.1, 0.3, 0.6, 0.8])
WATCHED = np.array([[6.0, 2.0], [3.0, 3.0], [2.0, 6.0], [1.0, 5.0]])


def measured(value: float) -> Measurement:
    return Measurement("loss", value, value + 0.01 * np.linspace(-1, 1, 101), 10, "population")


def held_out(tmp_path: Path, impressions: Impressions, true: tuple[np.ndarray, np.ndarray]) -> HeldOutImpressions:
    request = Request("x", Scale.SMOKE, SourceName.SIMULATOR, (), tmp_path, tmp_path, Console(quiet=True))
    found = HeldOutImpressions(Run(tmp_path, configuration(request, simulator_settings(full=False)), (), Console()))
    found.__dict__.update(shown=impressions, true=true)  # in place of what it would read from a run's folder
    return found


def test_a_constant_form_has_the_share_of_all_watches_at_every_moment() -> None:
    """Video 0 has 12 of 28 watches."""
    np.testing.assert_allclose(most_likely(forms(AGES)[CONSTANT], WATCHED)[:, 0], 12 / 28, atol=2e-4)


def test_a_form_linear_in_age_is_logistic_regression() -> None:
    """Newton's steps on log-odds a + b age of video 0 against video 1."""
    functions = forms(AGES)[AGE]
    w = np.zeros(2)
    for _ in range(30):
        p = 1 / (1 + np.exp(-functions @ w))
        n = WATCHED.sum(axis=1)
        w += np.linalg.solve(
            (functions * (n * p * (1 - p))[:, None]).T @ functions, functions.T @ (WATCHED[:, 0] - n * p)
        )
    np.testing.assert_allclose(most_likely(functions, WATCHED)[:, 0], 1 / (1 + np.exp(-functions @ w)), atol=1e-3)


def test_a_form_with_as_many_functions_as_moments_has_each_moments_shares() -> None:
    for name, functions in forms(AGES).items():
        shares = most_likely(functions, WATCHED)
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        if functions.shape[1] >= len(AGES):
            np.testing.assert_allclose(shares[:, 0], [6 / 8, 3 / 6, 2 / 8, 1 / 6], atol=2e-3, err_msg=name)


def test_each_row_is_judged_at_the_learning_rate_of_its_least_validation_loss() -> None:
    def tried(validation: float, test: float) -> Tried:
        return Tried(validation, [measured(test)], [])

    rows = {
        "deep": {1e-3: tried(0.095, 0.26), 1e-2: tried(0.097, 0.10)},
        "none": {1e-3: tried(0.099, 0.30), 1e-2: tried(0.096, 0.255)},
    }
    rated = {row: at_best_rate([1e-3, 1e-2], [0], lambda rate, seeds, of=of: of[rate]) for row, of in rows.items()}
    found = claim_at_own_rates("deep loses less", rated, "deep", "none", switched_off=False)
    assert found.difference.value == pytest.approx(0.26 - 0.255)
    assert "(0.001, 0.01)" in found.text


def test_the_rate_is_chosen_by_the_first_training_and_stays_when_others_follow() -> None:
    losses = {1e-3: [0.95, 0.99], 1e-2: [0.96, 0.80]}

    def train(rate: float, seeds: Sequence[int]) -> Tried:
        return Tried(float(np.mean([losses[rate][seed] for seed in seeds])), [measured(rate)] * len(seeds), [])

    rated = at_best_rate([1e-3, 1e-2], [0, 1], train)
    assert rated.best == 1e-3
    assert [len(tried.expected) for tried in rated.by_rate.values()] == [2, 1]


def test_the_loss_among_some_impressions_pairs_only_those(tmp_path: Path) -> None:
    """One page of three, p T = 5, 8 and 2: without the second, the first (5 × 0.9) is below the third (2 × 0.5)."""
    true = np.array([0.5, 0.2, 0.1]), np.array([10.0, 40.0, 20.0])
    found = held_out(tmp_path, Impressions(np.ones(3), np.ones(3), np.zeros(3, bool), np.zeros(3)), true)
    scores = np.array([2.0, 9.0, 3.0])
    assert loss_among(found, np.array([0, 2]), [scores]).value == pytest.approx(5 * 0.9 / (5 * 0.9 + 2 * 0.5))
    assert loss_among(found, np.array([0, 1]), [scores, -scores]).value == pytest.approx(
        (5 * 0.8 / (5 * 0.8 + 8 * 0.5) + 8 * 0.5 / (5 * 0.8 + 8 * 0.5)) / 2
    )


def test_the_lowest_tenth_is_of_the_prediction(tmp_path: Path) -> None:
    """Of twenty, the two lowest predictions are 1 and 2, where 1 and 5 were watched."""
    predicted = np.arange(20.0, 0.0, -1.0)
    actual = np.full(20, 7.0)
    actual[[19, 18]] = 1.0, 5.0
    users = np.arange(20)
    shown = Impressions(users, users, np.zeros(20, bool), np.zeros(20))
    found = held_out(tmp_path, shown, (np.ones(20), np.ones(20)))
    assert ratio_of_lowest(predicted, actual, found).value == pytest.approx(3 / 6)


def test_depth_is_judged_by_what_it_brings_with_all_features() -> None:
    maps = {
        ("watches only", 0): [measured(0.10)],
        ("watches only", 4): [measured(0.12)],
        ("all features", 0): [measured(0.20)],
        ("all features", 4): [measured(0.25)],
    }
    step, overall, more = depth_claims(maps, (0, 4))
    assert step.difference.value == overall.difference.value == pytest.approx(0.05)
    assert more.difference.value == pytest.approx(0.05 - 0.02)
    assert {found.outcome for found in (step, overall, more)} == {Outcome.HOLDS}
