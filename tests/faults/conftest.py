"""Commands in processes that can be stopped, and copies of the undisturbed run that can be damaged."""

import shutil
from pathlib import Path

import pytest

from benchmarks.fault_injection import Commands
from pipeline.stages import RECORDS
from tests.end_to_end.conftest import Funnel


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Each command costs a fork, not an import."""
    return Commands(tmp_path_factory.mktemp("commands"))


@pytest.fixture
def copy(funnel: Funnel, tmp_path: Path) -> Path:
    """A copy of the undisturbed run."""
    folder = tmp_path / "run"
    shutil.copytree(funnel.folder, folder)
    return folder


def undo(run: Path, *stages: str) -> None:
    """Makes the stages run again, beside what they left; `train-generator` is the training of every generator."""
    for stage in stages:
        records = list((run / RECORDS).glob(f"{stage}*.json"))
        assert records, stage
        for record in records:
            record.unlink()
