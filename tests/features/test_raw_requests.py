"""Raw requests rebuilt from tables, against values read off the tables by hand."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import DataError
from features.feature_lists import FeatureListConfig
from features.raw_requests import RawInput, logged_requests, raw_requests
from features.tables import TIMESTAMP

TEXT, NUMBER, TIME = np.dtype(object), np.dtype(np.float32), np.dtype(np.float64)
START = datetime(2024, 3, 1, tzinfo=UTC)
CONFIG = FeatureListConfig(watch_window=3, impression_window=2, search_window=2)


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else START + timedelta(seconds=seconds)


def seconds(values: np.ndarray) -> list:
    return [None if np.isnan(v) else v - START.timestamp() for v in values]


def write(tables: Path, name: str, rows: dict, day: str = "day=2024-03-01") -> None:
    folder = tables / name / day
    folder.mkdir(parents=True)
    columns = {k: pa.array(v, TIMESTAMP if k == "timestamp" else None) for k, v in rows.items()}
    pq.write_table(pa.table(columns), folder / "part-0.parquet")


def request_table(users: list[str], moments: list[float], **columns: list) -> pa.Table:
    times = pa.array([at(m) for m in moments], TIMESTAMP)
    return pa.table({"user_id": users, "request_timestamp": times, **columns})


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "watches",
        {
            "user_id": ["ü", "ü", "b", "ü", "ü"],
            "video_id": ["third", "second", "other", "fourth", "third"],
            "timestamp": [at(20), at(10), at(5), at(30), at(20)],
            "watch_time_s": [12.0, None, 1.0, 3.0, 12.0],
            "order": [1, 1, 1, 1, 2],
            "time_known": [True] * 5,
        },
    )
    write(
        tmp_path,
        "watches",
        {
            "user_id": ["ü", "ü"],
            "video_id": ["first", "zeroth"],
            "timestamp": [None, None],
            "watch_time_s": [7.0, 8.0],
            "order": [2, 1],
            "time_known": [False, False],
        },
        "day=unknown",
    )
    write(
        tmp_path,
        "impressions",
        {
            "user_id": ["ü", "ü", "ü"],
            "video_id": ["a b", "c", "d"],
            "timestamp": [at(1), at(2), at(2)],
            "clicked": [True, False, None],
            "page": ["home", "home", "watch"],
            "impression_id": ["i1", "i2", "i3"],
            "candidate_sources": [["x", "y"], ["y"], None],
        },
    )
    write(
        tmp_path,
        "searches",
        {"user_id": ["ü"] * 3, "timestamp": [at(1), at(3), at(2)], "query": ["one", "three", "two"]},
    )
    write(tmp_path, "users", {"user_id": ["ü"], "region": ["NO"], "language": ["nb"], "logged_in": [True]}, ".")
    return tmp_path


def test_watches_are_the_last_before_the_moment_oldest_first_and_told_once(tables: Path):
    inputs = {
        "watched_video_ids": RawInput(TEXT, 2),
        "watched_timestamps": RawInput(TIME, 2),
        "watched_watch_time_s": RawInput(NUMBER, 2),
    }
    raw = raw_requests(tables, request_table(["ü", "ü", "b", "new"], [31, 20, 6, 6]), inputs, CONFIG)
    assert raw["watched_video_ids"].tolist() == [
        ["second", "third", "fourth"],
        ["zeroth", "first", "second"],  # the watch at the moment itself is not sent
        ["other", "", ""],
        ["", "", ""],
    ]
    assert [seconds(row) for row in raw["watched_timestamps"]][:2] == [[10, 20, 30], [None, None, 10]]
    # `third` had not ended at 31 (20 + 12), `fourth` not either (30 + 3); order-only watches have.
    np.testing.assert_array_equal(raw["watched_watch_time_s"][:2], np.array([[np.nan] * 3, [8, 7, np.nan]], np.float32))
    assert raw["watched_watch_time_s"][2, 0] == 1  # 5 + 1 <= 6


def test_impressions_searches_and_user_columns(tables: Path):
    inputs = {
        "shown_video_ids": RawInput(TEXT, 2),
        "shown_clicked": RawInput(NUMBER, 2),
        "search_queries": RawInput(TEXT, 2),
        "region": RawInput(TEXT, 1),
        "user_language": RawInput(TEXT, 1),
        "logged_in": RawInput(NUMBER, 1),
        "request_timestamp": RawInput(TIME, 1),
    }
    raw = raw_requests(tables, request_table(["ü", "b"], [3, 3]), inputs, CONFIG)
    assert raw["shown_video_ids"].tolist() == [["c", "d"], ["", ""]]
    np.testing.assert_array_equal(raw["shown_clicked"][0], np.array([0, np.nan], np.float32))
    assert raw["search_queries"].tolist() == [["one", "two"], ["", ""]]
    assert raw["region"].tolist() == ["NO", ""] and raw["user_language"].tolist() == ["nb", ""]
    np.testing.assert_array_equal(raw["logged_in"], np.array([1, np.nan], np.float32))
    assert raw["request_timestamp"].tolist() == [START.timestamp() + 3] * 2


def test_columns_of_requests_are_padded_and_absent_ones_missing(tables: Path):
    requests = request_table(
        ["ü", "b"], [3, 3], candidate_ids=[["a", "b"], ["c"]], candidate_sources=[[["x", "y"], []], [["z"]]]
    )
    inputs = {
        "candidate_ids": RawInput(TEXT, 2),
        "candidate_sources": RawInput(TEXT, 3),
        "candidate_scores": RawInput(NUMBER, 2),
        "page": RawInput(TEXT, 1),
        "interests": RawInput(TEXT, 2),
    }
    raw = raw_requests(tables, requests, inputs, CONFIG)
    assert raw["candidate_ids"].tolist() == [["a", "b"], ["c", ""]]
    assert raw["candidate_sources"].tolist() == [[["x", "y"], ["", ""]], [["z", ""], ["", ""]]]
    assert raw["candidate_scores"].shape == (2, 2) and np.isnan(raw["candidate_scores"]).all()
    assert raw["page"].tolist() == ["", ""]
    assert not "".join(raw["interests"].ravel())


def test_ids_are_texts_whatever_the_type_of_their_column(tmp_path: Path):
    """As the example jobs look them up: numbers and truth values by Arrow's way of writing them."""
    start = {"user_id": ["u", "u"], "video_id": ["a", "b"], "timestamp": [at(1), at(2)]}
    write(tmp_path, "watches", {**start, "level": [7, None], "muted": [True, False]})
    requests = request_table(["u"], [9], tab=[3], tags=[[1, 2]])
    inputs = {"watched_level": RawInput(TEXT, 2), "watched_muted": RawInput(TEXT, 2)}
    inputs |= {"tab": RawInput(TEXT, 1), "tags": RawInput(TEXT, 2)}
    raw = raw_requests(tmp_path, requests, inputs, CONFIG)
    assert raw["watched_level"].tolist() == [["7", ""]]
    assert raw["watched_muted"].tolist() == [["true", "false"]]
    assert raw["tab"].tolist() == ["3"]
    assert raw["tags"].tolist() == [["1", "2"]]


def test_a_users_column_may_be_called_as_a_column_of_watches(tmp_path: Path):
    write(tmp_path, "watches", {"user_id": ["u"], "video_id": ["a"], "timestamp": [at(1)], "level": [4.0]})
    write(tmp_path, "users", {"user_id": ["u"], "watched_hours": [2.5]}, ".")
    inputs = {"watched_hours": RawInput(NUMBER, 1), "watched_level": RawInput(NUMBER, 2)}
    raw = raw_requests(tmp_path, request_table(["u"], [9]), inputs, CONFIG)
    assert raw["watched_hours"].tolist() == [2.5]
    assert raw["watched_level"].tolist() == [[4.0]]


def test_what_the_log_says_of_a_request_is_found_by_user_video_and_time(tables: Path):
    examples = pa.table(
        {"user_id": ["ü", "ü"], "video_id": ["d", "a b"], "timestamp": pa.array([at(2), at(1)], TIMESTAMP)}
    )
    logged = logged_requests(tables, "impressions", examples, ["page", "candidate_sources", "not_logged"])
    assert {name: column.to_pylist() for name, column in logged.items()} == {
        "page": ["watch", "home"],
        "candidate_sources": [None, ["x", "y"]],
    }
    with pytest.raises(DataError, match=r"expected the row of user 'ü', video 'c' at 2024-03-01 .*, found none"):
        logged_requests(tables, "impressions", examples.set_column(1, "video_id", [["c", "c"]])[1:], ["page"])


def test_two_impressions_of_one_moment_are_told_apart_by_their_ids(tmp_path: Path):
    shown = {"user_id": ["u"] * 2, "video_id": ["v"] * 2, "timestamp": [at(1)] * 2, "impression_id": ["i", "j"]}
    write(tmp_path, "impressions", {**shown, "page": ["home", "watch"]})
    examples = pa.table({**shown, "timestamp": pa.array([at(1)] * 2, TIMESTAMP), "impression_id": ["j", None]})
    assert logged_requests(tmp_path, "impressions", examples, ["page"])["page"].to_pylist() == ["watch", "home"]


@pytest.mark.parametrize(
    ("impression_ids", "videos", "kept"),
    [
        (["i", "i"], ["v", "w"], ["v"]),  # one impression told twice
        (["i", "j"], ["v", "v"], ["v", "v"]),  # two impressions of one video
        ([None, "j"], ["v", "v"], ["v"]),  # the nameless row tells what the named one tells
        ([None, None], ["v", "v"], ["v"]),
        ([None, None], ["v", "w"], ["v", "w"]),
    ],
)
def test_a_row_told_twice_is_one_event(tmp_path: Path, impression_ids: list, videos: list, kept: list):
    write(
        tmp_path,
        "watches",
        {
            "user_id": ["u", "u"],
            "video_id": videos,
            "timestamp": [at(1), at(1)],
            "impression_id": pa.array(impression_ids, pa.string()),
        },
    )
    raw = raw_requests(
        tmp_path, request_table(["u"], [2]), {"watched_video_ids": RawInput(TEXT, 2)}, FeatureListConfig()
    )
    assert raw["watched_video_ids"].tolist() == [kept]
