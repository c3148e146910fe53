"""Quantile normalization of continuous features (Covington et al. 2016, section 4.1).

A feature x with distribution f becomes x̃ = ∫_{-∞}^{x} df in [0, 1), approximated by linear interpolation on the
quantiles of the training part, which one pass over the data finds with a mergeable sketch (Apache DataSketches KLL,
Karnin, Lang and Liberty 2016).

The sketch is randomised: the rank of a boundary is off by at most `Quantiles.rank_error` with probability 0.99 (0.0035
for k = 800), so quantiles of two runs agree within it, not to the bit. Minimum and maximum are exact.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from datasketches import kll_doubles_sketch
from pydantic import Field

from features.errors import ArtifactError
from features.settings import Settings

LARGEST_BELOW_ONE = 1.0 - 2.0**-24
"""The largest output of `normalise`: below one in single precision too."""


class QuantilesConfig(Settings):
    """How quantiles are found."""

    boundaries: int = Field(default=101, ge=2)
    """Number of boundaries, minimum and maximum included; 101 gives percentiles."""
    k: int = Field(default=800, ge=8, le=65535)
    """Size of the KLL sketch; 800 keeps 19 KB per feature, rank error 0.0035; the error falls as k^-0.9."""


@dataclass(frozen=True, eq=False)
class Quantiles:
    """The quantiles of one continuous feature.

    Args:
      boundaries: float64 `[Q]`, ascending, from the minimum to the maximum at ranks q / (Q - 1); a value that holds
        more than 1 / (Q - 1) of the data is repeated. All zero where no value was seen.
      count: finite values seen.
      missing: null or NaN values, not part of the distribution.
      rank_error: how far the rank of a boundary may be off, in [0, 1], with probability 0.99.
      infinite: values of plus or minus infinity, not part of the distribution.
    """

    boundaries: np.ndarray
    count: int
    missing: int
    rank_error: float
    infinite: int = 0


def normalise(x: np.ndarray, boundaries: np.ndarray) -> np.ndarray:
    """x̃: where in the distribution `x` lies (section 4.1).

    With `below` the number of boundaries < x, `upto` the number of boundaries <= x and b the boundaries:

    - x equals boundaries `below..upto-1`: the middle of their ranks, (below + upto - 1) / 2 / (Q - 1);
    - x lies between two boundaries: (below - 1 + (x - b[below-1]) / (b[below] - b[below-1])) / (Q - 1);
    - x is below the minimum (or minus infinity) or NaN: 0;
    - x is above the maximum (or infinity): `LARGEST_BELOW_ONE`, the upper bound of every result.

    So the result never falls as x rises, and a constant feature gives 0.5 for its constant.

    Args:
      x: any shape, computed in float64.
      boundaries: float64 `[Q]`, finite, ascending, Q >= 2.

    Returns:
      float64 of x's shape in [0, 1).

    >>> normalise(np.array([1.0, 2.0, 3.0, np.nan]), np.array([0.0, 2.0, 2.0, 2.0, 4.0])).tolist()
    [0.125, 0.5, 0.875, 0.0]
    """
    x = np.asarray(x, np.float64)
    last = len(boundaries) - 1
    below = np.searchsorted(boundaries, x, side="left")
    upto = np.searchsorted(boundaries, x, side="right")
    low, high = boundaries[np.clip(below - 1, 0, last)], boundaries[np.clip(below, 0, last)]
    inside = (upto == below) & (below > 0) & (below <= last)
    step = np.where(inside, x - low, 0.0) / np.where(inside, high - low, 1.0)
    rank = np.where(upto > below, (below + upto - 1) / 2, below - 1 + step)
    return np.where(np.isnan(x), 0.0, np.clip(rank / last, 0.0, LARGEST_BELOW_ONE))


class QuantileSketch:
    """A KLL sketch of doubles with the counts of what is not in it; merges and pickles.

    Args:
      k: size of the sketch.
    """

    def __init__(self, k: int = 800) -> None:
        self._k = k
        self._kll = kll_doubles_sketch(k)
        self.missing = 0
        self.infinite = 0

    @property
    def count(self) -> int:
        return self._kll.n

    def update(self, values: np.ndarray) -> None:
        """Adds values `[n]` of any numeric type; NaN counts as missing, infinities are counted and left out."""
        values = np.asarray(values, np.float64)
        finite = np.isfinite(values)
        missing = int(np.isnan(values).sum())
        self.missing += missing
        self.infinite += len(values) - missing - int(finite.sum())
        self._kll.update(values[finite])  # a copy: the sketch refuses the read-only arrays Arrow lends

    def merge(self, other: "QuantileSketch") -> None:
        """Adds what `other` holds."""
        self._kll.merge(other._kll)
        self.missing += other.missing
        self.infinite += other.infinite

    def quantiles(self, boundaries: int = 101) -> Quantiles:
        """The distribution at `boundaries` equally spaced ranks."""
        if self.count == 0:
            return Quantiles(np.zeros(boundaries), 0, self.missing, 0.0, self.infinite)
        inner = self._kll.get_quantiles(np.linspace(0.0, 1.0, boundaries)[1:-1]) if boundaries > 2 else []
        values = np.array([self._kll.get_min_value(), *inner, self._kll.get_max_value()])
        # An exact sketch (all values retained) has no rank error; zeros are made positive so that files are stable.
        error = self._kll.normalized_rank_error(False) if self._kll.is_estimation_mode() else 0.0
        return Quantiles(values + 0.0, self.count, self.missing, error, self.infinite)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kll": self._kll.serialize()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kll = kll_doubles_sketch.deserialize(state["_kll"])


class QuantilesCombineFn(beam.CombineFn):
    """Combines NumPy columns into `Quantiles`.

    Args:
      config: how quantiles are found.
    """

    def __init__(self, config: QuantilesConfig) -> None:
        super().__init__()
        self._config = config

    def create_accumulator(self) -> QuantileSketch:
        return QuantileSketch(self._config.k)

    def add_input(self, mutable_accumulator: QuantileSketch, element: np.ndarray) -> QuantileSketch:
        mutable_accumulator.update(element)
        return mutable_accumulator

    def merge_accumulators(self, accumulators: Any) -> QuantileSketch:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: QuantileSketch) -> Quantiles:
        return accumulator.quantiles(self._config.boundaries)


def quantiles_as_json(quantiles: Mapping[str, Quantiles]) -> dict[str, Any]:
    """Feature name -> quantiles as JSON values, from which they are read back to the bit."""
    return {name: {**asdict(q), "boundaries": q.boundaries.tolist()} for name, q in sorted(quantiles.items())}


def quantiles_from_json(value: Mapping[str, Any]) -> dict[str, Quantiles]:
    """What `quantiles_as_json` was given."""
    return {
        name: Quantiles(**{**entry, "boundaries": np.array(entry["boundaries"], np.float64)})
        for name, entry in value.items()
    }


def write_quantiles(path: Path, quantiles: Mapping[str, Quantiles]) -> None:
    """Writes feature name -> quantiles as JSON."""
    value = {"version": 1, "features": quantiles_as_json(quantiles)}
    Path(path).write_text(json.dumps(value, indent=1) + "\n")


def read_quantiles(path: Path) -> dict[str, Quantiles]:
    """Reads what `write_quantiles` wrote.

    Raises:
      ArtifactError: the file is missing or not of this form.
    """
    try:
        return quantiles_from_json(json.loads(Path(path).read_text())["features"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: expected quantiles by feature, found {error}; fit the quantiles again") from error
