"""Joins and derivations against a slow and obvious reference, on wild logs."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalogue import build_catalogue
from features.encoding import Encoder, make_encoder
from features.event_windows import ORDER_ONLY, Bags, Events
from features.example_features import FeatureColumns, Histories, RequestRows
from features.feature_lists import FeatureListConfig, default_ranking_features
from features.history import REQUIREMENTS, Derivation, seconds_between
from features.leakage_reference import Lookups, PlainRequest, reference_value
from features.shards import make_shard
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from features.splits import Split
from tests.features.example_logs import START_US, encoder_of, table, write_tables

LISTS = FeatureListConfig(
    watch_window=4, impression_window=5, search_window=3, max_watched_videos=3, max_search_tokens=4
)
VIDEOS = [f"v{i}" for i in range(6)]
SECOND = 1_000_000


def _videos() -> pa.Table:
    uploads = [START_US - 5 * SECOND, None, START_US, START_US + 3 * SECOND, None, START_US - 86_400 * SECOND]
    topics = [["t0"], ["t0", "t1"], ["t1", "t2", "t3"], [], None, ["rare"]]
    return pa.table(
        {
            "video_id": VIDEOS,
            "uploader_id": pa.array(["c0", "c0", "c1", None, "c1", "rare"]),
            "upload_time": pa.array(uploads, pa.timestamp("us", "UTC")),
            "topics": pa.array(topics, pa.list_(pa.string())),
        }
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Knows v0 to v4 as ids; v5's uploader and topic are out of vocabulary."""
    seen = [{"user_id": "u", "video_id": v, "time_us": START_US, "clicked": True} for v in VIDEOS[:5]]
    tables = {
        "watches": table("watches", [{k: r[k] for k in ("user_id", "video_id", "time_us")} for r in seen]),
        "impressions": table("impressions", seen),
        "searches": table("searches", [{"user_id": "u", "time_us": START_US, "query": "red panda red"}]),
        "videos": _videos().slice(0, 5),
    }
    columns = {name: frozenset(rows.column_names) for name, rows in tables.items()}
    specs = {"ranker": default_ranking_features(columns, LISTS).spec}
    everything = Split(2**62, 2**62, 2**62, 2**62, 0.0, 0, True)
    folder = tmp_path_factory.mktemp("encoder")
    made = encoder_of(folder / "seen", tables, everything, specs).vocabularies
    whole = write_tables(folder / "tables", {**tables, "videos": _videos()})
    return make_encoder(made, build_catalogue(whole, folder / "features", made, specs.values()))


def spec_of_history() -> FeatureSpec:
    columns = {
        "watches": {"video_id", "watch_time_s"},
        "impressions": {"video_id", "clicked"},
        "searches": {"query"},
        "videos": {"uploader_id", "topics", "upload_time"},
    }
    features = default_ranking_features(columns, LISTS).spec.features
    history = [feature for feature in features if feature.source.startswith("history.")]
    default = {feature.source for feature in history}
    others = [derivation for derivation in Derivation if f"history.{derivation}" not in default]
    return FeatureSpec((*history, *map(_list_of, others)))


def _list_of(derivation: Derivation) -> Feature:
    """At most three values of each watch or impression."""
    source = f"history.{derivation}"
    if REQUIREMENTS[derivation].kind == Kind.CONTINUOUS:
        scale = Normaliser.SCALE
        return Feature(derivation, Kind.CONTINUOUS, Side.QUERY, source, max_length=3, normaliser=scale)
    return Feature(derivation, Kind.CATEGORICAL, Side.QUERY, source, "clicked_video", 3)


SPEC = spec_of_history()

moments = st.one_of(st.none(), st.integers(0, 12).map(lambda s: START_US + s * SECOND))
users = st.sampled_from(["a", "b", "ü ß"])
orders = st.integers(0, 3)
names = st.one_of(st.none(), st.sampled_from([f"i{n}" for n in range(12)]))
watches = st.fixed_dictionaries(
    {
        "user_id": users, "video_id": st.sampled_from(VIDEOS), "time_us": moments, "order": orders,
        "impression_id": names, "watch_time_s": st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, 2.5, 4.0])),
    }
)  # fmt: skip
impressions = st.fixed_dictionaries(
    {
        "user_id": users, "video_id": st.sampled_from(VIDEOS), "time_us": moments, "order": orders,
        "impression_id": names, "clicked": st.sampled_from([True, False, None]),
    }
)  # fmt: skip
searches = st.fixed_dictionaries(
    {
        "user_id": users, "time_us": moments, "order": orders,
        "query": st.sampled_from(["red panda", "panda", "Red  red red", "unknown words here", "", "!?"]),
    }
)  # fmt: skip
requests = st.tuples(users, st.integers(0, 13), st.sampled_from(VIDEOS))


COLUMNS = {
    "watches": ("user_id", "video_id", "time_us", "order", "impression_id", "watch_time_s"),
    "impressions": ("user_id", "video_id", "time_us", "order", "impression_id", "clicked"),
    "searches": ("user_id", "time_us", "order", "query"),
}


def logs(rows: list[dict[str, Any]], name: str) -> pa.Table:
    """The rows as a table that has every column, even without rows."""
    made = table(name, [*rows, dict.fromkeys(COLUMNS[name])]).slice(0, len(rows))
    return made.append_column("time_known", made["timestamp"].is_valid())


@settings(max_examples=100)
@given(
    watched=st.lists(watches, max_size=14),
    shown=st.lists(impressions, max_size=14),
    searched=st.lists(searches, max_size=6),
    asked=st.lists(requests, min_size=1, max_size=6),
)
def test_every_derivation_equals_the_plain_reference(
    encoder: Encoder, watched: list, shown: list, searched: list, asked: list
) -> None:
    tables = {"watches": logs(watched, "watches"), "impressions": logs(shown, "impressions")}
    tables["searches"] = logs(searched, "searches")
    user_ids = pa.array(["a", "b", "ü ß"])
    shard = make_shard(tables, user_ids)
    user = np.array([user_ids.to_pylist().index(u) for u, _, _ in asked])
    snapshot_us = np.array([START_US + s * SECOND for _, s, _ in asked])
    candidate = encoder.positions(pa.array([v for _, _, v in asked]))
    columns = FeatureColumns(
        SPEC.features, encoder, None, RequestRows(pa.table({"n": np.arange(len(asked))}), user, snapshot_us), 0.0
    )
    found = columns.of(Histories(shard, encoder, LISTS).at(user, snapshot_us, candidate), np.arange(len(asked)))
    lookups = Lookups(encoder)
    for i, (who, second, video) in enumerate(asked):
        moment = START_US + second * SECOND
        known = [
            [r for r in rows if r["user_id"] == who and _is_before(r, moment)] for rows in (watched, shown, searched)
        ]
        plain = PlainRequest(moment, video, *known)
        for feature in SPEC.features:
            expected = reference_value(feature, plain, lookups, LISTS)
            value = found[feature.name][i].as_py()
            assert value == pytest.approx(expected, rel=1e-6, nan_ok=True), feature.name


def _is_before(row: dict[str, Any], moment: int) -> bool:
    return row["time_us"] is None or row["time_us"] < moment


def test_the_specification_under_test_holds_every_derivation() -> None:
    assert {feature.source.removeprefix("history.") for feature in SPEC.features} == set(Derivation)
    assert set(REQUIREMENTS) == set(Derivation)


def events_of(time_us: list[list[int]]) -> Events:
    offsets = np.concatenate([[0], np.cumsum([len(times) for times in time_us])])
    flat = np.array([time for times in time_us for time in times], np.int64)
    return Events(offsets, flat, np.arange(len(flat), dtype=np.int32))


def test_windows_end_strictly_before_the_snapshot_and_keep_the_last_events() -> None:
    events = events_of([[ORDER_ONLY, 10, 20, 20, 30], [], [5]])
    window = events.window(np.array([0, 0, 0, 1, 2]), np.array([20, 21, 10, 99, 5]), size=3)
    assert window.lengths.tolist() == [2, 3, 1, 0, 0]
    assert window.video.tolist() == [[0, 1, -1], [1, 2, 3], [0, -1, -1], [-1, -1, -1], [-1, -1, -1]]


def test_an_order_only_event_is_before_every_time() -> None:
    events = events_of([[ORDER_ONLY]])
    assert events.window(np.array([0]), np.array([-(2**62)]), size=1).lengths.tolist() == [1]


def test_no_events_have_empty_windows() -> None:
    window = Events.none(2).window(np.array([0, 1]), np.array([1, 2]), size=4)
    assert window.lengths.tolist() == [0, 0]
    assert window.gather(np.zeros(0), np.nan).shape == (2, 4)


def test_bags_are_sorted_inside_each_example() -> None:
    bags = Bags(np.array([3, 1, 2, 0, 5], np.int32), np.array([0, 3, 3, 5])).sorted()
    assert bags.values.tolist() == [1, 2, 3, 0, 5]
    assert bags.example.tolist() == [0, 0, 0, 2, 2]


def test_seconds_between_are_missing_where_the_time_is_not_known() -> None:
    seconds = seconds_between(np.array([ORDER_ONLY, 1_500_000]), np.array([2_000_000, 2_000_000]))
    assert math.isnan(seconds[0])
    assert seconds[1] == np.float32(0.5)
