"""Raw logs in, a ranked list out: one small run on the simulator, through the command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from features.artifacts import MANIFEST, read_manifest
from features.example_reader import ExampleSet
from features.splits import PARTS
from features.tables import read_table
from pipeline import config_file, evaluation_stage
from pipeline.config import RunConfig
from pipeline.evaluation.tree_features import RankingData
from pipeline.run import Run
from tests.end_to_end.command_line import stages_run, stages_skipped, start, upnext
from tests.end_to_end.conftest import Funnel

pytestmark = pytest.mark.slow

TRAINED = ["train-generator:two_tower", "train-generator:latent_cross", "train-ranker"]
STAGES = ["ingest", "analyze", "examples", "quantiles", *TRAINED, "export", "evaluate"]
PUBLISHED = {
    *("tables", "rejected", "truth", "shards"),
    *("features/vocabularies", "features/statistics", "features/catalogue", "features/quantiles"),
    *("examples/candidate_generation", "examples/sequences", "examples/ranking"),
    *("models/two_tower", "models/latent_cross", "models/ranker"),
    *("export/retrieval/1", "export/retrieval_brute_force/1", "export/ranking/1"),
    *("export/retrieval_latent_cross/1", "export/retrieval_latent_cross_brute_force/1"),
    *("reports/statistics", "reports/export", "reports/evaluation"),
}


def test_every_stage_runs_and_what_it_publishes_is_whole(funnel: Funnel) -> None:
    assert stages_run(funnel.said) == STAGES
    manifests = {str(path.parent.relative_to(funnel.folder)) for path in funnel.folder.rglob(MANIFEST)}
    assert manifests == PUBLISHED
    for name in PUBLISHED:
        files = read_manifest(funnel.folder / name, verify=True)["files"]
        there = {
            str(path.relative_to(funnel.folder / name)) for path in (funnel.folder / name).rglob("*") if path.is_file()
        }
        assert set(files) | {MANIFEST} == there


def test_the_final_training_starts_from_what_is_watched_in_the_validation_days_too(funnel: Funnel) -> None:
    said = re.findall(r"video vectors start from ([\d,]+) transitions", funnel.said.out)
    of_training, of_both = (int(count.replace(",", "")) for count in said)
    assert 0 < of_training < of_both


def test_nothing_unfinished_is_left_behind(funnel: Funnel) -> None:
    hidden = [path for path in funnel.folder.rglob(".*") if path.name != ".lock" and any(path.rglob("*.*"))]
    assert not hidden


def test_every_row_is_accounted_for_from_raw_tables_to_examples(funnel: Funnel) -> None:
    tables = read_manifest(funnel.folder / "tables")["tables"]
    for name, counts in tables.items():
        assert counts["read"] == counts["kept"] + sum(counts["rejected"].values())
        assert counts["kept"] == read_table(funnel.folder / "tables", name).num_rows > 0
    for kind, table in (("candidate_generation", "watches"), ("ranking", "impressions")):
        examples = ExampleSet(funnel.folder / "examples" / kind)
        counts = read_manifest(examples.folder)["counts"]
        rows = {part: sum(pq.read_metadata(file).num_rows for file in examples.files(part)) for part in PARTS}
        assert {part.folder: count for part, count in rows.items()} == counts["kept"]
        assert min(rows.values()) > 0
        assert counts["read"] == tables[table]["kept"]
        assert counts["read"] == sum(rows.values()) + sum(counts["left_out"].values())


def test_the_reports_hold_the_models_their_peers_and_the_best_possible(funnel: Funnel) -> None:
    reports = funnel.folder / "reports/evaluation"
    retrieval = {method["method"] for method in json.loads((reports / "retrieval.json").read_text())["methods"]}
    ranking = {method["method"] for method in json.loads((reports / "ranking.json").read_text())["methods"]}
    assert {"two-tower", "popularity", "last-watch co-watch", "best possible (the truth)"} <= retrieval
    assert {"ranker", "LightGBM watch-time regression", "best possible (the truth)"} <= ranking


def test_every_generator_is_looked_into_and_one_of_sequences_for_the_worth_of_its_context(funnel: Funnel) -> None:
    reports = funnel.folder / "reports/evaluation"
    found = {name: json.loads((reports / f"{name}_insight.json").read_text()) for name in ("two_tower", "latent_cross")}
    assert all(insight["dependence"]["lags"][:3] == [1, 2, 3] for insight in found.values())
    assert {name: set(insight["worth"]) for name, insight in found.items()} == {
        "two_tower": set(),
        "latent_cross": {"time_delta", "page"},
    }


def test_the_trees_are_chosen_by_the_validation_part_as_it_is_served(
    funnel: Funnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(train: RankingData, validation: RankingData, *_: object, **named: Any) -> NoReturn:
        raise RuntimeError(validation, named["validation_at_serving"])

    monkeypatch.setattr(evaluation_stage, "fit_trees", fit)
    run = Run(funnel.folder, config_file.read_run(RunConfig, funnel.folder), (), Console(quiet=True))
    with pytest.raises(RuntimeError) as given:
        evaluation_stage.evaluate_ranker(run)
    logged, served = given.value.args
    others = [name != "position" for name in logged.names]
    np.testing.assert_array_equal(logged.matrix[:, others], served.matrix[:, others])
    position = logged.names.index("position")
    assert len(np.unique(logged.matrix[:, position])) > 1
    assert len(np.unique(served.matrix[:, position])) == 1


def test_of_many_test_examples_those_of_some_users_are_scored_and_the_report_says_so(funnel: Funnel) -> None:
    config = config_file.read_run(RunConfig, funnel.folder)

    def run(most: int | None) -> Run:
        retrieval = config.evaluation.retrieval.model_copy(update={"max_examples": most})
        evaluation = config.evaluation.model_copy(update={"retrieval": retrieval})
        changed = config.model_copy(update={"evaluation": evaluation})
        return Run(funnel.folder, changed, (), Console(quiet=True))

    whole, all_of_them, some = (evaluation_stage.evaluate_generators(run(most)) for most in (50_000, None, 100))
    assert whole.json == all_of_them.json and "examples" not in whole.json
    assert [method.figures for method in whole.methods] == [method.figures for method in all_of_them.methods]
    scored, of = some.json["examples"]["scored"], some.json["examples"]["of"]
    assert 80 < scored <= 100 < of
    assert f"{scored} of {of:,} (evaluation.retrieval.max_examples) next watches" in str(some.views[0].title)
    assert [method.method for method in some.methods] == [method.method for method in whole.methods]
    (insight,) = [told for told in evaluation_stage.look_into_generators(run(100)) if told.worth]
    users = some.methods[0].figures[0].n
    assert {difference.n for worth in insight.worth.values() for difference in worth} == {users}
    assert users < whole.methods[0].figures[0].n


def test_the_same_command_again_does_nothing_and_is_quick(funnel: Funnel) -> None:
    started = time.monotonic()
    again = funnel.run()
    assert stages_skipped(again) == STAGES
    assert stages_run(again) == []
    assert time.monotonic() - started < 30


def test_the_data_stages_give_the_same_bytes_in_another_run(funnel: Funnel, tmp_path: Path) -> None:
    # Quantiles, also in the statistics, are left out: the sketch draws random numbers, within a documented error.
    for stage in ("ingest", "analyze", "examples"):
        done = upnext(stage, funnel.config, "--workdir", tmp_path / "run")
        assert stages_run(done) == [stage]
    for name in ("tables", "features/vocabularies", "features/catalogue", "examples"):
        first, second = (_contents(folder / name) for folder in (funnel.folder, tmp_path / "run"))
        assert first.keys() == second.keys()
        assert [file for file in first if first[file] != second[file]] == []


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def test_recommend_prints_the_list_beside_what_was_watched(funnel: Funnel) -> None:
    watches = read_table(funnel.folder / "tables", "watches").sort_by("timestamp")
    user = watches["user_id"][0].as_py()
    answer = upnext("recommend", funnel.folder, "--user", user, "--page", "home", "--device", "tv", "--count", 5)
    assert answer.code == 0, answer
    watched, listed = answer.out.split("up next")
    assert user in watched
    last = watches.filter(np.array(watches["user_id"].to_pylist()) == user)["video_id"].to_pylist()[-1]
    assert last in watched
    rows = [line.split() for line in listed.splitlines() if "two_tower" in line or "latent_cross" in line]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    catalogue = set(read_table(funnel.folder / "tables", "videos")["video_id"].to_pylist())
    assert {row[1] for row in rows} <= catalogue
    assert len({row[1] for row in rows}) == 5
    assert all(row[-2] == "s" and float(row[-3]) > 0 for row in rows)  # expected watch time
    assert all(np.isfinite(float(row[-4])) for row in rows)  # retrieval score
    # What the user watched is not recommended again.
    assert not {row[1] for row in rows} & set(
        watches.filter(np.array(watches["user_id"].to_pylist()) == user)["video_id"].to_pylist()
    )


def test_recommend_answers_for_a_user_it_has_never_seen(funnel: Funnel) -> None:
    answer = upnext("recommend", funnel.folder, "--user", "nobody in particular")
    assert answer.code == 0, answer
    assert "user 'nobody in particular' is not in the log" in answer.out
    assert sum("two_tower" in line or "latent_cross" in line for line in answer.out.splitlines()) == 10


def test_recommending_needs_only_the_exported_models_their_record_the_tables_and_the_configuration(
    funnel: Funnel, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    for name in ("export", "reports/export", "tables"):
        shutil.copytree(funnel.folder / name, moved / name)
    shutil.copy(funnel.folder / "config.yaml", moved)
    command = ("--user", "u000003", "--count", 3)
    answer = upnext("recommend", moved, *command)
    assert answer.code == 0, answer
    assert answer.out == upnext("recommend", funnel.folder, *command).out
    # Another configuration since, of a stage alone or of a run that was stopped, is not that of the exported models.
    config = config_file.read_run(RunConfig, moved)
    other = config.features.model_copy(update={"watch_window": 1})
    config_file.write_run(moved, config.model_copy(update={"features": other}))
    again = upnext("recommend", moved, *command)
    assert (again.code, again.out) == (0, answer.out), again.err
    shutil.rmtree(moved / "reports")
    error = upnext("recommend", moved, *command).error()
    assert error.startswith(f"{moved}/reports/export: expected the record of a finished export, found none; run ")


ALONE = """
import json, sys
sys.path[:] = [entry for entry in sys.path if entry not in ("", sys.argv[2])]
import scann, tensorflow as tf
answers = {}
for name in ("retrieval", "retrieval_brute_force", "ranking"):
    signature = "ranking" if name == "ranking" else "retrieval"
    function = tf.saved_model.load(f"{sys.argv[1]}/{name}/1").signatures[signature]
    raw = json.load(open(f"{sys.argv[1]}/requests.json"))
    specs = function.structured_input_signature[1]
    def value(spec):
        shape = [2 if axis == 0 else 3 for axis in range(len(spec.shape))]
        given = raw.get(spec.name.removeprefix(f"{signature}_"), "" if spec.dtype == tf.string else float("nan"))
        return tf.broadcast_to(tf.constant(given, spec.dtype), shape)
    answer = function(**{n: value(spec) for n, spec in specs.items()})
    answers[name] = {n: v.numpy().astype(str if v.dtype == tf.string else float).tolist() for n, v in answer.items()}
ours = [m for m in sys.modules if m.split(".")[0] in ("features", "models", "serving", "pipeline")]
print(json.dumps({"answers": answers, "ours": ours}))
"""


def test_the_exported_models_answer_raw_requests_alone(funnel: Funnel, tmp_path: Path) -> None:
    shutil.copytree(funnel.folder / "export", tmp_path / "export")
    videos = read_table(funnel.folder / "tables", "videos")["video_id"].to_pylist()
    raw = {
        "request_timestamp": 1736800000.0,
        "watched_video_ids": videos[:3],
        "watched_timestamps": [1736700000.0, 1736710000.0, 1736720000.0],
        "watched_watch_time_s": [30.0, 40.0, float("nan")],
        "candidate_ids": [videos[3], videos[4], "never heard of"],
        "excluded_video_ids": [videos[5], "", ""],
        "page": "home",
    }
    (tmp_path / "export/requests.json").write_text(json.dumps(raw))
    root = str(Path(__file__).parents[2])
    process = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(tmp_path / "export"), root],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["ours"] == []
    for name in ("retrieval", "retrieval_brute_force"):
        ids = found["answers"][name]["video_ids"]
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == 50
        assert set(ids[0]) <= set(videos) - set(videos[:3]) - {videos[5]}
    assert found["answers"]["retrieval"]["video_ids"] == found["answers"]["retrieval_brute_force"]["video_ids"]
    ranking = found["answers"]["ranking"]
    score, click, seconds = (
        np.array(ranking[name]) for name in ("score", "click_probability", "expected_watch_time_s")
    )
    assert score.shape == click.shape == seconds.shape == (2, 3)
    assert np.all((click > 0) & (click < 1) & (seconds > 0) & (score > 0))


def test_a_changed_ranker_survives_an_interruption_and_a_kill_and_runs_only_what_depends_on_it(
    funnel: Funnel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(funnel.folder, folder)
    change = "ranker.model.hidden_units=[12]"
    command = ["run", funnel.config, "--workdir", folder, "--set", change]

    interrupted = _stop_in_training(command, signal.SIGINT)
    assert interrupted.returncode == 130
    assert interrupted.err.strip().splitlines()[-1] == "interrupted: run the same command again to continue"
    assert "Traceback" not in interrupted.err

    killed = _stop_in_training(command, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL

    # The ranker of before is whole: a model is replaced by a finished one or not at all.
    assert read_manifest(folder / "models/ranker", verify=True) == read_manifest(funnel.folder / "models/ranker")
    continued = funnel.run(change, folder=folder)
    assert "failed" not in capfd.readouterr().err  # as TensorFlow itself says of graphs it cannot optimise
    assert stages_skipped(continued) == STAGES[:6]
    assert stages_run(continued) == ["train-ranker", "export", "evaluate"]
    described = json.loads((folder / "models/ranker/model.json").read_text())
    assert "[12]" in json.dumps(described).replace(" ", "")
    read_manifest(folder / "export/ranking/2", verify=True)
    test_nothing_unfinished_is_left_behind(_At(folder))  # type: ignore[arg-type]


class _At:
    def __init__(self, folder: Path) -> None:
        self.folder = folder


class _Stopped:
    def __init__(self, returncode: int, err: str) -> None:
        self.returncode, self.err = returncode, err


def _stop_in_training(command: list[object], sent: signal.Signals) -> _Stopped:
    """Sends a signal while the ranker is being trained, or made ready for it."""
    process = start(*command)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("train-ranker "):
                break
        time.sleep(1)
        assert process.poll() is None
        os.kill(process.pid, sent)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return _Stopped(process.returncode, err)
