"""What the exported modules share: signatures with named inputs that are made from the feature specification."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeAlias

import tensorflow as tf

Tensors = dict[str, tf.Tensor]
ConcreteFunction: TypeAlias = Any  # tf.types.experimental.ConcreteFunction; TensorFlow ships no types


class RawFeatureTransform(Protocol):
    """Raw inputs to model features inside the graph (`models/raw_features.py`)."""

    @property
    def input_specs(self) -> Mapping[str, tf.TensorSpec]:
        """Dtype and shape `[B, ...]` of every raw input the features need."""

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> Tensors:
        """Feature name -> tensor `[B, ...]`, impression features `[B, C, ...]`."""


def signature(function: Callable[[Tensors], Tensors], inputs: Mapping[str, tf.TensorSpec]) -> ConcreteFunction:
    """Traces `function` of a dict into a function with one named, typed argument per entry of `inputs`."""
    named = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in inputs.items()}

    @tf.function(autograph=False)
    def call(**raw: tf.Tensor) -> Tensors:
        return function(raw)

    return call.get_concrete_function(**named)


class Untracked:
    """Holds a model beside a module without its becoming part of the module's SavedModel.

    A Keras model brings its optimizer's slots, metrics and output table along; an export needs only the variables that
    its signatures read.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


def variables_read(functions: Iterable[ConcreteFunction]) -> list[tf.Variable]:
    """The variables that traced functions read, each once, in the order in which they are first read.

    A graph's own list of them is in the order of their addresses, another one in each process, so that two exports of
    one model would number them differently.
    """
    found: dict[int, tf.Variable] = {}
    for function in functions:
        by_handle = {id(variable.handle): variable for variable in function.graph.variables}
        found |= {id(handle): by_handle[id(handle)] for handle in function.captured_inputs if id(handle) in by_handle}
    return list(found.values())
