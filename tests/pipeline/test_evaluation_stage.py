"""What the evaluation stage hands to the peers."""

from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from features.artifacts import publish
from pipeline import evaluation_stage
from pipeline.config import RunConfig
from pipeline.evaluation_stage import _truth, _with_shown
from pipeline.run import Run


def test_shown_videos_come_before_the_watches_of_each_example() -> None:
    lists = pa.list_(pa.int32())
    table = pa.table(
        {
            "watched_video_ids": pa.array([[1, 2], [], [3]], lists),
            "shown": pa.array([[7], [8, 9], []], lists),
        }
    )
    assert _with_shown(table, ["shown"])["watched_video_ids"].to_pylist() == [[7, 1, 2], [8, 9], [3]]
    assert _with_shown(table, [])["watched_video_ids"].to_pylist() == [[1, 2], [], [3]]


def test_the_truth_of_an_earlier_simulation_is_not_that_of_real_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with publish(tmp_path / "truth", {}):
        pass
    monkeypatch.setattr(evaluation_stage.Truth, "read", lambda folder: folder)
    sources: dict[str, dict] = {
        "simulator": {"kind": "simulator"},
        "files": {"kind": "files", "tables": {"watches": {"path": "watches.csv"}}},
        "movielens": {"kind": "movielens"},
        "kuairand": {"kind": "kuairand", "path": "logs"},
    }
    runs = {name: Run(tmp_path, RunConfig(source=source), (), Console(quiet=True)) for name, source in sources.items()}
    found = {name: _truth(run) for name, run in runs.items()}
    assert found == {"simulator": tmp_path / "truth", "files": None, "movielens": None, "kuairand": None}
