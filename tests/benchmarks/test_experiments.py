"""The experiments' own computations, by hand: verdicts, expected loss, curves by age, where clickbait stands."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.covington2016 import EXPERIMENTS, ranker_layers
from benchmarks.covington2016.example_age import Curves, by_days_since_upload, probabilities_by_age, shape_error
from benchmarks.covington2016.watch_time_weighting import standing
from benchmarks.experiments import (
    Outcome,
    Request,
    Scale,
    SourceName,
    claim,
    configuration,
    mean_of_seeds,
    once,
    relative,
)
from benchmarks.rankers import expected_loss
from benchmarks.reproduce import reproduce
from features.artifacts import publish
from features.errors import ConfigError
from models.two_tower import TwoTower, TwoTowerConfig
from models.weighted_logistic_regression import Objective
from pipeline.evaluation.bootstrap import Measurement, UserBootstrap
from pipeline.evaluation.ranking_metrics import Impressions, weighted_per_user_loss
from pipeline.run import Run
from pipeline.sources.simulator_config import SimulatorConfig
from tests.pipeline.synthetic_examples import CANDIDATE_SPEC


def measured(value: float, spread: float = 0.0) -> Measurement:
    samples = value + spread * np.linspace(-1, 1, 101)
    return Measurement("loss", value, samples, 10, "population")


def request(tmp_path: Path, *overrides: str) -> Request:
    output = tmp_path / "results"
    console = Console(quiet=True)
    return Request("ranker_layers", Scale.SMOKE, SourceName.SIMULATOR, overrides, output, tmp_path / "work", console)


@pytest.mark.parametrize(
    ("first", "spread", "by_second_seed", "sign", "off", "outcome"),
    [
        (0.30, 0.01, 0.30, -1, False, Outcome.HOLDS),  # 0.30 - 0.35 lies in [-0.06, -0.04]
        (0.30, 0.01, 0.30, 1, False, Outcome.REVERSED),
        (0.30, 0.10, 0.30, -1, False, Outcome.NOISE),  # [-0.15, 0.05] holds 0
        (0.30, 0.01, 0.36, -1, False, Outcome.NOISE),  # the second seed says +0.01
        (0.30, 0.10, 0.30, -1, True, Outcome.VANISHES),
        (0.30, 0.01, 0.30, -1, True, Outcome.STAYS),
        (0.30, 0.01, 0.30, 1, True, Outcome.TURNS),
    ],
)
def test_a_verdict_follows_from_the_interval_the_seeds_and_the_sign(
    first: float, spread: float, by_second_seed: float, sign: int, off: bool, outcome: Outcome
) -> None:
    a = [measured(first, spread), measured(by_second_seed, spread)]
    b = [measured(0.35), measured(0.35)]
    found = claim("a loses less", a, b, sign, off)
    assert found.outcome == outcome
    assert found.by_seed == pytest.approx((first - 0.35, by_second_seed - 0.35))
    assert found.sentence(2).endswith(f": {outcome}")


def test_trainings_are_averaged_over_the_same_draws_of_users() -> None:
    mean = mean_of_seeds([measured(0.2, 0.1), measured(0.2, 0.3)])
    assert mean.value == pytest.approx(0.2)
    assert mean.samples[50] == pytest.approx(0.2)  # the middle draw: both say 0.2, whichever is drawn
    alone = measured(0.2, 0.1)
    np.testing.assert_allclose(mean_of_seeds([alone]).samples, alone.samples)


def test_the_interval_holds_the_spread_of_trainings() -> None:
    """Two trainings say 0.2 and 0.4: drawn twice, their mean is 0.2, 0.3, 0.3 or 0.4; 0.1 √2 on either side."""
    many = [Measurement("loss", value, np.full(20_000, value), 10, "population") for value in (0.2, 0.4)]
    mean = mean_of_seeds(many)
    values, counts = np.unique(mean.samples.round(6), return_counts=True)
    np.testing.assert_allclose(values, [0.3 - 0.1 * 2**0.5, 0.3, 0.3 + 0.1 * 2**0.5], atol=1e-6)
    np.testing.assert_allclose(counts / 20_000, [0.25, 0.5, 0.25], atol=0.02)
    spread = np.std([0.2, 0.4], ddof=1) / 2**0.5
    assert np.std(mean.samples) == pytest.approx(spread, rel=0.02)
    # Trainings are drawn alike for both variants: what their difference has in common is not spread.
    shifted = [Measurement("loss", m.value + 0.05, m.samples + 0.05, 10, "population") for m in many]
    np.testing.assert_allclose(mean_of_seeds(shifted).samples - mean.samples, 0.05)


def test_a_difference_is_told_as_a_share_of_what_there_was() -> None:
    assert relative([measured(0.12)], [measured(0.1)]) == "+20.0%"
    assert relative([measured(0.0)], [measured(0.1)]) == "-100.0%"
    assert relative([measured(0.003)], [measured(0.0)]) == "from 0 to 0.0030"


def test_expected_loss_by_hand() -> None:
    """Page 1 has p T = (0.5 × 10, 0.2 × 40, 0.1 × 20), scored in the order b > a > c; page 2 has one impression.

    Σ p_i T_i (1 − p_j): a: 5 (0.8 + 0.9) = 8.5; b: 8 (0.5 + 0.9) = 11.2; c: 2 (0.5 + 0.8) = 2.6; together 22.3.
    Ahead of a: b, 5 × 0.8 = 4; of b: none; of c: both, 2.6. Loss 6.6 / 22.3.
    """
    scores = np.array([2.0, 9.0, 3.0, 1.0])
    groups = np.array([1, 2, 1, 1])
    click, seconds = np.array([0.5, 0.9, 0.2, 0.1]), np.array([10.0, 60.0, 40.0, 20.0])
    bootstrap = UserBootstrap(np.array(["u", "w", "u", "u"]))
    assert expected_loss(scores, groups, click, seconds, bootstrap).value == pytest.approx(6.6 / 22.3)
    ties = expected_loss(np.zeros(4), groups, click, seconds, bootstrap)
    assert ties.value == pytest.approx(0.5)


def test_the_loss_on_drawn_clicks_averages_to_the_expected_loss() -> None:
    random = np.random.default_rng(0)
    pages, slots, draws = 40, 5, 3000
    groups = np.repeat(np.arange(pages), slots)
    click, seconds = random.uniform(0.05, 0.6, len(groups)), random.uniform(5, 100, len(groups))
    scores = random.normal(size=len(groups)).round(1)
    many = np.concatenate([groups + pages * draw for draw in range(draws)])
    clicked = random.random(len(many)) < np.tile(click, draws)
    shown = Impressions(many, many, clicked, np.where(clicked, np.tile(seconds, draws), 0.0))
    drawn = weighted_per_user_loss(np.tile(scores, draws), shown, UserBootstrap(np.zeros(len(many))))
    expected = expected_loss(scores, groups, click, seconds, UserBootstrap(groups))
    assert drawn.value == pytest.approx(expected.value, abs=0.005)


def test_marked_videos_stand_where_the_share_of_others_below_them_says() -> None:
    """One page: the marked video scores 5 beside 7, 3 and 1 that count and 0 that does not: two of three are below."""
    scores = np.array([5.0, 7.0, 3.0, 1.0, 0.0])
    marked = np.array([True, False, False, False, False])
    comparable = np.array([True, True, True, True, False])
    users = np.array(["u"] * 5)
    assert standing(scores, np.ones(5), marked, comparable, UserBootstrap(users)).value == pytest.approx(2 / 3)


CURVES = Curves(
    days=np.array([0.0, 1.0, 2.0, 3.0]),
    uploaded=np.array([-50.0, 1.0, 2.5]),  # old, followed, too late to be followed
    true=np.array([[0.5, 0.0, 0.0], [0.4, 0.8, 0.0], [0.4, 0.4, 0.0], [0.25, 0.1, 0.4]]),
)


def test_the_error_of_a_curve_is_of_its_shape_relative_to_old_videos() -> None:
    """Relative truth after upload: 2, 1, 0.4; a flat prediction of the same total is 3.4 / 3 on each of three days."""
    assert CURVES.followed.tolist() == [1]
    flat = np.tile([0.2, 0.1, 0.7], (4, 1))
    wrong = abs(2 - 3.4 / 3) + abs(1 - 3.4 / 3) + abs(0.4 - 3.4 / 3)
    assert shape_error(flat, CURVES).value == pytest.approx(wrong / 3.4)
    assert shape_error(3 * CURVES.true, CURVES).value == pytest.approx(0.0)


def test_curves_are_averaged_by_whole_days_since_upload() -> None:
    found = by_days_since_upload(CURVES.true, CURVES, np.array([-2, -1, 0, 1, 2]))
    np.testing.assert_allclose(found, [np.nan, 0.0, 2.0, 1.0, 0.4])


def test_probabilities_by_age_move_with_the_age_that_is_asked_for_and_not_with_the_stored_one() -> None:
    config = TwoTowerConfig(dimension=4, depth=0)
    model = TwoTower(config, CANDIDATE_SPEC, {"video": 5, "region": 2})
    batch = {
        "watched_video_ids": np.array([[1, 2, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0]], np.int32),
        "region": np.array([1, 2], np.int32),
        "example_age": np.array([80.0, 3.0], np.float32),
    }
    found = probabilities_by_age(model, batch, np.array([0.0, 50.0, 0.0]))
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0] - found[1]).max() > 1e-4
    # By hand: the mean over users of the softmax of query times class vectors.
    queries = model.query_embeddings(batch | {"example_age": np.array([50.0, 50.0], np.float32)}).numpy()
    logits = queries @ model.class_embeddings(np.arange(1, 6)).numpy().T
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found[1], softmax.mean(axis=0), rtol=1e-4)


def test_the_rows_of_table_1_differ_from_the_best_in_what_their_name_says_only() -> None:
    variants = ranker_layers.variants()
    best = variants[ranker_layers.BEST]
    assert variants["none"] == {"hidden_units": ()}
    assert variants[ranker_layers.EQUAL_WEIGHTS] == {**best, "objective": Objective.UNWEIGHTED}
    assert variants[ranker_layers.WITHOUT_POWERS] == {**best, "powers": False}


def test_table_1_claims_fall_with_the_order_of_the_rows() -> None:
    as_in_the_paper = {name: [measured(loss / 100)] for name, (_, loss) in ranker_layers.PAPER_ROWS.items()}
    best = ranker_layers.PAPER_ROWS[ranker_layers.BEST][1]
    as_in_the_paper |= {name: [measured((best + more) / 100)] for name, more in ranker_layers.PAPER_SENTENCES.items()}
    assert {found.outcome for found in ranker_layers.claims_of(as_in_the_paper)} == {Outcome.HOLDS}
    turned = {name: [measured(1 - found[0].value)] for name, found in as_in_the_paper.items()}
    assert {found.outcome for found in ranker_layers.claims_of(turned)} == {Outcome.REVERSED}


def test_switches_come_after_what_the_caller_sets(tmp_path: Path) -> None:
    base = ranker_layers.simulator_settings(full=False)
    asked = request(tmp_path, "source.users=50", "source.clickbait=0.5")
    plausible, off = (configuration(asked, base, switches).source for switches in (None, {"clickbait": 0.0}))
    assert isinstance(plausible, SimulatorConfig) and isinstance(off, SimulatorConfig)
    assert (plausible.users, plausible.clickbait, off.users, off.clickbait) == (50, 0.5, 50, 0.0)
    assert base["source"]["users"] != 50


def test_a_variant_is_trained_once_for_its_settings_and_data(tmp_path: Path) -> None:
    run = Run(tmp_path, configuration(request(tmp_path), ranker_layers.simulator_settings(full=False)), (), Console())
    trained = []

    def make() -> dict[str, np.ndarray]:
        trained.append(1)
        return {"score": np.arange(3.0)}

    def data(rows: int) -> None:
        with publish(tmp_path / "examples", {"kind": "examples", "rows": rows}):
            pass

    data(1)
    for _ in range(2):
        assert once(run, "a", {"depth": 1}, ["examples"], make)["score"].tolist() == [0.0, 1.0, 2.0]
    assert len(trained) == 1
    once(run, "a", {"depth": 2}, ["examples"], make)
    assert len(trained) == 2
    data(2)
    once(run, "a", {"depth": 2}, ["examples"], make)
    assert len(trained) == 3


@pytest.mark.parametrize(
    ("name", "scale", "source", "message"),
    [
        (
            "ranker_layer",
            "smoke",
            "simulator",
            "experiment 'ranker_layer': no such experiment; did you mean 'ranker_layers'",
        ),
        ("example_age", "tiny", "simulator", "scale 'tiny': no such scale; there are: smoke, full"),
        ("example_age", "smoke", "kuairand", "kuairand has not what it needs"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_line(
    name: str, scale: str, source: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        reproduce(name, scale, source, [], tmp_path, tmp_path, Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_and_publishes(name: str, work: Path, tmp_path: Path) -> None:
    from benchmarks.report import is_whole

    reproduce(name, "smoke", "simulator", [], tmp_path, work, Console(quiet=True))
    assert is_whole(tmp_path, f"{name}_smoke")
    text = (tmp_path / f"{name}_smoke.md").read_text()
    assert f"upnext reproduce {name} --scale smoke --source simulator" in text
    assert "switched off" in text and "nan" not in text


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Worlds, shared by the experiments that have the same."""
    return tmp_path_factory.mktemp("worlds")


def test_trainings_are_three_for_figures_and_told_where_they_are_not(tmp_path: Path) -> None:
    console = Console(quiet=True)

    def asked(scale: Scale, trainings: int | None) -> Request:
        return Request("label_choice", scale, SourceName.SIMULATOR, (), tmp_path, tmp_path, console, trainings)

    assert asked(Scale.FULL, None).seeds == (1, 2, 3)
    assert asked(Scale.SMOKE, None).seeds == (1,)
    assert asked(Scale.FULL, 1).seeds == (1,)
    assert asked(Scale.FULL, 1).command.endswith("--source simulator --trainings 1")
    assert "--trainings" not in asked(Scale.FULL, None).command


def test_published_commands_name_no_folder_of_the_machine(tmp_path: Path) -> None:
    overrides = ("source.path=/data/logs", "source.path=../logs", "source.watch=long_view")
    request = Request(
        "ranker_layers", Scale.FULL, SourceName.KUAIRAND, overrides, tmp_path, tmp_path, Console(quiet=True)
    )
    assert request.command == (
        "upnext reproduce ranker_layers --scale full --source kuairand "
        "--set source.path=DIR --set source.path=DIR --set source.watch=long_view"
    )
