"""Results are published whole or not at all, and shown with their intervals."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.report import ResultTable, is_whole, machine, publish_result, results_folder
from features.errors import DataError
from pipeline.evaluation.figures import Difference, Figure
from pipeline.evaluation.plots import new_plot

TABLE = ResultTable(
    "Loss by width",
    ("layers", "loss", "minus none", "users"),
    [
        ("none", Figure("loss", 0.4156, 0.4, 0.43, 10), None, 1200),
        ("a|b", Figure("loss", 0.3, 0.29, 0.31, 10), Difference("loss", -0.1156, -0.13, -0.1, 1.0, 10), 7),
    ],
    notes=("Lower is better.",),
    reference="Table 1",
)
FACTS = {"command": "upnext reproduce x", "summary": ["holds"], "epochs": 3, "raw": {"values": [1.0, float("nan")]}}


def publish(folder: Path, facts: dict = FACTS, plot: bool = True) -> None:
    figure = new_plot() if plot else None
    if figure is not None:
        figure.subplots().plot([0, 1], [0, 1])
    publish_result(folder, "x", [TABLE], figure, facts, Console(quiet=True))


def test_a_table_shows_values_with_their_intervals_beside_the_reference() -> None:
    assert TABLE.markdown().splitlines() == [
        "**Loss by width**",
        "",
        "| layers | loss | minus none | users |",
        "| --- | ---: | ---: | ---: |",
        "| none | 0.416 [0.400, 0.430] | – | 1,200 |",
        "| a\\|b | 0.300 [0.290, 0.310] | -0.116 [-0.130, -0.100] | 7 |",
        "",
        "Beside: Table 1",
        "",
        "Lower is better.",
    ]


def test_a_row_with_a_cell_too_few_is_refused() -> None:
    with pytest.raises(DataError, match="expected 2 cells in a row, found 1"):
        ResultTable("t", ("a", "b"), [("only",)])


def test_a_result_is_three_files_that_say_the_same(tmp_path: Path) -> None:
    publish(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.md", "x.png"]
    value = json.loads((tmp_path / "x.json").read_text())
    assert value["tables"][0]["rows"][0][1]["value"] == 0.4156
    assert value["facts"]["raw"]["values"] == [1.0, None]
    text = (tmp_path / "x.md").read_text()
    assert "    upnext reproduce x" in text and "- holds" in text and "- epochs: 3" in text
    assert "![x](x.png)" in text and value["machine"]["date"] in text
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert is_whole(tmp_path, "x")


def test_a_result_without_a_plot_leaves_no_old_plot_behind(tmp_path: Path) -> None:
    publish(tmp_path)
    publish(tmp_path, plot=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.md"]
    assert "png" not in (tmp_path / "x.md").read_text()


def test_an_error_leaves_the_old_result_as_it_was(tmp_path: Path) -> None:
    publish(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError):
        publish(tmp_path, {"not_json": {1, 2}})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_kill_between_two_files_leaves_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path)
    move = report.shutil.move

    def killed_at_the_plot(source: Path, destination: Path) -> None:
        if destination.suffix == ".png":
            raise KeyboardInterrupt
        move(source, destination)

    monkeypatch.setattr(report.shutil, "move", killed_at_the_plot)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path)
    assert not is_whole(tmp_path, "x")


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / "x.md").write_text("changed")
    assert not is_whole(tmp_path, "x")


PUBLISHED = sorted(path.stem for path in (Path(report.__file__).parent / "results").glob("*.json"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_result_is_as_it_was_written_and_names_no_folder_of_a_machine(name: str) -> None:
    folder = Path(report.__file__).parent / "results"
    assert is_whole(folder, name)
    texts = [(folder / f"{name}{suffix}").read_text(encoding="utf-8") for suffix in (".json", ".md")]
    assert not [
        found for text in texts for found in re.findall(r"(?<![\w.])/(?:home|root|tmp|work|mnt|data)/\S*", text)
    ]


def test_the_machine_is_named() -> None:
    here = machine()
    assert here.cpu and here.cores >= 1 and here.memory_gib > 0.1
    assert here.tensorflow == report.package_version("tensorflow") != "not installed"
    assert str(here.cores) in str(here)


def test_settings_of_the_memory_are_named_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert ", GLIBC_TUNABLES=glibc.malloc.hugetlb=1, 20" in str(machine())
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert "GLIBC_TUNABLES" not in str(machine())


def test_results_go_beside_the_benchmarks_only_within_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(report.__file__).parent)
    assert results_folder() == Path(report.__file__).resolve().parent / "results"
    monkeypatch.chdir(tmp_path)
    assert results_folder() == Path("results")
