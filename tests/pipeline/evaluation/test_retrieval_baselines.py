"""Tuning on validation, fitting again, measuring on test."""

import numpy as np
import pytest

from features.errors import DataError
from pipeline.evaluation.baselines.ease import EaseConfig
from pipeline.evaluation.baselines.interactions import Histories, Interactions, RetrievalExamples
from pipeline.evaluation.baselines.tuning import PLAIN, Family, Variant, selection_value, tune_on_validation
from pipeline.evaluation.bootstrap import BootstrapConfig, paired_difference
from pipeline.evaluation.retrieval_baselines import EASE, RetrievalBaselinesConfig, evaluate_baselines
from pipeline.evaluation.retrieval_metrics import RetrievalMetricsConfig, RetrievalTargets

METRICS = RetrievalMetricsConfig(recall_at=(5, 20, 100), bootstrap=BootstrapConfig(resamples=20))
VIDEOS = 30


def grouped_log(seed, users=150, length=8):
    """Users watch videos of their own third of the catalogue; the last watch of each is the label."""
    rng = np.random.default_rng(seed)
    group = np.arange(users) % 3
    watched = np.stack([rng.permutation(VIDEOS // 3)[:length] for _ in range(users)]) + 10 * group[:, None]
    history = watched[:, :-1].astype(np.int32)
    ids = np.arange(users)
    train = Interactions.of(np.repeat(ids, length - 1), history.ravel(), np.arange(history.size), VIDEOS)
    histories = Histories(history.ravel(), np.arange(users + 1) * (length - 1))
    targets = RetrievalTargets(ids, watched[:, -1], histories.matrix(VIDEOS))
    return train, RetrievalExamples(targets, histories)


@pytest.fixture(scope="module")
def results():
    train, validation = grouped_log(0)
    refit, test = grouped_log(1)
    messages = []
    found = evaluate_baselines(train, validation, refit, test, None, METRICS, messages.append)
    return {result.method: result for result in found}, messages


def test_every_peer_is_there_plain_and_weighted(results):
    assert list(results[0]) == [
        "popularity",
        "recent popularity",
        "last-watch co-watch",
        "last-watch co-watch × recent popularity",
        "recent co-watch",
        "recent co-watch × recent popularity",
        "item-kNN",
        "item-kNN × recent popularity",
        "ALS",
        "ALS × recent popularity",
        "EASE",
        "EASE × recent popularity",
    ]
    assert any("EASE" in message for message in results[1])


def test_personal_peers_find_the_group_that_popularity_cannot(results):
    value = {name: result.method_figures.figure("recall@5 unwatched").value for name, result in results[0].items()}
    assert value["popularity"] < 0.5
    for name in ("recent co-watch", "item-kNN", "ALS", "EASE"):
        assert value[name] > 0.95  # three videos of the group are left: within the first five if the group is found
    paired = paired_difference(
        *(next(m for m in results[0][n].measurements if m.name == "recall@5") for n in ("EASE", "popularity"))
    )
    assert paired.n == 150


def test_the_chosen_parameters_are_the_best_trial(results):
    ease = results[0]["EASE × recent popularity"]
    assert ease.trials[0].selection == max(trial.selection for trial in ease.trials)
    assert ease.parameters == {**ease.trials[0].parameters, **ease.trials[0].variant}
    assert set(ease.parameters) == {"regularisation", "half_life_days", "exponent"}
    assert len(results[0]["EASE"].trials) == len(EaseConfig().regularisation)
    assert ease.method_figures.settings["tried"] == len(ease.trials)


def test_a_peer_too_large_is_left_out_with_its_reason():
    train, examples = grouped_log(0)
    config = RetrievalBaselinesConfig(methods=(EASE,), ease=EaseConfig(max_videos=10))
    plain, weighted = evaluate_baselines(train, examples, train, examples, config, METRICS)
    assert plain.left_out == weighted.left_out == "30 videos are more than the configured 10"
    assert plain.method_figures.figures == ()


def test_without_validation_every_peer_is_left_out_and_told():
    train, examples = grouped_log(0)
    config = RetrievalBaselinesConfig(methods=("popularity", EASE))
    found = evaluate_baselines(train, examples.take_first(0, seed=0), train, examples, config, METRICS)
    assert [result.method for result in found] == ["popularity", "EASE", "EASE × recent popularity"]
    assert {result.method_figures.left_out for result in found} == {
        "no validation examples to choose its settings by (split.validation_days)"
    }


class Constant:
    """Scores every example alike."""

    def __init__(self, scores):
        self.scores = np.array(scores, np.float32)

    def score(self, histories):
        return np.tile(self.scores, (len(histories), 1))


def test_tuning_takes_what_is_best_on_validation_and_measures_variants():
    train, validation = grouped_log(0, users=30)
    favourite = np.bincount(validation.targets.targets, minlength=VIDEOS).astype(float)
    family = Family("constant", lambda _, p: Constant(p["sign"] * favourite), [{"sign": -1.0}, {"sign": 1.0}])
    turned = Variant({"turned": True}, lambda scores: -scores)
    trials = tune_on_validation(family, train, validation, [PLAIN, turned], ("recall@5",), METRICS)
    assert len(trials) == 4
    # Two trials give the same scores, so they stay in the order of the grid; the other two are their reverse.
    assert [(trial.parameters["sign"], bool(trial.variant)) for trial in trials[:2]] == [(-1.0, True), (1.0, False)]
    assert trials[0].selection == trials[1].selection > trials[2].selection
    assert trials[0].selection == pytest.approx(trials[0].metrics["recall@5"])


def test_selection_is_a_geometric_mean_of_known_metrics():
    assert selection_value({"a": 0.04, "b": 0.25}, ("a", "b")) == pytest.approx(0.1)
    with pytest.raises(DataError, match="no metric 'c'"):
        selection_value({"a": 0.04}, ("c",))


def test_histories_decide_not_the_user_ids():
    train, examples = grouped_log(0, users=60)
    renamed = RetrievalExamples(
        RetrievalTargets(
            np.array([f"új {u}" for u in examples.users]), examples.targets.targets, examples.targets.watched
        ),
        examples.histories,
    )
    config = RetrievalBaselinesConfig(methods=("item-kNN",))
    one = evaluate_baselines(train, examples, train, examples, config, METRICS)
    other = evaluate_baselines(train, renamed, train, renamed, config, METRICS)
    assert [m.value for m in one[0].measurements] == pytest.approx([m.value for m in other[0].measurements])


@pytest.mark.parametrize(
    ("cut_offs", "selection"),
    [
        ({}, ("MAP@20 unwatched", "recall@100 unwatched")),
        ({"map_at": (5, 10), "recall_at": (100, 500)}, ("MAP@10 unwatched", "recall@100 unwatched")),
        ({"map_at": (50, 20), "recall_at": ()}, ("MAP@20 unwatched",)),
        ({"map_at": (), "recall_at": ()}, ("precision@1 unwatched",)),
    ],
)
def test_peers_are_chosen_by_the_reported_metrics_nearest_to_the_usual_ones(cut_offs, selection):
    assert RetrievalBaselinesConfig().selection(RetrievalMetricsConfig(**cut_offs)) == selection


def test_peers_are_tuned_where_other_cut_offs_are_reported():
    train, examples = grouped_log(4, users=60)
    metrics = RetrievalMetricsConfig(map_at=(10,), recall_at=(5,), bootstrap=BootstrapConfig(resamples=20))
    config = RetrievalBaselinesConfig(methods=("item-kNN",))
    best = evaluate_baselines(train, examples, train, examples, config, metrics)[0].trials[0]
    expected = np.sqrt(best.metrics["MAP@10 unwatched"] * best.metrics["recall@5 unwatched"])
    assert best.selection == pytest.approx(expected)
