"""The speed benchmarks: what they measure with is right, and each runs at smoke scale."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import tensorflow as tf

from benchmarks.report import is_whole
from benchmarks.speed import NAMES, Request
from benchmarks.speed import __main__ as command
from benchmarks.speed.analysis import rank_error
from benchmarks.speed.event_logs import DAYS, END_US, LogSize, write_logs
from benchmarks.speed.measuring import in_turn, median_ratio, run_process
from benchmarks.speed.peers import Peers
from benchmarks.speed.retrieval import K, averaging_tower, own_contenders
from benchmarks.speed.softmax_step import gradient_difference, our_loss, tensorflow_loss
from benchmarks.speed.training_models import SoftmaxSizes, TowerSizes, tower_spec
from benchmarks.speed.video_vectors import DIMENSION, nearest, queries, recall, video_space, watched_rows
from features.errors import DataError
from features.spec import FeatureSpec, Side
from features.tables import read_table


def test_a_process_is_measured_with_its_children():
    grandchild = "x = bytearray(200 << 20); import time; time.sleep(0.5)"
    code = (
        f"import subprocess, sys, json; subprocess.run([sys.executable, '-c', '{grandchild}']); print(json.dumps([1]))"
    )
    run = run_process([sys.executable, "-c", code])
    assert run.answer == [1]
    assert run.seconds > 0.5
    assert 200 / 1024 < run.peak_gib < 260 / 1024


def test_a_process_without_an_answer_is_an_error_that_says_why():
    with pytest.raises(DataError, match="found exit 1: ValueError: no data"):
        run_process([sys.executable, "-c", "raise ValueError('no data')"])


def test_competitors_take_turns():
    calls: list[str] = []
    seconds = in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2, each=2, warm_up=1)
    assert "".join(calls) == "ab" + "aabb" * 2
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_taken_turn_by_turn():
    assert median_ratio([1.0, 10.0, 2.0], [2.0, 20.0, 8.0]) == 2.0


def test_the_rank_error_is_the_distance_of_stated_and_true_rank():
    values = np.arange(1.0, 101.0)
    assert rank_error(np.array([1.0, 50.5, 100.0]), values) == pytest.approx(0.0)
    assert rank_error(np.array([1.0, 60.5, 100.0]), values) == pytest.approx(0.1)  # 60 of 100 are below, stated 0.5
    assert rank_error(np.array([7.0, 7.0, 7.0]), np.full(9, 7.0)) == 0.0  # a tie has every rank


def test_logs_have_the_events_asked_for_and_clicks_are_watches(tmp_path: Path):
    events = write_logs(tmp_path / "tables", LogSize(20_000, 500, 100))
    tables = {name: read_table(tmp_path / "tables", name) for name in ("impressions", "watches", "searches", "users")}
    assert events == sum(len(tables[name]) for name in ("impressions", "watches", "searches"))
    assert abs(events / 20_000 - 1) < 0.02
    assert len(tables["users"]) == 200
    shown = tables["impressions"].filter(tables["impressions"]["clicked"])
    led_to = tables["watches"].drop_null()
    assert set(shown["impression_id"].to_pylist()) == set(led_to["impression_id"].to_pylist())
    times = pc.min_max(tables["watches"]["timestamp"].cast("int64"))
    assert END_US - DAYS * 86_400_000_000 <= times["min"].as_py() <= times["max"].as_py() < END_US + 1_000_000


def test_nearest_is_exact_and_recall_counts_what_was_found():
    random = np.random.default_rng(0)
    vectors, asked = random.normal(size=(300, 4)), random.normal(size=(70, 4))
    expected = np.sort(np.argsort(-(asked @ vectors.T), axis=1)[:, :5])
    np.testing.assert_array_equal(np.sort(nearest(vectors, asked, 5)), expected)
    assert recall(np.array([[1, 2], [3, -1]]), np.array([[2, 1], [4, 3]])) == 0.75


def test_the_timed_tower_averages_the_watched_videos():
    space = video_space(500)
    watched = watched_rows(space, 3)
    spec = FeatureSpec(tower_spec(watched.shape[1]).side(Side.QUERY))
    model = averaging_tower(TowerSizes(videos=500, tokens=10), spec, space.vectors)
    features = {
        "watched_video_ids": tf.constant(watched + 1, tf.int32),
        "search_tokens": tf.ones([3, 2], tf.int32),
        "example_age": tf.zeros([3]),
    }
    found = model.query_embeddings(features).numpy()
    np.testing.assert_allclose(found, queries(space, watched), rtol=1e-5, atol=1e-5)
    assert found.shape == (3, DIMENSION)


def test_a_session_and_a_python_call_answer_a_request_alike(tmp_path: Path) -> None:
    space = video_space(2_000)
    watched = watched_rows(space, 4)
    by_session, by_python = (contender.search() for contender in own_contenders(space, watched, tmp_path, smoke=True))
    np.testing.assert_array_equal(by_session[1], by_python[1])
    assert by_session[1].shape == (4, K)
    asked = queries(space, watched)
    for query, seen, found in zip(asked, watched, by_session[1], strict=True):
        scores = space.vectors @ query
        assert not set(found) & set(seen)
        assert (np.diff(scores[found]) <= 1e-5).all()
    assert all(len(latencies) == 4 and min(latencies) > 0 for latencies, _ in (by_session, by_python))


def test_gradients_of_another_loss_differ():
    sizes = SoftmaxSizes(2_000, 64, 8)
    batch = sizes.batch_of(100)
    ours, theirs = our_loss(sizes), tensorflow_loss(sizes)
    assert gradient_difference(ours, theirs, batch) < 1e-6
    uncorrected = ours[0], lambda given: ours[1]({**given, "negatives_expected_count": tf.ones(100)})
    assert gradient_difference(uncorrected, theirs, batch) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_benchmark_runs_without_peers(name: str, tmp_path: Path):
    scratch, results = tmp_path / "scratch", tmp_path / "results"
    scratch.mkdir()
    importlib.import_module(f"benchmarks.speed.{name}").run(Request("smoke", results, scratch, Peers(None)))
    assert is_whole(results, name)
    result = json.loads((results / f"{name}.json").read_text())
    assert all(table["rows"] for table in result["tables"])
    if name == "analysis":
        assert set(result["facts"]["same_bytes"].values()) == {True}
        assert any("polars: not installed" in note for table in result["tables"] for note in table["notes"])
    if name == "training_step":
        assert result["facts"]["found"]["largest difference of gradients"] < 1e-6


@pytest.mark.slow
def test_all_benchmarks_are_run_each_in_its_process_though_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "NAMES", {"no-such": "", "simulator": NAMES["simulator"]})
    with pytest.raises(SystemExit, match=r"^failed: no-such \(exit code 2\)$"):
        command.main(["all", "--scale", "smoke", "--results", str(tmp_path)])
    assert (tmp_path / "simulator.md").is_file()
