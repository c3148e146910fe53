"""What is damaged is named by the command that reads it, or made again by its stage, and never read as whole."""

import json
from pathlib import Path

import pytest

from benchmarks.fault_injection import Commands, Damage, damage
from benchmarks.fault_outcomes import differences
from benchmarks.faults import OUTPUTS, READERS, RECOMMEND
from features.artifacts import MANIFEST
from pipeline.stages import RECORDS
from tests.end_to_end.command_line import Answer, stages_run, upnext
from tests.end_to_end.conftest import Funnel
from tests.faults.conftest import undo

pytestmark = pytest.mark.slow


def content_of(folder: Path) -> Path:
    """The largest file of a published folder, or of an export's first version; the manifest where there is no other."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: (path.name != MANIFEST, path.stat().st_size, str(path)))


def read(command: str, funnel: Funnel, run: Path) -> Answer:
    if command == RECOMMEND:
        return upnext(RECOMMEND, run, "--user", "u000003")
    undo(run, command)
    return upnext(command, funnel.config, "--workdir", run)


@pytest.mark.parametrize("how", list(Damage))
def test_every_artifact_that_is_damaged_is_named_by_the_command_that_reads_it(
    funnel: Funnel, copy: Path, how: Damage
) -> None:
    for seed, (name, reader) in enumerate(READERS.items()):
        path = content_of(copy / name)
        whole = path.read_bytes()
        damage(path, how, seed)
        error = read(reader, funnel, copy).error()
        assert f"{path}: " in error, name
        assert "and run again" in error, name
        path.write_bytes(whole)
        if reader != RECOMMEND:
            for record in (funnel.folder / RECORDS).glob(f"{reader}*.json"):
                (copy / RECORDS / record.name).write_bytes(record.read_bytes())


@pytest.mark.parametrize("stage", ["ingest", "analyze", "examples", "quantiles"])
def test_a_stage_makes_its_damaged_artifacts_again_and_says_why(funnel: Funnel, copy: Path, stage: str) -> None:
    for seed, name in enumerate(OUTPUTS[stage]):
        damage(content_of(copy / name), Damage.FLIP, seed)
    answer = upnext(stage, funnel.config, "--workdir", copy)
    assert stages_run(answer) == [stage]
    assert f"{stage}: made again, {copy}/" in answer.out
    assert differences(copy, funnel.folder, OUTPUTS[stage]) == []


@pytest.mark.parametrize("how", list(Damage))
def test_a_manifest_that_is_damaged_or_changed_is_not_believed(funnel: Funnel, copy: Path, how: Damage) -> None:
    manifest = copy / "examples/ranking" / MANIFEST
    damage(manifest, how, seed=3)
    assert str(copy / "examples/ranking") in read("quantiles", funnel, copy).error()


def test_a_changed_count_in_a_manifest_is_found_though_it_reads_well(funnel: Funnel, copy: Path) -> None:
    manifest = copy / "examples/ranking" / MANIFEST
    value = json.loads(manifest.read_text())
    value["counts"]["kept"]["train"] -= 1
    manifest.write_text(json.dumps(value))
    error = read("quantiles", funnel, copy).error()
    assert f"{copy}/examples/ranking: expected what its stage left at its end" in error
    assert "run that stage, or `upnext run`, again" in error


def test_what_a_stopped_stage_published_is_not_read_by_the_next(funnel: Funnel, copy: Path) -> None:
    undo(copy, "examples")  # published, but perhaps not checked for leaks
    assert "the stage was stopped" in read("quantiles", funnel, copy).error()


@pytest.mark.parametrize("how", list(Damage))
def test_a_damaged_record_makes_its_stage_run_again_or_changes_nothing(funnel: Funnel, copy: Path, how: Damage) -> None:
    damage(copy / RECORDS / "quantiles.json", how, seed=1)
    assert upnext("quantiles", funnel.config, "--workdir", copy).code == 0
    assert differences(copy, funnel.folder, OUTPUTS["quantiles"]) == []


@pytest.mark.parametrize("how", list(Damage))
def test_recommend_refuses_a_configuration_that_is_not_as_the_run_wrote_it(copy: Path, how: Damage) -> None:
    damage(copy / "config.yaml", how, seed=2)
    assert f"{copy}" in upnext(RECOMMEND, copy, "--user", "u000003").error()


def test_a_file_that_may_not_be_read_is_named_and_the_command_continues_when_it_may(
    funnel: Funnel, commands: Commands, copy: Path
) -> None:
    path = content_of(copy / "examples/ranking")
    path.chmod(0)
    undo(copy, "quantiles")
    try:
        refused = commands("quantiles", funnel.config, "--workdir", copy, obey_permissions=True)
    finally:
        path.chmod(0o644)
    assert not refused.complaint(), refused
    assert refused.err.strip() == (
        f"error: {path}: permission denied; change its permissions or choose another --workdir"
    )
    assert commands("quantiles", funnel.config, "--workdir", copy).code == 0
