"""The ranker's features as a matrix."""

import numpy as np
import pyarrow as pa
import pytest

from features.errors import ArtifactError, DataError
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from features.splits import Part
from pipeline.evaluation.tree_features import ranking_data, read_ranking_data
from tests.pipeline.synthetic_examples import publish_examples

SPEC = FeatureSpec(
    (
        Feature("device", Kind.CATEGORICAL, Side.QUERY, "request.device", id_space="device"),
        Feature(
            "watched", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", id_space="clicked_video", max_length=3
        ),
        Feature("age", Kind.CONTINUOUS, Side.IMPRESSION, "history.video_age_s", normaliser=Normaliser.QUANTILE),
        Feature(
            "position",
            Kind.CONTINUOUS,
            Side.IMPRESSION,
            "request.position",
            normaliser=Normaliser.QUANTILE,
            serving_value=1.0,
        ),
        Feature("slot", Kind.CATEGORICAL, Side.IMPRESSION, "request.slot", id_space="slot", serving_value="top"),
    )
)
TABLE = pa.table(
    {
        "user_id": ["a", "a", "b"],
        "group_id": pa.array([7, 7, 8]),
        "clicked": pa.array([1.0, 0.0, 1.0], pa.float32()),
        "watch_time_s": pa.array([3.0, 0.0, 5.0], pa.float32()),
        "device": pa.array([2, 0, 1], pa.int32()),
        "watched": pa.array([[4, 9], [], [6]], pa.list_(pa.int32())),
        "age": pa.array([1.5, float("nan"), 3.5], pa.float32()),
        "position": pa.array([4.0, 5.0, 6.0], pa.float32()),
        "slot": pa.array([1, 2, 3], pa.int32()),
    }
)


def test_columns_by_hand():
    data = ranking_data(TABLE, SPEC)
    assert data.names == ("device", "watched (last)", "watched (count)", "age", "position", "slot")
    assert data.categorical == ("device", "watched (last)", "slot")
    np.testing.assert_array_equal(data.matrix, [[2, 9, 2, 1.5, 4, 1], [0, 0, 0, np.nan, 5, 2], [1, 6, 1, 3.5, 6, 3]])
    np.testing.assert_array_equal(data.impressions.clicked, [True, False, True])
    np.testing.assert_array_equal(data.impressions.groups, [7, 7, 8])


def test_fixed_features_have_their_serving_value_when_the_list_is_made(tmp_path):
    examples = publish_examples(tmp_path / "ranking", {Part.TEST: TABLE}, SPEC, "ranker", 1, {"slot": 7})
    logged, served = (read_ranking_data(examples, Part.TEST, at_serving=at_serving) for at_serving in (False, True))
    np.testing.assert_array_equal(logged.matrix, ranking_data(TABLE, SPEC).matrix)
    np.testing.assert_array_equal(served.matrix[:, :4], logged.matrix[:, :4])
    np.testing.assert_array_equal(served.matrix[:, 4:], [[1, 7]] * 3)


def test_a_fixed_bag_holds_its_serving_value_alone():
    data = ranking_data(TABLE, SPEC, {"watched": 5.0})
    np.testing.assert_array_equal(data.matrix[:, 1:3], [[5, 1]] * 3)


def test_a_set_without_the_rows_of_serving_values_is_refused(tmp_path):
    examples = publish_examples(tmp_path / "ranking", {Part.TEST: TABLE}, SPEC, "ranker", 1)
    with pytest.raises(ArtifactError, match="row of 'slot' at serving in the manifest, found none"):
        read_ranking_data(examples, Part.TEST, at_serving=True)


def test_rows_can_be_taken_and_joined():
    data = ranking_data(TABLE, SPEC)
    joined = data.take(np.array([2])).joined(data.take(np.array([0, 1])))
    np.testing.assert_array_equal(joined.impressions.watch_time_s, [5, 3, 0])
    np.testing.assert_array_equal(joined.matrix[1:], data.matrix[:2])


def test_what_is_missing_is_named():
    with pytest.raises(DataError, match="no column 'age'"):
        ranking_data(TABLE.drop_columns("age"), SPEC)
