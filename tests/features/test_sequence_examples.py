"""Sequence examples: which watches are labels, in whose sequence, and with which weights; logs to check by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.candidate_examples import CandidateExamplesConfig, LabelChoice
from features.example_sets import SequenceExamplesJob
from features.feature_lists import FeatureListConfig, default_sequence_features
from features.sequence_examples import SequenceExamplesConfig
from features.shards import make_shard
from features.spec import FeatureConfig
from features.splits import Part, Split
from tests.features.example_logs import DAY_US, START_US, encoder_of, table

SPLIT = Split(START_US + 2 * DAY_US, START_US + 2 * DAY_US, START_US + 3 * DAY_US, START_US + 3 * DAY_US, 0.0, 0, False)
LISTS = FeatureListConfig(watch_window=4)


def watch(user: str, video: str, hours: float, **more: object) -> dict:
    time_us = START_US + round(hours * 3_600_000_000)
    return {"user_id": user, "video_id": video, "time_us": time_us, "completed": True, "page": "home", **more}


def build(
    tmp_path: Path,
    watches: list[dict],
    config: SequenceExamplesConfig | None = None,
    evaluation: CandidateExamplesConfig | None = None,
    split: Split = SPLIT,
    lists: FeatureListConfig = LISTS,
) -> tuple[dict[Part, list[dict]], dict[str, int]]:
    videos = sorted({row["video_id"] for row in watches})
    catalogue = [{"video_id": video, "uploader_id": f"of {video}"} for video in videos]
    tables = {"watches": table("watches", watches), "videos": table("videos", catalogue)}
    columns = {name: frozenset(rows.column_names) for name, rows in tables.items()}
    spec = default_sequence_features(columns, lists).spec
    encoder = encoder_of(tmp_path, tables, split, {"sequence_generator": spec})
    evaluation, config = evaluation or CandidateExamplesConfig(), config or SequenceExamplesConfig(stride=2)
    job = SequenceExamplesJob(spec, split, lists, evaluation, config)
    shard = make_shard({"watches": tables["watches"]})
    examples = job.examples(shard, encoder, job.totals(shard, encoder))
    parts: dict[Part, list[dict]] = {part: [] for part in Part}
    for part, rows in examples.batches:
        assert rows.schema.equals(job.schema(part, columns))
        parts[part] += rows.to_pylist()
    return parts, dict(examples.left_out)


SEVEN = [watch("u", video, hour) for hour, video in enumerate("abcdefg")]


def told(rows: list[dict]) -> list[tuple[str, list[float]]]:
    return [(row["label_video_id"], row["label_weights"]) for row in rows]


def test_every_label_is_predicted_once_and_blocks_are_cut_from_the_newest(tmp_path: Path) -> None:
    """Blocks of two from g backwards: (f, g), (d, e), (b, c); a is the first watch. Sequences hold four watches."""
    parts, left_out = build(tmp_path, SEVEN)
    assert told(parts[Part.TRAIN]) == [("c", [0, 1]), ("e", [0, 0, 0, 1]), ("g", [0, 0, 0, 1])]
    assert left_out == {"first_watch": 1, "predicted_in_the_sequence_of_another": 3}
    assert [row["weight"] for row in parts[Part.TRAIN]] == [1, 1, 1]
    a, b, c, d, e, f, _ = range(1, 8)  # each is watched once, so rows follow the ids
    assert [row["watched_video_ids"] for row in parts[Part.TRAIN]] == [[a, b], [a, b, c, d], [c, d, e, f]]


def test_a_block_is_never_longer_than_the_sequence(tmp_path: Path) -> None:
    parts, _ = build(tmp_path, SEVEN, SequenceExamplesConfig(stride=100))
    assert told(parts[Part.TRAIN]) == [("c", [0, 1]), ("g", [0, 1, 1, 1])]


def test_abandoned_watches_are_inputs_and_no_labels(tmp_path: Path) -> None:
    watches = [watch("u", v, h, completed=v != "c") for h, v in enumerate("abcd")]
    parts, left_out = build(tmp_path, watches)
    assert told(parts[Part.TRAIN]) == [("b", [0]), ("d", [0, 0, 0])]
    assert left_out == {"not_completed": 1, "first_watch": 1}


def test_lists_stand_beside_each_other(tmp_path: Path) -> None:
    """Gaps in seconds, the last one to the label; a watch time is known where the watch ended before the next."""
    watches = [
        watch("u", "a", 1, page="home", watch_time_s=60.0),
        watch("u", "b", 1.5, page="watch_next", watch_time_s=3600.0),  # goes on while c is watched
        watch("u", "c", 2, page=None, watch_time_s=10.0),
        watch("u", "d", 3, page="home", watch_time_s=10.0),
    ]
    parts, _ = build(tmp_path, watches, SequenceExamplesConfig(stride=4))
    (row,) = parts[Part.TRAIN]
    assert row["watched_video_ids"] == [1, 2, 3]
    assert row["watched_uploader_ids"] == [1, 2, 3]
    assert row["watched_page"] == [1, 2, 0]
    assert row["seconds_to_next_watch"] == [1800, 1800, 3600]
    np.testing.assert_array_equal(row["watched_time_s"], [60, np.nan, 10])
    assert (row["watch_count"], row["page"]) == (3, 1)


@pytest.mark.parametrize(("offset_hours", "hours"), [(0, 2 * 24 + 3), (2, 2 * 24 + 5), (-5, 1 * 24 + 22)])
def test_the_time_of_the_week_is_the_requests_local_one(tmp_path: Path, offset_hours: int, hours: int) -> None:
    """The label is watched on a Wednesday at three in the morning, UTC."""
    time_of_week = {"name": "time_of_week", "source": "request.time_of_week", "kind": "continuous"}
    time_of_week |= {"normaliser": "scale", "low": 0, "high": 604_800, "models": ["sequence_generator"]}
    lists = LISTS.model_copy(update={"extra": (FeatureConfig.model_validate(time_of_week),)})
    split = replace(SPLIT, utc_offset_s=3600.0 * offset_hours)
    parts, _ = build(tmp_path, [watch("u", "a", 2), watch("u", "b", 3)], split=split, lists=lists)
    assert [row["time_of_week"] for row in parts[Part.TRAIN]] == [hours * 3600]


def test_labels_are_the_most_recent_of_the_days_before_t0_of_users_with_enough_watches(tmp_path: Path) -> None:
    """t0 is at 72 hours, the validation day begins at 48: two days before t0 leave one to train on, from 24 hours."""
    watches = [watch("u", video, hour) for hour, video in zip((1, 24, 24.01, 40, 47), "abcde", strict=True)]
    watches += [watch("few", "a", 45), watch("few", "b", 46)]
    config = SequenceExamplesConfig(label_days=2, labels_per_user=2, min_watches=3, stride=1)
    parts, left_out = build(tmp_path, watches, config)
    assert [(row["user_id"], row["label_video_id"]) for row in parts[Part.TRAIN]] == [("u", "d"), ("u", "e")]
    assert left_out == {
        "user_with_too_few_watches": 2,
        "first_watch": 1,
        "before_the_label_days": 1,
        "beyond_the_labels_per_user": 1,
    }


@pytest.mark.parametrize(("most", "labels"), [(2, "fg"), (None, "bcdefg")])
def test_of_a_long_history_only_the_last_watches_are_labels(tmp_path: Path, most: int | None, labels: str) -> None:
    parts, _ = build(tmp_path, SEVEN, SequenceExamplesConfig(stride=1, max_watches=most))
    assert [row["label_video_id"] for row in parts[Part.TRAIN]] == list(labels)


def test_a_first_watch_can_be_a_label_with_an_empty_history(tmp_path: Path) -> None:
    parts, _ = build(tmp_path, [watch("u", "a", 1)], SequenceExamplesConfig(first_watch=True))
    (row,) = parts[Part.TRAIN]
    assert (row["label_video_id"], row["watched_video_ids"], row["label_weights"]) == ("a", [], [])


def test_held_out_labels_are_those_of_the_candidate_examples_and_stand_alone(tmp_path: Path) -> None:
    watches = [*SEVEN, watch("u", "a", 50), watch("u", "b", 51), watch("u", "new", 80), watch("u", "a", 81)]
    parts, _ = build(tmp_path, watches)
    assert told(parts[Part.VALIDATION]) == [("a", [0, 0, 0, 0]), ("b", [0, 0, 0, 0])]
    assert [(row["label_video_id"], row["label"]) for row in parts[Part.TEST]] == [("new", 0), ("a", 1)]
    assert parts[Part.TEST][1]["watched_video_ids"][-1] == 0  # out of vocabulary, and a watch all the same
    assert parts[Part.TEST][1]["watch_count"] == 4


def test_every_watch_is_counted_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    watches = [
        watch(f"u{random.integers(5)}", f"v{random.integers(9)}", float(random.random() * 90), completed=bool(keep))
        for keep in random.random(300) < 0.8
    ]
    parts, left_out = build(tmp_path, watches, SequenceExamplesConfig(labels_per_user=20, stride=3))
    assert sum(map(len, parts.values())) + sum(left_out.values()) == len(watches)
    inner = sum(np.count_nonzero(row["label_weights"]) for row in parts[Part.TRAIN])
    assert inner == left_out["predicted_in_the_sequence_of_another"]


def test_labels_of_the_moment_of_their_blocks_newest_are_left_out_and_counted(tmp_path: Path) -> None:
    """d, e and f are of one moment, so only a, b and c come before f: d and e are in the sequence of no example."""
    watches = [watch("u", v, h) for v, h in zip("abcdef", (0, 1, 2, 3, 3, 3), strict=True)]
    parts, left_out = build(tmp_path, watches, SequenceExamplesConfig(stride=4))
    assert told(parts[Part.TRAIN]) == [("b", [0]), ("f", [0, 0, 1])]
    assert left_out == {
        "first_watch": 1,
        "of_the_moment_of_the_label_after": 2,
        "predicted_in_the_sequence_of_another": 1,
    }


def test_users_with_too_few_watches_are_counted_in_training_and_in_evaluation(tmp_path: Path) -> None:
    watches = [*SEVEN, watch("few", "a", 1), watch("few", "b", 2), watch("few", "a", 50), watch("few", "b", 81)]
    least = {
        "evaluation": CandidateExamplesConfig(evaluation_min_watches=5),
        "config": SequenceExamplesConfig(min_watches=5),
    }
    parts, left_out = build(tmp_path, watches, **least)
    assert left_out["user_with_too_few_watches"] == 4
    assert sum(map(len, parts.values())) + sum(left_out.values()) == len(watches)


def test_sequences_are_of_what_came_before_whatever_bags_are_drawn_from(tmp_path: Path) -> None:
    drawn = CandidateExamplesConfig(label_choice=LabelChoice.RANDOM_HOLD_OUT)
    assert build(tmp_path / "drawn", SEVEN, evaluation=drawn) == build(tmp_path / "before", SEVEN)


def test_label_weights_are_lists_of_floats() -> None:
    spec = default_sequence_features({"watches": ["video_id", "page"]}, LISTS).spec
    assert SequenceExamplesJob(spec, SPLIT).schema(Part.TRAIN, {}).field("label_weights").type == pa.list_(pa.float32())
