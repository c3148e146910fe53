"""Distribution strategies by configuration (`tf.distribute`)."""

import json
import os
from collections.abc import Callable
from enum import StrEnum
from functools import cache

import tensorflow as tf

from features.errors import ConfigError

_TABLE_ROWS_TO_COLUMNS = 4  # at least so many rows has a table that is split


class StrategyName(StrEnum):
    """Where a model is trained.

    The two strategies of several machines read the cluster from the environment variable `TF_CONFIG`, as TensorFlow
    defines it.
    """

    ONE_DEVICE = "one_device"
    MIRRORED = "mirrored"  # all GPUs of this machine (or its logical CPUs), synchronous
    MULTI_WORKER = "multi_worker"  # the same program on every machine, synchronous
    PARAMETER_SERVER = "parameter_server"  # this program coordinates workers; tables are sharded over servers
    TPU = "tpu"  # not measured


def make_strategy(
    name: StrategyName, tpu_address: str = "", min_shard_bytes: int = 256 << 10
) -> tf.distribute.Strategy:
    """The strategy of that name; several machines must be told of before any other TensorFlow operation.

    All trainings of a process share that of several machines or of a TPU: connecting anew ends what the others are
    about to do together.

    Args:
      name: see `StrategyName`.
      tpu_address: of the TPU system; empty for a TPU attached to this machine.
      min_shard_bytes: a parameter server's part of a variable is at least this large.

    Raises:
      ConfigError: there is no cluster in `TF_CONFIG` or no TPU where one is needed.
    """
    if name == StrategyName.ONE_DEVICE:
        return tf.distribute.get_strategy()
    if name == StrategyName.MIRRORED:
        logical = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in logical])
    return _connected(name, tpu_address, min_shard_bytes)


@cache
def _connected(name: StrategyName, tpu_address: str, min_shard_bytes: int) -> tf.distribute.Strategy:
    if name == StrategyName.TPU:
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu_address)
        except ValueError as error:
            raise ConfigError(f"training strategy tpu: {error} Set tpu_address, or choose another strategy") from error
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
    needed = ("worker", "ps") if name == StrategyName.PARAMETER_SERVER else ("worker",)
    if not all(cluster.get(role) for role in needed):
        raise ConfigError(
            f"training strategy {name}: expected TF_CONFIG with a cluster of {' and '.join(needed)} tasks, found "
            f"{sorted(cluster) or 'none'}; set TF_CONFIG for every process, or choose one_device or mirrored"
        )
    if name == StrategyName.MULTI_WORKER:
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.ParameterServerStrategy(
        tf.distribute.cluster_resolver.TFConfigClusterResolver(),
        variable_partitioner=table_partitioner(min_shard_bytes, len(cluster["ps"])),
    )


def table_partitioner(min_shard_bytes: int, servers: int) -> Callable[[tf.TensorShape, tf.DType], list[int]]:
    """How variables are split over parameter servers: by rows, where these are many more than columns, as in tables.

    A recurrent layer hands its weights to a function of its own, which cannot take parts of one weight from several
    servers. Its weights have a column for each gate of each unit, so that they are not split.

    Args:
      min_shard_bytes: a part is at least this large.
      servers: parts at most.

    Returns:
      Shape and dtype of a variable -> number of parts along each axis.
    """
    split = tf.distribute.experimental.partitioners.MinSizePartitioner(min_shard_bytes, servers)

    def parts(shape: tf.TensorShape, dtype: tf.DType) -> list[int]:
        is_table = shape.rank == 2 and shape[0] >= _TABLE_ROWS_TO_COLUMNS * shape[1]
        return split(shape, dtype) if is_table else [1] * shape.rank

    return parts


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process publishes what was trained: all but the further workers of `multi_worker`."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    if resolver.task_type == "worker" and "chief" not in resolver.cluster_spec().jobs:
        return resolver.task_id == 0
    return resolver.task_type == "chief"


def is_further_process() -> bool:
    """Whether `TF_CONFIG` says that another process of the cluster is the one that publishes what is trained."""
    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
    task = cluster.get("task", {})
    if task.get("type") in (None, "chief"):
        return False
    return task["type"] != "worker" or "chief" in cluster.get("cluster", {}) or int(task.get("index", 0)) > 0


def serve_cluster() -> None:
    """Does what the coordinator of a parameter server training asks of this worker or server, until it is ended."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    tf.distribute.Server(
        resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id, protocol="grpc"
    ).join()
