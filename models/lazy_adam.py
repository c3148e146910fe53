"""Adam that touches only the embedding rows of the batch.

Keras's Adam decays the moments of every row of a table in every step, so a step costs as much as the table is large.
Here a row has a clock of its own: moments, bias correction and value move only when the row has a gradient, exactly as
Adam (Kingma and Ba 2014, algorithm 1) would move the row on its own sequence of gradients. Dense variables are updated
by plain Adam.
"""

import math
from typing import Any

import tensorflow as tf
import tf_keras


@tf_keras.utils.register_keras_serializable("upnext")
class LazyAdam(tf_keras.optimizers.Optimizer):
    """See the module's text.

    Args:
      learning_rate: a number or a Keras schedule.
      beta_1: decay of the mean of gradients per update of a row.
      beta_2: decay of the mean of squared gradients.
      epsilon: added to the root of the latter.
      **kwargs: of the Keras optimizer (`clipnorm`, ...).
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        name: str = "LazyAdam",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, var_list: list[tf.Variable]) -> None:
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._built = True
        self._means, self._squares, self._row_steps = [], [], []
        for variable in var_list:
            self._means.append(self.add_variable_from_reference(variable, "mean"))
            self._squares.append(self.add_variable_from_reference(variable, "square"))
            # Of use to tables only; which variables have sparse gradients is not known yet, and a vector is cheap.
            rows = variable.shape[:1] if variable.shape.rank == 2 else []
            self._row_steps.append(self.add_variable_from_reference(variable, "row_steps", shape=rows))

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        index = self._index_dict[self._var_key(variable)]
        mean, square, row_steps = self._means[index], self._squares[index], self._row_steps[index]
        rate = tf.cast(self.learning_rate, variable.dtype)
        if not isinstance(gradient, tf.IndexedSlices):
            steps = tf.cast(self.iterations + 1, variable.dtype)
            mean.assign_add((gradient - mean) * (1 - self.beta_1))
            square.assign_add((tf.square(gradient) - square) * (1 - self.beta_2))
            variable.assign_sub(self._change(rate, mean, square, steps))
            return
        # The base class has summed duplicate rows before this.
        rows, values = gradient.indices, gradient.values
        row_mean = tf.gather(mean, rows)
        row_mean += (values - row_mean) * (1 - self.beta_1)
        row_square = tf.gather(square, rows)
        row_square += (tf.square(values) - row_square) * (1 - self.beta_2)
        steps = tf.gather(row_steps, rows) + 1
        mean.scatter_update(tf.IndexedSlices(row_mean, rows))
        square.scatter_update(tf.IndexedSlices(row_square, rows))
        row_steps.scatter_update(tf.IndexedSlices(steps, rows))
        change = self._change(rate, row_mean, row_square, steps[:, tf.newaxis])
        variable.scatter_sub(tf.IndexedSlices(change, rows))

    def _change(self, rate: tf.Tensor, mean: tf.Tensor, square: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        # 1 - beta^steps, without the loss of digits that 1 - 0.999 has in float32
        corrected_mean = mean / -tf.math.expm1(steps * math.log(self.beta_1))
        corrected_square = square / -tf.math.expm1(steps * math.log(self.beta_2))
        return rate * corrected_mean / (tf.sqrt(corrected_square) + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }
