"""Choosing a peer's hyper-parameters on validation, from a small fixed grid; the test part is never looked at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.errors import DataError
from pipeline.evaluation.baselines.interactions import FittedBaseline, Histories, Interactions, RetrievalExamples
from pipeline.evaluation.retrieval_metrics import (
    Ranks,
    RetrievalMetricsConfig,
    Scorer,
    concatenate_ranks,
    mean_metrics,
    target_ranks,
)

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A kind of peer: how to fit it, and the parameters to try.

    Args:
      name: in tables.
      fit: from watches and one of the grid's entries.
      grid: the entries; at least one.
      max_videos: above, the family is left out.
    """

    name: str
    fit: Callable[[Interactions, Parameters], FittedBaseline]
    grid: Sequence[Parameters]
    max_videos: int | None = None


@dataclass(frozen=True)
class Trial:
    """One entry of a grid and what it reached on validation.

    Args:
      parameters: of the family, as in its grid.
      variant: parameters of the change made to its scores; empty where there is none.
      selection: what trials are compared by.
      metrics: all retrieval metrics, by name.
    """

    parameters: Parameters
    variant: Parameters
    selection: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Variant:
    """A change of the scores `[n, videos]` of a fitted peer (weighting by popularity, say) and its parameters."""

    parameters: Parameters
    change: Callable[[np.ndarray], np.ndarray]


PLAIN = Variant({}, lambda scores: scores)


def scorer_of(baseline: FittedBaseline, histories: Histories) -> Scorer:
    """The scores of a fitted peer for slices of the examples that have these histories."""
    return lambda rows: baseline.score(histories.take(rows))


def selection_value(metrics: Mapping[str, float], names: Sequence[str]) -> float:
    """The geometric mean of the named metrics, by which trials are compared."""
    missing = [name for name in names if name not in metrics]
    if missing:
        raise DataError(f"no metric {missing[0]!r} to choose by; there are {', '.join(metrics)}")
    return float(np.exp(np.mean(np.log(np.maximum([metrics[name] for name in names], 1e-12)))))


def tune_on_validation(
    family: Family,
    train: Interactions,
    validation: RetrievalExamples,
    variants: Sequence[Variant],
    selected_by: Sequence[str],
    config: RetrievalMetricsConfig,
) -> list[Trial]:
    """Fits every entry of the family's grid on the training watches and measures it on validation, in every variant.

    Returns:
      The trials, the best first; equal ones in the order of grid and variants.
    """
    trials = []
    for parameters in family.grid:
        scorer = scorer_of(family.fit(train, parameters), validation.histories)
        for variant, metrics in zip(variants, measure_variants(scorer, variants, validation, config), strict=True):
            trials.append(Trial(parameters, variant.parameters, selection_value(metrics, selected_by), metrics))
    return sorted(trials, key=lambda trial: -trial.selection)


def measure_variants(
    scorer: Scorer, variants: Sequence[Variant], examples: RetrievalExamples, config: RetrievalMetricsConfig
) -> list[dict[str, float]]:
    """Metrics of several variants of the same scores, which are computed once."""
    parts: list[list[Ranks]] = [[] for _ in variants]
    at_once = config.rows_at_once(examples.targets.num_videos)
    for start in range(0, len(examples), at_once):
        rows = slice(start, min(start + at_once, len(examples)))
        scores, targets = scorer(rows), examples.targets.take(np.arange(rows.start, rows.stop))
        for ranks, variant in zip(parts, variants, strict=True):
            ranks.append(target_ranks(variant.change(scores), targets))
    return [mean_metrics(concatenate_ranks(ranks), examples.users, config) for ranks in parts]
