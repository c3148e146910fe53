"""Parity between training and serving: stored examples against raw rows through the exported signatures.

The export applies vocabularies, quantiles and derivations inside its graph, a second time beside the Beam jobs. This
check is what keeps the two equal. It runs in a process that cannot import this project, on the very folder that would
be published, and its fixture ships with the model so that a server can be checked the same way.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from features.errors import ExportError
from features.settings import Settings
from serving import parity_check
from serving.parity_check import FIXTURE


class ParityConfig(Settings):
    """How close stored and recomputed values must be; ids and embedding rows must be equal."""

    examples: int = Field(default=200, ge=1, description="stored examples that are sent through the signatures")
    rtol: float = Field(default=1e-4, gt=0, description="relative tolerance of numbers")
    atol: float = Field(default=1e-5, ge=0, description="absolute tolerance of numbers")
    timeout_s: float = Field(default=600.0, gt=0, description="seconds the check may take")


@dataclass(frozen=True)
class ParityFixture:
    """Raw rows and what the signatures must answer.

    Args:
      descriptions: one text per row that lets a person find the example again.
      inputs: raw input name -> `[B, ...]`, as the signatures take them.
      expected: signature -> output name -> `[B, ...]`.
      tied_by: output of ids -> the output with the scores that order it.
    """

    descriptions: Sequence[str]
    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, Mapping[str, np.ndarray]]
    tied_by: Mapping[str, str] | None = None


def write_fixture(folder: Path, fixture: ParityFixture, config: ParityConfig) -> None:
    """Writes the fixture into an export folder."""
    columns = {"example": pa.array(list(fixture.descriptions), pa.string())}
    columns |= {f"input.{name}": _nested(values) for name, values in fixture.inputs.items()}
    columns |= {
        f"{signature}.{name}": _nested(values)
        for signature, outputs in fixture.expected.items()
        for name, values in outputs.items()
    }
    settings = {
        "rtol": config.rtol,
        "atol": config.atol,
        "signatures": list(fixture.expected),
        "tied_by": dict(fixture.tied_by or {}),
    }
    table = pa.table(columns).replace_schema_metadata({"parity": json.dumps(settings)})
    path = folder / FIXTURE
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)


def _nested(values: np.ndarray) -> pa.Array:
    """An array `[B, ...]` as a column of nested lists."""
    values = np.asarray(values)
    kind = pa.string() if values.dtype.kind in "OUS" else pa.from_numpy_dtype(values.dtype)
    flat = values.reshape(-1)
    column = pa.array(flat.tolist() if kind == pa.string() else flat, kind)
    for axis in range(values.ndim - 1, 0, -1):
        rows = int(np.prod(values.shape[:axis]))
        column = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * values.shape[axis], column)
    return column


def check_parity(folder: Path, config: ParityConfig) -> dict[str, int]:
    """Compares the folder's answers with its fixture in a process without our code.

    Returns:
      What the manifest says about it: the number of examples compared.

    Raises:
      ExportError: an output differs (named with an example and both values), or the model cannot be loaded or
        answer there.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        result = Path(elsewhere) / "result.json"
        command = [sys.executable, "-I", str(Path(parity_check.__file__).resolve())]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        try:
            process = subprocess.run(
                [*command, str(Path(folder).resolve()), str(result)],
                cwd=elsewhere,
                env=environment,
                capture_output=True,
                text=True,
                timeout=config.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"parity of {folder}: no result after {config.timeout_s:g} s; raise timeout_s") from error
        if process.returncode:
            last = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise ExportError(f"parity of {folder}: the model does not answer in a process of its own: {last[0]}")
        found = json.loads(result.read_text())
    if found["differences"]:
        # A feature that differs explains the outputs that differ.
        first = found["differences"][0]
        others = ", ".join(sorted({f"{d['signature']}.{d['output']}" for d in found["differences"][1:]}))
        raise ExportError(
            f"parity: {first['signature']} {first['output']!r} differs from the stored examples in {first['rows']} of "
            f"{found['examples']}; example {first['example']}: expected {first['expected']}, found {first['found']}"
            + (f"; also {others}" if others else "")
        )
    return {"examples": found["examples"]}
