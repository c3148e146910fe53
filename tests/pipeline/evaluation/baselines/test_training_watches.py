"""Reading the watches that peers are fitted on."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import DataError
from features.splits import Split
from features.tables import TIMESTAMP
from pipeline.evaluation.baselines.training_watches import read_training_watches

SPLIT = Split(
    validation_start_us=100,
    validation_labels_start_us=100,
    t0_us=200,
    test_start_us=210,
    test_user_share=0.0,
    seed=0,
    refit=True,
)
COLUMN = {"a": 0, "b": 1, "ü": 2}


def columns_of(ids):
    return np.array([COLUMN.get(video, -1) for video in ids.to_pylist()])


def write(folder, day, rows):
    """Rows of (user, video, time or None, order, completed)."""
    users, videos, times, orders, completed = zip(*rows, strict=True)
    table = pa.table(
        {
            "user_id": list(users),
            "video_id": list(videos),
            "timestamp": pa.array(times, TIMESTAMP),
            "time_known": [time is not None for time in times],
            "order": pa.array(orders, pa.int64()),
            "completed": pa.array(completed, pa.bool_()),
        }
    )
    path = folder / "watches" / f"day={day}" / "part-00000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)


@pytest.fixture
def tables(tmp_path):
    write(tmp_path, "1970-01-01", [("u", "a", 50, 0, True), ("v", "b", 60, 1, False), ("u", "b", 150, 2, True)])
    write(tmp_path, "1970-01-02", [("u", "ü", 200, 0, True), ("v", "unknown", 10, 1, True)])
    write(tmp_path, "unknown", [("u", "b", None, 5, None), ("u", "ü", None, 3, None), ("v", "a", None, 4, None)])
    return tmp_path


def test_history_comes_first_by_order_then_time_and_the_future_is_left_out(tables):
    watches = read_training_watches(tables, SPLIT, True, columns_of, 3)
    np.testing.assert_array_equal(watches.users, [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(watches.videos, [2, 1, 0, 1, 0])
    np.testing.assert_array_equal(watches.time_known, [False, False, True, True, False])
    np.testing.assert_array_equal(watches.times_us, [0, 0, 50, 150, 0])


def test_tuning_sees_less(tables):
    watches = read_training_watches(tables, SPLIT, False, columns_of, 3)
    np.testing.assert_array_equal(watches.videos, [2, 1, 0, 0])


def test_held_out_users_are_left_out(tables):
    everyone = Split(**{**SPLIT.as_json(), "test_user_share": 0.999999})
    with pytest.raises(DataError, match="no training watch"):
        read_training_watches(tables, everyone, True, columns_of, 3)


def test_no_watches_table_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="no watches table"):
        read_training_watches(tmp_path, SPLIT, True, columns_of, 3)
