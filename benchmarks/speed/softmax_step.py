"""The sampled softmax beside TensorFlow's own and PyTorch's, in a process of its own: `SCALE [PEERS' PYTHON]`.

A process, because what memory comes in (`pipeline/huge_pages.py`) is settled when one starts.
"""

import gc
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from benchmarks.speed.measuring import in_turn, median_ratio
from benchmarks.speed.peers import Peers
from benchmarks.speed.training_models import SoftmaxSizes, video_generator
from features.errors import DataError
from models.sampled_softmax import SampledSoftmax
from models.samplers import LABEL_EXPECTED_COUNT, NEGATIVES, NEGATIVES_EXPECTED_COUNT

THEIRS = "tf.nn.sampled_softmax_loss"


def main(scale: str, peers_python: str | None = None) -> None:
    """Prints the sizes, `rows` of name, milliseconds and times ours, and the largest difference of gradients.

    `ratio` is how many times as fast as TensorFlow's we are with the most negatives.
    """
    smoke = scale == "smoke"
    sizes = SoftmaxSizes(20_000, 256, 16) if smoke else SoftmaxSizes(1_000_000, 1024, 64)
    peers = Peers(Path(peers_python) if peers_python else None)
    rows: list[tuple[str, float, float]] = []
    ratio = difference = 0.0
    for sampled in (100, 400) if smoke else (2_000, 20_000):
        batch = sizes.batch_of(sampled)
        losses = {"ours": our_loss(sizes), THEIRS: tensorflow_loss(sizes)}
        difference = max(difference, gradient_difference(*losses.values(), batch))
        steps = {name: _step(*parts, batch) for name, parts in losses.items()}
        with ExitStack() as stack:
            if not peers.missing(["torch"]):
                threads = len(os.sched_getaffinity(0))
                arguments = json.dumps({**sizes.as_json(), "sampled": sampled, "threads": threads})
                peer = stack.enter_context(peers.start("peer_torch.py", "softmax", arguments))
                steps[f"PyTorch {peer.read()['ready']}"] = lambda peer=peer: peer.ask(1)
            seconds = in_turn(steps, 2 if smoke else 9, each=1 if smoke else 3, warm_up=2)
        ours = seconds["ours"]
        for name, found in seconds.items():
            rows.append((f"{name}, {sampled:,} negatives", statistics.median(found) * 1e3, median_ratio(ours, found)))
        ratio = median_ratio(ours, seconds[THEIRS])
        del losses, steps
        gc.collect()
    print(json.dumps({**sizes.as_json(), "rows": rows, "ratio": ratio, "difference": difference}))


Loss = Callable[[Mapping[str, tf.Tensor]], tf.Tensor]


def our_loss(sizes: SoftmaxSizes) -> tuple[tf.Variable, Loss]:
    generator = video_generator(sizes)
    softmax = SampledSoftmax()

    def loss(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return tf.reduce_mean(softmax(generator, batch["queries"], batch, training=True))

    return generator.table.embeddings, loss


def tensorflow_loss(sizes: SoftmaxSizes) -> tuple[tf.Variable, Loss]:
    """Rows as in ours, so row 0 is a class that is never drawn."""
    table = video_generator(sizes).table.embeddings
    biases = tf.zeros([sizes.videos + 1])

    def loss(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        labels = tf.cast(batch["label"], tf.int64)[:, tf.newaxis]
        drawn = (
            tf.cast(batch[NEGATIVES], tf.int64),
            batch[LABEL_EXPECTED_COUNT][:, tf.newaxis],
            batch[NEGATIVES_EXPECTED_COUNT],
        )
        count = batch[NEGATIVES].shape[0]
        losses = tf.nn.sampled_softmax_loss(
            table, biases, labels, batch["queries"], count, sizes.videos + 1, sampled_values=drawn
        )
        return tf.reduce_mean(losses)

    return table, loss


def gradient_difference(
    ours: tuple[tf.Variable, Loss], theirs: tuple[tf.Variable, Loss], batch: Mapping[str, tf.Tensor]
) -> float:
    """The largest difference of any entry of two losses' gradients, as a share of the largest entry."""
    found = []
    for table, loss in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(batch["queries"])
            value = loss(batch)
        of_table, of_queries = tape.gradient(value, [table, batch["queries"]])
        found.append((tf.convert_to_tensor(of_table).numpy(), of_queries.numpy()))
    if any(not np.abs(gradient).max() > 0 for gradients in found for gradient in gradients):
        raise DataError("sampled softmax: expected gradients, found zeros; look at the losses that are compared")
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(*found, strict=True))


def _step(table: tf.Variable, loss: Loss, batch: Mapping[str, tf.Tensor]) -> Callable[[], object]:
    optimizer = tf_keras.optimizers.Adagrad(0.1, jit_compile=False)
    optimizer.build([table])

    @tf.function
    def step(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(batch)
        optimizer.apply_gradients([(tape.gradient(value, table), table)])
        return value

    return lambda: step(batch).numpy()


if __name__ == "__main__":
    main(*sys.argv[1:])
