"""From any source to published tables: counts add up, days are partitions, duplicates are found, failures are clear."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from features.artifacts import is_published, read_manifest
from features.errors import DataError
from features.tables import read_table, table_columns, table_files
from pipeline.sources import partitions
from pipeline.sources.ingest import ingest, summary_table
from pipeline.sources.source import InMemorySource, RawChunk
from pipeline.sources.validation import ValidationConfig

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TOLERANT = ValidationConfig(max_rejected_share=1.0, max_duplicate_share=1.0)


def watches(rows: list[tuple], names=("user_id", "video_id", "timestamp")) -> pa.Table:
    return pa.table({name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)})


def run(folder: Path, config: ValidationConfig | None = None, chunk_rows: int = 1_000_000, **tables: pa.Table):
    return ingest(
        InMemorySource(tables, "memory", chunk_rows=chunk_rows), folder / "tables", folder / "rejected", config
    )


def test_events_are_partitioned_by_utc_day_and_sorted_by_time(tmp_path):
    midnight = datetime(2024, 5, 2, tzinfo=UTC)
    rows = [
        ("b", "v", midnight),
        ("a", "v", midnight - timedelta(microseconds=1)),
        ("a", "w", midnight + HOUR),
        ("c", "v", NOON),
    ]
    summary = run(tmp_path, watches=watches(rows))
    found = {
        p.parent.name: pq.ParquetFile(p).read()["user_id"].to_pylist()
        for p in table_files(tmp_path / "tables", "watches")
    }
    assert found == {"day=2024-05-01": ["c", "a"], "day=2024-05-02": ["b", "a"]}
    assert summary.tables["watches"].days == 2
    assert summary.tables["watches"].first == "2024-05-01T12:00:00+00:00"
    assert summary.tables["watches"].last == "2024-05-02T01:00:00+00:00"
    assert read_table(tmp_path / "tables", "watches")["user_id"].to_pylist() == ["c", "a", "b", "a"]
    assert table_columns(tmp_path / "tables", "watches") == ["user_id", "video_id", "timestamp"]


def test_rows_of_equal_time_keep_the_order_of_the_source(tmp_path):
    rows = [(f"u{n}", "v", NOON) for n in (3, 1, 2)]
    run(tmp_path, watches=watches(rows), chunk_rows=1)
    assert read_table(tmp_path / "tables", "watches")["user_id"].to_pylist() == ["u3", "u1", "u2"]


def test_order_breaks_ties_and_order_only_rows_have_a_partition_of_their_own(tmp_path):
    table = pa.table(
        {
            "user_id": ["u"] * 5,
            "video_id": ["a", "b", "c", "d", "d"],
            "timestamp": pa.array([NOON, NOON, None, None, None], pa.timestamp("us", "UTC")),
            "time_known": [True, True, False, False, False],
            "order": [2, 1, 1, 0, 2],
        }
    )
    summary = run(tmp_path, watches=table)
    assert read_table(tmp_path / "tables", "watches")["video_id"].to_pylist() == ["d", "c", "d", "b", "a"]
    assert [p.parent.name for p in table_files(tmp_path / "tables", "watches")] == ["day=unknown", "day=2024-05-01"]
    assert summary.tables["watches"].days == 1


def test_duplicates_are_rejected_but_for_the_first_even_across_chunks(tmp_path):
    rows = [
        ("u", "v", NOON, 1.0),
        ("u", "v", NOON + HOUR, 2.0),  # another moment
        ("u", "v", NOON, 3.0),
        ("w", "v", NOON, 4.0),
        ("u", "v", NOON, 5.0),
    ]
    table = watches(rows, ("user_id", "video_id", "timestamp", "watch_time_s"))
    summary = run(tmp_path, TOLERANT, chunk_rows=2, watches=table)
    assert read_table(tmp_path / "tables", "watches")["watch_time_s"].to_pylist() == [1.0, 4.0, 2.0]
    assert summary.tables["watches"].rejected == {"duplicate": 2}
    rejected = read_table(tmp_path / "rejected", "watches").to_pylist()
    assert [(r["reason"], r["row"], json.loads(r["raw"])["watch_time_s"]) for r in rejected] == [
        ("duplicate", 3, 3.0),
        ("duplicate", 5, 5.0),
    ]


def test_order_does_not_tell_events_of_one_moment_apart(tmp_path):
    table = watches([("u", "v", NOON, 1), ("u", "v", NOON, 2)], ("user_id", "video_id", "timestamp", "order"))
    run(tmp_path, TOLERANT, watches=table)
    assert read_table(tmp_path / "tables", "watches")["order"].to_pylist() == [1]


def test_an_impression_id_tells_impressions_apart_and_together(tmp_path):
    table = pa.table(
        {
            "user_id": ["u", "u", "u", "u"],
            "video_id": ["v", "v", "v", "v"],
            "timestamp": [NOON, NOON, NOON + HOUR, NOON],
            "clicked": [True, False, True, True],
            "impression_id": ["i1", "i2", "i1", None],
        }
    )
    watch = watches([("u", "v", NOON)])
    summary = run(tmp_path, TOLERANT, watches=watch, impressions=table)
    assert summary.tables["impressions"].rejected == {"duplicate": 1}
    kept = read_table(tmp_path / "tables", "impressions")
    assert kept["impression_id"].to_pylist() == ["i1", "i2", None]
    assert kept["timestamp"].to_pylist() == [NOON] * 3


def test_users_may_number_their_impressions_alike(tmp_path):
    table = pa.table(
        {
            "user_id": ["u", "w", "w"],
            "video_id": ["v", "v", "x"],
            "timestamp": [NOON] * 3,
            "clicked": [True] * 3,
            "impression_id": ["1", "1", "1"],
        }
    )
    summary = run(tmp_path, TOLERANT, watches=watches([("u", "v", NOON)]), impressions=table)
    assert summary.tables["impressions"].rejected == {"duplicate": 1}
    kept = read_table(tmp_path / "tables", "impressions")
    assert kept["user_id"].to_pylist() == ["u", "w"]


def test_an_impression_told_again_on_any_day_is_a_duplicate(tmp_path):
    days = [0, 1, 64, 64, 65, None]  # the buckets of rows hold every 64th day
    table = pa.table(
        {
            "user_id": ["u", "u", "u", "w", "u", "u"],
            "video_id": ["v"] * 6,
            "timestamp": [None if day is None else NOON + timedelta(days=day) for day in days],
            "time_known": [day is not None for day in days],
            "order": [0] * 6,
            "clicked": [True] * 6,
            "impression_id": ["1", "1", "1", "1", "2", "2"],
        }
    )
    watch = watches([("u", "v", NOON)])
    config = TOLERANT.model_copy(update={"latest": NOON + timedelta(days=100)})
    summary = run(tmp_path, config, watches=watch, impressions=table, chunk_rows=4)
    assert summary.tables["impressions"].rejected == {"duplicate": 3}
    kept = read_table(tmp_path / "tables", "impressions").select(["user_id", "timestamp", "impression_id"]).to_pylist()
    assert [tuple(row.values()) for row in kept] == [
        ("u", NOON, "1"),
        ("w", NOON + timedelta(days=64), "1"),
        ("u", NOON + timedelta(days=65), "2"),
    ]
    rejected = read_table(tmp_path / "rejected", "impressions")
    assert sorted(rejected["row"].to_pylist()) == [2, 3, 6]


def test_users_and_videos_may_have_columns_of_any_name(tmp_path):
    users = pa.table({"user_id": ["u", "w"], "timestamp": ["b", "a"], "order": [[2], [1]]})
    videos = pa.table({"video_id": ["v", "w"], "timestamp": [2.5, None], "order": ["x", "y"]})
    run(tmp_path, watches=watches([("u", "v", NOON)]), users=users, videos=videos)
    assert read_table(tmp_path / "tables", "users").to_pylist() == users.to_pylist()
    assert read_table(tmp_path / "tables", "videos").to_pylist() == videos.to_pylist()


def test_the_second_row_of_a_user_is_a_duplicate(tmp_path):
    users = pa.table({"user_id": ["u", "w", "u"], "region": ["DE", "FR", "IT"]})
    run(tmp_path, TOLERANT, watches=watches([("u", "v", NOON)]), users=users)
    assert read_table(tmp_path / "tables", "users")["region"].to_pylist() == ["DE", "FR"]


def test_manifests_hold_counts_that_add_up(tmp_path):
    rows = [("u", "v", NOON), ("u", "v", NOON), ("", "v", NOON), ("u", "w", NOON), ("u", "x", NOON)]
    run(tmp_path, ValidationConfig(max_rejected_share=0.2), watches=watches(rows))
    counts = read_manifest(tmp_path / "tables", verify=True)["tables"]["watches"]
    assert (counts["read"], counts["kept"]) == (5, 3)
    assert counts["rejected"] == {"missing id": 1, "duplicate": 1}
    assert read_manifest(tmp_path / "rejected", verify=True)["tables"]["watches"] == counts
    assert read_table(tmp_path / "rejected", "watches").num_rows == 2


def test_events_of_unknown_users_and_videos_are_kept_and_counted(tmp_path):
    rows = [("u", "v", NOON), ("u", "x", NOON), ("y", "x", NOON)]
    users, videos = pa.table({"user_id": ["u"]}), pa.table({"video_id": ["v", "w"]})
    summary = run(tmp_path, watches=watches(rows), users=users, videos=videos)
    assert summary.tables["watches"].kept == 3
    assert summary.tables["watches"].unmatched == {"user_id not in users": 1, "video_id not in videos": 2}


def test_seeds_that_are_in_no_row_of_videos_are_counted_and_missing_ones_are_not(tmp_path):
    seen = pa.table(
        {
            "user_id": ["u"] * 3,
            "video_id": ["v", "w", "v"],
            "timestamp": [NOON, NOON, NOON + HOUR],
            "clicked": [True] * 3,
            "seed_video_id": ["home", None, "home"],
        }
    )
    summary = run(
        tmp_path, watches=watches([("u", "v", NOON)]), impressions=seen, videos=pa.table({"video_id": ["v", "w"]})
    )
    assert summary.tables["impressions"].unmatched == {"video_id not in videos": 0, "seed_video_id not in videos": 2}


@pytest.mark.parametrize(
    ("given", "known", "told"),
    [
        ("12.0", ["7", "12"], "'12.0', while users has '12'"),
        ("12", ["7.0", "12.0"], "'12', while users has '12.0'"),
        ("0012", ["7", "12"], "'0012', while users has '12'"),
        ("AB", ["7", "ab"], "'AB', while users has 'ab'"),
        ("other", ["7", "12"], "'other', while users has '7'"),
    ],
)
def test_events_of_users_that_the_table_of_users_lacks_stop_the_run_with_an_id_of_each(tmp_path, given, known, told):
    tables = {"watches": watches([(given, "v", NOON), (given, "w", NOON)]), "users": pa.table({"user_id": known})}
    with pytest.raises(DataError, match="watches: expected each user_id in users, found 2 of 2 rows with one") as error:
        run(tmp_path, chunk_rows=1, **tables)
    assert f"(100.0%, tolerated are 90.0%), as {told}; make the sources write both alike, leave" in str(error.value)
    assert "raise validation.max_unmatched_share" in str(error.value)
    assert not is_published(tmp_path / "tables")
    summary = run(tmp_path, ValidationConfig(max_unmatched_share=1.0), **tables)
    assert summary.tables["watches"].unmatched == {"user_id not in users": 2}


def test_a_table_may_cover_a_part_of_the_events_and_how_small_a_part_is_configured(tmp_path):
    rows = [("u", f"v{n}", NOON) for n in range(10)]
    videos = pa.table({"video_id": ["v3"]})
    run(tmp_path, watches=watches(rows), videos=videos)
    strict = ValidationConfig(max_unmatched_share=0.8)
    with pytest.raises(DataError, match=r"expected each video_id in videos, found 9 of 10 rows .*\(90\.0%, tolerat"):
        run(tmp_path / "strict", strict, watches=watches(rows), videos=videos)


def test_too_many_rejected_rows_publish_no_tables_but_leave_the_rejected_rows_to_look_at(tmp_path):
    rows = [("u", "v", NOON), (None, "v", NOON + HOUR)]
    with pytest.raises(
        DataError, match=r"watches: 1 of 2 rows are rejected .* missing id in user_id.*memory:watches row 2"
    ):
        run(tmp_path, watches=watches(rows))
    assert not is_published(tmp_path / "tables")
    assert is_published(tmp_path / "rejected")
    assert read_table(tmp_path / "rejected", "watches")["reason"].to_pylist() == ["missing id"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rejected"]


def test_all_rows_rejected_fails_even_when_everything_is_tolerated(tmp_path):
    with pytest.raises(DataError, match="2 of 2 rows are rejected") as error:
        run(tmp_path, TOLERANT, watches=watches([("u", "v", "?"), ("u", "w", "?")]))
    assert "\n" not in str(error.value)


def test_no_watches_is_an_error_and_an_empty_search_log_is_not(tmp_path):
    empty = pa.table(
        {
            "user_id": pa.array([], pa.string()),
            "timestamp": pa.array([], pa.string()),
            "query": pa.array([], pa.string()),
        }
    )
    with pytest.raises(DataError, match="has no table 'watches'"):
        run(tmp_path, searches=empty)
    with pytest.raises(DataError, match="watches: expected rows, found none"):
        run(tmp_path, watches=watches([("u", "v", NOON)]).slice(0, 0))
    run(tmp_path, watches=watches([("u", "v", NOON)]), searches=empty)
    assert set(read_manifest(tmp_path / "tables")["tables"]) == {"watches"}


def test_a_table_outside_the_contract_names_the_nearest(tmp_path):
    with pytest.raises(DataError, match="did you mean 'watches'"):
        run(tmp_path, watchs=watches([("u", "v", NOON)]))


def test_one_user_and_one_video_are_enough(tmp_path):
    assert run(tmp_path, watches=watches([("ü ser", "vid eo", NOON)])).tables["watches"].kept == 1


def test_a_column_that_only_some_chunks_have_is_in_every_part(tmp_path):
    class Source:
        def tables(self):
            first = pa.table({"user_id": ["u"], "video_id": ["v"], "timestamp": [NOON], "rating": [4]})
            second = pa.table(
                {"user_id": ["u"], "video_id": ["v"], "time_known": [False], "order": [0], "rating": [4.5]}
            )
            chunks = [RawChunk(t, f"{n}.csv", np.array([1])) for n, t in enumerate((first, second))]
            return {"watches": iter(chunks)}

        def fingerprint(self):
            return {}

    ingest(Source(), tmp_path / "tables", tmp_path / "rejected")
    table = read_table(tmp_path / "tables", "watches")
    assert table["rating"].to_pylist() == [4.5, 4.0]
    assert table["time_known"].to_pylist() == [False, True]
    for file in table_files(tmp_path / "tables", "watches"):
        assert pq.read_schema(file).equals(table.schema)


def test_columns_whose_types_disagree_name_the_file(tmp_path):
    class Source:
        def tables(self):
            for_files = {"a.parquet": [1], "b.parquet": ["one"]}
            rows = {"user_id": ["u"], "video_id": ["v"], "timestamp": [NOON]}
            return {
                "watches": iter([RawChunk(pa.table({**rows, "x": x}), f, np.array([1])) for f, x in for_files.items()])
            }

        def fingerprint(self):
            return {}

    with pytest.raises(DataError, match=r"b\.parquet: a column of table 'watches' has another type"):
        ingest(Source(), tmp_path / "tables", tmp_path / "rejected")


def test_progress_tells_rows_read(tmp_path):
    told = []
    source = InMemorySource({"watches": watches([("u", f"v{n}", NOON) for n in range(5)])}, "memory", chunk_rows=2)
    ingest(source, tmp_path / "t", tmp_path / "r", progress=lambda name, rows: told.append((name, rows)))
    assert told == [("watches", 2), ("watches", 4), ("watches", 5)]


def test_a_large_day_is_written_in_parts_that_stay_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(partitions, "PART_ROWS", 2)
    run(tmp_path, watches=watches([("u", f"v{n}", NOON + n * timedelta(minutes=1)) for n in (4, 2, 0, 1, 3)]))
    assert [p.name for p in table_files(tmp_path / "tables", "watches")] == [f"part-0000{n}.parquet" for n in range(3)]
    assert read_table(tmp_path / "tables", "watches")["video_id"].to_pylist() == ["v0", "v1", "v2", "v3", "v4"]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 200)), min_size=1, max_size=40),
    st.integers(1, 7),
)
@settings(max_examples=15)
def test_any_chunking_gives_the_rows_of_a_plain_sort_without_repetitions(tmp_path_factory, rows, chunk_rows):
    folder = tmp_path_factory.mktemp("ingest")
    table = watches([(user, video, NOON + hour * HOUR) for user, video, hour in rows])
    run(folder, TOLERANT, chunk_rows, watches=table)
    seen = list(dict.fromkeys(rows))
    expected = [(user, video, NOON + hour * HOUR) for user, video, hour in sorted(seen, key=lambda row: row[2])]
    found = read_table(folder / "tables", "watches").to_pylist()
    assert [(r["user_id"], r["video_id"], r["timestamp"]) for r in found] == expected


def test_the_same_source_has_the_same_fingerprint_and_another_has_another():
    first, second = (InMemorySource({"watches": watches([("u", v, NOON)])}, "memory") for v in "vw")
    assert first.fingerprint() == first.fingerprint() != second.fingerprint()


def test_the_summary_shows_reasons(tmp_path):
    summary = run(tmp_path, TOLERANT, watches=watches([("u", "v", NOON), ("", "v", NOON)]))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary_table(summary))
    assert "missing id 1" in console.export_text()
