"""The ranker's features as a matrix."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import DataError
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from pipeline.evaluation.tree_features import ranking_data, read_ranking_data

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
    assert data.names == ("device", "watched (last)", "watched (count)", "age", "position")
    assert data.categorical == ("device", "watched (last)")
    np.testing.assert_array_equal(data.matrix, [[2, 9, 2, 1.5, 4], [0, 0, 0, np.nan, 5], [1, 6, 1, 3.5, 6]])
    np.testing.assert_array_equal(data.impressions.clicked, [True, False, True])
    np.testing.assert_array_equal(data.impressions.groups, [7, 7, 8])


def test_position_has_its_serving_value_when_the_list_is_made():
    np.testing.assert_array_equal(ranking_data(TABLE, SPEC, at_serving=True).matrix[:, 4], [1, 1, 1])


def test_shards_of_a_folder_are_read_in_order(tmp_path):
    pq.write_table(TABLE.slice(0, 2), tmp_path / "part-00000.parquet")
    pq.write_table(TABLE.slice(2), tmp_path / "part-00001.parquet")
    np.testing.assert_array_equal(read_ranking_data(tmp_path, SPEC).matrix, ranking_data(TABLE, SPEC).matrix)


def test_rows_can_be_taken_and_joined():
    data = ranking_data(TABLE, SPEC)
    joined = data.take(np.array([2])).joined(data.take(np.array([0, 1])))
    np.testing.assert_array_equal(joined.impressions.watch_time_s, [5, 3, 0])
    np.testing.assert_array_equal(joined.matrix[1:], data.matrix[:2])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match="no column 'age'"):
        ranking_data(TABLE.drop_columns("age"), SPEC)
    with pytest.raises(DataError, match="run the examples stage"):
        read_ranking_data(tmp_path, SPEC)
