"""Published example sets of generated data, for the tests of input pipeline and training."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.artifacts import publish
from features.example_reader import SPEC, ExampleSet
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side, write_specs
from features.splits import PARTS, Part, Split

CANDIDATE_SPEC = FeatureSpec(
    (
        Feature("watched_video_ids", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", 6),
        Feature("region", Kind.CATEGORICAL, Side.QUERY, "users.region", "region"),
        Feature(
            "example_age",
            Kind.CONTINUOUS,
            Side.QUERY,
            "request.example_age",
            normaliser=Normaliser.SCALE,
            low=-10.0,
            high=100.0,
            serving_value=0.0,
        ),
    )
)

DAY_US = 86_400_000_000
T_MAX_US = 100 * DAY_US


def publish_examples(
    folder: Path,
    parts: dict[Part, pa.Table],
    spec: FeatureSpec = CANDIDATE_SPEC,
    model: str = "candidate_generator",
    files: int = 2,
    serving_rows: Mapping[str, int] = MappingProxyType({}),
    left_out: Mapping[str, int] = MappingProxyType({}),
) -> ExampleSet:
    """Publishes the parts as `files` Parquet files each, rows dealt out in turn; parts not given are empty."""
    split = Split(T_MAX_US, T_MAX_US, T_MAX_US + DAY_US, T_MAX_US + DAY_US, 0.0, 0, True)
    schema = next(iter(parts.values())).schema
    kept = {part.folder: table.num_rows for part, table in parts.items()}
    manifest = {
        "kind": "examples",
        "model": model,
        "split": split.as_json(),
        "counts": {"kept": {part.folder: 0 for part in PARTS} | kept, "left_out": dict(left_out)},
        "t_max_us": T_MAX_US,
        "refit_t_max_us": T_MAX_US + DAY_US // 2,
        "serving_rows": dict(serving_rows),
    }
    with publish(folder, manifest) as temporary:
        write_specs(temporary / SPEC, {model: spec})
        for part in (Part.TRAIN, Part.VALIDATION, Part.TEST):
            (temporary / part.folder).mkdir()
            table = parts.get(part, schema.empty_table())
            for index in range(files):
                rows = table.take(np.arange(index, table.num_rows, files))
                pq.write_table(rows, temporary / part.folder / f"part-{index:05d}.parquet")
    return ExampleSet(folder)


def taste_examples(rows: int, seed: int, videos: int = 120, topics: int = 6) -> pa.Table:
    """Users who watch one topic and sometimes anything; within a topic low rows are the popular ones.

    Video row r has topic r mod `topics`. The region tells nothing.
    """
    random = np.random.default_rng(seed)
    topic = random.integers(0, topics, rows)
    per_topic = videos // topics
    popularity = 1 / np.arange(1, per_topic + 1)
    lengths = random.integers(0, 7, rows)
    drawn = random.choice(per_topic, p=popularity / popularity.sum(), size=(rows, 7)) * topics + topic[:, None]
    anything = random.random((rows, 7)) < 0.1
    drawn = np.where(anything, random.integers(0, videos, (rows, 7)), drawn) + 1
    kept = np.arange(6) < lengths[:, None]
    watched = pa.ListArray.from_arrays(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), drawn[:, :6][kept].astype(np.int32)
    )
    age_s = random.uniform(0, 90, rows).astype(np.float32)
    return pa.table(
        {
            "user_id": [f"user {i}" for i in range(rows)],
            "label": drawn[:, 6].astype(np.int32),
            "label_timestamp": pa.array(T_MAX_US - (age_s * 1e6).astype(np.int64), pa.timestamp("us", "UTC")),
            "weight": np.ones(rows, np.float32),
            "watched_video_ids": watched,
            "region": random.integers(0, 4, rows).astype(np.int32),
            "example_age": age_s,
        }
    )
