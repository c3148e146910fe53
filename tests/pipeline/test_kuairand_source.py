"""KuaiRand in both of its layouts: what is a click, what is a watch, what is known by order only."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from features.errors import ConfigError
from features.tables import read_table, table_columns
from pipeline.sources.ingest import ingest
from pipeline.sources.kuairand import KuaiRandConfig, KuaiRandSource
from pipeline.sources.validation import ValidationConfig

REAL = Path(__file__).parents[3] / "shared/data/kuairand-pure"
MS = 1_650_812_741_436
TIME = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=MS)

LOG = {  # user, video, ms after MS, is_click, long_view, play_time_ms, duration_ms, tab
    "clicked": (1, 10, 0, 1, 1, 61802, 49866, 1),
    "unclicked but played": (1, 11, 10, 0, 0, 3000, 12000, 1),
    "clicked, no play time": (2, 10, 20, 1, 0, 0, 49866, 0),
    "long view without click": (2, 12, 30, 0, 1, 20000, 0, 4),
}
LOG_COLUMNS = ["user_id", "video_id", "time_ms", "is_click", "long_view", "play_time_ms", "duration_ms", "tab"]
USERS = {
    "user_id": [1, 2],
    "user_active_degree": ["full_active", "UNKNOWN"],
    "is_live_streamer": [-124, 1],
    "follow_user_num": [514, 0],
    "onehot_feat4": [1.0, None],
}
VIDEOS = {
    "video_id": [10, 11, 12],
    "author_id": [7349781, 8, 9],
    "video_type": ["NORMAL", "AD", "UNKNOWN"],
    "upload_dt": ["2022-04-10", "2022-04-09", None],
    "video_duration": [49866.0, None, 0.0],
    "music_id": [9155697141, 1, 2],
    "tag": ["39,2", "5", None],
    "server_width": [720.0, None, 540.0],
}


def log_table() -> pa.Table:
    table = pa.table(dict(zip(LOG_COLUMNS, map(list, zip(*LOG.values(), strict=True)), strict=True)))
    times = pc.add(table["time_ms"], MS)
    return table.set_column(2, "time_ms", times)


def reduced(folder: Path) -> Path:
    folder.mkdir()
    earlier = {
        "user_id": [1, 2],
        "watch_seq": [[5, 6, 5], [7]],
        "like_seq": [[], []],
        "long_watch_seq": [[6, 5], []],
    }
    for name, table in {
        "impressions": log_table(),
        "earlier_impressions": pa.table(earlier),
        "users": pa.table(USERS),
        "videos": pa.table(VIDEOS),
    }.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def to_csv(path: Path, table: pa.Table) -> None:
    lines = [",".join(table.column_names)]
    for row in table.to_pylist():
        fields = ["" if value is None else str(value) for value in row.values()]
        lines.append(",".join(f'"{field}"' if "," in field else field for field in fields))
    path.write_text("\n".join(lines) + "\n")


def original(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    table = log_table()
    to_csv(folder / "data/log_standard_4_08_to_4_21_pure.csv", table.slice(0, 2))
    to_csv(folder / "data/log_standard_4_22_to_5_08_pure.csv", table.slice(2))
    random = table.slice(0, 1).set_column(0, "user_id", pa.array([2]))
    to_csv(folder / "data/log_random_4_22_to_5_08_pure.csv", random)
    to_csv(folder / "data/user_features_pure.csv", pa.table(USERS))
    to_csv(folder / "data/video_features_basic_pure.csv", pa.table(VIDEOS))
    (folder / "data/video_features_statistic_pure.csv").write_text("video_id,show_cnt\n10,1\n")
    return folder


def run(folder: Path, path: Path, **config):
    source = KuaiRandSource(KuaiRandConfig(path=str(path), **config))
    ingest(source, folder / "run/tables", folder / "run/rejected", ValidationConfig())
    return folder / "run/tables"


def timed(tables: Path, name: str) -> list[tuple]:
    rows = [row for row in read_table(tables, name).to_pylist() if row["timestamp"] is not None]
    fields = [
        "user_id",
        "video_id",
        "timestamp",
        "watch_time_s",
        "page",
        *(["clicked"] if name == "impressions" else []),
    ]
    return [tuple(row[field] for field in fields) for row in rows]


def at(ms: int) -> datetime:
    return TIME + timedelta(milliseconds=ms)


EXPECTED_IMPRESSIONS = [
    ("1", "10", at(0), 61.802, "1", True),
    ("1", "11", at(10), None, "1", False),  # play time without a click is part of the outcome
    ("2", "10", at(20), None, "0", True),
    ("2", "12", at(30), None, "4", False),
]


@pytest.mark.parametrize("layout", [reduced, original])
def test_a_watch_is_a_clicked_impression(tmp_path, layout):
    tables = run(tmp_path, layout(tmp_path / "log"))
    assert timed(tables, "impressions") == EXPECTED_IMPRESSIONS
    assert timed(tables, "watches") == [("1", "10", at(0), 61.802, "1"), ("2", "10", at(20), None, "0")]
    assert set(read_table(tables, "watches")["origin"].to_pylist()) == {"recommended"}


@pytest.mark.parametrize("layout", [reduced, original])
def test_a_watch_is_a_long_view_by_configuration(tmp_path, layout):
    tables = run(tmp_path, layout(tmp_path / "log"), watch="long_view")
    assert timed(tables, "impressions") == EXPECTED_IMPRESSIONS
    assert timed(tables, "watches") == [("1", "10", at(0), 61.802, "1"), ("2", "12", at(30), 20.0, "4")]


def test_what_a_click_is_can_be_another_column(tmp_path):
    tables = run(tmp_path, reduced(tmp_path / "log"), click="long_view")
    assert [row[5] for row in timed(tables, "impressions")] == [True, False, False, True]
    assert [row[3] for row in timed(tables, "impressions")] == [61.802, None, None, 20.0]


def test_no_column_tells_the_outcome_in_another_way(tmp_path):
    tables = run(tmp_path, original(tmp_path / "log"))
    assert set(table_columns(tables, "impressions")) == {
        "user_id", "video_id", "timestamp", "clicked", "watch_time_s", "page",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("long_watch_seq", [("1", "6", 0), ("1", "5", 1)]),
        ("watch_seq", [("1", "5", 0), ("2", "7", 0), ("1", "6", 1), ("1", "5", 2)]),
        ("none", []),
    ],
)
def test_earlier_history_is_known_by_order_only(tmp_path, choice, expected):
    tables = run(tmp_path, reduced(tmp_path / "log"), earlier_watches=choice)
    watches = [row for row in read_table(tables, "watches").to_pylist() if row["timestamp"] is None]
    assert [(row["user_id"], row["video_id"], row["order"]) for row in watches] == expected
    assert not any(row["time_known"] for row in watches)
    shown = [row for row in read_table(tables, "impressions").to_pylist() if not row["time_known"]]
    assert [(row["user_id"], row["video_id"], row["order"]) for row in shown] == [
        ("1", "5", 0),
        ("2", "7", 0),
        ("1", "6", 1),
        ("1", "5", 2),
    ]
    assert {(row["timestamp"], row["clicked"]) for row in shown} == {(None, None)}


@pytest.mark.parametrize("layout", [reduced, original])
def test_user_attributes_are_kept_and_the_unknown_code_is_missing(tmp_path, layout):
    tables = run(tmp_path, layout(tmp_path / "log"))
    assert read_table(tables, "users").to_pylist() == [
        {
            "user_id": "1",
            "user_active_degree": "full_active",
            "is_live_streamer": None,
            "follow_user_num": 514.0,
            "onehot_feat4": "1",
        },
        {
            "user_id": "2",
            "user_active_degree": "UNKNOWN",
            "is_live_streamer": "1",
            "follow_user_num": 0.0,
            "onehot_feat4": None,
        },
    ]


@pytest.mark.parametrize("layout", [reduced, original])
def test_videos_have_uploader_day_topics_and_the_logged_duration_where_their_own_is_missing(tmp_path, layout):
    tables = run(tmp_path, layout(tmp_path / "log"))
    first, second, third = read_table(tables, "videos").to_pylist()
    assert first == {
        "video_id": "10",
        "uploader_id": "7349781",
        "upload_time": datetime(2022, 4, 9, 16, tzinfo=UTC),  # midnight of 10 April at UTC+8
        "duration_s": 49.866,
        "topics": ["39", "2"],
        "video_type": "NORMAL",
        "music_id": "9155697141",
        "server_width": 720.0,
    }
    assert second["duration_s"] == 12.0
    assert (third["duration_s"], third["topics"], third["upload_time"]) == (None, None, None)


def test_random_exposures_are_read_by_choice(tmp_path):
    path = original(tmp_path / "log")
    assert len(timed(run(tmp_path / "a", path), "impressions")) == 4
    assert len(timed(run(tmp_path / "b", path, random_exposures=True), "impressions")) == 5


def test_a_folder_with_something_else_says_what_was_expected(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        KuaiRandSource(KuaiRandConfig(path=str(tmp_path / "absent"))).tables()
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ConfigError, match=r"expected impressions\.parquet or log_standard_\*\.csv, found readme\.txt"):
        KuaiRandSource(KuaiRandConfig(path=str(tmp_path))).tables()


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    path = reduced(tmp_path / "log")
    pq.write_table(
        log_table().rename_columns(["tabs" if c == "tab" else c for c in LOG_COLUMNS]), path / "impressions.parquet"
    )
    with pytest.raises(ConfigError, match=r"no column 'tab', did you mean 'tabs'\?"):
        KuaiRandSource(KuaiRandConfig(path=str(path))).tables()


@pytest.mark.skipif(not REAL.is_dir(), reason="the KuaiRand-Pure log is not beside the repository")
def test_the_real_log_loses_exactly_its_repeated_rows(tmp_path):
    source = KuaiRandSource(KuaiRandConfig(path=str(REAL)))
    counts = ingest(source, tmp_path / "tables", tmp_path / "rejected").tables
    log = pq.read_table(REAL / "impressions.parquet", columns=["user_id", "video_id", "time_ms", "is_click"])
    keys = ["user_id", "video_id", "time_ms"]
    repeated = log.num_rows - log.group_by(keys).aggregate([]).num_rows
    clicks = log.filter(pc.equal(log["is_click"], 1))
    repeated_clicks = clicks.num_rows - clicks.group_by(keys).aggregate([]).num_rows
    earlier = pq.read_table(REAL / "earlier_impressions.parquet")
    assert counts["impressions"].rejected == {"duplicate": repeated}
    assert counts["watches"].rejected == {"duplicate": repeated_clicks}
    assert counts["impressions"].read == log.num_rows + pc.sum(pc.list_value_length(earlier["watch_seq"])).as_py()
    assert counts["watches"].read == clicks.num_rows + pc.sum(pc.list_value_length(earlier["long_watch_seq"])).as_py()
    assert {(n, c.kept) for n, c in counts.items() if n in {"users", "videos"}} == {
        ("users", 27_285),
        ("videos", 7_583),
    }
    assert not any(sum(c.unmatched.values()) for c in counts.values())


def test_the_fingerprint_does_not_depend_on_where_the_files_are(tmp_path):
    folders = [reduced(tmp_path / name) for name in ("a", "b")]
    prints = [KuaiRandSource(KuaiRandConfig(path=str(folder))).fingerprint() for folder in folders]
    assert prints[0] == prints[1]
    other = KuaiRandSource(KuaiRandConfig(path=str(folders[0]), watch="long_view")).fingerprint()
    assert other != prints[0]
