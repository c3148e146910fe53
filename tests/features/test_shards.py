from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import shards as shards_module
from features.artifacts import read_manifest
from features.errors import ArtifactError
from features.event_windows import ORDER_ONLY
from features.shards import (
    ShardConfig,
    make_shard,
    num_shards,
    read_rows,
    read_shard,
    shard_of,
    shards_for,
    write_shards,
)
from tests.features.example_logs import START_US, platform, table, write_tables


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    return platform(users=25)


@pytest.fixture(scope="module")
def shards(tables: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_tables(folder / "tables", tables)
    write_shards(folder / "tables", folder / "shards", ShardConfig(num_shards=4, block_rows=100))
    return folder / "shards"


def test_every_row_is_in_the_shard_of_its_user_and_nowhere_else(shards: Path, tables: dict[str, pa.Table]) -> None:
    assert num_shards(shards) == 4
    for name in ("watches", "impressions", "searches"):
        rows = []
        for number in range(4):
            shard = read_shard(shards, number)
            events = shard.events[name]
            assert set(shard_of(shard.user_ids, 4)) <= {number}
            assert events.table["user_id"].to_pylist() == shard.user_ids.take(pa.array(events.user)).to_pylist()
            rows += events.table.to_pylist()
        assert read_manifest(shards)["rows"][name] == len(rows) == len(tables[name])
        by_all = lambda row: str(sorted(row.items(), key=str))  # noqa: E731
        assert sorted(rows, key=by_all) == sorted(tables[name].to_pylist(), key=by_all)


def test_the_number_of_shards_grows_with_the_events_unless_configured(
    tables: dict[str, pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [shards_for(events) for events in (0, 5_000_000, 20_000_000, 10**12)] == [16, 16, 64, 100_000]
    write_tables(tmp_path / "tables", tables)
    for events_per_shard, configured, expected in ((312_500, None, 16), (100, None, None), (100, 3, 3)):
        monkeypatch.setattr(shards_module, "_EVENTS_PER_SHARD", events_per_shard)
        write_shards(tmp_path / "tables", tmp_path / "shards", ShardConfig(num_shards=configured))
        events = sum(len(tables[name]) for name in ("watches", "impressions", "searches"))
        assert num_shards(tmp_path / "shards") == (expected or round(events / 100)) != 0
        rows = [read_rows(tmp_path / "shards", "users", number) for number in range(num_shards(tmp_path / "shards"))]
        assert sum(len(found) for found in rows if found is not None) == len(tables["users"])


def test_a_users_events_are_in_order_and_users_beside_them(shards: Path) -> None:
    shard = read_shard(shards, 1)
    assert shard.user_ids.to_pylist() == sorted(shard.user_ids.to_pylist())
    assert shard.users is not None
    assert shard.users["user_id"].to_pylist() == shard.user_ids.to_pylist()
    assert shard.users["region"].to_pylist() == [f"g{int(user[1:]) % 4}" for user in shard.user_ids.to_pylist()]
    events = shard.events["watches"]
    for user in range(len(shard.user_ids)):
        times = events.time_us[events.offsets[user] : events.offsets[user + 1]]
        assert (np.diff(times) >= 0).all()


def watch(order: int | None, time_s: int | None, video: str = "v", **more: object) -> dict:
    time_us = None if time_s is None else START_US + time_s * 1_000_000
    return {"user_id": "u", "video_id": video, "time_us": time_us, "order": order, **more}


def sorted_watches(*rows: dict) -> tuple[list, int]:
    events = make_shard({"watches": table("watches", list(rows))}).events["watches"]
    return events.table["video_id"].to_pylist(), events.told_twice


def test_order_only_rows_come_first_then_time_then_order_then_the_tables_order() -> None:
    found = sorted_watches(
        watch(0, 9, "f"), watch(5, None, "b"), watch(2, None, "a"), watch(1, 7, "d"), watch(0, 7, "c"),
        watch(0, 9, "g"), watch(1, 7, "e"),
    )  # fmt: skip
    assert found == (["a", "b", "c", "d", "e", "f", "g"], 0)


def test_a_row_without_a_known_time_is_order_only_even_with_a_timestamp() -> None:
    rows = table("watches", [{**watch(1, 3), "time_known": False}, {**watch(0, 5), "time_known": True}])
    assert make_shard({"watches": rows}).events["watches"].time_us.tolist() == [ORDER_ONLY, START_US + 5_000_000]


def test_an_impression_id_told_twice_is_one_event() -> None:
    found = sorted_watches(
        watch(0, 1, impression_id="i"), watch(0, 4, impression_id="i"), watch(0, 9, impression_id=None)
    )
    assert found == (["v", "v"], 1)


def test_the_same_video_and_moment_is_one_event_unless_two_impression_ids_tell_them_apart() -> None:
    assert sorted_watches(watch(0, 1), watch(7, 1), watch(0, 1, "w"))[1] == 1
    assert sorted_watches(watch(0, 1, impression_id="i"), watch(0, 1, impression_id="j"))[1] == 0
    assert sorted_watches(watch(0, 1, impression_id="i"), watch(0, 1, impression_id=None))[1] == 1


def test_the_moment_of_an_order_only_row_is_its_order() -> None:
    assert sorted_watches(watch(1, None), watch(2, None))[1] == 0
    assert sorted_watches(watch(1, None), watch(1, None))[1] == 1


def test_two_runs_write_the_same_bytes(shards: Path, tables: dict[str, pa.Table], tmp_path: Path) -> None:
    write_tables(tmp_path / "tables", tables)
    write_shards(tmp_path / "tables", tmp_path / "shards", ShardConfig(num_shards=4, block_rows=100))
    assert read_manifest(tmp_path / "shards")["files"] == read_manifest(shards)["files"]


def test_large_files_are_grouped_block_by_block(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    (tmp_path / "tables" / "watches").mkdir(parents=True)
    pq.write_table(tables["watches"], tmp_path / "tables" / "watches" / "part-0.parquet", row_group_size=50)
    write_shards(tmp_path / "tables", tmp_path / "shards", ShardConfig(num_shards=2, block_rows=60))
    blocks = list((tmp_path / "shards" / "watches").glob("block-*.arrow"))
    assert len(blocks) == -(-len(tables["watches"]) // 100)
    assert sum(len(read_shard(tmp_path / "shards", shard).events["watches"].table) for shard in (0, 1)) == len(
        tables["watches"]
    )


def test_small_files_share_a_block_in_the_order_of_the_days(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    watches = tables["watches"]
    for day in range(4):
        folder = tmp_path / "tables" / "watches" / f"day=2024-01-0{day + 1}"
        folder.mkdir(parents=True)
        pq.write_table(watches.slice(day * 10, 10), folder / "part-00000.parquet")
    write_shards(tmp_path / "tables", tmp_path / "shards", ShardConfig(num_shards=1, block_rows=20))
    assert len(list((tmp_path / "shards" / "watches").glob("block-*.arrow"))) == 2
    assert read_rows(tmp_path / "shards", "watches", 0) == watches.slice(0, 40)


def test_no_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected tables watches, impressions, searches, users, found none"):
        write_shards(tmp_path, tmp_path / "shards")
