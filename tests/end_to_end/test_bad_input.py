"""What a user does wrong is answered by one line, what, where and what to do, and a non-zero exit."""

import os
import shutil
import stat
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from features.tables import read_table
from pipeline.stages import locked
from tests.end_to_end.command_line import Answer, stages_run, stages_skipped, upnext, write_csv

HOUR = 3600
START = 1_735_689_600  # 2025-01-01, a Wednesday
USERS = [f"user {i}" if i % 2 else f"пользователь {i}" for i in range(12)]
VIDEOS = [f"видео {i}" if i % 3 else f"clip {i} 🎬" for i in range(9)]
WATCH_HEADER = "user_id,video_id,timestamp,watch_time_s"


def watches(users: list[str] = USERS, videos: list[str] = VIDEOS, days: int = 6) -> list[tuple]:
    """Each user watches one of six videos after another, every few hours."""
    return [
        (user, videos[(3 * i + step % 6) % len(videos)], START + i * 60 + step * 5 * HOUR, 20 + step)
        for i, user in enumerate(users)
        for step in range(days * 24 // 5)
    ]


class Logs:
    """Own logs as CSV files with a configuration that reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.value: dict = {
            "name": "own",
            "source": {"kind": "files", "tables": {}},
            "split": {"test_days": 1, "validation_days": 1, "gap_hours": 1},
            "shards": {"num_shards": 2},
            "generators": {
                "two_tower": {
                    "model": {"dimension": 4, "depth": 0, "loss": "full"},
                    "training": {"epochs": 1, "batch_size": 64},
                }
            },
            "export": {"parity": {"examples": 4}, "retrieval": {"k": 5}},
            "evaluation": {
                "retrieval": {"bootstrap": {"resamples": 20}},
                "retrieval_baselines": {"methods": ["popularity"]},
                "trees": None,
                "show_users": 1,
            },
        }
        self.table("watches", WATCH_HEADER, watches())

    def table(self, name: str, header: str, rows: list[tuple], **settings: object) -> Path:
        path = write_csv(self.folder / f"{name}.csv", header, rows)
        self.value["source"]["tables"][name] = {"path": str(path), **settings}
        return path

    def __call__(self, command: str, *arguments: object) -> Answer:
        return upnext(command, self.config, "--workdir", self.run, *arguments)

    @property
    def config(self) -> Path:
        path = self.folder / "own.yaml"
        path.write_text(yaml.safe_dump(self.value, allow_unicode=True))
        return path


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def test_a_missing_file_is_named(logs: Logs) -> None:
    (logs.folder / "watches.csv").unlink()
    error = logs("run").error()
    assert f"{logs.folder}/watches.csv: no such file or folder" in error
    assert "correct the source's path" in error


def test_moved_logs_are_not_read_again_and_a_later_stage_alone_does_not_need_them(logs: Logs) -> None:
    assert stages_run(logs("ingest")) == ["ingest"]
    moved = logs.folder / "elsewhere/watches.csv"
    moved.parent.mkdir()
    (logs.folder / "watches.csv").rename(moved)
    logs.value["source"]["tables"]["watches"]["path"] = str(moved)
    assert stages_skipped(logs("ingest")) == ["ingest"]
    moved.unlink()
    assert stages_run(logs("analyze")) == ["analyze"]


def test_a_stage_alone_refuses_what_another_configuration_left_and_the_configuration_there_stays(logs: Logs) -> None:
    for stage in ("ingest", "analyze"):
        assert logs(stage, "--set", "split.test_days=2").code == 0
    before = (logs.run / "config.yaml").read_text()
    error = logs("examples").error()
    assert error.startswith(f"{logs.run}: expected what stage analyze makes of this configuration, found another's")
    assert "(split.test_days was 2, is 1); run `upnext analyze`, or `upnext run`, first" in error
    assert (logs.run / "config.yaml").read_text() == before
    assert not (logs.run / "examples").exists()
    refused = logs("analyze", "--set", "source.tables.watches.nulls=[x]").error()
    assert "expected what stage ingest makes of this configuration" in refused
    assert "(source.tables.watches.nulls was [" in refused


def test_own_files_where_something_is_to_be_published_are_refused_and_stay(logs: Logs) -> None:
    own = (logs.folder / "logs/mine.csv", logs.run / "tables/mine.csv")
    for path in own:
        path.parent.mkdir(parents=True)
        path.write_text("1,2")
    error = upnext("simulate", own[0].parent, "--set", "users=20").error()
    assert error.startswith(f"{own[0].parent}: expected nothing there, or a folder that was published")
    assert logs("ingest").error().startswith(f"{own[1].parent}: expected nothing there, or a folder that was published")
    assert [path.read_text() for path in own] == ["1,2", "1,2"]


def test_a_wrong_column_is_named_with_the_columns_there_are(logs: Logs) -> None:
    logs.table("watches", "user,video_id,timestamp", [("a", "b", START)])
    error = logs("run").error()
    assert "watches.csv: no column 'user_id' for watches.user_id, did you mean 'user'?" in error
    assert "correct source.tables.watches.columns" in error


def test_a_mapped_column_that_is_not_in_the_file_is_named(logs: Logs) -> None:
    logs.value["source"]["tables"]["watches"]["columns"] = {"video_id": "movie"}
    assert "no column 'movie' for watches.video_id" in logs("run").error()


@pytest.mark.parametrize("name", ["watches", "impressions"])
def test_an_empty_table_is_named(logs: Logs, name: str) -> None:
    logs.table(name, "user_id,video_id,timestamp,clicked", [])
    error = logs("run").error()
    assert f"table '{name}': expected rows in {logs.folder}/{name}.csv, found none" in error


def test_an_empty_file_is_named(logs: Logs) -> None:
    (logs.folder / "watches.csv").write_text("")
    assert "watches.csv: the file is empty, expected a header line" in logs("run").error()


def test_when_all_rows_are_rejected_the_worst_reason_is_told_with_a_row(logs: Logs) -> None:
    logs.table("watches", WATCH_HEADER, [("a", f"v{i}", "yesterday", 1) for i in range(20)])
    error = logs("run").error()
    assert "watches: 20 of 20 rows are rejected (100.0%" in error
    assert "unparsable time" in error
    assert "yesterday" in error
    assert not (logs.run / "tables").exists()
    kept_aside = pq.read_table(next((logs.run / "rejected").rglob("part-*.parquet")))
    assert kept_aside.num_rows == 20


def test_a_file_that_is_no_parquet_is_named(logs: Logs) -> None:
    path = logs.folder / "watches.parquet"
    path.write_bytes(b"PAR1 but nothing else")
    logs.value["source"]["tables"]["watches"]["path"] = str(path)
    assert f"{path}: cannot be read as Parquet" in logs("run").error()


def test_logs_without_watches_are_refused(logs: Logs) -> None:
    del logs.value["source"]["tables"]["watches"]
    logs.table("users", "user_id", [("a",)])
    assert "has no table 'watches'" in logs("run").error()


def test_an_unknown_configuration_tells_the_nearest(tmp_path: Path) -> None:
    error = upnext("run", "demmo", "--workdir", tmp_path / "run").error()
    assert "'demmo': no such file" in error
    assert "did you mean 'demo'?" in error
    assert not (tmp_path / "run").exists()


def test_an_unknown_setting_tells_the_nearest(logs: Logs) -> None:
    logs.value["generators"]["two_tower"]["model"]["dimensions"] = 8
    assert "generators.two_tower.model.dimensions: no such setting; did you mean 'dimension'?" in logs("run").error()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("generators.two_tower.training.epochs", "expected key=value"),
        ("generators.two_tower.training.epochs=many", "two_tower.training.epochs: Input should be a valid integer"),
        ("generators.two_tower.training.epochs=0", "epochs: Input should be greater than or equal to 1"),
        ("split.test_days=[1", "the value is not valid YAML"),
        ("name.first=x", "name is a value, not a group of settings"),
        ("generators.two_tower.training.epoch=3", "did you mean 'epochs'?"),
        ("split.t0=2035-01-01", "split: test labels would start at 2035"),
        ("split.test_days=60", "training"),
        ("source.kind=kafka", "files, movielens, kuairand"),
        ("evaluation.retrieval_baselines.methods=[popularty]", "'popularity'"),
        ("generators.two_tower.training.strategy=tpu", "Set tpu_address"),
        ("features.without=[regoin]", "no default feature 'regoin'; did you mean 'region'?"),
        ("features.extra=[{name: x, source: users.shoe}]", "features.extra.0.kind: Field required"),
    ],
)
def test_a_bad_set_value_is_told(logs: Logs, setting: str, told: str) -> None:
    assert told in logs("run", "--set", setting).error()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("request.sheo", "table 'watches' has no column 'sheo'"),
        ("users.shoe", "there is no table 'users'"),
        ("history.shoe", "history.shoe: no such derivation"),
        ("cars.shoe", "'cars"),
        ("shoe", "'shoe'"),
    ],
)
def test_a_feature_of_what_the_logs_do_not_have_is_told(logs: Logs, source: str, told: str) -> None:
    feature = {"name": "shoe", "source": source, "kind": "categorical", "models": ["candidate_generator"]}
    logs.value["features"] = {"extra": [feature]}
    error = logs("run").error()
    assert told in error


def test_a_configuration_that_is_not_yaml_is_told(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: [x")
    assert "own.yaml: not valid YAML" in upnext("run", tmp_path / "own.yaml").error()
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00")
    assert "own.yaml" in upnext("run", tmp_path / "own.yaml").error()


def test_a_folder_that_cannot_be_written_is_named(logs: Logs, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    error = upnext("run", logs.config, "--workdir", tmp_path / "taken").error()
    assert f"{tmp_path}/taken: cannot be written" in error
    assert "choose another --workdir" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(logs: Logs, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    error = upnext("run", logs.config, "--workdir", tmp_path / "locked" / "run").error()
    assert "cannot be written (Permission denied)" in error


def test_recommend_needs_a_run(tmp_path: Path) -> None:
    assert "expected a run's folder with config.yaml" in upnext("recommend", tmp_path, "--user", "a").error()
    assert "expected a run's folder" in upnext("recommend", tmp_path / "nothing", "--user", "a").error()
    assert upnext("recommend", tmp_path, "--user", "").error().startswith("--user: expected a user id, found ''")
    bytes_ = "\udcff\udcfe"  # that are no text, as Python has them
    for option in ("--user", "--page", "--device"):
        error = upnext("recommend", tmp_path, "--user", "a", option, bytes_).error()  # of two the last one counts
        assert error.startswith(f"{option}: expected UTF-8 text, found {bytes_!r}")


def test_recommend_needs_the_export_of_the_run(logs: Logs) -> None:
    logs("ingest")
    error = upnext("recommend", logs.run, "--user", "user 1").error()
    assert f"{logs.run}/reports/export: expected the record of a finished export, found none" in error


@pytest.mark.parametrize("stage", ["analyze", "examples", "train-generator", "export", "evaluate"])
def test_a_stage_before_its_inputs_says_what_is_missing(logs: Logs, stage: str) -> None:
    assert f"{logs.run}/tables: not published; run the stage that writes it first" in logs(stage).error()
    logs("ingest")
    if stage != "analyze":
        assert "not published; run the stage that writes it first" in logs(stage).error()


def test_a_stage_that_the_run_does_not_have_is_told(logs: Logs) -> None:
    logs("ingest")
    error = logs("train-ranker").error()
    assert "stage 'train-ranker' is not part of this run" in error
    assert "there are no impressions" in error


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--direct_num_worker=2", "nearest is --direct_num_workers"),
        ("--runner=Spork", "--runner=Spork"),
        ("--direct_num_workers=two", "--direct_num_workers"),
    ],
)
def test_an_impossible_beam_option_is_told(logs: Logs, option: str, told: str) -> None:
    logs("ingest")
    assert told in logs("analyze", "--", option).error()


def test_a_second_run_in_the_same_folder_is_refused(logs: Logs) -> None:
    with locked(logs.run):
        error = logs("run").error()
    assert f"{logs.run}: in use by process {os.getpid()}; wait for it or choose another --workdir" in error


@pytest.mark.parametrize("stage", ["analyze", "examples"])
def test_a_damaged_table_is_named_by_the_stage_that_reads_it(logs: Logs, stage: str) -> None:
    for done in ("ingest", "analyze")[: 1 + (stage == "examples")]:
        assert stages_run(logs(done)) == [done]
    path = next((logs.run / "tables/watches").rglob("part-*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    error = logs(stage).error()
    assert f"{path}: missing or of another size than published; delete {logs.run}/tables and run again" in error
    path.write_bytes(bytes(len(whole)))  # of the same size
    assert str(path) in logs(stage).error()


def test_the_run_makes_a_damaged_table_again(logs: Logs) -> None:
    logs("ingest")
    path = next((logs.run / "tables/watches").rglob("part-*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert stages_run(logs("ingest")) == ["ingest"]
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_a_log_of_one_user_and_one_of_one_video_make_a_working_funnel(logs: Logs) -> None:
    logs.table("watches", WATCH_HEADER, watches(USERS[:1], VIDEOS))
    for stage in ("ingest", "analyze", "examples", "train-generator", "evaluate"):
        assert [name.partition(":")[0] for name in stages_run(logs(stage))] == [stage]

    logs.table("watches", WATCH_HEADER, watches(USERS, VIDEOS[:1]))
    one_video = logs("run")
    assert one_video.code == 0, one_video
    assert "nothing is left to recommend" in one_video.out


@pytest.mark.slow
def test_ids_with_unicode_and_spaces_missing_numbers_and_no_impressions_make_a_working_funnel(logs: Logs) -> None:
    ages = ["nan", "", "31.5", "NaN"]
    logs.table("users", "user_id,age,region", [(u, ages[i % 4], "île de") for i, u in enumerate(USERS)])
    durations = ["nan", "", "61.5"]
    logs.table(
        "videos",
        "video_id,uploader_id,duration_s",
        [(v, "Ünï çödé", durations[i % 3]) for i, v in enumerate(VIDEOS)],
    )
    answer = logs("run")
    assert answer.code == 0, answer
    assert "train-ranker" not in stages_run(answer)
    watched = read_table(logs.run / "tables", "watches")
    assert set(watched["user_id"].to_pylist()) == set(USERS)
    listed = upnext("recommend", logs.run, "--user", USERS[2], "--count", 3)
    assert listed.code == 0, listed
    assert USERS[2] in listed.out
    assert "no ranker is exported: ordered by the candidate generators" in listed.out
    assert sum(video in listed.out for video in VIDEOS) > 3

    # Damaged after the fact: each command that reads the file names it.
    for damaged, command in (
        ("models/two_tower/weights.data-00000-of-00001", ("export",)),
        ("export/retrieval/1/variables/variables.data-00000-of-00001", ("recommend",)),
        ("tables/watches/{}", ("recommend",)),
    ):
        _damaged_is_named(logs, damaged, command[0])


def _damaged_is_named(logs: Logs, name: str, command: str) -> None:
    copy = logs.folder / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(logs.run, copy)
    for state in ("truncated", "overwritten"):
        last_day = max(path.relative_to(copy / "tables/watches") for path in copy.glob("tables/watches/*/*.parquet"))
        path = copy / name.format(last_day)
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[: size // 2] if state == "truncated" else bytes(size))
        if command == "recommend":
            error = upnext("recommend", copy, "--user", USERS[1]).error()
        else:
            shutil.rmtree(copy / "reports/export", ignore_errors=True)
            error = upnext(command, logs.config, "--workdir", copy).error()
        assert str(path) in error, (name, state)
