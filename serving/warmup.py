"""Warm-up requests in TensorFlow Serving's format, sent by the server to a new version before it takes traffic."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"


def write_warmup_requests(
    folder: Path,
    model_name: str,
    signature: str,
    inputs: Mapping[str, np.ndarray],
    specs: Mapping[str, tf.TensorSpec],
    batch_sizes: Sequence[int] = (1, 8),
) -> int:
    """Writes one request per batch size made of the first rows of `inputs`.

    Args:
      folder: the model's version folder.
      model_name: the name the server knows the model by.
      signature: the signature to call.
      inputs: raw input name -> `[B, ...]`.
      specs: the signature's inputs; every one is sent with its dtype.
      batch_sizes: rows per request; sizes above B are left out, except that the smallest is cut to B.

    Returns:
      the number of requests written.
    """
    rows = len(next(iter(inputs.values())))
    sizes = sorted({min(batch_sizes[0], rows), *(size for size in batch_sizes if size <= rows)})
    path = folder / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in sizes:
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=model_name, signature_name=signature),
                inputs={
                    name: tf.make_tensor_proto(inputs[name][:size], dtype=spec.dtype) for name, spec in specs.items()
                },
            )
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
    return len(sizes)
