"""What the training stages read off the examples."""

from pathlib import Path

import pyarrow as pa
import pytest

from features.candidate_examples import SEQUENCE
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from features.splits import Part
from models.candidate_generator import LABEL
from models.ranker import RankerConfig
from models.sequence_generator import LABEL_WEIGHTS
from models.weighted_logistic_regression import LabelStatistics, Objective
from pipeline.model_stages import label_statistics, watched_sequences
from tests.pipeline.synthetic_examples import publish_examples

POSITION = Feature(
    "position", Kind.CONTINUOUS, Side.IMPRESSION, "request.position", normaliser=Normaliser.SCALE, high=10.0
)


@pytest.mark.parametrize(
    ("cap", "objective", "watch_time_s"),
    [
        (None, Objective.WEIGHTED, 1110.0),
        (50.0, Objective.WEIGHTED, 110.0),
        (50.0, Objective.EXACT_ODDS, 110.0),
        (50.0, Objective.UNWEIGHTED, 1110.0),  # whose loss has no watch times: they are the mean seconds of a click
    ],
)
def test_the_scale_of_the_loss_counts_watch_times_as_the_loss_does(
    tmp_path: Path, cap: float | None, objective: Objective, watch_time_s: float
) -> None:
    columns = {"clicked": [1, 1, 0, 1], "watch_time_s": [1000, 10, 0, 100], "weight": [1] * 4, "position": [0] * 4}
    rows = pa.table({name: pa.array(values, pa.float32()) for name, values in columns.items()})
    examples = publish_examples(tmp_path / "ranking", {Part.TRAIN: rows}, FeatureSpec((POSITION,)), "ranker", files=1)
    config = RankerConfig(watch_time_cap_s=cap, objective=objective)
    assert label_statistics(examples, config) == LabelStatistics(4, 3, watch_time_s)


def history_table(users: list[str], times: list[int], histories: list[list[int]], labels: list[int]) -> pa.Table:
    columns = {
        "user_id": pa.array(users),
        "label_timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
        SEQUENCE: pa.array(histories, pa.list_(pa.int32())),
        LABEL: pa.array(labels, pa.int32()),
    }
    return pa.table(columns)


def test_transitions_within_a_history_count_once_for_each_user() -> None:
    table = history_table(["u", "v", "u"], [20, 5, 10], [[1, 2, 3], [], [1, 2]], [4, 5, 3])
    rows, lengths, counted = watched_sequences(table)
    assert (rows.tolist(), lengths.tolist()) == ([1, 2, 3, 4, 5, 1, 2, 3], [4, 1, 3])
    assert counted.tolist() == [False, False, False, True, True, True, True, True]


def test_labels_within_a_sequence_are_counted_where_they_have_a_weight() -> None:
    table = history_table(["u", "u"], [10, 20], [[1, 2], [2, 3, 4]], [3, 5])
    weights = pa.array([[0.0, 1.0], [0.0, 0.0, 1.0]], pa.list_(pa.float32()))
    rows, lengths, counted = watched_sequences(table.append_column(LABEL_WEIGHTS, weights))
    assert (rows.tolist(), lengths.tolist()) == ([1, 2, 3, 2, 3, 4, 5], [3, 4])
    assert counted.tolist() == [True, True, True, False, False, True, True]
