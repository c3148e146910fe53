"""Labels, weights, example ages and inputs of candidate-generation examples, on logs to check by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.candidate_examples import (
    CandidateExamplesConfig,
    EvaluationChoice,
    LabelChoice,
    LabelTotals,
    candidate_examples,
    candidate_labels,
    draw_other_watches,
)
from features.event_windows import ORDER_ONLY, Events
from features.feature_lists import FeatureListConfig, default_candidate_features
from features.shards import make_shard
from features.splits import Part, Split
from tests.features.example_logs import DAY_US, START_US, encoder_of, table

SPLIT = Split(START_US + 2 * DAY_US, START_US + 2 * DAY_US, START_US + 3 * DAY_US, START_US + 3 * DAY_US, 0.0, 0, False)
LISTS = FeatureListConfig()


def watch(user: str, video: str, hours: float | None, completed: bool = True, **more: object) -> dict:
    time_us = None if hours is None else START_US + round(hours * 3_600_000_000)
    return {
        "user_id": user, "video_id": video, "time_us": time_us, "completed": completed, "device": "tv",
        "time_known": hours is not None, "order": 0, **more,
    }  # fmt: skip


def build(
    tmp_path: Path, watches: list[dict], config: CandidateExamplesConfig, searches: list[dict] | None = None
) -> tuple[dict[Part, pa.Table], dict[str, int], LabelTotals]:
    tables = {"watches": table("watches", watches)}
    if searches:
        tables["searches"] = table("searches", searches)
    columns = {name: frozenset(rows.column_names) for name, rows in tables.items()}
    spec = default_candidate_features(columns, LISTS).spec
    encoder = encoder_of(tmp_path, tables, SPLIT, {"candidate_generator": spec})
    shard = make_shard(tables)
    labels = candidate_labels(shard, SPLIT, encoder, config)
    totals = LabelTotals.zero() + LabelTotals.of(shard, labels)
    batches = list(candidate_examples(shard, labels, totals, SPLIT, spec, encoder, LISTS, config))
    parts = {part: pa.concat_tables([rows for of, rows in batches if of == part] or [pa.table({})]) for part in Part}
    return parts, labels.left_out, totals


def test_inputs_are_strictly_before_the_label_and_every_origin_counts(tmp_path: Path) -> None:
    """Rows of `video` by count, then id: a has three watches in training, b two, c one."""
    watches = [
        watch("u", "b", None, origin="external"),
        watch("u", "a", 1, origin="search"),
        watch("u", "b", 2, origin="external"),
        watch("u", "c", 2, origin="recommended"),
        watch("u", "a", 3, completed=False),
        watch("u", "a", 5),
    ]
    parts, left_out, _ = build(tmp_path, watches, CandidateExamplesConfig())
    rows = parts[Part.TRAIN].select(["label_video_id", "label", "watched_video_ids"]).to_pylist()
    a, b, c = 1, 2, 3
    assert rows == [
        {"label_video_id": "a", "label": a, "watched_video_ids": [b]},
        {"label_video_id": "b", "label": b, "watched_video_ids": [b, a]},
        {"label_video_id": "c", "label": c, "watched_video_ids": [b, a]},  # not the watch of equal time
        {"label_video_id": "a", "label": a, "watched_video_ids": [b, a, b, c, a]},  # abandoned watches are inputs
    ]
    assert left_out == {"time_not_known": 1, "not_completed": 1}


def test_watches_of_whole_days_that_fall_into_the_gap_are_told_by_the_setting(tmp_path: Path) -> None:
    watches = [watch("u", "a", day * 24.0) for day in range(5)]
    tables = {"watches": table("watches", watches)}
    columns = {name: frozenset(rows.column_names) for name, rows in tables.items()}
    spec = default_candidate_features(columns, LISTS).spec
    split = dataclasses.replace(SPLIT, test_start_us=SPLIT.t0_us + 4 * 3_600_000_000)
    encoder = encoder_of(tmp_path, tables, split, {"candidate_generator": spec})
    labels = candidate_labels(make_shard(tables), split, encoder, CandidateExamplesConfig())
    assert labels.left_out == {"in_split.gap_hours_after_t0": 1}
    assert [Part(part) for part in labels.part] == [Part.TRAIN, Part.TRAIN, Part.VALIDATION, Part.TEST]


def test_example_age_counts_from_the_latest_training_watch_and_is_zero_afterwards(tmp_path: Path) -> None:
    watches = [watch("u", "a", 1), watch("u", "b", 11), watch("w", "a", 40, completed=False)]
    watches += [watch("u", "a", 50), watch("u", "c", 75)]
    parts, _, totals = build(tmp_path, watches, CandidateExamplesConfig())
    assert totals.t_max_us == START_US + 40 * 3_600_000_000
    assert totals.refit_t_max_us == START_US + 50 * 3_600_000_000
    assert parts[Part.TRAIN]["example_age"].to_pylist() == [39 * 3600, 29 * 3600]
    assert parts[Part.VALIDATION]["example_age"].to_pylist() == [0]
    assert parts[Part.TEST]["example_age"].to_pylist() == [0]


def test_a_fixed_number_of_labels_per_user_and_all_users_weigh_the_same(tmp_path: Path) -> None:
    watches = [watch("heavy", f"v{i % 9}", i / 10) for i in range(200)] + [watch("light", "v1", 1)]
    watches += [watch("middle", f"v{i}", i) for i in range(3)]
    parts, left_out, totals = build(tmp_path, watches, CandidateExamplesConfig(labels_per_user=8))
    train = parts[Part.TRAIN]
    users = np.array(train["user_id"].to_pylist())
    weights = train["weight"].to_numpy()
    assert {user: int((users == user).sum()) for user in set(users)} == {"heavy": 8, "light": 1, "middle": 3}
    for user in set(users):
        assert weights[users == user].sum() == pytest.approx(12 / 3)
    assert weights.mean() == pytest.approx(1)
    assert left_out["beyond_the_labels_per_user"] == 192
    assert (totals.labels[Part.TRAIN], totals.users[Part.TRAIN]) == (12, 3)


def test_labels_are_chosen_by_the_seed_and_by_nothing_else(tmp_path: Path) -> None:
    watches = [watch("u", f"v{i % 5}", i / 10) for i in range(100)]

    def chosen(seed: int, rows: list[dict], name: str) -> list:
        parts, _, _ = build(tmp_path / name, rows, CandidateExamplesConfig(labels_per_user=6, seed=seed))
        mine = [row for row in parts[Part.TRAIN].to_pylist() if row["user_id"] == "u"]
        return [row["label_timestamp"] for row in mine]

    first = chosen(0, watches, "a")
    assert len(first) == 6
    assert chosen(0, [*watches[::-1], watch("other", "v1", 3)], "b") == first
    assert chosen(1, watches, "c") != first


def test_the_last_labels_of_a_part_can_be_the_ones_judged_of_users_with_enough_watches(tmp_path: Path) -> None:
    watches = [watch("u", f"v{i % 5}", i / 10) for i in range(20)]
    watches += [watch("u", f"v{i % 5}", 80 + i / 10) for i in range(6)] + [watch("few", "v1", 81)]
    config = CandidateExamplesConfig(
        labels_per_user=16,
        evaluation_labels_per_user=2,
        evaluation_choice=EvaluationChoice.LAST,
        evaluation_min_watches=2,
    )
    parts, left_out, _ = build(tmp_path, watches, config)
    assert [row["label_video_id"] for row in parts[Part.TEST].to_pylist()] == ["v4", "v0"]
    assert left_out["user_with_too_few_watches"] == 1 and left_out["beyond_the_labels_per_user"] == 4 + 4


def test_training_labels_are_never_out_of_vocabulary_and_test_labels_may_be(tmp_path: Path) -> None:
    watches = [watch("u", "a", 1), watch("u", "new", 80), watch("u", "a", 81)]
    parts, _, _ = build(tmp_path, watches, CandidateExamplesConfig())
    assert parts[Part.TRAIN]["label"].to_pylist() == [1]
    test = parts[Part.TEST].select(["label", "watched_video_ids", "seen_video_ids"]).to_pylist()
    assert test == [
        {"label": 0, "watched_video_ids": [1], "seen_video_ids": [1]},
        # An unknown watch is a step, but not a row; of the catalogue, after the vocabulary, it is the second video.
        {"label": 1, "watched_video_ids": [1, 0], "seen_video_ids": [1, 2]},
    ]


def test_seen_videos_are_all_watched_before_and_not_only_the_window(tmp_path: Path) -> None:
    watches = [watch("u", f"v{i:03d}", i / 10) for i in range(120)] + [watch("u", "v000", 80)]
    parts, _, _ = build(tmp_path, watches, CandidateExamplesConfig())
    row = parts[Part.TEST].to_pylist()[0]
    assert len(row["watched_video_ids"]) == 50
    assert row["seen_video_ids"] == list(range(1, 121))


def test_evaluation_labels_of_a_user_are_limited_too(tmp_path: Path) -> None:
    watches = [watch("u", "a", 1)] + [watch("u", f"v{i}", 73 + i / 10) for i in range(40)]
    few, _, _ = build(tmp_path / "few", watches, CandidateExamplesConfig(evaluation_labels_per_user=5))
    all_, _, _ = build(tmp_path / "all", watches, CandidateExamplesConfig(evaluation_labels_per_user=None))
    assert len(few[Part.TEST]) == 5
    assert len(all_[Part.TEST]) == 40


def test_search_tokens_are_an_unordered_bag_of_what_was_searched_before(tmp_path: Path) -> None:
    def search(hours: float, query: str) -> dict:
        return {"user_id": "u", "time_us": START_US + round(hours * 3_600_000_000), "query": query}

    # Counts: red 3, panda 1, "red panda" 1: rows red = 1, panda = 2, "red panda" = 3.
    searches = [search(1, "red panda"), search(2, "red"), search(3, "red")]
    parts, _, _ = build(tmp_path, [watch("u", "a", 3), watch("u", "a", 4)], CandidateExamplesConfig(), searches)
    assert parts[Part.TRAIN]["search_tokens"].to_pylist() == [[1, 1, 2, 3], [1, 1, 1, 2, 3]]


def test_random_hold_out_draws_from_before_and_after_within_training(tmp_path: Path) -> None:
    watches = [watch("u", f"v{i:02d}", i) for i in range(20)] + [watch("u", "late", 60)]
    config = CandidateExamplesConfig(label_choice=LabelChoice.RANDOM_HOLD_OUT, labels_per_user=20)
    parts, _, _ = build(tmp_path, watches, config)
    for row in parts[Part.TRAIN].to_pylist():
        assert row["watched_video_ids"] == [video for video in range(1, 21) if video != row["label"]]
    assert parts[Part.VALIDATION]["watched_video_ids"].to_pylist() == [list(range(1, 21))]  # rollback


def test_random_hold_out_draws_evenly_and_never_the_labels_moment() -> None:
    times = np.array([ORDER_ONLY, 10, 20, 20, *range(30, 90)])
    events = Events(np.array([0, len(times)]), times, np.arange(len(times), dtype=np.int32))
    rng = np.random.default_rng(0)
    counts = np.zeros(len(times))
    for seed in range(300):
        identity = rng.integers(0, 2**63, len(times)).astype(np.uint64)
        bags = draw_other_watches(events, np.array([0]), np.array([2]), identity, end_us=80, size=10, seed=seed)
        assert (np.diff(bags.values) > 0).all()
        counts[bags.values] += 1
    drawable = (times < 80) & (times != 20)
    assert not counts[~drawable].any()
    expected = 300 * 10 / drawable.sum()
    assert abs(counts[drawable] - expected).max() < 5 * expected**0.5
