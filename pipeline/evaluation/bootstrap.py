"""Bootstrap over users: intervals of metrics and paired differences between two methods.

Events of one user are not independent, so whole users are drawn with replacement. All metrics computed with one
`UserBootstrap` see the same draws, which makes the difference of two of them a paired bootstrap.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from features.errors import DataError
from features.settings import Settings
from pipeline.evaluation.figures import Difference, Figure

_BLOCK_VALUES = 4_000_000  # draws held at once: 16 MB of counts


class BootstrapConfig(Settings):
    """How often users are drawn, and the interval that is reported."""

    resamples: int = Field(default=1000, ge=2, description="number of draws of all users")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="share of the resamples inside the interval")
    seed: int = Field(default=0, ge=0, description="seed of the draws")


@dataclass(frozen=True)
class Measurement:
    """A metric, its value in every resample, and the population it was measured on.

    Args:
      name: the metric.
      value: on the users as they are.
      samples: `[resamples]`, in the order of the draws; NaN where a draw leaves the metric undefined.
      n: number of users with any part in it.
      population: identifies users and draws; only measurements of one population can be compared.
      confidence: of the interval.
    """

    name: str
    value: float
    samples: np.ndarray = field(repr=False)
    n: int
    population: str
    confidence: float = 0.95

    @property
    def figure(self) -> Figure:
        """The value with its percentile interval."""
        return Figure(self.name, self.value, *percentile_interval(self.samples, self.confidence), self.n)


def percentile_interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The central interval that holds a `confidence` share of the samples; (NaN, NaN) where there are none."""
    samples = samples[~np.isnan(samples)]
    if not samples.size:
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_difference(a: Measurement, b: Measurement) -> Difference:
    """The difference a − b of one metric between two methods, over the same draws of the same users.

    `share_a_not_above_b` is the share of resamples with A ≤ B: near 1 it says that A's lower loss is not chance, near
    0 that A's higher recall is not.

    Raises:
      DataError: the two were measured on other users, or with another seed.
    """
    if a.population != b.population:
        raise DataError(
            f"cannot pair {a.name!r} with {b.name!r}: they were measured on different users or draws; "
            "evaluate both methods on the same examples with one UserBootstrap"
        )
    samples = a.samples - b.samples
    defined = samples[~np.isnan(samples)]
    share = float(np.mean(defined <= 0)) if defined.size else float("nan")
    low, high = percentile_interval(defined, a.confidence)
    return Difference(a.name, a.value - b.value, low, high, share, min(a.n, b.n))


def paired_differences(a: Sequence[Measurement], b: Sequence[Measurement]) -> list[Difference]:
    """`paired_difference` of every metric that both methods have, in the order of A's."""
    of_b = {measurement.name: measurement for measurement in b}
    return [paired_difference(one, of_b[one.name]) for one in a if one.name in of_b]


class UserBootstrap:
    """Draws the users of a set of rows (examples, impressions) with replacement.

    Args:
      users: `[rows]` the user of each row, of any sortable type.
      config: number of draws, interval and seed.

    Raises:
      DataError: there are no rows.
    """

    def __init__(self, users: np.ndarray, config: BootstrapConfig | None = None) -> None:
        if not len(users):
            raise DataError("evaluation: no examples to measure on; expected at least one; check the split's dates")
        self.config = config or BootstrapConfig()
        self.ids, self.user_of_row = np.unique(users, return_inverse=True)
        self.num_users = len(self.ids)
        draws = f"{self.config.seed}/{self.config.resamples}"
        digest = hashlib.sha256("\n".join(self.ids.astype(str)).encode() + draws.encode())
        self.population = digest.hexdigest()

    def draws(self) -> Iterator[np.ndarray]:
        """Blocks `[some resamples, users]` of how often each user was drawn; the same at every call."""
        rng = np.random.default_rng(self.config.seed)
        size = max(1, _BLOCK_VALUES // self.num_users)
        for start in range(0, self.config.resamples, size):
            count = min(size, self.config.resamples - start)
            drawn = rng.integers(0, self.num_users, size=(count, self.num_users), dtype=np.int64)
            drawn += self.num_users * np.arange(count)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=count * self.num_users)
            yield counts.reshape(count, self.num_users).astype(np.float64)

    def sum_by_user(self, values: np.ndarray) -> np.ndarray:
        """Sums `[rows]` or `[rows, m]` values over each user's rows: `[users]` or `[users, m]`."""
        if values.ndim == 1:
            return np.bincount(self.user_of_row, weights=values, minlength=self.num_users)
        return np.stack([self.sum_by_user(column) for column in values.T], axis=1)

    def resampled_sums(self, sums: np.ndarray) -> np.ndarray:
        """Totals `[resamples, m]` of per-user sums `[users, m]`."""
        return np.concatenate([counts @ sums for counts in self.draws()])

    def ratios(self, names: list[str], numerators: np.ndarray, denominators: np.ndarray) -> list[Measurement]:
        """Metrics that are a ratio of two sums over users.

        Args:
          names: m names.
          numerators, denominators: `[users, m]` per-user sums. A user without any denominator has no part.
        """
        totals = self.resampled_sums(np.concatenate([numerators, denominators], axis=1))
        m = len(names)
        samples = _divide(totals[:, :m], totals[:, m:])
        values = _divide(numerators.sum(axis=0), denominators.sum(axis=0))
        users = np.count_nonzero(denominators, axis=0)
        return [self.measurement(name, float(values[i]), samples[:, i], int(users[i])) for i, name in enumerate(names)]

    def ratio(self, name: str, numerator: np.ndarray, denominator: np.ndarray) -> Measurement:
        """One metric that is a ratio of two sums over users, from `[rows]` contributions."""
        return self.ratios(
            [name], self.sum_by_user(numerator)[:, None], self.sum_by_user(np.asarray(denominator, float))[:, None]
        )[0]

    def means_of_users(self, names: list[str], values: np.ndarray) -> list[Measurement]:
        """Metrics `[rows, m]` averaged over each user's rows, then over users: every user counts the same."""
        rows = np.bincount(self.user_of_row, minlength=self.num_users)
        by_user = self.sum_by_user(values) / rows[:, None]
        return self.ratios(names, by_user, np.ones_like(by_user))

    def measurement(self, name: str, value: float, samples: np.ndarray, n: int) -> Measurement:
        """A measurement over this population from values that the caller computed with `draws`."""
        return Measurement(name, value, samples, n, self.population, self.config.confidence)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1.0), np.nan)
