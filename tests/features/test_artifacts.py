"""Published folders appear whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from features.artifacts import MANIFEST, discard, fingerprint, is_published, publish, read_manifest, write_whole
from features.errors import ArtifactError


def test_manifest_lists_every_file_and_what_was_added_inside_the_block(tmp_path: Path) -> None:
    manifest: dict = {"stage": "x"}
    with publish(tmp_path / "out", manifest) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("abc")
        manifest["counts"] = {"read": 3}
    found = read_manifest(tmp_path / "out", verify=True)
    assert found["stage"] == "x" and found["counts"] == {"read": 3}
    assert found["files"] == {
        "sub/a.txt": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    }


def test_nothing_appears_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), publish(tmp_path / "out", {}) as folder:
        (folder / "a.txt").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_earlier_version_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    with publish(tmp_path / "out", {}) as folder:
        (folder / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), publish(tmp_path / "out", {}) as folder:
        (folder / "a.txt").write_text("new")
        raise RuntimeError
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    with publish(tmp_path / "out", {}) as folder:
        (folder / "b.txt").write_text("new")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"b.txt", MANIFEST}


@pytest.mark.parametrize(
    "own",
    [{"notes.txt": "mine"}, {"manifest.json": '{"name": "a browser extension"}', "a.js": ""}, {"manifest.json": "{"}],
)
def test_a_folder_that_was_never_published_is_refused_and_stays(tmp_path: Path, own: dict[str, str]) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for name, text in own.items():
        (logs / name).write_text(text)
    with pytest.raises(ArtifactError, match=f"{logs}: expected nothing there, .* another folder"), publish(logs, {}):
        raise AssertionError("the work began")
    assert {path.name: path.read_text() for path in logs.iterdir()} == own
    assert list(tmp_path.iterdir()) == [logs]


def test_what_was_added_to_a_published_folder_is_not_lost(tmp_path: Path) -> None:
    with publish(tmp_path / "out", {}) as folder:
        (folder / "a.txt").write_text("ours")
    (tmp_path / "out" / "sub").mkdir()
    (tmp_path / "out" / "sub" / "mine.csv").write_text("mine")
    with pytest.raises(ArtifactError, match=r"found sub/mine.csv besides \(1 such\)"), publish(tmp_path / "out", {}):
        raise AssertionError("the work began")
    assert (tmp_path / "out" / "sub" / "mine.csv").read_text() == "mine"


def test_a_folder_that_came_while_the_work_went_on_is_refused_and_stays(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="found mine"), publish(tmp_path / "out", {}):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").write_text("1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_is_not_replaced_and_an_empty_folder_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="expected a folder, found a file"), publish(tmp_path / "file", {}):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    with publish(tmp_path / "empty", {}):
        pass
    assert is_published(tmp_path / "empty")


def test_a_discarded_folder_leaves_nothing_and_its_place_can_be_taken(tmp_path: Path) -> None:
    (tmp_path / "out/sub").mkdir(parents=True)
    (tmp_path / "out/sub/leaks.parquet").write_text("1")
    discard(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with publish(tmp_path / "out", {}):
        pass
    assert is_published(tmp_path / "out")


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    dead = tmp_path / ".out.999999999-0a0a0a0a.tmp"
    dead.mkdir()
    with publish(tmp_path / "out", {}):
        pass
    assert not dead.exists()


def test_what_a_killed_process_of_the_same_id_left_is_removed(tmp_path: Path) -> None:
    """In a container the process has the same id each time."""
    left = tmp_path / f".out.{os.getpid()}-0a0a0a0a.tmp"
    left.mkdir()
    with publish(tmp_path / "out", {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_being_written_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    other = tmp_path / ".out.1-0a0a0a0a.tmp"  # of a process that is there
    other.mkdir()
    with publish(tmp_path / "out", {}) as first:
        (first / "a.txt").write_text("first")
        with publish(tmp_path / "out", {}) as second:
            (second / "a.txt").write_text("second")
        assert (first / "a.txt").read_text() == "first"
    assert (tmp_path / "out" / "a.txt").read_text() == "first"
    assert other.exists()


def test_a_folder_without_a_manifest_does_not_exist_for_readers(tmp_path: Path) -> None:
    assert not is_published(tmp_path)
    with pytest.raises(ArtifactError, match="nothing is published there"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "garble"])
def test_damage_is_found_and_named(tmp_path: Path, damage: str) -> None:
    with publish(tmp_path / "out", {}) as folder:
        (folder / "a.bin").write_bytes(b"0123")
    target = tmp_path / "out" / "a.bin"
    if damage == "truncate":
        target.write_bytes(b"012")
    elif damage == "flip":
        target.write_bytes(b"0124")
    elif damage == "remove":
        target.unlink()
    else:
        target = tmp_path / "out" / MANIFEST
        target.write_text("{")
    with pytest.raises(ArtifactError, match=target.name):
        read_manifest(tmp_path / "out", verify=True)


def test_fingerprint_ignores_key_order_and_sees_values() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint(json.loads('{"b": 2, "a": 1}'))
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


@pytest.mark.parametrize("failing", [1, 2])
def test_a_version_that_cannot_be_replaced_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    with publish(tmp_path / "out", {}) as folder:
        (folder / "a.txt").write_text("old")
    renamed = []
    plain = Path.rename

    def rename(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) == failing:  # the first moves the old one aside, the second puts the new one in place
            raise OSError(5, "Input/output error")
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"), publish(tmp_path / "out", {}) as folder:
        (folder / "a.txt").write_text("new")
    assert read_manifest(tmp_path / "out", verify=True)
    assert (tmp_path / "out/a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": 3}', '{"files": {"a": {"bytes": 1}}}', "\xff"])
def test_a_manifest_of_another_shape_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=f"{tmp_path}/{MANIFEST}: expected a manifest as published"):
        read_manifest(tmp_path)


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "x", "old")
    monkeypatch.setattr(Path, "write_text", _half_written)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "x", "newer")
    assert (tmp_path / "x").read_text() == "old"


def _half_written(self: Path, text: str, encoding: str) -> None:
    self.write_bytes(text[: len(text) // 2].encode(encoding))
    raise OSError(28, "No space left on device")
