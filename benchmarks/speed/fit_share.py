"""How much of the bare training step's speed `fit` reaches when it reads its batches: the input pipeline's share.

An example set is built from a generated log (`event_logs.py`) and read as in a training run: shuffled, padded,
negatives drawn by frequency. The bare step is the same model's on a batch of the same set that stays in memory.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from benchmarks.speed import beam_jobs
from benchmarks.speed.event_logs import LogSize, write_logs
from benchmarks.speed.training_models import bare_step
from features.example_reader import ExampleSet
from features.splits import Part
from features.vocabulary import Vocabulary
from models.candidate_generator import LABEL, WEIGHT
from models.samplers import attach_negatives, make_sampler
from models.two_tower import TwoTower, TwoTowerConfig
from pipeline.input_pipeline import ExampleColumns, training_dataset
from pipeline.training import TrainingConfig, make_optimizer

WARM_STEPS = 10


@dataclass(frozen=True)
class FitShare:
    """Steps per second of the bare step and of `fit`, and the median over turns of fit's as a share of the bare's."""

    bare: float
    fit: float
    ratio: float
    about: str


class _StepTimes(tf_keras.callbacks.Callback):
    """When each step ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.ended.append(time.perf_counter())

    @property
    def steps_per_second(self) -> float:
        """Without the first steps, which wait for the buffer to fill."""
        timed = self.ended[WARM_STEPS - 1 :]
        return (len(timed) - 1) / (timed[-1] - timed[0])


def fit_share(scratch: Path, smoke: bool) -> FitShare:
    """Builds the examples under `scratch` and measures."""
    tables, folder = scratch / "fit-tables", scratch / "fit"
    size = LogSize(20_000, 2_000, 500) if smoke else LogSize(2_000_000)
    write_logs(tables, size)
    beam_jobs.analysis(tables, folder, [])
    beam_jobs.examples(tables, folder, [])
    examples = ExampleSet(folder / "examples" / "candidate_generator")
    columns = ExampleColumns(examples, (Part.TRAIN,), (LABEL, WEIGHT))
    vocabularies = {
        path.stem: Vocabulary.read(path) for path in (folder / "features" / "vocabularies").glob("*.parquet")
    }
    config = TwoTowerConfig()
    training = TrainingConfig(batch_size=256 if smoke else 1024)
    model = TwoTower(config, examples.spec, {name: found.size for name, found in vocabularies.items()})
    model.compile(make_optimizer(training, 1000))
    negatives = attach_negatives(make_sampler(config.sampler, vocabularies["video"].counts, seed=0))

    def dataset() -> tf.data.Dataset:
        return training_dataset(columns, training.batch_size, 0, training.input, negatives)

    step = bare_step(model, next(iter(dataset())))
    turns, steps = (2, 5) if smoke else (5, 100)
    bare, fit = [], []
    for _ in range(turns):
        times = _StepTimes()
        model.fit(dataset(), epochs=1, steps_per_epoch=WARM_STEPS + steps, callbacks=[times], verbose=0)
        fit.append(times.steps_per_second)
        step()
        started = time.perf_counter()
        for _ in range(steps):
            step()
        bare.append(steps / (time.perf_counter() - started))
    about = (
        f"The default two-tower model on {columns.rows:,} examples of {vocabularies['video'].size:,} videos, batch "
        f"{training.batch_size:,}, {config.sampler.num_sampled:,} negatives, lazy Adam."
    )
    ratio = statistics.median(f / b for f, b in zip(fit, bare, strict=True))
    return FitShare(statistics.median(bare), statistics.median(fit), ratio, about)
