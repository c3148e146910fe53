"""Vectors of all videos of a run's catalogue, in the order of the index."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from models.candidate_generator import CandidateGenerator

_AT_ONCE = 65_536


def padded_rows(column: pa.ChunkedArray) -> np.ndarray:
    """A catalogue column of rows, or of lists of rows padded with 0: int32 `[n]` or `[n, longest]`."""
    if not pa.types.is_list(column.type):
        return pc.fill_null(column, 0).to_numpy().astype(np.int32)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    padded = np.zeros((len(lengths), max(int(lengths.max(initial=0)), 1)), np.int32)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = pc.list_flatten(column).to_numpy()
    return padded


def catalogue_vectors(generator: CandidateGenerator, catalogue: pa.Table) -> np.ndarray:
    """float32 `[videos, dimension]`; a video without a class has what its attributes give it."""
    columns = {name: padded_rows(catalogue[name]) for name in generator.video_columns}
    embed = tf.function(generator.video_embeddings, reduce_retracing=True)
    parts = [
        embed({name: tf.constant(rows[start : start + _AT_ONCE]) for name, rows in columns.items()}).numpy()
        for start in range(0, len(catalogue), _AT_ONCE)
    ]
    return np.concatenate(parts)
