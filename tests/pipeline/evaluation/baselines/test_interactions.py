"""Watches and histories: order, duplicates, out-of-catalogue rows, example sets."""

import numpy as np
import pyarrow as pa
import pytest

from features.encoding import Encoder
from features.errors import DataError
from features.history import VideoTable
from pipeline.evaluation.baselines.interactions import Histories, Interactions, RetrievalExamples

COLUMNS = np.array([-1, 0, 1, 2])  # vocabulary row → column


def test_watches_are_sorted_by_user_then_untimed_history_then_time():
    watches = Interactions.of(
        users=np.array(["b", "a", "a", "a", "b"]),
        videos=np.array([0, 1, 2, 0, 2]),
        times_us=np.array([5, 9, 0, 0, 3]),
        num_videos=3,
        time_known=np.array([True, True, False, False, True]),
    )
    np.testing.assert_array_equal(watches.users, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(watches.videos, [2, 0, 1, 2, 0])
    assert watches.last_time_us == 9
    assert watches.num_users == 2


def test_untimed_history_comes_before_any_known_time():
    watches = Interactions.of(np.array([1, 1]), np.array([0, 1]), np.array([-5, 0]), 2, np.array([True, False]))
    np.testing.assert_array_equal(watches.videos, [1, 0])


def test_a_repeated_watch_is_one_in_the_matrix_and_two_in_the_counts():
    watches = Interactions.of(np.array([1, 1, 2]), np.array([0, 0, 1]), np.array([1, 2, 3]), 2)
    np.testing.assert_array_equal(watches.matrix.toarray(), [[1, 0], [0, 1]])
    np.testing.assert_array_equal(watches.watch_counts, [2, 1])


def test_watches_outside_the_catalogue_are_left_out_and_all_of_them_is_an_error():
    watches = Interactions.of(np.array([1, 2]), np.array([-1, 1]), np.array([1, 2]), 2)
    assert (len(watches.videos), watches.num_users) == (1, 1)
    with pytest.raises(DataError, match="no training watch"):
        Interactions.of(np.array([1]), np.array([-1]), np.array([1]), 2)


def test_histories_keep_order_and_drop_unknown_videos():
    histories = Histories.from_lists(pa.array([[3, 0, 1], [], None, [2]], pa.list_(pa.int32())), COLUMNS)
    np.testing.assert_array_equal(histories.videos, [2, 0, 1])
    np.testing.assert_array_equal(histories.offsets, [0, 2, 2, 2, 3])
    np.testing.assert_array_equal(histories.last, [0, -1, -1, 1])
    np.testing.assert_array_equal(histories.take(slice(2, 4)).offsets, [0, 0, 1])
    np.testing.assert_array_equal(histories.take(slice(2, 4)).last, [-1, 1])
    np.testing.assert_array_equal(Histories(np.array([], np.int32), np.array([0, 0])).last, [-1])


def test_histories_of_a_sliced_arrow_column():
    column = pa.array([[1], [2, 3], [1]], pa.list_(pa.int32())).slice(1)
    np.testing.assert_array_equal(Histories.from_lists(column, COLUMNS).videos, [1, 2, 0])


def test_examples_from_an_example_set():
    table = pa.table(
        {
            "user_id": ["a", "b"],
            "watched_video_ids": pa.array([[1, 3], [2]], pa.list_(pa.int32())),
            "seen_video_ids": pa.array([[1, 3, 2], [2]], pa.list_(pa.int32())),
        }
    )
    examples = RetrievalExamples.from_table(table, np.array([1, -1]), COLUMNS, 3)
    np.testing.assert_array_equal(examples.targets.targets, [1, -1])
    np.testing.assert_array_equal(examples.targets.watched.toarray(), [[1, 1, 1], [0, 1, 0]])
    np.testing.assert_array_equal(examples.histories.last, [2, 1])


def test_a_label_uploaded_since_the_training_is_a_target_among_the_videos_of_the_catalogue():
    catalogue = pa.table({"video_id": ["b", "a", "new"], "video": pa.array([1, 2, 0], pa.int32())})
    table = pa.table(
        {
            "user_id": ["u", "u", "w"],
            "label_video_id": ["a", "new", "deleted"],
            "watched_video_ids": pa.array([[1], [], [2]], pa.list_(pa.int32())),
            "seen_video_ids": pa.array([[1], [2, 3], [2]], pa.list_(pa.int32())),
        }
    )
    encoder = Encoder({}, catalogue, VideoTable({}))
    examples = RetrievalExamples.over_catalogue(table, encoder)
    np.testing.assert_array_equal(examples.targets.targets, [1, 2, -1])
    np.testing.assert_array_equal(examples.targets.watched.toarray(), [[1, 0, 0], [0, 1, 1], [0, 1, 0]])
    np.testing.assert_array_equal(examples.histories.last, [0, -1, 1])


def test_a_seeded_choice_of_examples_keeps_rows_together():
    lists = pa.array([[1] * (i % 3) + [i % 4] for i in range(50)], pa.list_(pa.int32()))
    table = pa.table(
        {
            "user_id": [str(i) for i in range(50)],
            "watched_video_ids": lists,
            "seen_video_ids": lists,
        }
    )
    examples = RetrievalExamples.from_table(table, COLUMNS[np.arange(50) % 4], COLUMNS, 3)
    chosen = examples.take_first(7, seed=1)
    assert len(chosen) == 7
    for i, user in enumerate(chosen.users):
        row = int(user)
        one, whole = chosen.histories.take(slice(i, i + 1)), examples.histories.take(slice(row, row + 1))
        np.testing.assert_array_equal(one.videos, whole.videos)
        assert chosen.targets.targets[i] == examples.targets.targets[row]
    assert examples.take_first(50, seed=1) is examples
