"""Whatever stops a stage, nothing half-written stands, and the same command goes on to the undisturbed result."""

import signal
from pathlib import Path

import pytest

from benchmarks.fault_injection import At, Commands, Stop, small_file_systems, wait_for_lock
from benchmarks.fault_outcomes import (
    BYTES,
    EXPORTS,
    MODELS,
    differences,
    half_published,
    unfinished,
)
from tests.end_to_end.conftest import Funnel
from tests.faults.conftest import undo

pytestmark = pytest.mark.slow

CODES = {Stop.KILL: -signal.SIGKILL, Stop.INTERRUPT: 130, Stop.DISK_FULL: 1}
TOLD = {Stop.KILL: "", Stop.INTERRUPT: "interrupted: run the same command again", Stop.DISK_FULL: "no space left; free"}
DATA_FAULTS = [
    ("ingest", At(Stop.KILL, 1, "os.rename", ".tables.")),  # written, not yet renamed
    ("analyze", At(Stop.DISK_FULL, 1, "os.mkdir", ".catalogue.")),  # vocabularies are there, the catalogue is not
    ("examples", At(Stop.INTERRUPT, 1, "os.rename", ".ranking.")),
    ("quantiles", At(Stop.KILL, 1, "os.rename", "/stages/.quantiles")),  # published, not yet recorded
]
TRAINING_FAULTS = [
    ("train-generator:two_tower", At(Stop.KILL, 1, "os.rename", r"/\.two_tower\.\d")),
    ("train-ranker", At(Stop.DISK_FULL, 1, "os.mkdir", r"/\.ranker\.\d")),
]


def stopped_and_continued(commands: Commands, config: Path, run: Path, stage: str, at: At) -> tuple[str, str]:
    """Stops a stage and gives the same command again; what was said of the epochs, both times."""
    stopped = commands(stage, config, "--workdir", run, at=at)
    assert stopped.code == CODES[at.stop], (stage, stopped)
    assert not stopped.complaint(), (stage, stopped)
    assert TOLD[at.stop] in stopped.err, stage
    assert not half_published(run), stage
    again = commands(stage, config, "--workdir", run)
    assert again.code == 0, (stage, again)
    return stopped.err, again.err


def test_data_with_a_fault_in_every_stage_ends_as_the_undisturbed(
    funnel: Funnel, commands: Commands, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for stage, at in DATA_FAULTS:
        stopped_and_continued(commands, funnel.config, run, stage, at)
    assert differences(run, funnel.folder, (*BYTES, "features/statistics", "features/quantiles")) == []
    assert unfinished(run) == []


def test_a_training_stopped_when_it_publishes_does_not_train_again(
    funnel: Funnel, commands: Commands, copy: Path
) -> None:
    for stage, at in TRAINING_FAULTS:
        undo(copy, stage)
        command = stage.partition(":")[0]  # runs the generators that have no record: this one
        first, again = stopped_and_continued(commands, funnel.config, copy, command, at)
        assert "epoch" in first
        assert "epoch" not in again, stage
    assert differences(copy, funnel.folder, MODELS) == []
    assert unfinished(copy) == []


@pytest.mark.parametrize("stop", [Stop.KILL, Stop.INTERRUPT])
@pytest.mark.parametrize(
    ("stage", "inside"),
    [("evaluate", "/reports/.evaluation."), ("export", "/export/retrieval/.")],
)
def test_reports_and_exports_stay_as_they_were_until_new_ones_are_whole(
    funnel: Funnel, commands: Commands, copy: Path, stage: str, inside: str, stop: Stop
) -> None:
    undo(copy, stage)
    stopped = commands(stage, funnel.config, "--workdir", copy, at=At(stop, 1, "os.mkdir", inside))
    assert stopped.code == CODES[stop], stopped
    assert not stopped.complaint(), stopped
    assert not half_published(copy)
    assert differences(copy, funnel.folder, ("reports/evaluation", *EXPORTS)) == []


def test_a_full_file_system_is_told_and_the_same_command_continues_when_there_is_room(
    funnel: Funnel, commands: Commands, copy: Path
) -> None:
    if not small_file_systems():
        pytest.skip("this user may not mount a small file system")
    undo(copy, "examples")
    full = commands("examples", funnel.config, "--workdir", copy, full_folder=(str(copy), 20_000))
    assert full.code == 1, full
    assert not full.complaint(), full
    assert "no space left; free some" in full.err
    assert not half_published(copy)
    assert commands("examples", funnel.config, "--workdir", copy).code == 0
    assert differences(copy, funnel.folder, ("shards", "examples/candidate_generation", "examples/ranking")) == []


def test_a_second_run_in_the_folder_is_refused_and_the_first_is_not_disturbed(
    funnel: Funnel, commands: Commands, copy: Path
) -> None:
    undo(copy, "analyze")
    first = commands.start(["analyze", funnel.config, "--workdir", copy])
    wait_for_lock(copy, first.process)
    first.send(signal.SIGSTOP)  # so that the second one comes in its midst
    second = commands("analyze", funnel.config, "--workdir", copy)
    first.send(signal.SIGCONT)
    assert first.ending().code == 0
    assert second.code == 1
    assert not second.complaint()
    assert f"{copy}: in use by process {first.process.pid}; wait for it" in second.err
    assert differences(copy, funnel.folder, ("features/vocabularies", "features/catalogue")) == []
