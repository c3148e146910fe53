"""Metrics of ranking, over held-out impressions.

Weighted per-user loss (Covington et al. 2016, section 4.3): over all pairs of one clicked and one unclicked impression
of the same user on the same page view,

    loss = Σ watch time of the clicked one where the unclicked one scores higher / Σ watch time of the clicked one,

so a clicked impression counts once per unclicked one beside it, as in the paper's "held-out impression pairs". A tie
counts half: a constant score has loss 0.5. A pair with a NaN score counts as mispredicted.

All metrics treat a NaN as the worst score there is: below everything for a clicked impression, above everything for an
unclicked one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.errors import DataError
from pipeline.evaluation.bootstrap import Measurement, UserBootstrap

WEIGHTED_PER_USER_LOSS = "weighted per-user loss"
AUC = "click AUC"
GROUPED_AUC = "click GAUC"
LOG_LOSS = "click log loss"


@dataclass(frozen=True)
class Impressions:
    """Held-out impressions, one entry per row.

    Args:
      users: `[n]` the user, of any sortable type.
      groups: `[n]` the page view (`group_id`); a group belongs to one user.
      clicked: `[n]` bool.
      watch_time_s: `[n]` seconds watched; 0 where not clicked.
    """

    users: np.ndarray
    groups: np.ndarray
    clicked: np.ndarray
    watch_time_s: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(self.users), len(self.groups), len(self.clicked), len(self.watch_time_s)}
        if len(lengths) != 1:
            raise DataError(f"impressions: columns of different lengths {sorted(lengths)}; expected one row each")
        wrong = ~np.isfinite(self.watch_time_s) | (self.watch_time_s < 0)
        if np.any(wrong):
            raise DataError(
                f"impressions: {np.count_nonzero(wrong)} watch times are negative or not finite, the first in row "
                f"{np.flatnonzero(wrong)[0]}; expected seconds ≥ 0; leave such rows out when examples are built"
            )

    def __len__(self) -> int:
        return len(self.users)


def score_ranks(scores: np.ndarray, clicked: np.ndarray) -> np.ndarray:
    """Dense integer ranks `[n]` of the scores, ascending; NaN at the bottom if clicked, at the top if not."""
    if scores.shape != clicked.shape:
        raise DataError(f"scores: shape {scores.shape}; expected one per impression, {clicked.shape}")
    missing = np.isnan(scores)
    values, ranks = np.unique(np.where(missing, 0.0, scores), return_inverse=True)
    return np.where(missing, np.where(clicked, -1, len(values)), ranks)


def mispredicted_pairs(blocks: np.ndarray, scores: np.ndarray, clicked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each clicked row, how many unclicked rows of its block score above it, and how many there are.

    A tie counts half. Rows that are not clicked get zeros. O(n log n): sorted by block and score, the unclicked rows
    below a clicked one are a cumulative count.

    Args:
      blocks: `[n]` rows are compared within a block only.
      scores: `[n]`, the higher the better.
      clicked: `[n]` bool.

    Returns:
      `(above, unclicked)`, float64 `[n]` each.
    """
    clicked = np.asarray(clicked, bool)
    ranks = score_ranks(np.asarray(scores), clicked)
    order = np.lexsort((ranks, blocks))
    block, rank, unclicked = np.asarray(blocks)[order], ranks[order], ~clicked[order]
    before = np.concatenate([[0], np.cumsum(unclicked)])  # unclicked rows before each position
    block_start, block_stop = _runs(block[1:] != block[:-1])
    tie_start, tie_stop = _runs((block[1:] != block[:-1]) | (rank[1:] != rank[:-1]))
    in_block = before[block_stop] - before[block_start]
    tied = before[tie_stop] - before[tie_start]
    above = before[block_stop] - before[tie_stop]
    result = np.zeros((2, len(order)))
    result[0, order] = np.where(unclicked, 0.0, above + 0.5 * tied)
    result[1, order] = np.where(unclicked, 0.0, in_block)
    return result[0], result[1]


def weighted_per_user_loss(scores: np.ndarray, impressions: Impressions, bootstrap: UserBootstrap) -> Measurement:
    """The paper's loss; see the module's text.

    Args:
      scores: `[n]`, the higher the better.
      impressions: what was shown, clicked and watched.
      bootstrap: over `impressions.users`.
    """
    above, unclicked = mispredicted_pairs(impressions.groups, scores, impressions.clicked)
    seconds = np.where(impressions.clicked, impressions.watch_time_s, 0.0)
    return bootstrap.ratio(WEIGHTED_PER_USER_LOSS, seconds * above, seconds * unclicked)


def click_auc(scores: np.ndarray, impressions: Impressions, bootstrap: UserBootstrap) -> Measurement:
    """Probability that a clicked impression scores above an unclicked one, over all users; a tie counts half."""
    clicked = np.asarray(impressions.clicked, bool)
    ranks = score_ranks(np.asarray(scores), clicked)
    order = np.argsort(ranks, kind="stable")
    rank, user = ranks[order], bootstrap.user_of_row[order]
    starts = np.flatnonzero(np.concatenate([[True], rank[1:] != rank[:-1]]))
    positive = clicked[order]

    def auc_of(counts: np.ndarray) -> np.ndarray:
        weights = counts[:, user]
        positives = np.add.reduceat(weights * positive, starts, axis=1)
        negatives = np.add.reduceat(weights * ~positive, starts, axis=1)
        below = np.cumsum(negatives, axis=1) - 0.5 * negatives
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        return np.where(pairs > 0, (positives * below).sum(axis=1) / np.maximum(pairs, 1), np.nan)

    value = float(auc_of(np.ones((1, bootstrap.num_users)))[0])
    # A few draws at once: every draw needs a weight per impression.
    size = max(1, 2_000_000 // max(1, len(order)))
    samples = [
        auc_of(counts[start : start + size]) for counts in bootstrap.draws() for start in range(0, len(counts), size)
    ]
    return bootstrap.measurement(AUC, value, np.concatenate(samples), bootstrap.num_users)


def grouped_click_auc(scores: np.ndarray, impressions: Impressions, bootstrap: UserBootstrap) -> Measurement:
    """AUC within each page view, averaged by impressions over the page views with clicked and unclicked ones.

    Pages are not mixed, even of one user: what was clicked on a page is history on the next, so that a low click rate
    so far would be a good score across pages and none within them.
    """
    above, unclicked = mispredicted_pairs(impressions.groups, scores, impressions.clicked)
    _, first, group, shown = np.unique(impressions.groups, return_index=True, return_inverse=True, return_counts=True)
    pairs = np.bincount(group, unclicked)
    wrong = np.bincount(group, above) / np.maximum(pairs, 1)
    weight = np.where(pairs > 0, shown, 0).astype(float)
    of_user = bootstrap.user_of_row[first]
    numerator = np.bincount(of_user, weight * (1.0 - wrong), minlength=bootstrap.num_users)
    denominator = np.bincount(of_user, weight, minlength=bootstrap.num_users)
    return bootstrap.ratios([GROUPED_AUC], numerator[:, None], denominator[:, None])[0]


def click_log_loss(probabilities: np.ndarray, impressions: Impressions, bootstrap: UserBootstrap) -> Measurement:
    """Mean negative log likelihood of the clicks; probabilities are kept 1e-7 away from 0 and 1, NaN is the worst."""
    clicked = np.asarray(impressions.clicked, bool)
    worst = np.where(clicked, 0.0, 1.0)
    known = np.where(np.isnan(probabilities), worst, probabilities).astype(np.float64)
    likelihood = np.clip(np.where(clicked, known, 1.0 - known), 1e-7, 1.0 - 1e-7)
    return bootstrap.ratio(LOG_LOSS, -np.log(likelihood), np.ones(len(clicked)))


def evaluate_clicks(probabilities: np.ndarray, impressions: Impressions, bootstrap: UserBootstrap) -> list[Measurement]:
    """AUC, AUC within page views and log loss of click probabilities `[n]`."""
    return [*_aucs(probabilities, impressions, bootstrap), click_log_loss(probabilities, impressions, bootstrap)]


def evaluate_ranking(
    scores: np.ndarray,
    impressions: Impressions,
    bootstrap: UserBootstrap,
    clicks: Sequence[Measurement] | None = None,
) -> list[Measurement]:
    """The loss and AUCs of one ranker.

    Args:
      scores: `[n]` what orders the list.
      impressions: held-out impressions.
      bootstrap: over `impressions.users`.
      clicks: of its click probabilities, by `evaluate_clicks`. If not given, the AUCs are of the scores.
    """
    loss = weighted_per_user_loss(scores, impressions, bootstrap)
    return [loss, *(_aucs(scores, impressions, bootstrap) if clicks is None else clicks)]


def _aucs(scores: np.ndarray, impressions: Impressions, bootstrap: UserBootstrap) -> list[Measurement]:
    return [click_auc(scores, impressions, bootstrap), grouped_click_auc(scores, impressions, bootstrap)]


def _runs(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop of the run that each position is in; `changes[i]`: position i + 1 begins a new run."""
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    stops = np.concatenate([starts[1:], [len(changes) + 1]])
    run = np.concatenate([[0], np.cumsum(changes)])
    return starts[run], stops[run]
