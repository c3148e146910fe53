"""Raw requests rebuilt from a log, through the graph that serves, against what the example job stored of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from features.feature_lists import FeatureListConfig
from features.ranking_examples import RankingExamplesConfig, ranking_examples, ranking_labels
from features.shards import make_shard
from features.spec import Feature, FeatureSpec, Kind, Side
from features.splits import Split
from models.raw_features import RawFeatures
from serving.stored_examples import stored_examples
from tests.features.example_logs import START_US, encoder_of, table, write_tables

SPLIT = Split(2**62, 2**62, 2**62, 2**62, 0.0, 0, True)
LISTS = FeatureListConfig()
SHOWN = [("u", "a", "north", "phone", ["s", "t"]), ("w", "b", "south", "tv", []), ("x", "a", "east", None, ["t"])]
TABLES = {
    "impressions": table(
        "impressions",
        [
            {
                "user_id": user, "video_id": video, "time_us": START_US, "clicked": True, "watch_time_s": 1.0,
                "region": region, "device": device, "candidate_sources": sources,
            }
            for user, video, region, device, sources in SHOWN
        ],
    ),
    "users": pa.table(
        {
            "user_id": ["u", "w"],
            "region": ["NO", "SE"],
            "plan": ["paid", None],
            "tags": pa.array([["go", "chess", "tv"], None], pa.list_(pa.string())),
            "years": pa.array([[1999, 2001], []], pa.list_(pa.int64())),
        }
    ),
}  # fmt: skip


def of(name: str, source: str, length: int | None = None, side: Side = Side.QUERY) -> Feature:
    return Feature(name, Kind.CATEGORICAL, side, source, name, length)


VIDEO = Feature("watched", Kind.CATEGORICAL, Side.IMPRESSION, "videos.video_id", "clicked_video")


def stored_and_served(tmp_path: Path, feature: Feature) -> tuple[list, list]:
    """The feature of every example as stored and as the graph makes it of the rebuilt request, by row."""
    spec = FeatureSpec((feature, VIDEO))
    encoder = encoder_of(tmp_path / "catalogue", TABLES, SPLIT, {"ranker": spec})
    shard = make_shard(TABLES)
    labels = ranking_labels(shard, SPLIT, RankingExamplesConfig())
    part = tmp_path / "train"
    part.mkdir()
    batches = ranking_examples(shard, labels, spec, encoder, LISTS, 0.0)
    pq.write_table(pa.concat_tables([rows for _, rows in batches]), part / "part-0.parquet")
    features = RawFeatures(spec, encoder, LISTS)
    tables = write_tables(tmp_path / "tables", TABLES)
    found = stored_examples(part, tables, "ranker", spec, features.input_specs, LISTS, count=10)
    for name, expected in features.input_specs.items():
        assert expected.shape.is_compatible_with(found.inputs[name].shape)
    served = features({name: tf.constant(found.inputs[name]) for name in features.input_specs})
    return by_row(found.features[feature.name], feature), by_row(served[feature.name].numpy(), feature)


def by_row(values: np.ndarray, feature: Feature) -> list:
    rows = values.reshape(len(SHOWN), -1).tolist()
    return [[v for v in row if v] if feature.multivalent else row[0] for row in rows]  # padding means nothing


def test_a_users_column_is_the_users_though_the_log_has_one_of_its_name(tmp_path: Path) -> None:
    stored, served = stored_and_served(tmp_path, of("region", "users.region"))
    assert stored == [1, 2, 0]
    assert served == stored


@pytest.mark.parametrize(
    ("feature", "rows"),
    [
        (of("tags", "users.tags", 2), [[2, 1], [], []]),  # the first two; rows by the alphabet
        (of("years", "users.years", 4), [[1, 2], [], []]),
        (of("plan", "users.plan", 2), [[1], [], []]),  # one value as a list
        (of("device", "request.device", 3), [[1], [2], []]),
        (of("device", "request.device", 3, Side.IMPRESSION), [[1], [2], []]),
        (of("source", "request.candidate_sources", 2, Side.IMPRESSION), [[2, 1], [], [1]]),
        (of("source", "request.candidate_sources", 1), [[2], [], [1]]),
    ],
    ids=lambda value: f"{value.source}-{value.side}-{value.max_length}" if isinstance(value, Feature) else "",
)
def test_lists_of_users_and_requests_are_served_as_they_are_stored(
    tmp_path: Path, feature: Feature, rows: list[list[int]]
) -> None:
    stored, served = stored_and_served(tmp_path, feature)
    assert stored == rows
    assert served == rows
