"""Training: learns, stops, resumes, refits, publishes."""

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from rich.console import Console

from features.artifacts import publish
from features.errors import ArtifactError, ConfigError
from features.example_reader import ExampleSet
from features.splits import Part
from models.samplers import NegativeSamplerConfig, attach_negatives, make_sampler
from models.two_tower import TwoTower, TwoTowerConfig
from pipeline.callbacks import TrainingProgress
from pipeline.input_pipeline import ExampleColumns, Transform
from pipeline.model_folder import load_candidate_generator, read_history, save_model
from pipeline.retrieval_validation import ranked_by, ranks, retrieval_map
from pipeline.strategies import StrategyName, make_strategy
from pipeline.training import OptimizerName, Schedule, TrainingConfig, make_optimizer, train
from tests.pipeline.synthetic_examples import CANDIDATE_SPEC, publish_examples, taste_examples

VIDEOS = 120
MODEL = TwoTowerConfig(dimension=8, depth=1, sampler=NegativeSamplerConfig(num_sampled=30))
TRAINING = TrainingConfig(epochs=3, batch_size=128, learning_rate=0.01)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> ExampleSet:
    parts = {Part.TRAIN: taste_examples(4000, 0), Part.VALIDATION: taste_examples(600, 1)}
    return publish_examples(tmp_path_factory.mktemp("examples") / "candidate_generation", parts)


@pytest.fixture(scope="module")
def training_columns(examples: ExampleSet) -> ExampleColumns:
    return ExampleColumns(examples, (Part.TRAIN,), ("label", "weight"))


@pytest.fixture(scope="module")
def validation_columns(examples: ExampleSet) -> ExampleColumns:
    return ExampleColumns(examples, (Part.VALIDATION,), ("label", "weight"))


@pytest.fixture(scope="module")
def label_counts(training_columns: ExampleColumns) -> np.ndarray:
    return np.bincount(training_columns.read()["label"], minlength=VIDEOS + 1)[1:]


@pytest.fixture(scope="module")
def negatives(label_counts: np.ndarray) -> Transform:
    return attach_negatives(make_sampler(MODEL.sampler, label_counts, seed=1))


def build() -> TwoTower:
    return TwoTower(MODEL, CANDIDATE_SPEC, {"video": VIDEOS, "region": 4})


def test_the_loss_falls_and_the_model_finds_labels_better_than_popularity(
    training_columns: ExampleColumns,
    validation_columns: ExampleColumns,
    label_counts: np.ndarray,
    negatives: Transform,
    tmp_path: Path,
):
    result = train(
        build,
        training_columns,
        TRAINING,
        tmp_path / "work",
        negatives,
        lambda model: retrieval_map(model, validation_columns),
        "MAP@20",
    )
    losses = result.history["cross_entropy"]
    assert losses[-1] < losses[0] - 0.3
    popularity_rank = np.argsort(np.argsort(-label_counts, kind="stable")) + 1
    popular = ranked_by(popularity_rank[validation_columns.read()["label"] - 1], 20, 100)
    assert retrieval_map(result.model, validation_columns)["MAP@20"] > 1.5 * popular["MAP@20"]
    assert max(result.history["MAP@20"]) == result.history["MAP@20"][result.epochs - 1]
    assert result.examples_per_second > 0
    assert result.chief
    assert not list((tmp_path / "work").iterdir())  # checkpoints are gone

    save_model(
        tmp_path / "model", result.model, "two_tower", result.history, {"config": TRAINING.model_dump(mode="json")}
    )
    loaded = load_candidate_generator(tmp_path / "model")
    np.testing.assert_array_equal(ranks(loaded, validation_columns), ranks(result.model, validation_columns))
    assert read_history(tmp_path / "model") == result.history


def test_the_step_is_traced_once_and_so_is_the_evaluation_of_all_epochs(
    training_columns: ExampleColumns, validation_columns: ExampleColumns, negatives: Transform, tmp_path: Path
):
    traced = []

    class Traced(TwoTower):
        def query_embeddings(self, features, training=False):
            traced.append("step" if training else "evaluation")
            return super().query_embeddings(features, training)

    config = TRAINING.model_copy(update={"epochs": 2, "steps_per_epoch": 3, "patience": None})
    result = train(
        lambda: Traced(MODEL, CANDIDATE_SPEC, {"video": VIDEOS, "region": 4}),
        training_columns,
        config,
        tmp_path / "work",
        negatives,
        lambda model: retrieval_map(model, validation_columns, batch_size=400),  # of 600: batches of two sizes
        "MAP@20",
    )
    assert len(result.history["MAP@20"]) == 2
    assert sorted(traced) == ["evaluation", "step"]


class KilledError(Exception):
    """Stands for the end of the process."""


class KillAfter(tf_keras.callbacks.Callback):
    """Raises in the given step of the given epoch (both from 0)."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if epoch == self.epoch:
            raise KilledError


@pytest.mark.parametrize("optimizer", list(OptimizerName))
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(
    training_columns: ExampleColumns,
    validation_columns: ExampleColumns,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: OptimizerName,
):
    config = TRAINING.model_copy(update={"optimizer": optimizer, "schedule": Schedule.COSINE, "steps_per_epoch": 10})
    full_softmax = TwoTowerConfig(dimension=8, depth=1, loss="full")  # negatives would be drawn anew

    def run(work: Path):
        return train(
            lambda: TwoTower(full_softmax, CANDIDATE_SPEC, {"video": VIDEOS, "region": 4}),
            training_columns,
            config,
            work,
            evaluate=lambda model: retrieval_map(model, validation_columns),
            monitor="MAP@20",
        )

    whole = run(tmp_path / "whole")
    plain_fit = tf_keras.Model.fit
    monkeypatch.setattr(
        tf_keras.Model,
        "fit",
        lambda self, *args, callbacks, **kwargs: plain_fit(self, *args, callbacks=[*callbacks, KillAfter(2)], **kwargs),
    )
    with pytest.raises(KilledError):
        run(tmp_path / "killed")
    epochs_run: list[int] = []
    monkeypatch.setattr(
        tf_keras.Model,
        "fit",
        lambda self, *args, initial_epoch, **kwargs: (
            epochs_run.append(initial_epoch),
            plain_fit(self, *args, initial_epoch=initial_epoch, **kwargs),
        )[1],
    )
    resumed = run(tmp_path / "killed")
    assert epochs_run == [2]
    assert resumed.epochs == whole.epochs
    for name in ("cross_entropy", "MAP@20"):
        assert resumed.history[name] == pytest.approx(whole.history[name], rel=1e-4)
    for ours, theirs in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_training_stops_when_the_metric_does_not_get_better_and_keeps_the_best_weights(
    training_columns: ExampleColumns, negatives: Transform, tmp_path: Path
):
    values = iter([0.2, 0.5, 0.4, 0.5, 0.9])
    seen: list[np.ndarray] = []

    def evaluate(model: TwoTower) -> dict[str, float]:
        seen.append(model.video_tower.video_table.embeddings.numpy())
        return {"quality": next(values)}

    config = TRAINING.model_copy(update={"epochs": 5, "steps_per_epoch": 3, "patience": 2})
    result = train(build, training_columns, config, tmp_path, negatives, evaluate, "quality")
    assert result.epochs == 2
    assert result.history["quality"] == [0.2, 0.5, 0.4, 0.5]
    np.testing.assert_array_equal(result.model.video_tower.video_table.embeddings.numpy(), seen[1])


def test_a_metric_that_is_never_a_number_is_told(
    training_columns: ExampleColumns, negatives: Transform, tmp_path: Path
):
    config = TRAINING.model_copy(update={"epochs": 1, "steps_per_epoch": 1})
    with pytest.raises(ConfigError, match="learning_rate"):
        train(build, training_columns, config, tmp_path, negatives, lambda model: {"quality": np.nan}, "quality")


def test_a_refit_trains_anew_on_all_parts_for_the_best_number_of_epochs(
    examples: ExampleSet, training_columns: ExampleColumns, negatives: Transform, tmp_path: Path
):
    values = iter([0.1, 0.3, 0.2])
    built: list[TwoTower] = []
    of_refit: list[bool] = []

    def build_and_keep(refit: bool) -> TwoTower:
        built.append(build())
        of_refit.append(refit)
        return built[-1]

    everything = ExampleColumns(examples, (Part.TRAIN, Part.VALIDATION), ("label", "weight"), refit=True)
    config = TRAINING.model_copy(update={"refit": True})
    result = train(
        partial(build_and_keep, refit=False),
        training_columns,
        config,
        tmp_path,
        negatives,
        lambda model: {"quality": next(values)},
        "quality",
        refit_columns=everything,
        build_refit=partial(build_and_keep, refit=True),
    )
    assert of_refit == [False, True]
    assert result.model is built[1]
    assert result.epochs == len(result.refit_history["loss"]) == 2
    steps = int(built[1].optimizer.iterations)
    assert steps == 2 * (4600 // 128)


def test_the_same_seed_gives_the_same_model(training_columns: ExampleColumns, negatives: Transform, tmp_path: Path):
    config = TRAINING.model_copy(update={"epochs": 1, "steps_per_epoch": 5})
    weights = [
        train(build, training_columns, config, tmp_path / str(i), negatives).model.get_weights() for i in range(2)
    ]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("option", ["mixed_precision", "jit_compile", "tensorboard"])
def test_options_of_the_step(training_columns: ExampleColumns, negatives: Transform, tmp_path: Path, option: str):
    config = TRAINING.model_copy(update={"epochs": 2, "steps_per_epoch": 20, option: True, "clip_norm": 5.0})
    result = train(build, training_columns, config, tmp_path, negatives)
    losses = result.history["cross_entropy"]
    assert losses[1] < losses[0]
    assert (result.model.hidden[0].compute_dtype == "bfloat16") == (option == "mixed_precision")
    assert result.model.hidden[0].kernel.dtype == tf.float32
    assert tf_keras.mixed_precision.global_policy().name == "float32"
    assert any(tmp_path.rglob("events.out.tfevents*")) == (option == "tensorboard")


def test_schedules_reach_zero_over_the_configured_steps():
    for schedule, middle in ((Schedule.CONSTANT, 0.1), (Schedule.LINEAR, 0.05), (Schedule.COSINE, 0.05)):
        config = TrainingConfig(learning_rate=0.1, schedule=schedule)
        rate = make_optimizer(config, 100)._learning_rate
        at = rate if callable(rate) else lambda step, rate=rate: rate
        assert float(at(50)) == pytest.approx(middle, rel=1e-5)
        assert float(at(100)) == pytest.approx(0.1 if schedule == Schedule.CONSTANT else 0, abs=1e-8)


def test_progress_is_a_plain_line_per_epoch_where_there_is_no_terminal(training_columns: ExampleColumns):
    output = io.StringIO()
    progress = TrainingProgress(64, console=Console(file=output, width=20))
    progress.set_params({"epochs": 2, "steps": 3})
    progress.on_train_begin()
    progress.on_epoch_begin(0)
    for step in range(3):
        progress.on_train_batch_end(step, {"loss": 1.0})
    progress.on_epoch_end(0, {"loss": 1.0, "cross_entropy": 2.5})
    progress.on_train_end()
    assert output.getvalue().startswith("epoch 1/2: cross_entropy 2.5000, ")
    assert output.getvalue().count("\n") == 1
    assert "examples/s" in output.getvalue()


def test_progress_is_a_bar_on_a_terminal():
    output = io.StringIO()
    progress = TrainingProgress(64, console=Console(file=output, width=120, force_terminal=True))
    progress.set_params({"epochs": 1, "steps": 2})
    progress.on_train_begin()
    progress.on_epoch_begin(0)
    progress.on_train_batch_end(0, {"cross_entropy": tf.constant(1.25)})
    progress.on_train_batch_end(1, {"cross_entropy": tf.constant(1.25)})
    progress.on_epoch_end(0, {"cross_entropy": 1.25})
    progress.on_train_end()
    assert "cross_entropy 1.2500" in output.getvalue()


def test_ranks_count_ties_against_the_model_and_unknown_labels_as_misses(
    examples: ExampleSet, validation_columns: ExampleColumns
):
    model = build()
    model.video_tower.video_table.embeddings.assign(np.zeros((VIDEOS + 1, 8)))  # every video scores 0
    assert (ranks(model, validation_columns) == VIDEOS).all()
    assert retrieval_map(model, validation_columns) == {"MAP@20": 0.0, "recall@100": 0.0}
    assert ranked_by(np.array([1, 4, 21, 0]), 20, 100) == {"MAP@20": 1.25 / 4, "recall@100": 0.75}


def test_features_with_a_serving_value_have_it_in_validation(validation_columns: ExampleColumns):
    model = build()
    before = ranks(model, validation_columns)
    batches = [
        {**batch, "example_age": np.full_like(batch["example_age"], 77.0)} for batch in validation_columns.ordered(512)
    ]

    class OtherAges:
        at_serving = validation_columns.at_serving

        def ordered(self, _: int):
            return iter(batches)

    np.testing.assert_array_equal(ranks(model, OtherAges()), before)  # type: ignore[arg-type]


def test_a_folder_that_holds_no_such_model_is_told(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        load_candidate_generator(tmp_path / "nothing")
    with publish(tmp_path / "other", {"kind": "examples"}):
        pass
    with pytest.raises(ArtifactError, match="expected a trained model"):
        load_candidate_generator(tmp_path / "other")
    save_model(tmp_path / "model", build(), "two_tower", {}, {})
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    description["vocabulary_sizes"]["video"] = VIDEOS + 1
    text = json.dumps(description, indent=2) + "\n"
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    manifest["files"].pop("model.json")
    (tmp_path / "model" / "model.json").write_text(text)
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="weights do not fit"):
        load_candidate_generator(tmp_path / "model")


def test_a_weight_outside_any_layer_is_refused_instead_of_lost(tmp_path: Path):
    model = build()
    model.stray = tf.Variable(1.0)
    with pytest.raises(ArtifactError, match="held by no layer"):
        save_model(tmp_path / "model", model, "two_tower", {}, {})
    assert not (tmp_path / "model").exists()


def test_strategies_of_several_machines_need_a_cluster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name in (StrategyName.MULTI_WORKER, StrategyName.PARAMETER_SERVER):
        with pytest.raises(ConfigError, match="TF_CONFIG"):
            make_strategy(name)
