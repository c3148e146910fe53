"""A label protocol of a paper, run to its end on a small log: who is trained on what, and who is tested."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import tensorflow as tf

from features.example_reader import ExampleSet
from features.splits import Part
from features.tables import read_table
from features.vocabulary import Vocabulary
from models.candidate_generator import STEP_WEIGHTS
from models.sequence_generator import attach_step_labels
from pipeline.input_pipeline import ExampleColumns
from tests.end_to_end.command_line import Answer, stages_run, upnext

pytestmark = pytest.mark.slow

DAY_US = 86_400_000_000
PRODUCTION = """
name: production
protocol: latent_cross_production
source: {kind: simulator, users: 120, videos: 60, uploaders: 12, topics: 6, days: 12, steps_per_user: 40,
         heavy_users: 5}
split: {seed: 5}
shards: {num_shards: 2}
leakage: {examples_per_part: 10, shards: 1}
generators:
  bag:
    model: {kind: bag_of_watches, preset: deep_bow, dimension: 4, output_widths: [4], loss: full}
    training: {epochs: 1, batch_size: 16}
ranker: null
export: {retrieval: {k: 20}, parity: {examples: 10}}
evaluation:
  retrieval: {bootstrap: {resamples: 20}}
  retrieval_baselines: {methods: [recent co-watch, paragraph vectors]}
  show_users: 1
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    folder = tmp_path_factory.mktemp("protocol")
    (folder / "production.yaml").write_text(PRODUCTION)
    return folder / "run", upnext("run", folder / "production.yaml", "--workdir", folder / "run")


def predicted(columns: ExampleColumns) -> int:
    """How many labels the steps of these examples have."""
    batch = {name: tf.constant(values) for name, values in columns.read().items()}
    return int(tf.math.count_nonzero(attach_step_labels(batch)[STEP_WEIGHTS]))


def test_a_run_by_the_production_protocol_goes_to_its_end(run: tuple[Path, Answer]) -> None:
    folder, answer = run
    assert stages_run(answer) == ["ingest", "analyze", "examples", "train-generator:bag", "export", "evaluate"]
    assert "recent co-watch" in answer.out and "paragraph vectors" in answer.out
    again = upnext("recommend", folder, "--user", "u000001", "--count", 3)
    assert again.code == 0
    listed = again.out.split("up next")[1].splitlines()[2:]
    assert [line.split()[0] for line in listed if line.strip()] == ["1", "2", "3"]


def test_labels_are_the_hundred_most_recent_watches_of_the_seven_days_before_t0(run: tuple[Path, Answer]) -> None:
    """Counted a second way from the tables. Of the seven days before t0 the last one is validation."""
    folder, _ = run
    examples = ExampleSet(folder / "examples/sequences")
    split = examples.split
    watches = read_table(folder / "tables", "watches")
    times_us = watches["timestamp"].cast(pa.int64()).to_numpy()
    known = Vocabulary.read(folder / "features/vocabularies/video.parquet").ids
    counts = pc.and_(watches["completed"], pc.is_in(watches["video_id"], known)).to_numpy()
    trains = ~split.is_test_user(watches["user_id"].combine_chunks())
    inside = (times_us > split.t0_us - 7 * DAY_US) & (times_us < split.t0_us - DAY_US)
    users = watches["user_id"].filter(pa.array(counts & trains & inside))
    per_user = pc.value_counts(users).field("counts").to_numpy()
    assert per_user.max() > 100
    train = ExampleColumns(examples, (Part.TRAIN,), ("label", "label_weights"))
    at_once = examples.manifest["counts"]["left_out"].get("of_the_moment_of_the_label_after", 0)
    assert predicted(train) == np.minimum(per_user, 100).sum() - at_once


def test_one_user_in_ten_is_tested_from_four_hours_after_t0(run: tuple[Path, Answer]) -> None:
    folder, _ = run
    examples = ExampleSet(folder / "examples/sequences")
    split, users = examples.split, {}
    for part in (Part.TRAIN, Part.VALIDATION, Part.TEST):
        table = examples.read(part, ["user_id", "label_timestamp"])
        users[part] = set(table["user_id"].to_pylist())
        if part == Part.TEST:
            first_us = table["label_timestamp"].cast(pa.int64()).to_numpy().min()
            assert 0 <= first_us - split.t0_us - 4 * 3_600_000_000 < DAY_US
    everybody = pc.unique(read_table(folder / "tables", "watches")["user_id"])
    held_out = split.is_test_user(everybody)
    assert held_out.mean() == pytest.approx(0.1, abs=0.02)
    assert users[Part.TEST] <= set(everybody.filter(pa.array(held_out)).to_pylist())
    assert (users[Part.TRAIN] | users[Part.VALIDATION]) <= set(everybody.filter(pa.array(~held_out)).to_pylist())


def test_the_final_training_reads_the_validation_part_too(run: tuple[Path, Answer]) -> None:
    folder, answer = run
    assert answer.err.count("epoch 1/1") == 2  # one training chooses the number of passes, the other one is final
    examples = ExampleSet(folder / "examples/sequences")
    extra = ("label", "label_weights")
    train = ExampleColumns(examples, (Part.TRAIN,), extra)
    validation = ExampleColumns(examples, (Part.VALIDATION,), extra)
    together = ExampleColumns(examples, (Part.TRAIN, Part.VALIDATION), extra, refit=True)
    known = validation.read()["label"] > 0
    assert together.rows == train.rows + known.sum()
    # A validation label stands alone: watches before it are no labels of its sequence.
    assert predicted(together) == predicted(train) + known.sum() == predicted(train) + predicted(validation)
    # The age of the newest example is counted from the end of both parts.
    ages = {name: columns.read()["example_age"] for name, columns in (("train", train), ("together", together))}
    newest_us = examples.manifest["refit_t_max_us"] - examples.manifest["t_max_us"]
    assert newest_us > 0
    np.testing.assert_allclose(ages["together"][: train.rows], ages["train"] + newest_us / 1e6, rtol=1e-5)
