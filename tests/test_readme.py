"""The README and the results name what exists: files, commands, configurations, tests; the README's example
configuration works as printed.
"""

import ast
import csv
import itertools
import re
import shlex
import typing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.main import get_command

from features.feature_lists import columns_of, default_ranking_features
from models.raw_inputs import SPECS
from pipeline import config_file
from pipeline.cli import complete_app
from pipeline.config import PRESETS, RunConfig
from pipeline.sources.files import FilesConfig, FilesSource
from pipeline.sources.ingest import ingest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "benchmarks" / "results" / "README.md").read_text(encoding="utf-8")
PACKAGES = ("features", "models", "serving", "pipeline", "benchmarks")
COMMANDS: dict[str, typing.Any] = typing.cast(typing.Any, get_command(complete_app())).commands


def block(heading: str, language: str, first_line: str = "") -> str:
    """The first code block of that language under a heading, or the one with that first line."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"```{language}\n({re.escape(first_line)}.*?)```", section, re.DOTALL)
    assert found, f"no {language} block under {heading!r}"
    return found[1]


def configuration(name: str) -> str:
    """The text of a configuration that the README prints, by its file's name."""
    return block("Your own data", "yaml", f"# {name}\n")


def tree() -> list[str]:
    """Every path of the tree; folders end with a slash."""
    paths: list[str] = []
    parents: list[str] = []
    for line in block("The repository", "text").splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, about = line.split(maxsplit=1)
        assert about.strip()
        parents[depth:] = [name]
        paths.append("".join(parents))
    return paths


def commands() -> list[list[str]]:
    """Every `upnext ...` command that is printed whole, as words."""
    text = README + RESULTS
    printed = re.findall(r"^    (upnext .*)$", text, re.MULTILINE) + re.findall(r"`(upnext [^`]*)`", text)
    return [shlex.split(command, comments=True) for command in printed]


def ideas() -> list[tuple[str, str]]:
    """(file, test) of every row of the table of ideas."""
    return re.findall(r"^\| [^|]+ \| `([^`]+)` \| `([^`]+)` \|$", README, re.MULTILINE)


def test_every_file_of_the_packages_is_in_the_tree_once() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"  # told by the folder's line
    }
    files |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline" / "configs").glob("*.yaml")}
    told = [path for path in tree() if not path.endswith("/") and path.split("/")[0] in PACKAGES]
    assert sorted(told) == sorted(files)


def test_every_path_exists() -> None:
    named = re.findall(
        rf"\b(?:{'|'.join((*PACKAGES, 'docker', 'tests'))})/[\w/]+\.(?:py|yaml|Dockerfile)\b", README + RESULTS
    )
    assert len(named) > 30
    absent = sorted({path for path in (*tree(), *named, "LICENSE", "CHANGELOG.md") if not (ROOT / path).exists()})
    assert not absent


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_its_stage_configuration_and_settings(words: list[str], tmp_path: Path) -> None:
    command = COMMANDS[words[1]]
    arguments = words[2 : words.index("--")] if "--" in words else words[2:]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert {word for word in arguments if word.startswith("--")} <= options
    if command.params and command.params[0].name == "config" and arguments:
        name = arguments[0]
        if name.endswith(".yaml"):
            (tmp_path / name).write_text(configuration(name))
            name = str(tmp_path / name)
        settings = [value for option, value in itertools.pairwise(arguments) if option == "--set"]
        config_file.read(RunConfig, name, settings)


def test_every_link_within_the_project_leads_somewhere() -> None:
    """Files, and headings of the same text."""
    for folder, text in ((ROOT, README), (ROOT / "benchmarks" / "results", RESULTS)):
        headings = {
            re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)
        }
        links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
        assert links
        assert not [link for link in links if link.startswith("#") and link[1:] not in headings]
        assert not [link for link in links if not link.startswith("#") and not (folder / link.split("#")[0]).exists()]


def test_every_command_and_built_in_configuration_is_named() -> None:
    named = set(re.findall(r"`(?:upnext )?([\w-]+)[^`]*`", README))
    assert {*COMMANDS, *config_file.builtin_names()} <= named


def test_every_preset_is_named() -> None:
    """Caser's are a grid, told by its corners."""
    presets = {name for presets in PRESETS.values() for name in presets if not re.fullmatch(r"caser_\d_\d+", name)}
    assert len(presets) > 15
    named = set(re.findall(r"`(\w+)`", README))
    assert {*presets, "caser_2_16", "caser_8_64"} <= named
    assert named & {"caser_2_16", "caser_8_64"} <= PRESETS["caser"].keys()


@pytest.mark.parametrize(("file", "test"), ideas(), ids=lambda name: name)
def test_every_idea_has_its_file_and_its_test(file: str, test: str) -> None:
    assert (ROOT / file).is_file()
    path, _, name = test.partition("::")
    functions = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
    assert name in functions if name else any(function.startswith("test_") for function in functions)


def test_the_table_of_ideas_is_read() -> None:
    assert len(ideas()) > 25


def test_every_raw_input_is_in_the_table_of_inputs() -> None:
    assert not [name for name in SPECS if name not in README]


def test_the_example_configuration_reads_the_files_it_describes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_logs.yaml").write_text(configuration("my_logs.yaml"))
    logs = Path("logs")
    (logs / "plays").mkdir(parents=True)
    (logs / "impressions").mkdir()
    write_csv(logs / "plays" / "a.csv", ["uid", "item", "started", "played_ms"], ["u", "v", 1_700_000_000_500, 2500])
    write_csv(logs / "users.csv", ["user_id", "gender", "plan", "followers"], ["u", "M", "paid", 3])
    write_csv(logs / "videos.csv", ["id", "tags"], ["v", "cats|jazz"])
    shown = {"user_id": ["u"], "video_id": ["v"], "timestamp": [1_700_000_000.0], "clicked": [True]}
    pq.write_table(pa.table(shown), logs / "impressions" / "a.parquet")

    config = config_file.read(RunConfig, "my_logs.yaml")
    assert isinstance(config.source, FilesConfig)
    ingest(FilesSource(config.source), Path("tables"), Path("rejected"), config.validation)

    (watch,) = pq.read_table("tables/watches").to_pylist()
    assert watch["user_id"] == "u" and watch["watch_time_s"] == 2.5
    assert watch["timestamp"].timestamp() == 1_700_000_000.5
    (user,) = pq.read_table("tables/users").to_pylist()
    assert user == {"user_id": "u", "gender": 1.0, "plan": "paid", "followers": 3.0}
    assert pq.read_table("tables/videos")["topics"].to_pylist() == [["cats", "jazz"]]
    spec = default_ranking_features(columns_of(Path("tables")), config.features).spec
    assert "plan" in spec and "followers" in spec


def write_csv(path: Path, header: list[str], row: list) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, row])
