"""The Beam job, the published folder and its reader."""

import dataclasses
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.artifacts import read_manifest
from features.candidate_examples import CandidateExamplesConfig
from features.errors import ArtifactError, DataError
from features.example_reader import ExampleSet
from features.example_sets import CandidateExamplesJob, RankingExamplesJob, build_examples
from features.leakage import check_leakage
from features.shards import ShardConfig, write_shards
from features.splits import Part
from features.vocabulary import Vocabulary
from tests.features.example_logs import START_US, Run, build_here, platform, split_of, table, vocabularies


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    tables = platform(users=20, seed=1)
    return Run(tmp_path_factory.mktemp("run"), tables, split_of(tables))


def jobs(run: Run) -> list[CandidateExamplesJob | RankingExamplesJob]:
    return [
        CandidateExamplesJob(
            run.specs["candidate_generator"], run.split, config=CandidateExamplesConfig(labels_per_user=3)
        ),
        RankingExamplesJob(run.specs["ranker"], run.split),
    ]


@pytest.fixture(scope="module")
def sets(run: Run) -> dict[str, ExampleSet]:
    found = {}
    for job in jobs(run):
        build_examples(job, run.shards, run.features, run.folder / "examples" / job.model)
        found[job.model] = ExampleSet(run.folder / "examples" / job.model)
    return found


@pytest.mark.parametrize("model", ["candidate_generator", "ranker"])
def test_rows_read_are_kept_or_left_out_with_a_reason(run: Run, sets: dict[str, ExampleSet], model: str) -> None:
    counts = sets[model].manifest["counts"]
    table_of = {"candidate_generator": "watches", "ranker": "impressions"}
    assert counts["read"] == len(run.tables[table_of[model]])
    assert counts["read"] == sum(counts["kept"].values()) + sum(counts["left_out"].values())
    for part in (Part.TRAIN, Part.VALIDATION, Part.TEST):
        assert len(sets[model].read(part)) == counts["kept"][part.folder] == sets[model].num_examples(part) > 0


@pytest.mark.parametrize("model", ["candidate_generator", "ranker"])
def test_there_is_one_file_per_shard_and_part_with_the_columns_of_the_specification(
    sets: dict[str, ExampleSet], model: str
) -> None:
    for part in (Part.TRAIN, Part.VALIDATION, Part.TEST):
        assert [file.name for file in sets[model].files(part)] == [f"part-0000{i}.parquet" for i in range(3)]
        schema = sets[model].schema(part)
        for feature in sets[model].features:
            assert schema.field(feature.name).type == feature.arrow_type
        assert not sets[model].read(part).column("weight").null_count
        assert ("seen_video_ids" in schema.names) == (model == "candidate_generator" and part != Part.TRAIN)


def test_two_runs_write_the_same_bytes_with_or_without_beam(
    run: Run, sets: dict[str, ExampleSet], tmp_path: Path
) -> None:
    for job in jobs(run):
        here = read_manifest(build_here(job, run, tmp_path / job.model))
        assert here["files"] == sets[job.model].manifest["files"]


def test_the_number_of_shards_changes_no_example(run: Run, sets: dict[str, ExampleSet], tmp_path: Path) -> None:
    write_shards(run.folder / "tables", tmp_path / "shards", ShardConfig(num_shards=5))
    for job in jobs(run):
        build_examples(job, tmp_path / "shards", run.features, tmp_path / job.model)
        key = ["user_id", "label_timestamp", "label_video_id"] if job.model != "ranker" else ["impression_id"]
        for part in (Part.TRAIN, Part.TEST):
            one, other = (s.read(part).sort_by([(k, "ascending") for k in key]) for s in (
                sets[job.model], ExampleSet(tmp_path / job.model)
            ))  # fmt: skip
            for name in one.column_names:
                assert str(one[name].to_pylist()) == str(other[name].to_pylist()), name


def test_users_weigh_the_same_over_all_shards(sets: dict[str, ExampleSet]) -> None:
    train = sets["candidate_generator"].read(Part.TRAIN, ["user_id", "weight"])
    totals = train.group_by("user_id").aggregate([("weight", "sum")])["weight_sum"].to_numpy()
    assert np.allclose(totals, totals[0])
    assert train["weight"].to_numpy().mean() == pytest.approx(1)


def test_batches_hold_the_rows_of_the_files_in_order(sets: dict[str, ExampleSet]) -> None:
    examples = sets["ranker"]
    files = examples.files(Part.TRAIN)
    batches = list(examples.batches(files, ["group_id", "clicked"], batch_rows=17))
    assert max(len(batch) for batch in batches) == 17
    assert batches[0].schema.names == ["group_id", "clicked"]
    assert pa.Table.from_batches(batches) == examples.read(Part.TRAIN, ["group_id", "clicked"])


@pytest.mark.parametrize("most", [1, 30, 90])
def test_of_many_examples_those_of_some_users_are_drawn_all_of_a_user_or_none(
    sets: dict[str, ExampleSet], most: int
) -> None:
    examples = sets["candidate_generator"]
    users = np.array(examples.read(Part.TEST, ["user_id"])["user_id"].to_pylist())
    rows = examples.rows_of_some_users(Part.TEST, most)
    assert rows is not None and (np.diff(rows) > 0).all()
    assert len(rows) <= most or len(set(users[rows])) == 1
    assert set(rows) == set(np.flatnonzero(np.isin(users, users[rows])))
    if most > 1:
        assert len(rows) > most - 20  # no user has more
    for all_of_them in (None, len(users), len(users) + 1):
        assert examples.rows_of_some_users(Part.TEST, all_of_them) is None
    fewer = examples.rows_of_some_users(Part.TEST, len(users) - 1)
    assert fewer is not None and len(fewer) < len(users)


@pytest.mark.parametrize("rows", [1, 40, 10**6])
def test_the_first_rows_of_a_part_are_read_alone(sets: dict[str, ExampleSet], rows: int) -> None:
    examples = sets["ranker"]
    with mock.patch("pyarrow.parquet.read_table", wraps=pq.read_table) as reading:
        found = examples.read(Part.TRAIN, ["group_id", "clicked"], at_most=rows)
    assert found == examples.read(Part.TRAIN, ["group_id", "clicked"]).slice(0, rows)
    of_files = [pq.read_metadata(file).num_rows for file in examples.files(Part.TRAIN)]
    enough = next((n for n in range(1, len(of_files) + 1) if sum(of_files[:n]) >= rows), len(of_files))
    assert reading.call_count == enough


def test_refitting_counts_the_example_age_from_the_end_of_validation(sets: dict[str, ExampleSet]) -> None:
    examples = sets["candidate_generator"]
    t_max_us = examples.manifest["refit_t_max_us"]
    assert t_max_us > examples.manifest["t_max_us"]
    files = examples.files(Part.TRAIN) + examples.files(Part.VALIDATION)
    names = ["label_timestamp", "label", "example_age"]
    rows = pa.Table.from_batches([batch.select(names) for batch in examples.batches(files, refit=True)])
    ages = (t_max_us - rows["label_timestamp"].cast(pa.int64()).to_numpy()) / 1e6
    assert np.allclose(rows["example_age"].to_numpy(), ages)
    assert ages.min() >= 0
    assert rows["label"].to_numpy().min() >= 1
    alone = list(examples.batches(files, ["example_age"], refit=True))
    assert alone[0].schema.names == ["example_age"]
    assert sum(len(batch) for batch in alone) == len(rows)


def test_refitting_leaves_out_labels_that_are_out_of_vocabulary(run: Run, tmp_path: Path) -> None:
    few = Run(tmp_path / "run", run.tables, run.split)
    made = vocabularies(run.tables, run.split, run.specs)
    made["video"] = Vocabulary(made["video"].ids[:20], made["video"].counts[:20])
    few.publish_features(made)
    examples = ExampleSet(build_here(jobs(run)[0], few, tmp_path / "set"))
    files = examples.files(Part.VALIDATION)
    labels = examples.read(Part.VALIDATION)["label"].to_numpy()
    assert (labels == 0).any()
    refit = [batch["label"].to_numpy() for batch in examples.batches(files, ["label"], refit=True)]
    assert np.concatenate(refit).tolist() == labels[labels > 0].tolist()


def test_a_set_without_training_examples_is_refused_and_not_published(run: Run, tmp_path: Path) -> None:
    early = dataclasses.replace(run.split, validation_start_us=START_US - 1, validation_labels_start_us=START_US - 1)
    job = RankingExamplesJob(run.specs["ranker"], early)
    with pytest.raises(DataError, match=r"no training example among \d+ rows"):
        build_examples(job, run.shards, run.features, tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("share", [0.0, 1e-9])
def test_a_set_without_test_labels_is_refused_and_told_beside_the_end_of_the_log(
    run: Run, tmp_path: Path, share: float
) -> None:
    times = run.tables["watches"]["timestamp"].cast(pa.int64()).to_numpy()
    last = np.datetime64(int(times.max()), "us").astype(str)
    late = dataclasses.replace(run.split, test_start_us=int(times.max()) + 1, test_user_share=share)
    job = CandidateExamplesJob(run.specs["candidate_generator"], late)
    with pytest.raises(DataError, match=rf"no test label among {len(times)} watches") as caught:
        build_examples(job, run.shards, run.features, tmp_path / "set")
    message = str(caught.value)
    t0 = np.datetime64(run.split.t0_us, "us").astype("datetime64[s]")
    assert f"t0 is {t0}" in message
    assert f"the last watch is of {last[:19]}" in message
    assert "split.test_days" in message
    assert ("split.test_user_share" in message) == (share > 0)
    assert "\n" not in message
    assert not (tmp_path / "set").exists()


def test_a_log_without_impressions_has_no_ranking_examples(tmp_path: Path) -> None:
    tables = {name: rows for name, rows in platform(users=5).items() if name != "impressions"}
    run = Run(tmp_path, tables, split_of(tables))
    assert "ranker" not in run.specs
    with pytest.raises(ArtifactError, match="examples of the ranker need the table 'impressions', found none"):
        build_examples(
            RankingExamplesJob(run.specs["candidate_generator"], run.split), run.shards, run.features, tmp_path / "set"
        )
    job = CandidateExamplesJob(run.specs["candidate_generator"], run.split)
    check_leakage(build_here(job, run, tmp_path / "candidates"), run.shards, run.features)


def test_one_user_and_one_video_with_unicode_and_spaces(tmp_path: Path) -> None:
    times_us = [START_US + hour * 3_600_000_000 for hour in range(0, 140, 3)]
    rows = [{"user_id": "ü ß 🎬", "video_id": "a b", "time_us": time_us} for time_us in times_us]
    tables = {"watches": table("watches", rows)}
    run = Run(tmp_path, tables, split_of(tables))
    job = CandidateExamplesJob(run.specs["candidate_generator"], run.split)
    folder = build_here(job, run, tmp_path / "set")
    assert set(ExampleSet(folder).read(Part.TEST)["label"].to_pylist()) == {1}
    check_leakage(folder, run.shards, run.features)


def test_another_folder_is_refused_as_an_example_set(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected an example set, found 'shards'"):
        ExampleSet(run.shards)
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        ExampleSet(tmp_path)


def test_files_are_parquet_that_anything_reads(sets: dict[str, ExampleSet]) -> None:
    file = sets["ranker"].files(Part.TRAIN)[0]
    assert pq.read_metadata(file).num_rows > 0
    assert json.loads((sets["ranker"].folder / "manifest.json").read_text())["model"] == "ranker"
