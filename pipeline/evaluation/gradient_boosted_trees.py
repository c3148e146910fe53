"""Gradient-boosted trees (LightGBM) given the ranker's features: the peers of the ranker.

Three ways to order a list, and a click model:

- watch-time regression: E[watch time] of an impression directly, by the Tweedie or the squared loss (both are tried);
- weighted binary: the paper's weighted logistic regression on trees; the score is the odds;
- lambdarank: pairs within a page view (one of more than 10,000 impressions is cut into pieces); a clicked impression's
  gain is the mean watch time of its quartile;
- click probability: unweighted.

Every variant has the same budget: `trials` settings, the first fixed and the others drawn by the seed from one space,
each with early stopping on validation. What is chosen and when to stop go by the validation part's weighted per-user
loss (log loss for the click model), with features as at serving: so are the test part and the loss that the ranker's
own validation tells. The chosen setting is fitted again on training and validation with its number of rounds, as the
ranker is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import lightgbm as lgb
import numpy as np
from pydantic import Field

from features.errors import DataError
from features.settings import Settings
from pipeline.evaluation.ranking_metrics import Impressions, mispredicted_pairs
from pipeline.evaluation.tree_features import RankingData

_RELEVANCE_BINS = 4
_MOST_ROWS_OF_A_QUERY = 10_000  # LightGBM refuses a longer one


class TreeVariant(StrEnum):
    """What the trees are fitted to."""

    WATCH_TIME = "LightGBM watch-time regression"
    WEIGHTED_BINARY = "LightGBM weighted binary"
    LAMBDARANK = "LightGBM lambdarank"
    CLICK = "LightGBM click probability"


RANKING_VARIANTS = (TreeVariant.WATCH_TIME, TreeVariant.WEIGHTED_BINARY, TreeVariant.LAMBDARANK)


class TreesConfig(Settings):
    """The tuning budget."""

    trials: int = Field(default=4, ge=1, description="settings tried per variant")
    max_rounds: int = Field(default=300, ge=1, description="trees of one fit, at most")
    stopping_rounds: int = Field(default=25, ge=1, description="rounds without improvement on validation before a stop")
    max_bin: int = Field(default=127, ge=2, description="histogram bins per feature")
    threads: int = Field(default=2, ge=1, description="threads of LightGBM")
    seed: int = Field(default=0, ge=0, description="seed of the settings and of the trees' sampling")


FIRST_SETTING: dict[str, Any] = {
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.4,
    "lambda_l2": 1.0,
    "cat_smooth": 100.0,
    "cat_l2": 100.0,
}
SETTING_SPACE: dict[str, tuple] = {
    "learning_rate": (0.05, 0.1),
    "num_leaves": (15, 31, 63),
    "min_data_in_leaf": (20, 50, 200),
    "feature_fraction": (0.4, 0.6, 0.8),
    "lambda_l2": (0.1, 1.0, 10.0),
    "cat_smooth": (10.0, 30.0, 100.0),
    "cat_l2": (10.0, 30.0, 100.0),
}


@dataclass(frozen=True)
class TreeTrial:
    """One setting: its rounds, and the validation loss it stopped at."""

    parameters: dict[str, Any]
    rounds: int
    validation_loss: float


@dataclass(frozen=True)
class FittedTrees:
    """A variant fitted on training and validation.

    Args:
      variant: what it was fitted to.
      booster: the trees.
      trials: all settings, the chosen one first.
      seconds: time for tuning and fitting.
      threads: of predictions.
    """

    variant: TreeVariant
    booster: lgb.Booster = field(repr=False)
    trials: tuple[TreeTrial, ...]
    seconds: float
    threads: int = 1

    @property
    def validation_loss(self) -> float:
        return self.trials[0].validation_loss

    def predict(self, data: RankingData) -> np.ndarray:
        """`[n]`: seconds (watch time), odds (weighted binary), a score (lambdarank) or a probability (click)."""
        odds = self.variant is TreeVariant.WEIGHTED_BINARY
        predicted = np.asarray(self.booster.predict(data.matrix, raw_score=odds, num_threads=self.threads))
        return np.exp(predicted) if odds else predicted


def expected_watch_time_s(fitted: dict[TreeVariant, FittedTrees], data: RankingData) -> dict[TreeVariant, np.ndarray]:
    """Expected watch time `[n]` of the variants that have one: regression, and odds × (1 − click probability)."""
    result = {}
    if TreeVariant.WATCH_TIME in fitted:
        result[TreeVariant.WATCH_TIME] = fitted[TreeVariant.WATCH_TIME].predict(data)
    if TreeVariant.WEIGHTED_BINARY in fitted and TreeVariant.CLICK in fitted:
        odds = fitted[TreeVariant.WEIGHTED_BINARY].predict(data)
        result[TreeVariant.WEIGHTED_BINARY] = odds * (1.0 - fitted[TreeVariant.CLICK].predict(data))
    return result


def best_variant(fitted: dict[TreeVariant, FittedTrees]) -> TreeVariant:
    """The ranking variant with the lowest loss on validation."""
    ranking = [variant for variant in RANKING_VARIANTS if variant in fitted]
    return min(ranking, key=lambda variant: fitted[variant].validation_loss)


def fit_trees(
    train: RankingData,
    validation: RankingData,
    config: TreesConfig | None = None,
    variants: tuple[TreeVariant, ...] = tuple(TreeVariant),
    progress: Callable[[str], None] = lambda message: None,
    validation_at_serving: RankingData | None = None,
) -> dict[TreeVariant, FittedTrees]:
    """Tunes every variant on validation and fits it on training and validation.

    Args:
      train: the training part, features as logged.
      validation: the validation part, features as logged: what is fitted in the end.
      config: the tuning budget.
      variants: what is fitted.
      progress: is told what is done at the moment.
      validation_at_serving: the rows of `validation` as they are scored at serving: what is chosen by. None: as logged.

    Raises:
      DataError: the training part has only clicked or only unclicked impressions.
    """
    config = config or TreesConfig()
    clicked = train.impressions.clicked
    if clicked.all() or not clicked.any():
        raise DataError(
            f"ranking examples: {np.count_nonzero(clicked)} of {len(clicked)} training impressions are clicked; "
            "expected both kinds; check what counts as a click"
        )
    judged = _sorted_by_group(validation if validation_at_serving is None else validation_at_serving)
    train, validation = _sorted_by_group(train), _sorted_by_group(validation)
    both = _sorted_by_group(train.joined(_with_other_groups(validation, train)))
    datasets = [_dataset(data, config) for data in (train, both)]
    result = {}
    for variant in variants:
        started = time.monotonic()
        progress(f"{variant}: {config.trials} settings on validation")
        trials = _tune(variant, datasets[0], train, judged, config)
        progress(f"{variant}: fit on training and validation")
        _set_target(datasets[1], variant, both.impressions, train.impressions)
        parameters = _parameters(variant, trials[0].parameters, train.impressions, config)
        booster = lgb.train(parameters, datasets[1], num_boost_round=trials[0].rounds)
        result[variant] = FittedTrees(variant, booster, tuple(trials), time.monotonic() - started, config.threads)
    return result


def _tune(
    variant: TreeVariant, dataset: lgb.Dataset, train: RankingData, validation: RankingData, config: TreesConfig
) -> list[TreeTrial]:
    """Trials, the best first."""
    trials = []
    _set_target(dataset, variant, train.impressions, train.impressions)
    unset = np.zeros(len(validation))
    valid = dataset.create_valid(validation.matrix, label=unset, params=dataset.get_params()).construct()
    _set_target(valid, variant, validation.impressions, train.impressions)
    for setting in tree_settings(variant, config):
        evaluations: dict[str, dict[str, list[float]]] = {}
        booster = lgb.train(
            _parameters(variant, setting, train.impressions, config),
            dataset,
            num_boost_round=config.max_rounds,
            valid_sets=[valid],
            valid_names=["validation"],
            feval=_validation_loss(variant, validation.impressions),
            callbacks=[
                lgb.early_stopping(config.stopping_rounds, first_metric_only=True, verbose=False),
                lgb.record_evaluation(evaluations),
            ],
        )
        rounds = booster.best_iteration or config.max_rounds
        trials.append(TreeTrial(setting, rounds, evaluations["validation"]["loss"][rounds - 1]))
    return sorted(trials, key=lambda trial: trial.validation_loss)


def tree_settings(variant: TreeVariant, config: TreesConfig) -> list[dict[str, Any]]:
    """The settings tried: the fixed first one, then draws; watch-time regression alternates its two losses."""
    rng = np.random.default_rng(config.seed)
    draws = [
        {name: values[rng.integers(len(values))] for name, values in SETTING_SPACE.items()}
        for _ in range(config.trials - 1)
    ]
    settings = [dict(FIRST_SETTING), *draws]
    if variant is TreeVariant.WATCH_TIME:
        for i, setting in enumerate(settings):
            setting["objective"] = ("tweedie", "regression")[i % 2]
    return settings


def relevance(impressions: Impressions, reference: Impressions) -> tuple[np.ndarray, list[float]]:
    """Grades for lambdarank: 0 unclicked, 1 to 4 the quartile of the watch time among the reference's clicks.

    Returns:
      `[n]` grades, and the gain of each grade: its mean watch time over the mean of all clicks; 0 for grade 0.
    """
    seconds = reference.watch_time_s[reference.clicked]
    edges = np.quantile(seconds, np.arange(1, _RELEVANCE_BINS) / _RELEVANCE_BINS)
    bins = np.searchsorted(edges, seconds, side="right")
    sums = np.bincount(bins, seconds, minlength=_RELEVANCE_BINS)
    means = sums / np.maximum(np.bincount(bins, minlength=_RELEVANCE_BINS), 1)
    grades = np.where(impressions.clicked, 1 + np.searchsorted(edges, impressions.watch_time_s, side="right"), 0)
    return grades, [0.0, *(means / max(seconds.mean(), 1e-9)).tolist()]


def _parameters(
    variant: TreeVariant, setting: dict[str, Any], reference: Impressions, config: TreesConfig
) -> dict[str, Any]:
    parameters = {
        "objective": "binary",
        "metric": "none",
        "verbosity": -1,
        "num_threads": config.threads,
        "seed": config.seed,
        "deterministic": True,
        "force_row_wise": True,
        **_dataset_parameters(config),
        **setting,
    }
    if variant is TreeVariant.LAMBDARANK:
        parameters.update(objective="lambdarank", label_gain=relevance(reference, reference)[1])
    return parameters


def _dataset_parameters(config: TreesConfig) -> dict[str, Any]:
    # Features are not dropped by min_data_in_leaf, which differs between trials that share the binned data.
    return {"max_bin": config.max_bin, "feature_pre_filter": False, "verbosity": -1, "num_threads": config.threads}


def _dataset(data: RankingData, config: TreesConfig) -> lgb.Dataset:
    return lgb.Dataset(
        data.matrix,
        label=np.zeros(len(data)),
        feature_name=[f"column_{i}" for i in range(len(data.names))],
        categorical_feature=[data.names.index(name) for name in data.categorical],
        params=_dataset_parameters(config),
        free_raw_data=False,
    ).construct()


def _set_target(dataset: lgb.Dataset, variant: TreeVariant, impressions: Impressions, reference: Impressions) -> None:
    """Label, weight and groups of a variant; `reference` (training) gives the quartiles of watch time."""
    clicked = impressions.clicked.astype(np.float64)
    label, weight = clicked, np.ones(len(clicked))
    if variant is TreeVariant.WATCH_TIME:
        label = clicked * impressions.watch_time_s
    elif variant is TreeVariant.WEIGHTED_BINARY:
        weight = np.where(impressions.clicked, impressions.watch_time_s, 1.0)
    elif variant is TreeVariant.LAMBDARANK:
        label = relevance(impressions, reference)[0]
    # set_weight and set_group would keep what the last variant set when given equal weights or no groups.
    dataset.set_field("label", label.astype(np.float32))
    dataset.set_field("weight", weight.astype(np.float32))
    dataset.set_field("group", query_sizes(impressions.groups) if variant is TreeVariant.LAMBDARANK else None)


def query_sizes(groups: np.ndarray, most: int = _MOST_ROWS_OF_A_QUERY) -> np.ndarray:
    """int32: rows of each group of `groups` `[n]` (ascending); one of more than `most` is cut into pieces of `most`."""
    _, sizes = np.unique(groups, return_counts=True)
    pieces = -(-sizes // most)
    cut = np.full(pieces.sum(), most, np.int32)
    cut[np.cumsum(pieces) - 1] = sizes - (pieces - 1) * most
    return cut


def _validation_loss(
    variant: TreeVariant, impressions: Impressions
) -> Callable[[np.ndarray, lgb.Dataset], tuple[str, float, bool]]:
    """The loss a round is judged by: weighted per-user loss of the scores, or log loss of the click model."""
    clicked, seconds = impressions.clicked, impressions.watch_time_s

    def loss(predicted: np.ndarray, _: lgb.Dataset) -> tuple[str, float, bool]:
        if variant is TreeVariant.CLICK:
            likelihood = np.clip(np.where(clicked, predicted, 1.0 - predicted), 1e-7, 1.0)
            return "loss", float(-np.log(likelihood).mean()), False
        above, unclicked = mispredicted_pairs(impressions.groups, predicted, clicked)
        return "loss", float((seconds * above).sum() / max((seconds * unclicked).sum(), 1e-9)), False

    return loss


def _sorted_by_group(data: RankingData) -> RankingData:
    """LightGBM wants the rows of a group together."""
    return data.take(np.argsort(data.impressions.groups, kind="stable"))


def _with_other_groups(data: RankingData, taken: RankingData) -> RankingData:
    """The same rows with groups renumbered beyond those of `taken`."""
    shown = data.impressions
    _, groups = np.unique(shown.groups, return_inverse=True)
    first = int(taken.impressions.groups.max()) + 1
    return RankingData(
        data.matrix,
        data.names,
        data.categorical,
        Impressions(shown.users, first + groups, shown.clicked, shown.watch_time_s),
    )
