"""Example sets as fixed-length binary records, for workers that are other processes.

A dataset made of a Python generator runs only in the process that made it. The workers of a parameter server strategy
run TensorFlow operations that the coordinator sends them; for them the columns are written once as records that
TensorFlow reads by itself: one record is one row's columns, 4-byte numbers one after another.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from features.errors import DataError
from pipeline.input_pipeline import ExampleColumns, InputConfig, Signature, Transform, finished


def write_records(columns: ExampleColumns, folder: Path, files: int, rows_at_once: int = 65_536) -> int:
    """Writes an example set as files of records.

    Args:
      columns: what is written.
      folder: does not exist; it appears when all is written.
      files: number of files, one or more per worker.
      rows_at_once: rows held in memory.

    Returns:
      The length of a record in bytes.

    Raises:
      DataError: a column is not of 4-byte numbers.
    """
    for name, (_, dtype) in columns.signature.items():
        if dtype.itemsize != 4:
            raise DataError(f"column {name!r}: expected 4-byte numbers for worker processes, found {dtype}")
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    partial.mkdir(parents=True)
    streams = [(partial / f"part-{index:05d}.records").open("wb") for index in range(files)]
    try:
        for batch in columns.ordered(rows_at_once):
            words = [values.reshape(len(values), -1).view(np.int32) for values in batch.values()]
            rows = np.concatenate(words, axis=1)
            for index, stream in enumerate(streams):
                stream.write(rows[index::files].tobytes())
    finally:
        for stream in streams:
            stream.close()
    partial.rename(folder)
    return 4 * sum(int(np.prod(shape)) for shape, _ in columns.signature.values())


def records_dataset(
    folder: Path,
    signature: Signature,
    batch_size: int,
    seed: int | None,
    config: InputConfig,
    transform: Transform | None = None,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """What `write_records` wrote as an endless stream of shuffled batches, made of TensorFlow operations alone.

    Args:
      folder: the files' folder, which every worker can read.
      signature: `ExampleColumns.signature` of the set.
      batch_size, seed, config, transform: as in `training_dataset`.
      shard: (index, count) of this reader; every reader without files of its own reads all.
    """
    paths = sorted(str(path) for path in folder.glob("part-*.records"))
    paths = paths[shard[0] :: shard[1]] or paths
    sizes = {name: int(np.prod(shape)) for name, (shape, _) in signature.items()}

    def decode(records: tf.Tensor) -> dict[str, tf.Tensor]:
        words = tf.io.decode_raw(records, tf.int32)
        words = tf.ensure_shape(words, [batch_size, sum(sizes.values())])
        parts: dict[str, Any] = dict(zip(sizes, tf.split(words, list(sizes.values()), axis=1), strict=True))
        return {
            name: tf.bitcast(tf.reshape(part, [batch_size, *signature[name][0]]), tf.as_dtype(signature[name][1]))
            for name, part in parts.items()
        }

    record_bytes = 4 * sum(sizes.values())
    rows = sum(Path(path).stat().st_size for path in paths) // record_bytes
    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths), seed=seed).repeat()
    dataset = dataset.interleave(
        lambda path: tf.data.FixedLengthRecordDataset(path, record_bytes), cycle_length=min(4, len(paths))
    )
    dataset = (
        dataset.shuffle(min(config.shuffle_rows, rows), seed=seed).batch(batch_size, drop_remainder=True).map(decode)
    )
    return finished(dataset, config, transform)
