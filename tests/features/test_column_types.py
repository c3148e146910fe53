"""Columns of every type as features, from canonical tables to checked example sets."""

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.example_reader import ExampleSet
from features.example_sets import RankingExamplesJob
from features.feature_lists import FeatureListConfig
from features.leakage import LeakageConfig, check_leakage
from features.splits import Part
from tests.features.example_logs import Run, build_here, platform, split_of

EVERYTHING = LeakageConfig(examples_per_part=100, shards=3)
PRICES = [Decimal("0.10"), None, Decimal("12.50")]


def feature(name: str, source: str, kind: str = "categorical", **more: str) -> dict[str, Any]:
    return {"name": name, "source": source, "kind": kind, **more}


EXTRA = [
    feature("city", "users.city"),  # whole numbers that became floats through missing ones
    feature("since", "users.since"),
    feature("created_ns", "users.created_ns", "continuous"),
    feature("year", "videos.year", side="impression"),
    feature("year_number", "videos.year", "continuous", side="impression"),
    feature("hd", "videos.hd", side="impression"),
    feature("hd_number", "videos.hd", "continuous", side="impression"),
    feature("price", "videos.price", "continuous", side="impression"),
]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """Columns of the ranker's training examples, made and checked for leaks."""
    tables = platform(users=12)
    users, videos = len(tables["users"]), len(tables["videos"])
    moments = pa.array([1_000_000 * (n % 4) for n in range(users)], pa.timestamp("us", "UTC"))
    tables["users"] = (
        tables["users"]
        .append_column("city", pa.array([None if n % 5 == 0 else float(n % 3) for n in range(users)]))
        .append_column("since", moments)
        .append_column("created_ns", pa.array([2**60 + n for n in range(users)]))
    )
    tables["videos"] = (
        tables["videos"]
        .append_column("year", pa.array([None if n % 7 == 0 else 1980 + n % 5 for n in range(videos)]))
        .append_column("hd", pa.array([[True, False, None][n % 3] for n in range(videos)]))
        .append_column("price", pa.array([PRICES[n % 3] for n in range(videos)], pa.decimal128(10, 2)))
    )
    run = Run(
        tmp_path_factory.mktemp("run"), tables, split_of(tables), FeatureListConfig.model_validate({"extra": EXTRA})
    )
    job = RankingExamplesJob(run.specs["ranker"], run.split)
    folder = build_here(job, run, run.folder / "examples")
    check_leakage(folder, run.shards, run.features, EVERYTHING)
    return ExampleSet(folder).read(Part.TRAIN).to_pydict()


def test_numbers_and_times_of_users_have_rows(examples: dict[str, list]) -> None:
    known = [int(user[1:]) % 5 != 0 for user in examples["user_id"]]
    assert [row > 0 for row in examples["city"]] == known
    assert min(examples["since"]) > 0


def test_integers_beyond_float32_are_numbers(examples: dict[str, list]) -> None:
    np.testing.assert_array_equal(np.float32(examples["created_ns"]), np.float32(2**60))


def test_a_column_of_videos_is_categorical_and_a_number_at_once(examples: dict[str, list]) -> None:
    number = [int(video[1:]) for video in examples["video_id"]]
    years = [np.nan if n % 7 == 0 else 1980 + n % 5 for n in number]
    np.testing.assert_array_equal(examples["year_number"], years)
    assert [row > 0 for row in examples["year"]] == [year == year for year in years]
    np.testing.assert_array_equal(examples["hd_number"], [[1.0, 0.0, np.nan][n % 3] for n in number])
    assert [row > 0 for row in examples["hd"]] == [n % 3 < 2 for n in number]


def test_a_decimal_is_a_number(examples: dict[str, list]) -> None:
    prices = [PRICES[int(video[1:]) % 3] for video in examples["video_id"]]
    np.testing.assert_array_equal(examples["price"], np.float32([np.nan if p is None else float(p) for p in prices]))
