"""Two ways to ask a SavedModel's signature: by a call from Python, and in a session, as TensorFlow Serving holds one.

By default a session hands every request to a thread of its pool and back. With a negative number of inter-op threads it
runs the graph in the thread that asks (TensorFlow, `core/common_runtime/direct_session.h`, at `run_in_caller_thread_`).
The server takes that number from `--tensorflow_inter_op_parallelism=-1` beside a positive
`--tensorflow_intra_op_parallelism`, or from `TF_NUM_INTEROP_THREADS=-1` in its environment; the number of threads in a
`--tensorflow_session_config_file` it replaces by its flags (TensorFlow Serving, `model_servers/server.cc`,
`Server::BuildAndStart`, commit 9d981c5).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

Answer = Callable[[], np.ndarray]
"""Asks one request whose inputs are ready: the answered video ids, bytes `[k]`."""

_SIGNATURE = "retrieval"


def answers_by_python(folder: Path, watched: Sequence[Sequence[str]]) -> list[Answer]:
    """Requests, each with its watched videos, by the function of `tf.saved_model.load`."""
    loaded = tf.saved_model.load(str(folder))

    def answer(request: Mapping[str, tf.Tensor]) -> np.ndarray:
        # Taken from the model each time: the function alone would not keep the model's tables.
        return loaded.signatures[_SIGNATURE](**request)["video_ids"].numpy()[0]

    inputs = loaded.signatures[_SIGNATURE].structured_input_signature[1]
    return [partial(answer, raw_request(inputs, videos)) for videos in watched]


def answers_by_session(folder: Path, watched: Sequence[Sequence[str]]) -> list[Answer]:
    """The same requests in a session that runs the graph in the caller's thread; it answers the scores too."""
    with tf.Graph().as_default():
        session = tf.compat.v1.Session(config=tf.compat.v1.ConfigProto(inter_op_parallelism_threads=-1))
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def[_SIGNATURE]
        outputs = [signature.outputs[name].name for name in ("video_ids", "scores")]
        call = session.make_callable(outputs, feed_list=[info.name for info in signature.inputs.values()])
    inputs = {name: tf.TensorSpec(info.tensor_shape, info.dtype) for name, info in signature.inputs.items()}

    def answer(request: Sequence[np.ndarray]) -> np.ndarray:
        return call(*request)[0][0]

    requests = (raw_request(inputs, videos) for videos in watched)
    return [partial(answer, [request[name].numpy() for name in inputs]) for request in requests]


def raw_request(inputs: Mapping[str, tf.TensorSpec], watched: Sequence[str]) -> dict[str, tf.Tensor]:
    """One raw request of the signature: watched videos and three searches; nothing else is known."""
    given = {"watched_video_ids": [list(watched)], "search_queries": [["token1 token2", "token3", "token4"]]}
    absent = {name: tf.zeros([1] + [0] * (spec.shape.rank - 1), spec.dtype) for name, spec in inputs.items()}
    return {name: tf.constant(given[name]) if name in given else empty for name, empty in absent.items()}
