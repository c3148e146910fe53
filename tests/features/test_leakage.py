"""Every planted leak is caught, and the message names the example."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import candidate_examples as candidates
from features import history, ranking_examples
from features.candidate_examples import CandidateExamplesConfig, LabelChoice
from features.errors import LeakageError
from features.event_windows import ORDER_ONLY, Events
from features.example_sets import CandidateExamplesJob, ExamplesJob, RankingExamplesJob, SequenceExamplesJob
from features.feature_lists import FeatureListConfig, default_ranking_features
from features.history import Derivation
from features.leakage import LeakageConfig, check_leakage
from features.splits import Part, Split, SplitConfig
from tests.features.example_logs import DAY_US, Run, build_here, platform, split_of, vocabularies

EVERYTHING = LeakageConfig(examples_per_part=100, shards=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    tables = platform(users=30)
    time_of_week = {"name": "time_of_week", "source": "request.time_of_week", "kind": "continuous"}
    time_of_week |= {"normaliser": "scale", "low": 0, "high": 604_800, "models": ["sequence_generator"]}
    lists = FeatureListConfig.model_validate({"extra": [time_of_week]})
    return Run(tmp_path_factory.mktemp("run"), tables, split_of(tables), lists)


@pytest.fixture(scope="module")
def sets(run: Run) -> dict[str, Path]:
    return {model: build_here(job(run, model), run, run.folder / "examples" / model) for model in run.specs}


def job(run: Run, model: str, **config: object) -> ExamplesJob:
    if model == "ranker":
        return RankingExamplesJob(run.specs[model], run.split)
    if model == "sequence_generator":
        return SequenceExamplesJob(run.specs[model], run.split)
    return CandidateExamplesJob(run.specs[model], run.split, config=CandidateExamplesConfig(**config))


def built(run: Run, model: str, tmp_path: Path, **config: object) -> Path:
    return build_here(job(run, model, **config), run, tmp_path / model)


def tampered(
    source: Path, tmp_path: Path, part: Part, change: Callable[[pa.Table], pa.Table]
) -> Path:  # fmt: skip
    """A copy of an example set whose rows of a part are changed."""
    copy = tmp_path / "tampered"
    shutil.copytree(source, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for file in (copy / part.folder).glob("part-*.parquet"):
        pq.write_table(change(pq.read_table(file)), file)
        manifest["files"][str(file.relative_to(copy))]["bytes"] = file.stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def replaced(column: str, values: Callable[[pa.Table], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        return rows.set_column(rows.column_names.index(column), rows.schema.field(column), values(rows))

    return change


def plus_one(column: str) -> Callable[[pa.Table], pa.Table]:
    """One more in a number, one more id in a bag, the next row of an id."""

    def values(rows: pa.Table) -> pa.Array:
        kind = rows.schema.field(column).type
        if pa.types.is_list(kind):
            return pa.array([[*bag, 1] for bag in rows[column].to_pylist()], kind)
        numbers = rows[column].to_numpy()
        return pa.array(np.where(np.isnan(numbers), 1, numbers + 1)).cast(kind, safe=False)

    return replaced(column, values)


def test_honest_example_sets_pass_and_are_made_again_in_every_part(run: Run, sets: dict[str, Path]) -> None:
    for folder in sets.values():
        report = check_leakage(folder, run.shards, run.features, EVERYTHING)
        assert min(report.examples.values()) >= 30
        assert report.values > 0


RANKER_COLUMNS = [
    feature.name
    for feature in default_ranking_features(
        {name: frozenset(rows.column_names) for name, rows in platform(users=1).items()}
    ).spec.features
]


@pytest.mark.parametrize("column", RANKER_COLUMNS)
def test_a_wrong_value_of_any_ranker_feature_is_caught(
    run: Run, sets: dict[str, Path], tmp_path: Path, column: str
) -> None:
    leaky = tampered(sets["ranker"], tmp_path, Part.TEST, plus_one(column))
    with pytest.raises(LeakageError, match=rf"test example of user 'u\d+', video 'v\d+' at .*column '{column}' stored"):
        check_leakage(leaky, run.shards, run.features, LeakageConfig(examples_per_part=9, shards=3))


@pytest.mark.parametrize("column", ["watched_video_ids", "search_tokens", "device", "gender", "seen_video_ids"])
def test_a_wrong_value_of_any_candidate_column_is_caught(
    run: Run, sets: dict[str, Path], tmp_path: Path, column: str
) -> None:
    leaky = tampered(sets["candidate_generator"], tmp_path, Part.TEST, plus_one(column))
    with pytest.raises(LeakageError, match=rf"column '{column}' stored"):
        check_leakage(leaky, run.shards, run.features, LeakageConfig(examples_per_part=9, shards=3))


def test_a_wrong_time_of_the_week_is_caught(run: Run, sets: dict[str, Path], tmp_path: Path) -> None:
    leaky = tampered(sets["sequence_generator"], tmp_path, Part.TEST, plus_one("time_of_week"))
    with pytest.raises(LeakageError, match="column 'time_of_week' stored"):
        check_leakage(leaky, run.shards, run.features, LeakageConfig(examples_per_part=9, shards=3))


def shift_before(
    monkeypatch: pytest.MonkeyPatch, shift_us: int, only: Callable[[Events], bool] = lambda events: True
) -> None:  # fmt: skip
    """History reaches `shift_us` past the snapshot."""
    honest = Events.before

    def before(events: Events, user: np.ndarray, snapshot_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return honest(events, user, snapshot_us + shift_us if only(events) else snapshot_us)

    monkeypatch.setattr(Events, "before", before)


def test_the_label_among_its_own_inputs_is_caught(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_before(monkeypatch, 1)
    leaky = built(run, "candidate_generator", tmp_path)
    with pytest.raises(LeakageError, match="column 'watched_video_ids'"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


def test_an_event_of_equal_time_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = platform(users=20)
    watches = tables["watches"]
    time_us = watches["timestamp"].cast(pa.int64()).to_numpy() // DAY_US * DAY_US + 3_600_000_000
    tables["watches"] = watches.set_column(
        watches.column_names.index("timestamp"), "timestamp", pa.array(time_us).cast(watches["timestamp"].type)
    )
    run = Run(tmp_path / "run", tables, split_of(tables))
    check_leakage(built(run, "candidate_generator", tmp_path / "honest"), run.shards, run.features, EVERYTHING)
    honest = Events.before

    def in_table_order(events: Events, user: np.ndarray, snapshot_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, last = honest(events, user, snapshot_us + 1)
        return first, np.maximum(last - 1, first)  # all at or before the moment but the last of them

    monkeypatch.setattr(Events, "before", in_table_order)
    leaky = built(run, "candidate_generator", tmp_path)
    with pytest.raises(LeakageError, match="column 'watched_video_ids'"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


def test_a_future_watch_is_caught(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_before(monkeypatch, DAY_US, lambda events: events.watch_time_s is not None)
    leaky = built(run, "ranker", tmp_path)
    with pytest.raises(LeakageError, match=r"column 'watched_video_ids'"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


@pytest.mark.parametrize("model", ["candidate_generator", "ranker"])
def test_a_future_search_is_caught(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    shift_before(monkeypatch, DAY_US, lambda events: events.token_offsets is not None and len(events.token_offsets) > 1)
    leaky = built(run, model, tmp_path)
    with pytest.raises(LeakageError, match=r"column 'search_tokens'"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


def test_a_future_impression_is_caught(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_before(monkeypatch, DAY_US, lambda events: events.clicked is not None and events.tokens is None)
    leaky = built(run, "ranker", tmp_path)
    with pytest.raises(LeakageError, match=r"column 'impression_count'"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


def test_the_watch_time_of_an_unfinished_watch_is_caught_by_the_plain_way(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncated logs still hold the watch, so only the second way can tell."""

    def mean_of_all(requests: history.Requests) -> np.ndarray:
        window = requests.watches
        length = window.gather(window.events.watch_time_s, np.nan)
        known = ~np.isnan(length)
        return (np.where(known, length, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)).astype(np.float32)

    monkeypatch.setattr(history, "CONTINUOUS", {**history.CONTINUOUS, Derivation.MEAN_WATCH_TIME_S: mean_of_all})
    leaky = built(run, "ranker", tmp_path)
    with pytest.raises(LeakageError, match=r"column 'mean_watch_time_s' .* one by one"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


SNAPSHOTS = {
    "each impression's own moment": lambda rows, honest: rows.time_us,
    "after each impression's outcome": lambda rows, honest: rows.time_us + 1,
    "the end of the request": lambda rows, honest: np.where(honest == ORDER_ONLY, honest, honest + 80_000_000),
}


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_a_snapshot_that_is_not_the_start_of_the_request_is_caught(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: str
) -> None:
    honest = ranking_examples.page_requests

    def leaky_requests(rows, user_ids, utc_offset_s):
        group_id, snapshot_us = honest(rows, user_ids, utc_offset_s)
        return group_id, SNAPSHOTS[snapshot](rows, snapshot_us)

    monkeypatch.setattr(ranking_examples, "page_requests", leaky_requests)
    leaky = built(run, "ranker", tmp_path)
    with pytest.raises(LeakageError, match="snapshot"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


def test_the_own_outcome_of_an_impression_in_its_features_is_caught(
    run: Run, sets: dict[str, Path], tmp_path: Path
) -> None:
    leak = replaced("uploader_click_count", lambda rows: rows["clicked"].combine_chunks())
    leaky = tampered(sets["ranker"], tmp_path, Part.TRAIN, leak)
    with pytest.raises(LeakageError, match=r"train example .* column 'uploader_click_count'"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


def test_the_impression_that_led_to_the_label_among_the_shown_videos_is_caught(tmp_path: Path) -> None:
    shown = {"name": "shown", "source": "history.shown_video_ids", "kind": "categorical", "id_space": "video"}
    shown |= {"max_length": 20, "models": ["candidate_generator"]}
    lists = FeatureListConfig.model_validate({"extra": [shown]})
    tables = platform(users=30)
    late = Run(tmp_path / "late", tables, split_of(tables), lists)
    where = built(late, "candidate_generator", tmp_path)
    with pytest.raises(LeakageError, match=r"'shown' holds the label in \d\d% of the .* at most 50%"):
        check_leakage(where, late.shards, late.features, EVERYTHING)
    check_leakage(where, late.shards, late.features, EVERYTHING.model_copy(update={"max_label_shown_share": 1.0}))
    # Watches that bear the moment of their impression: histories end before it.
    moment = {row["impression_id"]: row["timestamp"] for row in tables["impressions"].to_pylist()}
    times = [moment.get(row["impression_id"], row["timestamp"]) for row in tables["watches"].to_pylist()]
    column = tables["watches"].column_names.index("timestamp")
    field = tables["watches"].schema.field("timestamp")
    tables["watches"] = tables["watches"].set_column(column, field, pa.array(times, field.type))
    same = Run(tmp_path / "same", tables, split_of(tables), lists)
    check_leakage(built(same, "candidate_generator", tmp_path / "s"), same.shards, same.features, EVERYTHING)


def test_example_age_counted_from_the_test_part_is_caught(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_latest", lambda time_us, end_us: int(time_us.max()))
    leaky = built(run, "candidate_generator", tmp_path)
    with pytest.raises(LeakageError, match="t_max is 2023"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


@pytest.mark.parametrize("part", [Part.TRAIN, Part.TEST])
def test_a_wrong_example_age_is_caught(run: Run, sets: dict[str, Path], tmp_path: Path, part: Part) -> None:
    leaky = tampered(sets["candidate_generator"], tmp_path, part, plus_one("example_age"))
    with pytest.raises(LeakageError, match=rf"{part.folder} example of user .* column 'example_age' stored"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


def test_a_training_label_out_of_vocabulary_is_caught(run: Run, sets: dict[str, Path], tmp_path: Path) -> None:
    zero = replaced("label", lambda rows: pa.array(np.zeros(len(rows), np.int32)))
    leaky = tampered(sets["candidate_generator"], tmp_path, Part.TRAIN, zero)
    with pytest.raises(LeakageError, match="column 'label' stored 0"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


@pytest.mark.parametrize("model", ["candidate_generator", "ranker"])
def test_a_test_example_among_training_examples_is_caught(
    run: Run, sets: dict[str, Path], tmp_path: Path, model: str
) -> None:
    test = pa.concat_tables([pq.read_table(file) for file in sorted((sets[model] / "test").glob("*.parquet"))])
    leaky = tampered(
        sets[model], tmp_path, Part.TRAIN, lambda rows: pa.concat_tables([rows, test.select(rows.column_names)])
    )
    with pytest.raises(LeakageError, match=r"train example of user .* it belongs to part test"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


def test_a_held_out_user_among_training_users_is_caught(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of(run.tables, SplitConfig(test_user_share=0.3))
    by_users = Run(tmp_path / "run", run.tables, split)
    honest = built(by_users, "candidate_generator", tmp_path / "honest")
    check_leakage(honest, by_users.shards, by_users.features, EVERYTHING)
    with monkeypatch.context() as patch:
        patch.setattr(Split, "is_test_user", lambda self, users: np.zeros(len(users), bool))
        leaky = built(by_users, "candidate_generator", tmp_path)
    with pytest.raises(LeakageError):
        check_leakage(leaky, by_users.shards, by_users.features, EVERYTHING)


@pytest.mark.parametrize("model", ["candidate_generator", "ranker"])
def test_a_vocabulary_fitted_on_the_whole_log_is_caught(run: Run, tmp_path: Path, model: str) -> None:
    late = Run(tmp_path / "run", run.tables, run.split)
    whole_log = split_of(run.tables, SplitConfig(validation_days=0, t0="2023-11-16", gap_hours=0))
    whole_log = Split(**{**whole_log.as_json(), "t0_us": 2**62, "validation_start_us": 2**62})
    late.publish_features(vocabularies(run.tables, whole_log, run.specs))
    leaky = built(late, model, tmp_path)
    with pytest.raises(LeakageError, match=r"is counted \d+ times but occurs \d+ times in the training part"):
        check_leakage(leaky, late.shards, late.features, EVERYTHING)


def test_a_vocabulary_of_another_split_is_caught(run: Run, sets: dict[str, Path], tmp_path: Path) -> None:
    features = tmp_path / "features"
    shutil.copytree(run.features, features)
    manifest = json.loads((features / "vocabularies" / "manifest.json").read_text())
    manifest["split"]["t0_us"] += DAY_US
    (features / "vocabularies" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LeakageError, match="fitted on the split"):
        check_leakage(sets["ranker"], run.shards, features, EVERYTHING)


def test_honest_random_hold_out_passes(run: Run, tmp_path: Path) -> None:
    honest = built(run, "candidate_generator", tmp_path, label_choice=LabelChoice.RANDOM_HOLD_OUT)
    check_leakage(honest, run.shards, run.features, EVERYTHING)


@pytest.mark.parametrize("leak", ["watches after the training part", "the label itself"])
def test_a_random_hold_out_that_draws_what_it_must_not_is_caught(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leak: str
) -> None:
    honest = candidates.draw_other_watches

    def draw(events, user, row, identity, end_us, size, seed):
        if leak == "the label itself":
            bags = honest(events, user, row, identity, end_us, size, seed)
            bags.values[bags.offsets[:-1][np.diff(bags.offsets) > 0]] = row[np.diff(bags.offsets) > 0]
            return bags
        return honest(events, user, row, identity, 2**62, size, seed)

    monkeypatch.setattr(candidates, "draw_other_watches", draw)
    leaky = built(run, "candidate_generator", tmp_path, label_choice=LabelChoice.RANDOM_HOLD_OUT)
    with pytest.raises(LeakageError, match="column 'watched_video_ids'"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)
