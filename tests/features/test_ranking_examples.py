"""Snapshots, labels and watch times of ranking examples."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import ConfigError
from features.feature_lists import FeatureListConfig, default_ranking_features
from features.history import REQUIREMENTS
from features.ranking_examples import RankingExamplesConfig, page_requests, ranking_examples, ranking_labels
from features.shards import make_shard
from features.spec import Feature, FeatureConfig, FeatureSpec, Kind, Normaliser, Side
from features.splits import Part, Split
from tests.features.example_logs import START_US, encoder_of, table

SECOND = 1_000_000
EVERYTHING = Split(2**62, 2**62, 2**62, 2**62, 0.0, 0, True)
LISTS = FeatureListConfig()
CLICK_RATE = FeatureSpec(
    (Feature("click_rate", Kind.CONTINUOUS, Side.QUERY, "history.click_rate", normaliser=Normaliser.QUANTILE),)
)


def impression(user: str, video: str, second: float | None, clicked: bool | None = False, **more: object) -> dict:
    time_us = None if second is None else START_US + round(second * SECOND)
    return {"user_id": user, "video_id": video, "time_us": time_us, "clicked": clicked, **more}


def build(
    tmp_path: Path,
    tables: dict[str, pa.Table],
    spec: FeatureSpec | None = None,
    split: Split = EVERYTHING,
    config: RankingExamplesConfig = RankingExamplesConfig(),  # noqa: B008
) -> tuple[pa.Table, dict[str, int]]:
    columns = {name: frozenset(rows.column_names) for name, rows in tables.items()}
    full = default_ranking_features(columns, LISTS).spec
    encoder = encoder_of(tmp_path, tables, EVERYTHING, {"ranker": full})
    shard = make_shard({name: rows for name, rows in tables.items() if name != "videos"})
    labels = ranking_labels(shard, split, config)
    batches = [rows for _, rows in ranking_examples(shard, labels, spec or full, encoder, LISTS, split.utc_offset_s)]
    return pa.concat_tables(batches), labels.left_out


def test_all_impressions_of_a_request_share_the_snapshot_of_its_first_moment(tmp_path: Path) -> None:
    rows = [
        impression("u", "a", 0, True, request_id="r1", watch_time_s=9.0),
        impression("u", "b", 100, True, request_id="r2", watch_time_s=5.0),
        impression("u", "c", 101, False, request_id="r2"),
        impression("u", "d", 103, False, request_id="r2"),
        impression("u", "e", 102, False, request_id="r3"),  # asked for while r2 is still being shown
    ]
    examples, _ = build(tmp_path, {"impressions": table("impressions", rows)})
    found = {row["video_id"]: row for row in examples.to_pylist()}
    seconds = {v: (row["snapshot_timestamp"].timestamp() - START_US / 1e6) for v, row in found.items()}
    assert seconds == {"a": 0, "b": 100, "c": 100, "d": 100, "e": 102}
    assert {v: row["impression_count"] for v, row in found.items()} == {"a": 0, "b": 1, "c": 1, "d": 1, "e": 3}
    assert {v: row["click_rate"] for v, row in found.items() if v != "a"} == pytest.approx(
        {"b": 1, "c": 1, "d": 1, "e": 2 / 3}
    )
    assert math.isnan(found["a"]["click_rate"])
    assert len(set(examples["group_id"].to_pylist())) == 3


def test_without_request_ids_the_request_is_the_local_day_and_page() -> None:
    rows = [
        impression("u", "a", 15 * 3600, page="1"),
        impression("u", "b", 15 * 3600 + 5, page="2"),
        impression("u", "c", 15 * 3600 + 9, page="1"),
        impression("u", "d", 16 * 3600, page="1"),  # midnight, eight hours east
        impression("w", "e", 15 * 3600 + 2, page="1"),
        impression("u", "f", 17 * 3600, page="1", request_id="r"),
        impression("u", "g", 18 * 3600, page="1", request_id="r"),
        impression("u", "h", None),
    ]
    shard = make_shard({"impressions": table("impressions", rows)})
    impressions = shard.events["impressions"]
    group, snapshot_us = page_requests(impressions, shard.user_ids, 8 * 3600)
    video = impressions.table["video_id"].to_pylist()
    groups = {tuple(v for v, g in zip(video, group, strict=True) if g == one) for one in group}
    assert groups == {("a", "c"), ("b",), ("d",), ("e",), ("f", "g"), ("h",)}
    second = {v: (t - START_US) / SECOND / 3600 for v, t in zip(video, snapshot_us, strict=True) if v != "h"}
    assert (second["a"], second["c"], second["d"], second["f"], second["g"]) == (15, 15, 16, 17, 17)


def test_features_of_users_videos_and_requests_land_in_their_columns(tmp_path: Path) -> None:
    tables = {
        "impressions": table(
            "impressions",
            [
                impression("u", "a", 3600, True, page="home", watch_time_s=4.0, position=2, seed_video_id="b",
                           candidate_sources=["x", "y"], candidate_scores=[0.25, 0.75]),
                impression("u", "b", 7200, False, page="next", candidate_scores=[]),
            ],
        ),
        "users": table("users", [{"user_id": "u", "age": 30.0, "logged_in": True, "language": "de"}]),
        "videos": table(
            "videos",
            [{"video_id": "a", "duration_s": 60.0, "language": "de", "topics": ["t"], "uploader_id": "c",
              "upload_time": START_US}],
        ),
    }  # fmt: skip
    examples, _ = build(tmp_path, tables, split=Split(**{**EVERYTHING.as_json(), "utc_offset_s": 7200.0}))
    first, second = examples.to_pylist()
    assert (first["age"], first["logged_in"], first["user_language"], first["video_language"]) == (30, 1, 1, 1)
    assert (first["duration_s"], first["video_age_s"], first["topics"], first["uploader"]) == (60, 3600, [1], 1)
    assert (first["position"], first["candidate_sources"], first["candidate_score"]) == (2, [1, 2], 0.75)
    assert (first["impression_video_id"], second["impression_video_id"], first["seed_video_id"]) == (1, 0, 0)
    assert (first["hour"], second["hour"]) == (4, 5)  # local hours 3 and 4 are ids "3" and "4", rows 4 and 5
    assert (second["topics"], second["uploader"], second["candidate_sources"]) == ([], 0, [])
    missing = ("duration_s", "video_age_s", "position", "candidate_score")
    assert all(math.isnan(second[name]) for name in missing)


def test_every_impression_is_an_example_or_left_out_for_a_reason(tmp_path: Path) -> None:
    rows = [
        impression("u", "a", 1, True, watch_time_s=3.0),
        impression("u", "b", 2, True, watch_time_s=None),
        impression("u", "c", 3, True, watch_time_s=math.nan),
        impression("u", "d", 4, False, watch_time_s=None),
        impression("u", "e", 5, None, watch_time_s=None),
        impression("u", "f", None, True, watch_time_s=3.0),
        impression("u", "a", 1, True, watch_time_s=3.0),
        impression("u", "g", 100_000, False, watch_time_s=None),
        impression("u", "h", 109_999, False, watch_time_s=None),
        impression("u", "i", 85_000, False, watch_time_s=None),
    ]
    split = Split(*(START_US + second * SECOND for second in (80_000, 90_000, 100_000, 110_000)), 0.0, 0, True)
    tables = {"impressions": table("impressions", rows)}
    examples, left_out = build(tmp_path / "left_out", tables, split=split)
    found = [(r["video_id"], r["clicked"], r["watch_time_s"]) for r in examples.to_pylist()]
    assert found == [("a", 1, 3), ("d", 0, 0)]
    assert left_out == {
        "told_twice": 1, "time_not_known": 1, "click_not_known": 1, "clicked_but_watch_time_not_known": 2,
        "in_split.gap_hours_after_t0": 2, "in_no_part_of_the_split": 1,
    }  # fmt: skip
    assert len(found) + sum(left_out.values()) == len(rows)
    config = RankingExamplesConfig(missing_watch_time_s=7.0)
    examples, left_out = build(tmp_path / "filled", tables, split=split, config=config)
    assert [r["watch_time_s"] for r in examples.to_pylist()] == [3, 7, 7, 0]
    assert "clicked_but_watch_time_not_known" not in left_out


def test_the_watch_time_of_a_clicked_impression_is_found_in_the_watches(tmp_path: Path) -> None:
    rows = [
        impression("u", "a", 1, True, impression_id="i1"),
        impression("u", "b", 2, True, impression_id=None),
        impression("u", "c", 3, True, impression_id="i3"),
        impression("w", "d", 4, True, impression_id="i4"),
        impression("u", "e", 5, False, impression_id="i5"),
    ]
    watches = [
        {
            "user_id": "u",
            "video_id": "a",
            "time_us": START_US + 9 * SECOND,
            "watch_time_s": 11.0,
            "impression_id": "i1",
        },
        {
            "user_id": "u",
            "video_id": "b",
            "time_us": START_US + 2 * SECOND,
            "watch_time_s": 12.0,
            "impression_id": None,
        },
        {"user_id": "u", "video_id": "c", "time_us": START_US + 3 * SECOND, "watch_time_s": 13.0, "impression_id": "x"},
        {
            "user_id": "u",
            "video_id": "d",
            "time_us": START_US + 4 * SECOND,
            "watch_time_s": 14.0,
            "impression_id": "i4",
        },
        {
            "user_id": "u",
            "video_id": "e",
            "time_us": START_US + 5 * SECOND,
            "watch_time_s": 15.0,
            "impression_id": "i5",
        },
    ]
    tables = {"impressions": table("impressions", rows), "watches": table("watches", watches)}
    examples, left_out = build(tmp_path, tables)
    found = {r["video_id"]: r["watch_time_s"] for r in examples.to_pylist()}
    assert found == {"a": 11, "b": 12, "e": 0}  # c names another impression, d is another user's
    assert left_out == {"clicked_but_watch_time_not_known": 2}


def test_users_may_number_their_impressions_alike(tmp_path: Path) -> None:
    rows = [impression(user, "a", second, True, impression_id=str(second)) for user in "uw" for second in (1, 2)]
    watches = [
        {**row, "watch_time_s": 10.0 * place, "time_us": row["time_us"] + 5 * SECOND}
        for place, row in enumerate(({k: v for k, v in row.items() if k != "clicked"} for row in rows), 1)
    ]
    examples, left_out = build(
        tmp_path, {"impressions": table("impressions", rows), "watches": table("watches", watches)}
    )
    found = {(r["user_id"], r["impression_id"]): r["watch_time_s"] for r in examples.to_pylist()}
    assert found == {("u", "1"): 10, ("u", "2"): 20, ("w", "1"): 30, ("w", "2"): 40}
    assert not left_out


def test_an_impression_is_in_the_part_of_its_own_moment(tmp_path: Path) -> None:
    rows = [impression("u", "a", 10, request_id="r"), impression("u", "b", 30, request_id="r")]
    split = Split(*[START_US + 20 * SECOND] * 3, START_US + 25 * SECOND, 0.0, 0, True)
    shard = make_shard({"impressions": table("impressions", rows)})
    labels = ranking_labels(shard, split, RankingExamplesConfig())
    assert labels.part.tolist() == [Part.TRAIN, Part.TEST]
    assert labels.snapshot_us.tolist() == [START_US + 10 * SECOND] * 2


def test_the_outcome_of_a_request_is_refused_as_a_feature() -> None:
    extra = FeatureConfig(name="cheat", source="request.watch_time_s", kind=Kind.CONTINUOUS)
    with pytest.raises(ConfigError, match=r"'cheat': request.watch_time_s is the outcome"):
        default_ranking_features({"impressions": {"video_id", "watch_time_s"}}, FeatureListConfig(extra=(extra,)))


def per_user_loss(score: np.ndarray, clicked: np.ndarray, watch_time_s: np.ndarray, group: np.ndarray) -> float:
    """Weighted per-user loss (section 4.3) over all pairs of a clicked and an unclicked impression of a group.

    A tie mispredicts half of the watch time: it is what a coin would do.
    """
    order = np.argsort(group, kind="stable")
    mispredicted = total = 0.0
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        on, off = rows[clicked[rows] == 1], rows[clicked[rows] == 0]
        above, level = score[off] > score[on][:, None], score[off] == score[on][:, None]
        mispredicted += float(((above + 0.5 * level) * watch_time_s[on][:, None]).sum())
        total += float(watch_time_s[on].sum() * len(off))
    return mispredicted / total


def trivial_losses(tmp_path: Path, impressions: pa.Table, utc_offset_s: float) -> tuple[float, float]:
    """The loss of "minus the user's running click rate": per group, and with a snapshot per impression."""
    split = Split(**{**EVERYTHING.as_json(), "utc_offset_s": utc_offset_s})
    by_group, _ = build(tmp_path / "group", {"impressions": impressions}, CLICK_RATE, split)
    alone = impressions.append_column("request_id", pa.array([str(i) for i in range(len(impressions))]))
    by_impression, _ = build(tmp_path / "impression", {"impressions": alone}, CLICK_RATE, split)
    assert by_group.select(["user_id", "timestamp"]) == by_impression.select(["user_id", "timestamp"])
    clicked, seconds, group = (by_group[name].to_numpy() for name in ("clicked", "watch_time_s", "group_id"))
    seconds = seconds.astype(np.float64)
    losses = []
    for examples in (by_group, by_impression):
        rate = examples["click_rate"].to_numpy()
        losses.append(per_user_loss(-np.where(np.isnan(rate), 0.5, rate), clicked, seconds, group))
    return losses[0], losses[1]


def test_the_running_click_rate_tells_nothing_when_a_group_shares_its_snapshot(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        impression(f"u{user:03d}", f"v{rng.integers(20)}", 100 * step, bool(rng.random() < 0.4), page="1",
                   watch_time_s=float(rng.integers(1, 100)))
        for user in range(150)
        for step in range(6)
    ]  # fmt: skip
    shared, own = trivial_losses(tmp_path, table("impressions", rows), 0.0)
    assert shared == 0.5
    assert own < 0.3


KUAIRAND = Path(__file__).parents[3] / "shared" / "data" / "kuairand-pure" / "impressions.parquet"


@pytest.mark.skipif(not KUAIRAND.exists(), reason="the KuaiRand-Pure log is not beside the checkout")
def test_the_running_click_rate_tells_nothing_on_kuairand(tmp_path: Path) -> None:
    log = pq.read_table(KUAIRAND, columns=["user_id", "video_id", "time_ms", "is_click", "play_time_ms", "tab"])
    log = log.filter(pa.array(log["user_id"].to_numpy() % 8 == 0))
    impressions = pa.table(
        {
            "user_id": log["user_id"].cast(pa.string()),
            "video_id": log["video_id"].cast(pa.string()),
            "timestamp": pa.array(log["time_ms"].to_numpy() * 1000).cast(pa.timestamp("us", "UTC")),
            "clicked": pa.array(log["is_click"].to_numpy() == 1),
            "watch_time_s": pa.array(log["play_time_ms"].to_numpy() / 1000),
            "page": log["tab"].cast(pa.string()),
        }
    )
    shared, own = trivial_losses(tmp_path, impressions, 8 * 3600)
    assert shared == pytest.approx(0.5)
    assert own < 0.25


def test_histories_are_matched_by_uploader_and_topic_though_neither_is_shown(tmp_path: Path) -> None:
    seen = [impression("u", video, 60 * place, video == "a", request_id=video) for place, video in enumerate("abc")]
    tables = {
        "impressions": table("impressions", seen),
        "watches": table("watches", [{"user_id": "u", "video_id": "a", "time_us": START_US + SECOND}]),
        "videos": pa.table(
            {"video_id": ["a", "b", "c"], "uploader_id": ["p", "q", "p"], "topics": [["s", "t"], ["x"], ["t"]]}
        ),
    }
    columns = {name: frozenset(rows.column_names) for name, rows in tables.items()}
    spec = default_ranking_features(columns, FeatureListConfig(without=("uploader", "topics"))).spec
    encoder = encoder_of(tmp_path, tables, EVERYTHING, {"ranker": spec})
    shard = make_shard({name: rows for name, rows in tables.items() if name != "videos"})
    labels = ranking_labels(shard, EVERYTHING, RankingExamplesConfig())
    batches = ranking_examples(shard, labels, spec, encoder, LISTS, 0.0)
    (last,) = [row for _, rows in batches for row in rows.to_pylist() if row["video_id"] == "c"]
    assert not {"uploader", "topics"} & last.keys()
    assert (last["uploader_watch_count"], last["topic_watch_count"], last["video_watch_count"]) == (1, 1, 0)


def test_configured_features_need_configuration_lines_only(tmp_path: Path) -> None:
    rows = [impression("u", "a", 1, clicked=True, watch_time_s=1.0), impression("w", "a", 2, watch_time_s=None)]
    tables = {
        "impressions": table("impressions", rows),
        "users": pa.table({"user_id": ["u", "w"], "activity": ["full", "low"], "followers": [10, None]}),
    }
    extra = (
        FeatureConfig(name="activity", source="users.activity", kind=Kind.CATEGORICAL),
        FeatureConfig(name="followers", source="users.followers", kind=Kind.CONTINUOUS),
    )
    columns = {name: frozenset(rows.column_names) for name, rows in tables.items()}
    spec = default_ranking_features(columns, FeatureListConfig(extra=extra)).spec
    encoder = encoder_of(tmp_path, tables, EVERYTHING, {"ranker": spec})
    shard = make_shard(tables)
    labels = ranking_labels(shard, EVERYTHING, RankingExamplesConfig())
    ((_, examples),) = ranking_examples(shard, labels, spec, encoder, LISTS, 0.0)
    assert examples["activity"].to_pylist() == [1, 2]
    assert examples["followers"].to_pylist()[0] == 10
    assert math.isnan(examples["followers"].to_pylist()[1])


def test_every_continuous_derivation_is_a_default_feature_where_its_columns_are_there() -> None:
    columns = {
        "watches": {"video_id", "watch_time_s"}, "impressions": {"video_id", "clicked"}, "searches": {"query"},
        "videos": {"uploader_id", "topics", "upload_time"},
    }  # fmt: skip
    sources = {feature.source for feature in default_ranking_features(columns).spec.features}
    numbers = {name: need for name, need in REQUIREMENTS.items() if need.kind == Kind.CONTINUOUS and not need.bag}
    continuous = {f"history.{name}" for name in numbers}
    assert continuous <= sources


def test_the_ranker_can_have_a_column_of_each_watch(tmp_path: Path) -> None:
    watches = [
        {"user_id": "u", "video_id": v, "time_us": START_US + i, "page": p}
        for i, (v, p) in enumerate([("a", "home"), ("b", "search"), ("a", "home")])
    ]
    pages = Feature("watched_page", Kind.CATEGORICAL, Side.QUERY, "watches.page", "page", 2)
    shown = [impression("u", "a", 9, page="home"), impression("w", "a", 9, page="search")]
    tables = {"impressions": table("impressions", shown), "watches": table("watches", watches)}
    examples, _ = build(tmp_path, tables, FeatureSpec((pages,)))
    assert examples["watched_page"].to_pylist() == [[2, 1], []]


@pytest.mark.parametrize(
    ("source", "expected"), [("history.shown_video_ids", "clicked_video"), ("history.search_tokens", "search_token")]
)
def test_rows_of_another_id_space_than_the_feature_says_are_refused(source: str, expected: str, tmp_path: Path) -> None:
    mine = FeatureSpec((Feature("mine", Kind.CATEGORICAL, Side.QUERY, source, "my_space", 3),))
    rows = {"impressions": table("impressions", [impression("u", "a", 0, True, watch_time_s=9.0)])}
    with pytest.raises(ConfigError, match=f"'mine': expected the id space {expected} for {source}, found 'my_space'"):
        build(tmp_path, rows, mine)
