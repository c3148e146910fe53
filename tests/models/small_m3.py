"""A small M3 with context, for tests of it."""

import tensorflow as tf
import tf_keras

from models.context_features import ContextFeature, Use
from models.m3 import M3, Gate, M3Config
from models.sampled_softmax import Loss
from tests.models.sequence_batches import SIZES, SPEC

CONTEXT = [
    ContextFeature(name="page", pre=Use.CONCATENATE, post=Use.CONCATENATE),
    ContextFeature(name="time_delta", pre=Use.CONCATENATE),
]


def small(**config: object) -> M3:
    """A model whose biases are not zero, so that nothing is zero by chance."""
    tf_keras.utils.set_random_seed(1)
    sizes = {"dimension": 4, "input_widths": (5,), "encoder_dimension": 3, "output_widths": (6,), "loss": Loss.FULL}
    model = M3(M3Config(**{**sizes, "context": CONTEXT, "gate": Gate.CONTEXTUAL, **config}), SPEC, SIZES)
    for weight in model.trainable_variables:
        if "bias" in weight.name:
            weight.assign(tf.random.uniform(weight.shape, 0.1, 1.0))
    return model
