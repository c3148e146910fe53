"""Weighted logistic regression: a classifier whose odds are a watch time (Covington et al. 2016, section 4.2).

Positive (clicked) impressions weigh the watch time `T` they led to, in seconds; negative ones weigh one. Where the
features are constant, the cross-entropy `-(Σ T) log p - (N - k) log(1 - p)` is least at

    p / (1 - p) = exp(logit) = Σ T / (N - k)            (paper, section 4.2)

for `N` impressions of which `k` were clicked. With `P = k / N` and `E[T] = Σ T / N`, the expected watch time of an
impression, these odds are `E[T] / (1 - P) = E[T] (1 + P + P² + ...)`: the paper's `E[T] (1 + P)` to first order, close
to `E[T]` only where clicks are rare. Two ways lead to `E[T]` itself:

- multiply the odds by `1 - P` of a click model (`expected_watch_time`);
- `Objective.EXACT_ODDS`: every positive is also a negative of weight one, so that the odds are `Σ T / N = E[T]`.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import tensorflow as tf

from features.errors import DataError


class Objective(StrEnum):
    """What weight an impression has as a positive and as a negative."""

    WEIGHTED = "weighted"  # the paper's: odds E[T] / (1 - P)
    EXACT_ODDS = "exact_odds"  # a unit-weight negative for every positive as well: odds E[T]
    UNWEIGHTED = "unweighted"  # every positive weighs one: odds P / (1 - P), the comparison of the paper's section 4.3


@dataclass(frozen=True)
class LabelStatistics:
    """Sums over the training impressions from which the loss scale and the initial bias follow.

    Args:
      impressions: the number of impressions (each counted `weight` times), corrected for negative down-sampling.
      clicks: how many of them were clicked.
      watch_time_s: their total watch time in seconds.
    """

    impressions: float
    clicks: float
    watch_time_s: float

    def __post_init__(self) -> None:
        if not 0 < self.clicks < self.impressions or not self.watch_time_s > 0:
            raise DataError(
                "the ranker needs clicked and unclicked training impressions and some watch time; found "
                f"{self.impressions:g} impressions, {self.clicks:g} clicked, {self.watch_time_s:g} s watched"
            )

    @classmethod
    def of(
        cls,
        clicked: np.ndarray,
        watch_time_s: np.ndarray,
        weight: np.ndarray | float = 1.0,
        negative_keep_rate: float = 1.0,
    ) -> "LabelStatistics":
        """The sums of label columns of shape `[n]`."""
        weight = np.asarray(weight, np.float64) * np.where(clicked > 0, 1.0, 1.0 / negative_keep_rate)
        return cls(
            impressions=float(np.sum(np.broadcast_to(weight, np.shape(clicked)))),
            clicks=float(np.sum(weight * clicked, dtype=np.float64)),
            watch_time_s=float(np.sum(weight * clicked * watch_time_s, dtype=np.float64)),
        )

    def prior_logit(self, objective: Objective) -> float:
        """The logit that is best where nothing is known of the impression."""
        if objective == Objective.UNWEIGHTED:
            return self.prior_click_logit()
        negatives = self.impressions if objective == Objective.EXACT_ODDS else self.impressions - self.clicks
        return float(np.log(self.watch_time_s / negatives))

    def prior_click_logit(self) -> float:
        """The log-odds of a click."""
        return float(np.log(self.clicks / (self.impressions - self.clicks)))

    def mean_weight(self, objective: Objective) -> float:
        """The mean over impressions of the weight as a positive plus the weight as a negative.

        The loss is divided by this constant so that its gradients have the size of a plain logistic regression's
        whether the watch times are seconds or hours. A constant factor does not move the optimum.
        """
        negatives = self.impressions if objective == Objective.EXACT_ODDS else self.impressions - self.clicks
        positives = self.clicks if objective == Objective.UNWEIGHTED else self.watch_time_s
        return (positives + negatives) / self.impressions


def example_weights(
    clicked: tf.Tensor, watch_time_s: tf.Tensor, objective: Objective, negative_keep_rate: float = 1.0
) -> tuple[tf.Tensor, tf.Tensor]:
    """The weight of each impression as a positive and as a negative.

    Args:
      clicked: float `[...]`, 1 where clicked, else 0.
      watch_time_s: float `[...]`, seconds; read only where clicked, must be known there.
      objective: see `Objective`.
      negative_keep_rate: the share of unclicked impressions that were kept when negatives were down-sampled; each
        kept one stands for `1 / negative_keep_rate` of them. Default 1: all were kept.

    Returns:
      `(positive, negative)`, both like `clicked`.
    """
    watch_time_s = tf.where(clicked > 0, watch_time_s, tf.zeros_like(watch_time_s))
    positive = clicked if objective == Objective.UNWEIGHTED else clicked * watch_time_s
    negative = (1.0 - clicked) / negative_keep_rate
    if objective == Objective.EXACT_ODDS:
        negative = negative + clicked
    return positive, negative


def weighted_logistic_loss(
    logit: tf.Tensor,
    clicked: tf.Tensor,
    watch_time_s: tf.Tensor,
    objective: Objective = Objective.WEIGHTED,
    negative_keep_rate: float = 1.0,
) -> tf.Tensor:
    """The cross-entropy of each impression: `positive · softplus(-logit) + negative · softplus(logit)`.

    It is finite for every finite logit, and its gradient, `negative · σ(logit) - positive · σ(-logit)`, is bounded by
    the weights. Covington et al. 2016, section 4.2.

    Args:
      logit: float `[...]`; `exp(logit)` are the odds.
      clicked, watch_time_s, objective, negative_keep_rate: see `example_weights`.

    Returns:
      float `[...]`: the loss of each impression, not yet divided by `LabelStatistics.mean_weight`.
    """
    positive, negative = example_weights(clicked, watch_time_s, objective, negative_keep_rate)
    return positive * tf.nn.softplus(-logit) + negative * tf.nn.softplus(logit)


def click_loss(click_logit: tf.Tensor, clicked: tf.Tensor, negative_keep_rate: float = 1.0) -> tf.Tensor:
    """The plain cross-entropy of each impression's click, `[...]`, corrected for negative down-sampling."""
    return weighted_logistic_loss(click_logit, clicked, tf.ones_like(clicked), Objective.UNWEIGHTED, negative_keep_rate)


def expected_watch_time(
    logit: tf.Tensor, click_logit: tf.Tensor, objective: Objective, mean_click_watch_time_s: float
) -> tf.Tensor:
    """Expected watch time of an impression in seconds, before calibration.

    `WEIGHTED`: `odds · (1 - P)`, computed as `exp(logit - softplus(click_logit))`. `EXACT_ODDS`: the odds.
    `UNWEIGHTED`: `P · E[T | click]` with one constant for the latter, as a ranker by clicks believes.

    Args:
      logit: float `[...]`, of the odds head.
      click_logit: float `[...]`, of the click head.
      objective: what the odds head was trained with.
      mean_click_watch_time_s: `E[T | click]` over all training impressions, read by `UNWEIGHTED` only.
    """
    if objective == Objective.EXACT_ODDS:
        return tf.exp(logit)
    if objective == Objective.WEIGHTED:
        return tf.exp(logit - tf.nn.softplus(click_logit))
    return tf.sigmoid(logit) * mean_click_watch_time_s
