"""What happens during training besides the steps: progress, evaluation with early stopping, checkpoints."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from features.artifacts import fingerprint, write_whole
from features.errors import ArtifactError, ConfigError
from pipeline.model_folder import weights_checkpoint

Evaluate = Callable[[], dict[str, float]]
"""Computes validation metrics of the model in its present state."""

NOT_SHOWN = {"loss", "total_loss", "regularization_loss", "learning_rate"}
"""What `fit` records and people are not shown: losses are of the last batch alone."""


class TrainingProgress(tf_keras.callbacks.Callback):
    """A bar with the metrics, examples per second and the time left; where there is no terminal, a line per epoch.

    Step times are taken here, between the first and the last step of an epoch, so that they hold no tracing,
    evaluation or shutdown.

    Args:
      batch_size: examples of a step, over all replicas.
      per_step: whether callbacks run in each step (a parameter server strategy runs many steps at once).
      console: where to print.
    """

    def __init__(self, batch_size: int, per_step: bool = True, console: Console | None = None) -> None:
        super().__init__()
        self._batch_size = batch_size
        self._console = console or Console(file=sys.stderr)
        self._progress: Progress | None = None
        self._task: Any = None
        self._shown = 0.0
        self.examples_per_second: list[float] = []  # by epoch
        if per_step:
            self.on_train_batch_end = self._step_end

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._console.is_terminal:
            columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn())
            tail = (TextColumn("{task.fields[text]}"), TimeRemainingColumn())
            self._progress = Progress(*columns, *tail, console=self._console, transient=True)
            self._progress.start()
            total = self.params["epochs"] * self.params["steps"]
            self._task = self._progress.add_task("", total=total, text="", epoch=1)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._began = time.perf_counter()
        self._first_step_ended: float | None = None
        self._first_step = self._last_step = 0
        self._epoch = epoch

    def _step_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        now = time.perf_counter()
        if self._first_step_ended is None:
            self._first_step_ended, self._first_step = now, batch
        self._last_step_ended, self._last_step = now, batch
        if self._progress is not None and now - self._shown > 0.2:
            self._shown = now
            self._progress.update(
                self._task,
                completed=self._epoch * self.params["steps"] + batch + 1,
                epoch=self._epoch + 1,
                text=f"{_metrics_text(logs)}, {self._rate():,.0f} examples/s",
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.examples_per_second.append(self._rate())
        line = f"epoch {epoch + 1}/{self.params['epochs']}: {_metrics_text(logs)}"
        line += f", {self.examples_per_second[-1]:,.0f} examples/s, {time.perf_counter() - self._began:.1f} s"
        (self._progress.console if self._progress else self._console).print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Removes the bar; also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _rate(self) -> float:
        """Examples per second of this epoch: between its first and last step where these were seen."""
        steps = self._last_step - self._first_step
        if self._first_step_ended is None or not steps:
            return self.params["steps"] * self._batch_size / max(time.perf_counter() - self._began, 1e-9)
        return steps * self._batch_size / max(self._last_step_ended - self._first_step_ended, 1e-9)


def _metrics_text(logs: dict[str, Any] | None) -> str:
    return ", ".join(
        f"{name} {float(np.mean(value)):.4f}" for name, value in (logs or {}).items() if name not in NOT_SHOWN
    )


class Validation(tf_keras.callbacks.Callback):
    """Evaluates after each epoch, keeps the weights of the best one and stops when it does not get better.

    Args:
      evaluate: gives the metrics of the present weights, greater is better for `monitor`.
      monitor: the metric that decides.
      patience: epochs without a better value before training stops; None never stops.
      folder: where the best weights are kept during training.
      chief: whether this process keeps them; a further worker ends with the weights of the last epoch.
    """

    def __init__(
        self, evaluate: Evaluate, monitor: str, patience: int | None, folder: Path, chief: bool = True
    ) -> None:
        super().__init__()
        self._evaluate = evaluate
        self._monitor = monitor
        self._patience = patience
        self._folder = folder
        self._chief = chief
        self.best_epoch = 0  # 1 is the first; 0: none yet
        self.best_value = -np.inf

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # Not sooner: until the epoch's checkpoint was written, a killed run goes back to the best before.
        if self._chief:
            _remove_others(self._folder, "best-", self._best)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        metrics = self._evaluate()
        if logs is not None:
            logs.update(metrics)
        if metrics[self._monitor] > self.best_value:
            self.best_epoch, self.best_value = epoch + 1, metrics[self._monitor]
            if self._chief:
                weights_checkpoint(self.model).write(str(self._folder / self._best))
        elif self._patience is not None and epoch + 1 - self.best_epoch >= self._patience:
            self.model.stop_training = True

    def restore_best(self) -> None:
        """Puts the weights of the best epoch back.

        Raises:
          ConfigError: no epoch had a metric that is a number.
        """
        if not self.best_epoch:
            raise ConfigError(
                f"training: expected {self._monitor} to be a number in some epoch, found none; training diverged, "
                "lower its learning_rate"
            )
        if self._chief:
            with damaged_checkpoint_named(self._folder):
                weights_checkpoint(self.model).read(str(self._folder / self._best)).assert_consumed()

    @property
    def _best(self) -> str:
        return f"best-{self.best_epoch}"


class Resume(tf_keras.callbacks.Callback):
    """A checkpoint of model, optimizer, history and validation after each epoch, from which a killed run goes on.

    Args:
      folder: of the checkpoints, read by all processes.
      validation: whose state is kept too, or None.
      chief: whether this process writes them.
    """

    STATE = "state.json"

    def __init__(self, folder: Path, validation: Validation | None, chief: bool = True) -> None:
        super().__init__()
        self._folder = folder
        self._chief = chief
        self._validation = validation
        self.history: dict[str, list[float]] = {}

    def restore(self, model: tf_keras.Model) -> int:
        """Puts back what the last whole checkpoint holds and returns the number of epochs done.

        Raises:
          ArtifactError: the checkpoint is damaged.
        """
        state = self._state()
        if state is None:
            return 0
        model.optimizer.build(model.trainable_variables)
        checkpoint = tf.train.Checkpoint(weights=weights_checkpoint(model), optimizer=model.optimizer)
        with damaged_checkpoint_named(self._folder):
            checkpoint.read(str(self._folder / state["checkpoint"])).assert_existing_objects_matched()
        self.history = state["history"]
        if self._validation is not None:
            self._validation.best_epoch = state["best_epoch"]
            self._validation.best_value = state["best_value"]
        return int(state["epochs"])

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(np.mean(value)))
        if not self._chief:
            return
        name = f"epoch-{epoch + 1}"
        self._folder.mkdir(parents=True, exist_ok=True)
        tf.train.Checkpoint(weights=weights_checkpoint(self.model), optimizer=self.model.optimizer).write(
            str(self._folder / name)
        )
        state = {
            "epochs": epoch + 1,
            "checkpoint": name,
            "history": self.history,
            "best_epoch": self._validation.best_epoch if self._validation else 0,
            "best_value": self._validation.best_value if self._validation else 0.0,
            "stopped": bool(self.model.stop_training),
        }
        # The state file is what makes a checkpoint whole; the one before is removed after it.
        write_whole(self._folder / self.STATE, json.dumps({"state": state, "sha256": fingerprint(state)}))
        _remove_others(self._folder, "epoch-", name)

    def stopped(self) -> bool:
        """Whether the run that left the checkpoint had come to its end."""
        state = self._state()
        return state is not None and bool(state["stopped"])

    def _state(self) -> dict[str, Any] | None:
        """What the state file holds; None where there is none."""
        file = self._folder / self.STATE
        if not file.is_file():
            return None
        with damaged_checkpoint_named(self._folder):
            value = json.loads(file.read_text(encoding="utf-8"))
            if fingerprint(value["state"]) != value["sha256"]:
                raise ValueError(f"{self.STATE} differs from what was written")
            return dict(value["state"])


@contextmanager
def damaged_checkpoint_named(folder: Path) -> Iterator[None]:
    """What TensorFlow says of a damaged checkpoint in `folder`, as an ArtifactError that names it."""
    try:
        yield
    except (AssertionError, ValueError, LookupError, TypeError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ArtifactError(
            f"{folder}: the checkpoint of a stopped training is damaged ({reason}); delete {folder} and run again"
        ) from error


def _remove_others(folder: Path, start: str, kept: str) -> None:
    """Removes the files of all checkpoints whose name has that start, but for one."""
    for path in folder.glob(f"{start}*"):
        if not path.name.startswith(f"{kept}."):
            path.unlink()
