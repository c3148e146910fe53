"""The ranker's features as the matrix that gradient-boosted trees take.

- Continuous features: raw, NaN where missing.
- Categorical features with one value: the embedding row as a category; row 0 (out of vocabulary) is one too.
- Bags: two columns, the last item of the stored list as a category (the newest watch) and the number of items.
- A feature with a fixed serving value (position): that value, or the row of that id, in every row that is scored for
  evaluation, as for the ranker.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from features.errors import DataError
from features.example_reader import ExampleSet
from features.spec import Feature, FeatureSpec, Kind
from features.splits import Part
from pipeline.evaluation.ranking_metrics import Impressions

_IMPRESSION_COLUMNS = ("user_id", "group_id", "clicked", "watch_time_s")


@dataclass(frozen=True)
class RankingData:
    """Impressions with their feature matrix.

    Args:
      matrix: `[n, columns]` float32; categories as whole numbers.
      names: of the columns.
      categorical: names of the columns that are categories.
      impressions: users, groups, clicks and watch times of the rows.
    """

    matrix: np.ndarray = field(repr=False)
    names: tuple[str, ...]
    categorical: tuple[str, ...]
    impressions: Impressions = field(repr=False)

    def __len__(self) -> int:
        return len(self.matrix)

    def take(self, rows: np.ndarray) -> "RankingData":
        """The rows at the given positions."""
        shown = self.impressions
        taken = Impressions(shown.users[rows], shown.groups[rows], shown.clicked[rows], shown.watch_time_s[rows])
        return RankingData(self.matrix[rows], self.names, self.categorical, taken)

    def joined(self, other: "RankingData") -> "RankingData":
        """These rows followed by the other's; groups must not be shared between the two."""
        if self.names != other.names:
            raise DataError(f"ranking data: columns {self.names} and {other.names} differ; build both from one spec")
        a, b = self.impressions, other.impressions
        both = Impressions(
            np.concatenate([a.users, b.users]),
            np.concatenate([a.groups, b.groups]),
            np.concatenate([a.clicked, b.clicked]),
            np.concatenate([a.watch_time_s, b.watch_time_s]),
        )
        return RankingData(np.concatenate([self.matrix, other.matrix]), self.names, self.categorical, both)


def ranking_data(table: pa.Table, spec: FeatureSpec, fixed: Mapping[str, float] = MappingProxyType({})) -> RankingData:
    """Builds the matrix from rows of a ranking example set.

    Args:
      table: the example set's columns.
      spec: the ranker's features.
      fixed: feature -> the value (row of a categorical one) that stands in its place, as when the list is made.
    """
    missing = [
        name for name in (*_IMPRESSION_COLUMNS, *(f.name for f in spec.features)) if name not in table.column_names
    ]
    if missing:
        raise DataError(
            f"ranking examples: no column {missing[0]!r}; found {', '.join(table.column_names)}; build them again"
        )
    columns: dict[str, np.ndarray] = {}
    categorical = []
    for feature in spec.features:
        made = _columns(table[feature.name].combine_chunks(), feature, fixed.get(feature.name))
        columns.update(made)
        if feature.kind == Kind.CATEGORICAL:
            categorical.append(next(iter(made)))
    matrix = np.empty((len(table), len(columns)), np.float32)
    for i, values in enumerate(columns.values()):
        matrix[:, i] = values
    impressions = Impressions(
        np.asarray(table["user_id"]),
        np.asarray(table["group_id"]),
        np.asarray(table["clicked"]) > 0.5,
        np.asarray(table["watch_time_s"], np.float64),
    )
    return RankingData(matrix, tuple(columns), tuple(categorical), impressions)


def read_ranking_data(examples: ExampleSet, part: Part, at_serving: bool = False) -> RankingData:
    """`ranking_data` of one part of an example set, as logged or with the serving value of features that have one."""
    wanted = [*_IMPRESSION_COLUMNS, *(feature.name for feature in examples.spec.features)]
    fixed = examples.serving_values if at_serving else {}
    return ranking_data(examples.read(part, wanted), examples.spec, fixed)


def _columns(values: pa.Array, feature: Feature, fixed: float | None) -> dict[str, np.ndarray]:
    if feature.multivalent:
        if fixed is not None:
            values = pa.array([[int(fixed)]] * len(values), values.type)
        lengths = np.asarray(values.value_lengths().fill_null(0), np.int64)
        flat = np.asarray(values.flatten(), np.float32)
        last = np.zeros(len(lengths), np.float32)
        last[lengths > 0] = flat[np.cumsum(lengths)[lengths > 0] - 1]
        return {f"{feature.name} (last)": last, f"{feature.name} (count)": lengths.astype(np.float32)}
    if fixed is not None:
        return {feature.name: np.full(len(values), fixed, np.float32)}
    if feature.kind == Kind.CATEGORICAL:
        values = values.fill_null(0)
    return {feature.name: values.to_numpy(zero_copy_only=False).astype(np.float32)}
