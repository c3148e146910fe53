"""The best possible result where the truth is known (the simulator): what a perfect scorer reaches.

Ranking by the true next-watch probabilities maximises every expected retrieval metric, and ranking by the true
expected watch time is what the ranker aims at; the reports give a model's figures as a share of these.
"""

import numpy as np

from pipeline.evaluation.bootstrap import Measurement, UserBootstrap
from pipeline.evaluation.figures import Figure
from pipeline.evaluation.ranking_metrics import Impressions, evaluate_clicks, evaluate_ranking
from pipeline.evaluation.retrieval_metrics import (
    UNWATCHED,
    RetrievalMetricsConfig,
    RetrievalTargets,
    Scorer,
    evaluate_retrieval,
    metric_names,
    metric_values,
)


def best_possible_retrieval(
    probabilities: Scorer, examples: RetrievalTargets, config: RetrievalMetricsConfig | None = None
) -> list[Measurement]:
    """What the true probabilities `[n, videos]` reach on the watches that did happen; pairs with a model's metrics."""
    return evaluate_retrieval(probabilities, examples, config)


def expected_best_retrieval(
    probabilities: Scorer, examples: RetrievalTargets, config: RetrievalMetricsConfig | None = None
) -> list[Measurement]:
    """What the true probabilities reach in expectation over the next watch: the same without the luck of the draw.

    With p₍₁₎ ≥ p₍₂₎ ≥ … the sorted probabilities of an example, the expectation of a metric is Σᵣ p₍ᵣ₎ metric(r). With
    watched videos removed, their probability is lost, as the watch of a removed video is a miss.
    """
    config = config or RetrievalMetricsConfig()
    largest = min(max(*config.map_at, *config.recall_at, *config.ndcg_at, 1), examples.num_videos)
    at_rank = metric_values(np.arange(1, largest + 1), config)
    parts = []
    at_once = config.rows_at_once(examples.num_videos)
    for start in range(0, len(examples), at_once):
        rows = slice(start, min(start + at_once, len(examples)))
        p = np.array(probabilities(rows), np.float64)
        among_all = _largest(p, largest) @ at_rank
        watched = examples.watched[rows].tocoo()
        p[watched.coords[0], watched.coords[1]] = 0.0
        parts.append(np.concatenate([among_all, _largest(p, largest) @ at_rank], axis=1))
    names = metric_names(config)
    bootstrap = UserBootstrap(examples.users, config.bootstrap)
    return bootstrap.means_of_users([*names, *(f"{name} {UNWATCHED}" for name in names)], np.concatenate(parts))


def best_possible_ranking(
    true_click_probability: np.ndarray,
    true_watch_time_if_clicked_s: np.ndarray,
    impressions: Impressions,
    bootstrap: UserBootstrap,
) -> list[Measurement]:
    """The ranking metrics of the true expected watch time P(click) × E[watch time | click], and of the true P(click).

    Args:
      true_click_probability: `[n]`.
      true_watch_time_if_clicked_s: `[n]` seconds.
      impressions: what was shown, clicked and watched.
      bootstrap: over `impressions.users`.
    """
    expected = true_click_probability * true_watch_time_if_clicked_s
    clicks = evaluate_clicks(true_click_probability, impressions, bootstrap)
    return evaluate_ranking(expected, impressions, bootstrap, clicks)


def share_of_best(model: Figure, best: Figure) -> float:
    """A model's figure as a share of the best possible one (metrics where more is better); NaN if that is 0."""
    return model.value / best.value if best.value > 0 else float("nan")


def _largest(p: np.ndarray, k: int) -> np.ndarray:
    """The k largest values of each row, descending."""
    return -np.sort(np.partition(-p, k - 1, axis=1)[:, :k], axis=1)
