"""Imports run one way: features <- models <- serving <- pipeline <- benchmarks; nobody imports tests."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "features": {"features"},
    "models": {"features", "models"},
    "serving": {"features", "models", "serving"},
    "pipeline": {"features", "models", "serving", "pipeline"},
    "benchmarks": {"features", "models", "serving", "pipeline", "benchmarks"},
}
ROOMS = {*MAY_IMPORT, "tests"}
FILES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    """The top-level packages a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_before_it(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert imported_packages(path) & ROOMS <= MAY_IMPORT[room]


def test_features_never_import_tensorflow() -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "features").rglob("*.py"))
        if imported_packages(path) & {"tensorflow", "tf_keras", "keras", "tensorflow_recommenders"}
    ]
    assert not offenders, f"Beam workers must start without TensorFlow, but these import it: {offenders}"


def test_a_file_with_one_import_statement_is_read_correctly(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("import os.path\nfrom models.ranker import Ranker\ndef f():\n    import serving\n")
    assert imported_packages(source) == {"os", "models", "serving"}
