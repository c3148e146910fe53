"""What a disturbed run left, beside the undisturbed one: data byte for byte, trainings within a tolerance."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from features.artifacts import MANIFEST, is_published, read_manifest
from features.errors import ArtifactError

TOLERANCE = 1e-3
"""Greatest difference of a weight, or relative difference of a reported figure, between two trainings."""
BYTES = (
    *("tables", "rejected", "truth", "shards", "features/vocabularies", "features/catalogue"),
    *("examples/candidate_generation", "examples/ranking"),
)
NUMBERS = ("features/statistics", "features/quantiles", "reports/evaluation")
MODELS = ("models/two_tower", "models/ranker")
EXPORTS = ("export/retrieval", "export/retrieval_brute_force", "export/ranking")
_QUANTILES = frozenset({"boundaries", "quantiles"})
_TIMES = frozenset({"seconds", "examples_per_second", "run"})


def differences(
    found: Path, expected: Path, names: tuple[str, ...] = (*BYTES, *NUMBERS, *MODELS, *EXPORTS)
) -> list[str]:
    """What differs, one line each, of the folders `names` of two runs; of an export's the latest versions."""
    lines = []
    for name in names:
        one, other = (_latest(run / name) if name in EXPORTS else run / name for run in (found, expected))
        try:
            if one is None or other is None:
                raise ArtifactError("no version is published")
            read_manifest(one, verify=True)
            if name in BYTES:
                lines += _bytes_differ(one, other)
            elif name in NUMBERS:
                lines += _numbers_differ(one, other)
            else:
                lines += _weights_differ(one, other, "weights" if name in MODELS else "variables/variables")
        except ArtifactError as error:
            lines.append(f"{name}: {error}")
    return lines


def half_published(run: Path) -> list[str]:
    """Folders of a run that stand as published and are not whole; of an export's the latest versions."""
    lines = []
    for folder in sorted(manifest.parent for manifest in run.rglob(MANIFEST)):
        hidden = any(part.startswith(".") for part in folder.relative_to(run).parts)
        if hidden or (folder.name.isdecimal() and folder != _latest(folder.parent)):
            continue
        try:
            read_manifest(folder, verify=True)
        except ArtifactError as error:
            lines.append(f"half-written: {error}")
    return lines


def unfinished(run: Path) -> list[str]:
    """Hidden leftovers with something in them."""
    return [str(path) for path in run.rglob(".*") if path.is_dir() and any(file.is_file() for file in path.rglob("*"))]


def _latest(folder: Path) -> Path | None:
    versions = [entry for entry in folder.glob("[0-9]*") if is_published(entry)]
    return max(versions, key=lambda entry: int(entry.name), default=None)


def _bytes_differ(one: Path, other: Path) -> list[str]:
    first, second = read_manifest(one)["files"], read_manifest(other)["files"]
    return [
        f"{one / file}: other bytes"
        for file in sorted(first.keys() | second.keys())
        if first.get(file) != second.get(file)
    ]


def _numbers_differ(one: Path, other: Path) -> list[str]:
    names = sorted(path.name for path in other.glob("*.json") if path.name != MANIFEST)
    return [
        f"{one / name}: other figures"
        for name in names
        if not close(json.loads((one / name).read_text()), json.loads((other / name).read_text()))
    ]


def close(one: Any, other: Any, tolerance: float = TOLERANCE) -> bool:
    """Whether two JSON values are the same but for rounding, times, and the rank error of quantiles."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in _QUANTILES & one.keys() & other.keys():
            error = one.get("rank_error", 0) + other.get("rank_error", 0)
            if not same_quantiles(one[name], other[name], error):
                return False
            one, other = ({k: v for k, v in value.items() if k != name} for value in (one, other))
        return one.keys() == other.keys() and all(k in _TIMES or close(one[k], other[k], tolerance) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(close(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return bool(one == other)


def same_quantiles(one: list[Any], other: list[Any], rank_error: float) -> bool:
    """Whether each of the quantiles `one` has its rank among the quantiles `other`, but for an error and one step."""
    if len(one) != len(other):
        return False
    first, second = np.array(one), np.array(other)
    rank, step = np.linspace(0, 1, len(first)), 1 / max(len(first) - 1, 1)
    low, high = (np.searchsorted(second, first, side) / len(second) for side in ("left", "right"))
    slack = rank_error + step
    return bool(np.all((low - slack <= rank) & (rank <= high + slack)))


def _weights_differ(one: Path, other: Path, checkpoint: str) -> list[str]:
    import tensorflow as tf  # only after `models`

    first, second = (tf.train.load_checkpoint(str(folder / checkpoint)) for folder in (one, other))
    names = first.get_variable_to_shape_map()
    if names != second.get_variable_to_shape_map():
        return [f"{one / checkpoint}: other variables"]
    lines = []
    for name in sorted(names):
        a, b = first.get_tensor(name), second.get_tensor(name)
        if np.asarray(a).dtype.kind != "f":
            continue
        greatest = float(np.max(np.abs(a - b), initial=0.0))
        if greatest > TOLERANCE:
            lines.append(f"{one / checkpoint}: {name} differs by {greatest:.2g}")
    return lines
