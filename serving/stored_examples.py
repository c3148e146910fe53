"""Stored examples of an example set beside the raw rows they were made from: what the parity check compares."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import tensorflow as tf

from features.errors import ArtifactError
from features.feature_columns import request_table
from features.feature_lists import FeatureListConfig
from features.raw_requests import RawInput, logged_requests, raw_requests
from features.spec import Feature, FeatureSpec, Kind, Model, Side
from serving.signatures import RawFeatureTransform


@dataclass(frozen=True)
class StoredExamples:
    """`B` examples.

    Args:
      descriptions: one text per example that lets a person find it.
      inputs: raw input -> `[B, ...]`.
      features: feature -> `[B, ...]` as stored, padded; impression features `[B, 1, ...]`. Without those that have a
        serving value of their own.
    """

    descriptions: list[str]
    inputs: Mapping[str, np.ndarray]
    features: Mapping[str, np.ndarray]

    def at_serving(self, raw_features: RawFeatureTransform) -> dict[str, np.ndarray]:
        """The stored features, and the serving values of features that have one."""
        transformed = raw_features({name: tf.constant(self.inputs[name]) for name in raw_features.input_specs})
        return {name: self.features.get(name, value.numpy()) for name, value in transformed.items()}


def stored_examples(
    part: Path,
    tables: Path,
    model: Model,
    spec: FeatureSpec,
    inputs: Mapping[str, tf.TensorSpec],
    config: FeatureListConfig,
    count: int,
) -> StoredExamples:
    """Reads examples, evenly spread over a part of an example set, and rebuilds their raw requests from the tables.

    Args:
      part: `examples/<set>/<train, validation or test>`.
      tables: the run's `tables` folder.
      model: whose examples they are.
      spec: its features.
      inputs: the raw inputs wanted.
      config: the lengths of the histories.
      count: number of examples, at most.

    Raises:
      ArtifactError: the part has no examples.
      DataError: an example's event is not in the tables.
    """
    examples = _spread(part, count)
    if model == "ranker":
        snapshot, candidates = examples["snapshot_timestamp"], examples["video_id"]
    else:
        examples = examples.rename_columns({"label_video_id": "video_id", "label_timestamp": "timestamp"})
        snapshot, candidates = examples["timestamp"], None
    given = {"user_id": examples["user_id"], "request_timestamp": snapshot}
    of_request = {f.column_input for f in spec.features if f.source.startswith("request.")}
    logged = logged_requests(tables, request_table(model), examples, [n for n in inputs if n in of_request])
    per_candidate = {f.source.removeprefix("request.") for f in spec.side(Side.IMPRESSION)}
    for name, column in logged.items():
        if pa.types.is_list(column.type) and inputs[name].dtype.is_floating:
            column = _largest(column)
        given[name] = _one_candidate(column) if name in per_candidate else column
    if candidates is not None:
        given["candidate_ids"] = _one_candidate(candidates.combine_chunks())
    times = zip(examples["user_id"].to_pylist(), examples["video_id"].to_pylist(), snapshot.to_pylist(), strict=True)
    return StoredExamples(
        descriptions=[f"user {user!r}, video {video!r}, request at {time}" for user, video, time in times],
        inputs=raw_requests(tables, pa.table(given), numpy_inputs(inputs), config),
        features={f.name: dense(examples[f.name], f) for f in features_of(model, spec) if f.serving_value is None},
    )


def numpy_inputs(inputs: Mapping[str, tf.TensorSpec]) -> dict[str, RawInput]:
    """The inputs of a signature as `features.raw_requests` takes them."""
    return {n: RawInput(np.dtype(spec.dtype.as_numpy_dtype), spec.shape.rank) for n, spec in inputs.items()}


def _one_candidate(column: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(np.arange(len(column) + 1, dtype=np.int32), column)


def _largest(lists: pa.Array) -> pa.Array:
    """A list of numbers under a continuous feature stands for its largest."""
    return pa.array([max((v for v in values or [] if v is not None), default=None) for values in lists.to_pylist()])


def features_of(model: Model, spec: FeatureSpec) -> tuple[Feature, ...]:
    """The features that are columns of the model's examples."""
    return spec.features if model == "ranker" else spec.side(Side.QUERY)


def dense(column: pa.ChunkedArray, feature: Feature) -> np.ndarray:
    """A stored column as the model is fed: `[B]` or `[B, max_length]`, for an impression feature `[B, 1, ...]`."""
    if feature.max_length is None:
        dtype = np.float32 if feature.kind == Kind.CONTINUOUS else np.int32
        values = np.asarray(column.to_numpy(), dtype)
    else:
        absent, dtype = (np.nan, np.float32) if feature.kind == Kind.CONTINUOUS else (0, np.int32)
        values = np.full((len(column), feature.max_length), absent, dtype)
        for row, bag in zip(values, column.to_pylist(), strict=True):
            row[: len(bag)] = bag
    return values[:, None] if feature.side == Side.IMPRESSION else values


def _spread(part: Path, count: int) -> pa.Table:
    files = sorted(str(file) for file in part.glob("part-*.parquet"))
    dataset = ds.dataset(files, format="parquet")
    rows = dataset.count_rows() if files else 0
    if not rows:
        raise ArtifactError(f"{part}: expected examples for the parity check, found none; use a part that has some")
    return dataset.take(np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(np.int64)))
