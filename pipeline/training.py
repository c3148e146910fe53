"""Training of every model: strategy, precision, optimizer, callbacks, `fit`, resumption, refit.

A model is a `tfrs.models.Model` whose `compute_loss` returns its replica's share of the mean loss
(`models/candidate_generator.py: replica_mean`); candidate generators and rankers are trained the same way.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras
from pydantic import Field

from features.artifacts import fingerprint
from features.errors import ArtifactError
from features.settings import Settings
from models.lazy_adam import LazyAdam
from pipeline.callbacks import Resume, TrainingProgress, Validation
from pipeline.input_pipeline import ExampleColumns, InputConfig, Transform, steps_per_pass, training_dataset
from pipeline.record_files import records_dataset, write_records
from pipeline.stages import locked
from pipeline.strategies import StrategyName, is_chief, make_strategy


class OptimizerName(StrEnum):
    """Optimizers whose step costs as much as the batch is large, not as the tables are."""

    LAZY_ADAM = "lazy_adam"
    ADAGRAD = "adagrad"


class Schedule(StrEnum):
    """How the learning rate moves over the configured epochs."""

    CONSTANT = "constant"
    LINEAR = "linear"  # to zero
    COSINE = "cosine"  # to zero


class TrainingConfig(Settings):
    """How a model is trained."""

    epochs: int = Field(default=10, ge=1, description="passes over the data, or pieces of `steps_per_epoch` steps")
    steps_per_epoch: int | None = Field(default=None, ge=1, description="default: one pass over the data")
    batch_size: int = Field(default=1024, ge=1, description="examples of a step, over all replicas")
    optimizer: OptimizerName = OptimizerName.LAZY_ADAM
    learning_rate: float = Field(default=1e-3, gt=0, description="the highest of the schedule; adagrad wants about 0.1")
    schedule: Schedule = Schedule.CONSTANT
    clip_norm: float | None = Field(default=None, gt=0, description="greatest norm of all gradients together")
    mixed_precision: bool = Field(default=False, description="compute in bfloat16, keep weights in float32")
    jit_compile: bool = Field(
        default=False, description="compile the step with XLA (faster on GPU and TPU, not on CPU)"
    )
    steps_per_execution: int = Field(default=1, ge=1, description="steps between two looks at the callbacks")
    strategy: StrategyName = StrategyName.ONE_DEVICE
    tpu_address: str = Field(default="", description="of the TPU system; empty for one attached to this machine")
    min_shard_kib: int = Field(
        default=256,
        ge=1,
        description="parameter servers: the least size of a part of a variable",
    )
    patience: int | None = Field(
        default=2, ge=1, description="epochs without a better validation metric before training stops; null never"
    )
    refit: bool = Field(
        default=True,
        description="after the number of epochs is found, train anew on training and validation part together",
    )
    checkpoints: bool = Field(default=True, description="keep what a killed run needs to go on, after each epoch")
    tensorboard: bool = Field(default=False, description="write TensorBoard logs")
    seed: int = Field(default=1, ge=0, description="of initial weights, order of examples and negatives")
    input: InputConfig = InputConfig()


@dataclass(frozen=True)
class Trained:
    """A trained model and how it came about.

    Args:
      model: with the weights of the best epoch (of the last, where there is no validation, and in further workers).
      history: metric -> value by epoch, of the run that chose the number of epochs.
      epochs: number of epochs the model was trained for.
      examples_per_second: median over epochs, without tracing and evaluation.
      seconds: wall time.
      chief: whether this process is the one that publishes.
      refit_history: as `history`, of the training on all parts.
      forget: removes the checkpoints, where `train` was told to keep them.
    """

    model: tf_keras.Model
    history: dict[str, list[float]]
    epochs: int
    examples_per_second: float
    seconds: float
    chief: bool = True
    refit_history: dict[str, list[float]] = field(default_factory=dict)
    forget: Callable[[], None] = lambda: None


Build = Callable[[], tf_keras.Model]
Evaluate = Callable[[Any], dict[str, float]]


def train(
    build: Build,
    columns: ExampleColumns,
    config: TrainingConfig,
    work: Path,
    transform: Transform | None = None,
    evaluate: Evaluate | None = None,
    monitor: str = "",
    refit_columns: ExampleColumns | None = None,
    build_refit: Build | None = None,
    on_validated: Callable[[Any], None] | None = None,
    identity: Any = None,
    keep: bool = False,
) -> Trained:
    """Trains a model.

    Args:
      build: makes the untrained model; called in the strategy's scope, again for the refit.
      columns: the training examples.
      config: how.
      work: folder of checkpoints while it runs, shared by all processes of a cluster; a run with the same
        configuration, data and `identity` that was killed goes on from there. TensorBoard logs are left there.
      transform: adds to each batch in the input pipeline, such as the negatives.
      evaluate: validation metrics of a model, after each epoch.
      monitor: the metric of `evaluate` that chooses the best epoch, greater is better.
      refit_columns: training and validation examples together, for `config.refit`.
      build_refit: makes the untrained model of the refit; None: `build` does.
      on_validated: is given the model that has not seen the validation part, before the refit.
      identity: JSON-serialisable; what else the model depends on: its configuration, what was published for it.
      keep: leave the checkpoints until `Trained.forget`, so that nothing is lost when publishing the model fails, and
        remove those that killed trainings with other settings left in `work`.

    Returns:
      The model and its history.

    Raises:
      ArtifactError: another process trains the same model, with the same settings, in `work`.
    """
    started = time.perf_counter()
    strategy = make_strategy(config.strategy, config.tpu_address, config.min_shard_kib << 10)
    data = {"config": config.model_dump(mode="json"), "rows": columns.rows, "paths": list(map(str, columns.paths))}
    run = _Run(strategy, config, Path(work) / fingerprint({**data, "identity": identity})[:16], transform)
    chief = is_chief(strategy)
    if keep and chief:
        remove_abandoned(run.work.parent, run.work.name)
    with locked(run.work) if chief else nullcontext():
        first = run.fit("fit", build, columns, config.epochs, evaluate, monitor)
        if on_validated is not None:
            on_validated(first.model)
        history, refit_history = first.history, {}
        model, rates = first.model, first.examples_per_second
        if config.refit and refit_columns is not None:
            second = run.fit("refit", build_refit or build, refit_columns, first.epochs, None, "")
            model, refit_history = second.model, second.history
            rates = second.examples_per_second or rates
    if not keep:
        run.forget()
    rate = sorted(rates)[len(rates) // 2] if rates else 0.0
    seconds = time.perf_counter() - started
    return Trained(model, history, first.epochs, rate, seconds, chief, refit_history, run.forget)


def remove_abandoned(work: Path, own: str) -> None:
    """Removes what killed trainings left in `work`, but for the folder `own` and those that a process still uses."""
    for folder in work.glob("[0-9a-f]" * 16):
        if folder.name == own:
            continue
        with suppress(ArtifactError), locked(folder):  # in use
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Fitted:
    model: tf_keras.Model
    history: dict[str, list[float]]
    epochs: int
    examples_per_second: list[float]


@dataclass(frozen=True)
class _Run:
    """What all fits of one training share."""

    strategy: tf.distribute.Strategy
    config: TrainingConfig
    work: Path
    transform: Transform | None

    def fit(
        self,
        name: str,
        build: Build,
        columns: ExampleColumns,
        epochs: int,
        evaluate: Evaluate | None,
        monitor: str,
    ) -> _Fitted:
        config, folder = self.config, self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        steps = config.steps_per_epoch or steps_per_pass(columns.rows, config.batch_size)
        tf_keras.utils.set_random_seed(config.seed)
        model = self._compiled(build, steps)
        chief = is_chief(self.strategy)

        validation = None
        if evaluate is not None:
            validation = Validation(lambda: evaluate(model), monitor, config.patience, folder, chief)
            validation.set_model(model)  # `fit` does, but is not called where all epochs were done before
        resume = Resume(folder / "checkpoints", validation, chief) if config.checkpoints else None
        done = resume.restore(model) if resume else 0
        progress = TrainingProgress(config.batch_size, per_step=config.strategy != StrategyName.PARAMETER_SERVER)
        callbacks: list[tf_keras.callbacks.Callback] = [c for c in (validation, progress, resume) if c is not None]
        if config.tensorboard and chief:
            callbacks.append(
                tf_keras.callbacks.TensorBoard(str(self.work.parent / "tensorboard" / name), profile_batch=0)
            )
        history: dict[str, list[float]] = dict(resume.history) if resume else {}
        if done < epochs and not (resume and resume.stopped()):
            try:
                fitted = model.fit(
                    self._input(columns, folder, first_step=done * steps),
                    epochs=epochs,
                    initial_epoch=done,
                    steps_per_epoch=steps,
                    callbacks=callbacks,
                    verbose=0,
                )
            finally:
                progress.close()
            history = {key: [*history.get(key, [])[:done], *values] for key, values in fitted.history.items()}
        if validation is not None:
            validation.restore_best()
            epochs = validation.best_epoch
        return _Fitted(model, history, epochs, progress.examples_per_second)

    def _compiled(self, build: Build, steps: int) -> tf_keras.Model:
        config = self.config
        before = tf_keras.mixed_precision.global_policy()
        tf_keras.mixed_precision.set_global_policy("mixed_bfloat16" if config.mixed_precision else "float32")
        try:
            with self.strategy.scope():
                model = build()
                model.compile(
                    make_optimizer(config, config.epochs * steps),
                    jit_compile=config.jit_compile,
                    steps_per_execution=config.steps_per_execution,
                )
                if config.strategy == StrategyName.MULTI_WORKER:
                    # Metrics are those of all workers already, which Keras would add up once more.
                    model.distribute_reduction_method = "first"
        finally:
            tf_keras.mixed_precision.set_global_policy(before)
        return model

    def _input(self, columns: ExampleColumns, folder: Path, first_step: int) -> Any:
        config = self.config
        if config.strategy == StrategyName.PARAMETER_SERVER:
            records = folder / "records"
            if not records.exists():
                write_records(columns, records, files=len(columns.paths))

        def make(context: tf.distribute.InputContext) -> tf.data.Dataset:
            batch_size = context.get_per_replica_batch_size(config.batch_size)
            if config.strategy == StrategyName.PARAMETER_SERVER:
                # Every worker reads all files: each in an order of its own, so that they do not go side by side.
                return records_dataset(records, columns.signature, batch_size, None, config.input, self.transform)
            readers = context.num_input_pipelines
            own = columns.for_reader(context.input_pipeline_id, readers) if readers > 1 else columns
            return training_dataset(
                own,
                batch_size,
                config.seed + context.input_pipeline_id,
                config.input,
                self.transform,
                first_step * context.num_replicas_in_sync // readers,
            )

        return tf_keras.utils.experimental.DatasetCreator(make)

    def forget(self) -> None:
        """Removes checkpoints and records; first the files without which a checkpoint does not exist."""
        if is_chief(self.strategy) and self.work.exists():
            for state in self.work.glob(f"*/checkpoints/{Resume.STATE}"):
                state.unlink()
            tf.io.gfile.rmtree(str(self.work))


def make_optimizer(config: TrainingConfig, total_steps: int) -> tf_keras.optimizers.Optimizer:
    """The optimizer with its schedule over `total_steps` steps."""
    rate: Any = config.learning_rate
    if config.schedule == Schedule.LINEAR:
        rate = tf_keras.optimizers.schedules.PolynomialDecay(rate, total_steps, end_learning_rate=0.0)
    elif config.schedule == Schedule.COSINE:
        rate = tf_keras.optimizers.schedules.CosineDecay(rate, total_steps)
    make = LazyAdam if config.optimizer == OptimizerName.LAZY_ADAM else tf_keras.optimizers.Adagrad
    # The whole step is compiled where wanted; Keras would compile each variable's update by itself on GPUs.
    return make(rate, global_clipnorm=config.clip_norm, jit_compile=False)
