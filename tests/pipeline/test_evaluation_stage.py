"""What the evaluation stage hands to the peers."""

import pyarrow as pa

from pipeline.evaluation_stage import _with_shown


def test_shown_videos_come_before_the_watches_of_each_example() -> None:
    lists = pa.list_(pa.int32())
    table = pa.table(
        {
            "watched_video_ids": pa.array([[1, 2], [], [3]], lists),
            "shown": pa.array([[7], [8, 9], []], lists),
        }
    )
    assert _with_shown(table, ["shown"])["watched_video_ids"].to_pylist() == [[7, 1, 2], [8, 9], [3]]
    assert _with_shown(table, [])["watched_video_ids"].to_pylist() == [[1, 2], [], [3]]
