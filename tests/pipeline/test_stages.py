"""A stage runs when its configuration or inputs changed, and is skipped otherwise."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from features import artifacts
from features.artifacts import publish
from features.errors import ArtifactError
from pipeline.stages import Stage, durations, execute, locked, recorded_settings, require_made


class Work:
    """Two stages that count how often each ran: `first` publishes a, `second` copies it to b."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.ran: list[str] = []

    def _write(self, name: str, text: str) -> None:
        self.ran.append(name)
        with publish(self.run / name, {}) as folder:
            (folder / "data.txt").write_text(text)

    def stages(self, text: str = "x", second_settings: int = 1) -> list[Stage]:
        return [
            Stage("first", "", {"text": text}, (), ("a",), lambda: self._write("a", text)),
            Stage(
                "second",
                "",
                second_settings,
                ("a",),
                ("b",),
                lambda: self._write("b", (self.run / "a" / "data.txt").read_text()),
            ),
        ]

    def execute(self, **changes: object) -> list[str]:
        self.ran.clear()
        execute(self.stages(**changes), self.run, Console(quiet=True), version="1")  # type: ignore[arg-type]
        return list(self.ran)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "run")


def test_an_unchanged_run_does_nothing(work: Work) -> None:
    assert work.execute() == ["a", "b"]
    assert work.execute() == []
    assert list(durations(work.run)) == ["first", "second"]


def test_a_changed_setting_runs_the_stage_and_what_reads_it(work: Work) -> None:
    work.execute()
    assert work.execute(text="y") == ["a", "b"]
    assert (work.run / "b" / "data.txt").read_text() == "y"


def test_a_later_setting_leaves_the_earlier_stage_alone(work: Work) -> None:
    work.execute()
    assert work.execute(second_settings=2) == ["b"]


@pytest.mark.parametrize("damage", ["remove the manifest", "truncate the data", "remove the record"])
def test_a_damaged_output_is_made_again(work: Work, damage: str) -> None:
    work.execute()
    target = {
        "remove the manifest": work.run / "b" / "manifest.json",
        "truncate the data": work.run / "b" / "data.txt",
        "remove the record": work.run / "stages" / "second.json",
    }[damage]
    target.write_text("") if damage.startswith("truncate") else target.unlink()
    assert work.execute() == ["b"]


@pytest.mark.parametrize("text", [None, "", "[]"])
def test_a_stage_replaces_what_a_stage_left_without_a_manifest(work: Work, text: str | None) -> None:
    work.execute()
    manifest = work.run / "b" / "manifest.json"
    manifest.unlink() if text is None else manifest.write_text(text)
    assert work.execute(second_settings=2) == ["b"]
    assert sorted(path.name for path in work.run.iterdir()) == ["a", "b", "stages"]


def test_a_folder_that_no_stage_left_is_refused_before_the_work_begins(work: Work) -> None:
    (work.run / "b").mkdir(parents=True)
    (work.run / "b" / "own.csv").write_text("1,2")
    with pytest.raises(ArtifactError, match=r"run/b: expected nothing there, .* found own\.csv"):
        work.execute()
    assert work.ran == ["a"]
    assert (work.run / "b" / "own.csv").read_text() == "1,2"


def test_a_missing_input_is_named(work: Work) -> None:
    with pytest.raises(ArtifactError, match=r"run/a: not published; run the stage that writes it first"):
        execute(work.stages()[1:], work.run, Console(quiet=True), version="1")


def test_a_stage_that_publishes_nothing_is_an_error(tmp_path: Path) -> None:
    stage = Stage("idle", "", 0, (), ("a",), lambda: None)
    with pytest.raises(ArtifactError, match="stage idle: ended without publishing a"):
        execute([stage], tmp_path, Console(quiet=True), version="1")


def test_a_second_run_in_one_folder_is_refused(tmp_path: Path) -> None:
    attempt = (
        "import sys, pathlib; from pipeline.stages import locked; from features.errors import ArtifactError\n"
        "try:\n    with locked(pathlib.Path(sys.argv[1])): print('entered')\n"
        "except ArtifactError as error: print(error)"
    )
    command = [sys.executable, "-c", attempt, str(tmp_path)]
    with locked(tmp_path):
        refused = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "in use by process" in refused
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "entered\n"


def test_a_flipped_byte_of_an_output_makes_its_stage_run_again_though_the_size_is_the_same(work: Work) -> None:
    work.execute()
    (work.run / "a" / "data.txt").write_text("y")
    assert work.execute() == ["a"]
    assert (work.run / "a" / "data.txt").read_text() == "x"


@pytest.mark.parametrize("damaged", ["a/data.txt", "a/manifest.json"])
def test_a_stage_alone_refuses_an_input_that_is_not_as_published(work: Work, damaged: str) -> None:
    work.execute()
    path = work.run / damaged
    path.write_text(path.read_text().replace("x", "y") if damaged.endswith("txt") else path.read_text() + " ")
    (work.run / "stages" / "second.json").unlink()
    with pytest.raises(ArtifactError, match=r"run/a.*again"):
        execute(work.stages()[1:], work.run, Console(quiet=True), version="1")
    assert work.ran == ["a", "b"]


def test_what_a_stage_published_before_it_was_stopped_is_not_read(work: Work) -> None:
    def published_then_stopped() -> None:
        work._write("a", "half")
        raise KeyboardInterrupt

    stage = Stage("first", "", {}, (), ("a",), published_then_stopped)
    with pytest.raises(KeyboardInterrupt):
        execute([stage], work.run, Console(quiet=True), version="1")
    with pytest.raises(ArtifactError, match="run/a: expected what its stage left at its end"):
        execute(work.stages()[1:], work.run, Console(quiet=True), version="1")
    assert work.execute() == ["a", "b"]


def test_an_artifact_is_read_once_a_command_to_verify_it(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    work.execute()
    read = []
    plain = artifacts.file_sha256
    monkeypatch.setattr(artifacts, "file_sha256", lambda path: read.append(path) or plain(path))
    work.execute()
    assert sorted(path.parent.name for path in read) == ["a", "b"]


@pytest.mark.parametrize("text", ["", "[]", '{"outputs": 3}', '{"stage": "second", "outputs": {}}'])
def test_a_record_of_another_shape_makes_the_stage_run_again(work: Work, text: str) -> None:
    work.execute()
    (work.run / "stages" / "second.json").write_text(text)
    assert "second" not in durations(work.run)
    assert work.execute() == ["b"]


class Line:
    """Three stages, each reading the last one's folder, and one beside them that reads the first's."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def stages(self, **settings: object) -> list[Stage]:
        read = {"first": (), "second": ("first",), "beside": ("first",), "third": ("second",)}
        return [
            Stage(name, "", settings.get(name, {"t0": None, "depth": (1, 2)}), inputs, (name,), self._publishes(name))
            for name, inputs in read.items()
        ]

    def _publishes(self, name: str) -> Callable[[], None]:
        def action() -> None:
            with publish(self.run / name, {}) as folder:
                (folder / "data.txt").write_text(str(time.monotonic_ns()))

        return action

    def execute(self, *names: str, **settings: object) -> None:
        chosen = [stage for stage in self.stages(**settings) if stage.name in names]
        execute(chosen, self.run, Console(quiet=True), version="1")

    def require_made(self, name: str, version: str = "1", **settings: object) -> None:
        stages = self.stages(**settings)
        require_made([stage for stage in stages if stage.name == name], stages, self.run, version)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    made = Line(tmp_path / "run")
    made.execute("first", "second", "beside", "third")
    return made


def test_a_stage_alone_takes_what_its_configuration_made(line: Line) -> None:
    line.require_made("third")
    line.require_made("third", third={"t0": "another of its own"})
    line.require_made("third", beside={"t0": "of a stage it does not read"})
    (line.run / "beside" / "manifest.json").unlink()
    line.require_made("third")


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_stage_alone_refuses_what_another_configuration_made_and_names_the_setting(line: Line, stage: str) -> None:
    change = {stage: {"t0": "2025-01-05", "depth": (1, 2)}}
    told = rf'stage {stage} makes .* another.s \(t0 was null, is "2025-01-05"\); run `upnext {stage}`, or `upnext run`'
    with pytest.raises(ArtifactError, match=told):
        line.require_made("third", **change)


def test_a_stage_alone_refuses_what_is_older_than_what_it_was_made_of(line: Line) -> None:
    (line.run / "stages" / "first.json").unlink()
    line.execute("first")
    with pytest.raises(ArtifactError, match=r"stage second .* \(what it reads, or Upnext, changed since\)"):
        line.require_made("third")
    line.execute("second")
    line.require_made("third")
    with pytest.raises(ArtifactError, match=r"stage first .* \(what it reads, or Upnext, changed since\)"):
        line.require_made("third", version="2")


@pytest.mark.parametrize("stopped", ["first", "second"])
def test_a_stage_alone_refuses_what_a_stopped_stage_left(line: Line, stopped: str) -> None:
    (line.run / "stages" / f"{stopped}.json").unlink()
    with pytest.raises(ArtifactError, match=f"run/{stopped}: expected what its stage left at its end"):
        line.require_made("third")


def test_the_settings_of_a_stage_are_kept(line: Line) -> None:
    assert recorded_settings("first", line.run) == {"t0": None, "depth": [1, 2]}
    assert recorded_settings("never ran", line.run) is None
