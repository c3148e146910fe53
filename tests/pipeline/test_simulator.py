"""The simulator's logs: valid canonical tables, consistent with themselves, the same for the same seed."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError

from features.tables import TABLES
from pipeline.sources.simulator import SimulatedLogs, SimulatorConfig, simulate
from pipeline.sources.simulator_names import series_names, topic_names, topic_queries, topic_words, uploader_names
from pipeline.sources.simulator_platform import DEVICES

CONFIG = SimulatorConfig(users=400, videos=500, uploaders=60, topics=12, days=14)


@pytest.fixture(scope="module")
def logs() -> SimulatedLogs:
    return simulate(CONFIG)


def column(table: pa.Table, name: str) -> np.ndarray:
    values = table[name]
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.int64())
    return values.to_numpy()


def test_every_table_follows_the_data_contract(logs: SimulatedLogs) -> None:
    assert set(logs.tables) == set(TABLES)
    for name, table in logs.tables.items():
        contract = TABLES[name]
        assert table.num_rows > 0
        for field in contract.required:
            assert table.schema.field(field.name).type == field.type
            assert table[field.name].null_count == 0
        for field in contract.optional:
            if field.name in table.column_names:
                assert table.schema.field(field.name).type == field.type
    assert {"title", "uploader_name", "series", "episode"} <= set(logs.tables["videos"].column_names)


def test_events_are_sorted_by_time_and_begin_in_the_window(logs: SimulatedLogs) -> None:
    start = CONFIG.start.timestamp() * 1e6
    for name in ("watches", "impressions", "searches"):
        times = column(logs.tables[name], "timestamp")
        assert (np.diff(times) >= 0).all()
        assert times[0] >= start
    assert column(logs.tables["impressions"], "timestamp")[-1] < start + CONFIG.days * 86400e6


def test_same_seed_same_logs_and_another_seed_other_logs() -> None:
    config = CONFIG.model_copy(update={"users": 50})
    first, second = simulate(config), simulate(config)
    for name, table in first.tables.items():
        assert table.equals(second.tables[name])
    assert first.truth.impressions.equals(second.truth.impressions)
    other = simulate(config.model_copy(update={"seed": 2}))
    assert not first.tables["watches"].equals(other.tables["watches"])


def test_a_watch_and_the_impression_that_led_to_it_tell_the_same_event(logs: SimulatedLogs) -> None:
    watches, impressions = logs.tables["watches"], logs.tables["impressions"]
    linked = watches.filter(pc.is_valid(watches["impression_id"]))
    flat = impressions.drop_columns(["candidate_sources", "candidate_scores"])
    joined = linked.join(flat, "impression_id", right_suffix="_shown")
    assert pc.all(pc.equal(watches["origin"], "recommended").filter(pc.is_valid(watches["impression_id"]))).as_py()
    for name in ("user_id", "video_id", "watch_time_s", "page", "device"):
        assert pc.all(pc.equal(joined[name], joined[f"{name}_shown"])).as_py(), name
    assert pc.all(joined["clicked"]).as_py()
    assert (
        linked.num_rows == pc.sum(impressions["clicked"]).as_py() == pc.count_distinct(linked["impression_id"]).as_py()
    )
    assert impressions.filter(pc.is_valid(impressions["watch_time_s"])).num_rows == linked.num_rows
    assert pc.all(pc.less(joined["timestamp_shown"], joined["timestamp"])).as_py()


def test_impressions_of_a_request_share_user_time_page_device_and_seed(logs: SimulatedLogs) -> None:
    impressions = logs.tables["impressions"]
    names = ["user_id", "timestamp", "page", "device", "seed_video_id"]
    distinct = impressions.select(["request_id", *names]).group_by(["request_id", *names]).aggregate([])
    assert distinct.num_rows == pc.count_distinct(impressions["request_id"]).as_py()
    for key in ("position", "video_id"):
        pairs = impressions.group_by(["request_id", key]).aggregate([])
        assert pairs.num_rows == impressions.num_rows, f"{key} repeated within a request"
    seeded = pc.is_valid(impressions["seed_video_id"])
    assert seeded.equals(pc.equal(impressions["page"], "watch_next"))
    lengths = pc.list_value_length(impressions["candidate_sources"])
    assert lengths.equals(pc.list_value_length(impressions["candidate_scores"]))
    assert pc.min(lengths).as_py() == 1
    assert np.isfinite(pc.list_flatten(impressions["candidate_scores"]).to_numpy()).all()


def test_the_seed_of_a_watch_next_page_is_the_users_last_watch(logs: SimulatedLogs) -> None:
    watches, impressions = logs.tables["watches"], logs.tables["impressions"]
    last: dict[str, list[tuple[int, str]]] = {}
    for user, video, time in zip(
        watches["user_id"].to_pylist(), watches["video_id"].to_pylist(), column(watches, "timestamp"), strict=True
    ):
        last.setdefault(user, []).append((time, video))
    pages = impressions.filter(pc.is_valid(impressions["seed_video_id"]))
    for user, seed, time in zip(
        pages["user_id"].to_pylist(), pages["seed_video_id"].to_pylist(), column(pages, "timestamp"), strict=True
    ):
        assert max(w for w in last[user] if w[0] < time)[1] == seed


def test_nobody_watches_two_videos_at_once_or_one_not_yet_uploaded(logs: SimulatedLogs) -> None:
    watches, videos = logs.tables["watches"], logs.tables["videos"]
    ordered = watches.sort_by([("user_id", "ascending"), ("timestamp", "ascending")])
    end = column(ordered, "timestamp") + (column(ordered, "watch_time_s") * 1e6).astype(np.int64)
    users = column(ordered, "user_id")
    same = users[1:] == users[:-1]
    assert (end[:-1] <= column(ordered, "timestamp")[1:])[same].all()
    for events in (watches, logs.tables["impressions"]):
        uploaded = column(videos, "upload_time")[pc.index_in(events["video_id"], videos["video_id"]).to_numpy()]
        assert (uploaded <= column(events, "timestamp")).all()


def test_completed_watches_reach_nine_tenths_of_the_length(logs: SimulatedLogs) -> None:
    watches, videos = logs.tables["watches"], logs.tables["videos"]
    length = column(videos, "duration_s")[pc.index_in(watches["video_id"], videos["video_id"]).to_numpy()]
    share = column(watches, "watch_time_s") / length
    assert ((share > 0) & (share <= 1)).all()
    np.testing.assert_array_equal(share >= 0.9, column(watches, "completed"))


def test_a_query_names_what_is_watched_after_it(logs: SimulatedLogs) -> None:
    watches, searches, videos = (logs.tables[name] for name in ("watches", "searches", "videos"))
    found = watches.filter(pc.equal(watches["origin"], "search"))
    facts = {
        row["video_id"]: row for row in videos.select(["video_id", "topics", "series", "uploader_name"]).to_pylist()
    }
    queries: dict[str, list[tuple[int, str]]] = {}
    for user, time, query in zip(
        searches["user_id"].to_pylist(), column(searches, "timestamp"), searches["query"].to_pylist(), strict=True
    ):
        queries.setdefault(user, []).append((time, query))
    named = {"uploader": 0, "series": 0, "other": 0}
    for user, video, time in zip(
        found["user_id"].to_pylist(), found["video_id"].to_pylist(), column(found, "timestamp"), strict=True
    ):
        asked_at, query = max(q for q in queries[user] if q[0] < time)
        assert 4e6 <= time - asked_at <= 40e6
        row = facts[video]
        if query == row["uploader_name"].lower():
            named["uploader"] += 1
        elif row["series"] and query.startswith(row["series"].lower()):
            named["series"] += 1
        else:
            named["other"] += 1
    assert named["uploader"] > 0.15 * found.num_rows
    assert named["series"] > 0.02 * found.num_rows
    assert named["other"] > 0.4 * found.num_rows


def test_names_are_distinct_at_any_scale() -> None:
    queries = [query for words in topic_words(2000) for query in topic_queries(words)]
    for made in (topic_names(2000), uploader_names(2000), series_names(2000), queries):
        assert len(set(made)) == len(made) >= 2000


def test_default_scale_is_plausible() -> None:
    config = SimulatorConfig(users=1000, heavy_users=0)  # a quarter of the demo's users, same behaviour
    tables = simulate(config).tables
    clicked = pc.mean(tables["impressions"]["clicked"]).as_py()
    watch_time = pc.quantile(tables["watches"]["watch_time_s"], [0.05, 0.5, 0.95]).to_pylist()
    assert 0.05 < clicked < 0.15
    assert watch_time[0] < 30
    assert 120 < watch_time[1] < 600
    assert 600 < watch_time[2] < 3600
    assert 30_000 < tables["watches"].num_rows < 40_000
    assert 50_000 < tables["impressions"].num_rows < 70_000


@pytest.mark.parametrize("scale", [{"users": 1}, {"videos": 1, "uploaders": 1, "topics": 1}, {"days": 1}])
def test_the_smallest_platforms_work(scale: dict) -> None:
    logs = simulate(SimulatorConfig.model_validate({"users": 20, "videos": 40, "uploaders": 12, "topics": 5, **scale}))
    assert logs.tables["users"].num_rows >= 1
    watches = logs.tables["watches"]
    if watches.num_rows:
        p = logs.truth.next_watch_probabilities(watches["user_id"], column(watches, "timestamp"))
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)


def test_devices_may_have_many_models() -> None:
    small = {"users": 300, "videos": 60, "uploaders": 12, "topics": 4, "device_models": 40, "main_device": 0.0}
    found = set(simulate(SimulatorConfig.model_validate(small)).tables["watches"]["device"].to_pylist())
    assert len(found) > 128
    assert found <= {f"{kind} {model}" for kind in DEVICES for model in range(1, 41)}


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(ValidationError, match="every topic needs an uploader and every uploader a video"):
        SimulatorConfig(videos=10, uploaders=20)
    with pytest.raises(ValidationError, match="series"):
        SimulatorConfig(series=2)
    with pytest.raises(ValidationError, match="extra"):
        SimulatorConfig.model_validate({"popularty": 1})
