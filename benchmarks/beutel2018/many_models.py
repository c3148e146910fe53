"""Many small models trained as one: every variable has a leading axis over models, and so has the data.

The loss is the sum of the models' own, and Adagrad works element by element, so each model is trained as if it were
alone. The models see the axes of a `SyntheticTensors` as discrete features, each with an embedding table of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import tensorflow as tf
import tf_keras

from benchmarks.beutel2018.synthetic_tensors import SyntheticTensors, balanced_batches, pearson

Predictor = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""Indices and rows to predictions, see `ManyModels.__call__`."""


class ManyModels(tf.Module, ABC):
    """Models of one shape.

    Args:
      seeds: of the initial values, one for each model.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        self._random = [np.random.default_rng([seed, 1]) for seed in seeds]

    @abstractmethod
    def __call__(self, indices: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Predictions `[models, columns, rows]` for columns at `indices` `[columns, axes − 1]` and `rows` `[rows]`."""

    @property
    def count(self) -> int:
        """How many models."""
        return len(self._random)

    @property
    def parameters(self) -> int:
        """Of one model."""
        return sum(variable.shape.num_elements() for variable in self.trainable_variables) // self.count

    def _normal(self, shape: tuple[int, ...], stddev: float) -> tf.Variable:
        return self._variable([random.normal(0, stddev, shape) for random in self._random])

    def _glorot(self, shape: tuple[int, ...], inputs: int, outputs: int) -> tf.Variable:
        """Uniform in ±√(6 / (inputs + outputs)), TensorFlow's own for a layer."""
        limit = (6 / (inputs + outputs)) ** 0.5
        return self._variable([random.uniform(-limit, limit, shape) for random in self._random])

    def _zeros(self, *shape: int) -> tf.Variable:
        return self._variable([np.zeros(shape)] * self.count)

    def _variable(self, values: Sequence[np.ndarray]) -> tf.Variable:
        return tf.Variable(np.stack(values).astype(np.float32))


class ConcatenatedNetworks(ManyModels):
    """Embeddings of all axes concatenated, ReLU layers, a linear output.

    A layer on a concatenation is the sum of one layer per part, so the first layer is computed once per index of an
    axis and added up cell by cell.

    Args:
      seeds: see base class.
      axes, size: of the tensors.
      dimension: of an embedding.
      widths: of the ReLU layers, at least one.
      embedding_stddev: of the initial embeddings; None is `1 / sqrt(dimension)`.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        axes: int,
        size: int,
        dimension: int,
        widths: Sequence[int],
        embedding_stddev: float | None = None,
    ) -> None:
        super().__init__(seeds)
        stddev = dimension**-0.5 if embedding_stddev is None else embedding_stddev
        self.embeddings = [self._normal((size, dimension), stddev) for _ in range(axes)]
        inputs = axes * dimension
        self.first = [self._glorot((dimension, widths[0]), inputs, widths[0]) for _ in range(axes)]
        self.first_bias = self._zeros(widths[0])
        self.kernels = [self._glorot(pair, *pair) for pair in pairwise(widths)]
        self.biases = [self._zeros(width) for width in widths[1:]]
        self.output = self._glorot((widths[-1],), widths[-1], 1)
        self.output_bias = self._zeros()

    def __call__(self, indices: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        parts = [tf.einsum("snd,sdk->snk", *pair) for pair in zip(self.embeddings, self.first, strict=True)]
        of_rows = tf.gather(parts[0], rows, axis=1) + self.first_bias[:, tf.newaxis]
        of_columns = tf.add_n([tf.gather(part, indices[:, i], axis=1) for i, part in enumerate(parts[1:])])
        hidden = tf.nn.relu(of_columns[:, :, tf.newaxis] + of_rows[:, tf.newaxis])
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            hidden = tf.nn.relu(tf.einsum("scnk,skl->scnl", hidden, kernel) + bias[:, tf.newaxis, tf.newaxis])
        return tf.einsum("scnk,sk->scn", hidden, self.output) + self.output_bias[:, tf.newaxis, tf.newaxis]


class LatentCrosses(ManyModels):
    """The embedding of the first axis, crossed with those of the others, and a linear output (Equations 5 and 7).

    Args:
      seeds: see base class.
      axes, size: of the tensors.
      dimension: of an embedding.
      stacked: one cross after the other, (1 + w1) ∗ ((1 + w2) ∗ h); otherwise the paper's (1 + w1 + w2) ∗ h. With two
        axes there is one cross and they are the same.
    """

    def __init__(self, seeds: Sequence[int], axes: int, size: int, dimension: int, stacked: bool) -> None:
        super().__init__(seeds)
        self.stacked = stacked
        self.embeddings = [self._normal((size, dimension), dimension**-0.5) for _ in range(axes)]
        self.output = self._glorot((dimension,), dimension, 1)
        self.output_bias = self._zeros()

    def __call__(self, indices: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        hidden = tf.gather(self.embeddings[0], rows, axis=1)
        crosses = [tf.gather(table, indices[:, i], axis=1) for i, table in enumerate(self.embeddings[1:])]
        if self.stacked:
            factor = tf.reduce_prod(tf.stack([1 + cross for cross in crosses]), axis=0)
        else:
            factor = 1 + tf.add_n(crosses)
        crossed = tf.einsum("scd,snd,sd->scn", factor, hidden, self.output)
        return crossed + self.output_bias[:, tf.newaxis, tf.newaxis]


class Factorizations(ManyModels):
    """⟨u_j, v_i, w_a⟩ of vectors of length `rank`, one per index of each axis; no other parameters.

    Initial entries have the standard deviation at which predictions have variance 1 (Equation 2).

    Args:
      seeds: see base class.
      axes, size: of the tensors.
      rank: length of the vectors.
    """

    def __init__(self, seeds: Sequence[int], axes: int, size: int, rank: int) -> None:
        super().__init__(seeds)
        self.factors = [self._normal((size, rank), rank ** (-1 / (2 * axes))) for _ in range(axes)]

    def __call__(self, indices: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        of_columns = [tf.gather(factor, indices[:, i], axis=1) for i, factor in enumerate(self.factors[1:])]
        product = tf.reduce_prod(tf.stack(of_columns), axis=0)
        return tf.einsum("scr,snr->scn", product, tf.gather(self.factors[0], rows, axis=1))


@dataclass(frozen=True)
class Training:
    """How models are trained: Adagrad on the mean squared error, until they have converged.

    Converged: the latest doubling of the steps raised R of no model by more than `tolerance`. (Adagrad's steps shrink
    with the root of their number, so progress goes by the logarithm of the steps.)

    Args:
      learning_rate, initial_accumulator: Adagrad's.
      columns, rows: of a batch, see `balanced_batches`.
      first_check: steps before R is first measured.
      doublings: of the steps at most; training ends there, converged or not.
      tolerance: see above.
      steps_per_call: of TensorFlow; divides `first_check`.
      compiled: by XLA, which takes a second or two for each model.
    """

    learning_rate: float
    initial_accumulator: float
    columns: int
    rows: int
    first_check: int
    doublings: int
    tolerance: float = 0.001
    steps_per_call: int = 50
    compiled: bool = True


@dataclass(frozen=True)
class Fit:
    """What training gave.

    Args:
      steps: after which R was measured.
      correlations: Pearson's R over all cells then, `[len(steps), models]`.
      converged: bool `[models]`, see `Training`.
      parameters: of one model.
    """

    steps: tuple[int, ...]
    correlations: np.ndarray
    converged: np.ndarray
    parameters: int


def train(models: ManyModels, tensors: SyntheticTensors, training: Training, seed: int = 0) -> Fit:
    """Trains every model on the tensor at its place until all have converged; `seed` is of the batches."""
    make_steps = training_steps(models, tensors, training)
    predict = tf.function(models.__call__, jit_compile=training.compiled)
    batches = balanced_batches(tensors, training.columns, training.rows, seed)
    steps: list[int] = []
    found: list[np.ndarray] = []
    converged = np.zeros(len(tensors.values), bool)
    for doubling in range(training.doublings + 1):
        until = training.first_check << doubling
        done = steps[-1] if steps else 0
        for _ in range(done, until, training.steps_per_call):
            columns, rows = zip(*islice(batches, training.steps_per_call), strict=True)
            make_steps(tf.stack(columns), tf.stack(rows))
        steps.append(until)
        found.append(correlations(predict, tensors))
        if doubling:
            converged = found[-1] - found[-2] <= training.tolerance
        if converged.all():
            break
    return Fit(tuple(steps), np.stack(found), converged, models.parameters)


def training_steps(
    models: ManyModels, tensors: SyntheticTensors, training: Training
) -> tf.types.experimental.GenericFunction:
    """A function of columns `[steps, columns]` and rows `[steps, rows]`: a step on the cells of each."""
    values = tf.constant(tensors.values)
    places = tf.constant(tensors.indices(np.arange(tensors.values.shape[1])))
    optimizer = tf_keras.optimizers.Adagrad(training.learning_rate, training.initial_accumulator, jit_compile=False)
    optimizer.build(models.trainable_variables)

    @tf.function(jit_compile=training.compiled)
    def steps(columns: tf.Tensor, rows: tf.Tensor) -> None:
        for place in tf.range(tf.shape(columns)[0]):
            targets = tf.gather(tf.gather(values, columns[place], axis=1), rows[place], axis=2)
            with tf.GradientTape() as tape:
                error = models(tf.gather(places, columns[place]), rows[place]) - targets
                loss = tf.reduce_sum(tf.reduce_mean(error * error, axis=[1, 2]))
            gradients = tape.gradient(loss, models.trainable_variables)
            optimizer.apply_gradients(zip(gradients, models.trainable_variables, strict=True))

    return steps


def correlations(predict: Predictor, tensors: SyntheticTensors) -> np.ndarray:
    """Pearson's R of every model's predictions with its tensor over all cells, `[models]`."""
    rows = tf.range(tensors.size)
    columns = np.arange(tensors.values.shape[1])
    parts = np.split(columns, range(tensors.size, len(columns), tensors.size))
    predictions = np.concatenate([predict(tf.constant(tensors.indices(part)), rows).numpy() for part in parts], axis=1)
    return np.array([pearson(*pair) for pair in zip(predictions, tensors.values, strict=True)])
