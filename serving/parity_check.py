"""Sends stored raw rows through a SavedModel and compares its answers with the stored ones.

Run in a process of its own that cannot import this project (`python -I parity_check.py MODEL_FOLDER RESULT_FILE`): it
proves that the folder answers alone. This file therefore imports nothing of ours.

The rows are `assets.extra/parity.parquet`: columns `input.<name>` are what is sent, columns `<signature>.<output>` what
must come back, `example` says which example a row is; the schema's metadata `parity` holds the tolerances as JSON.
"""

import importlib.abc
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FIXTURE = "assets.extra/parity.parquet"
OURS = ("features", "models", "serving", "pipeline", "benchmarks")
BATCH = 32


class _RefuseOurCode(importlib.abc.MetaPathFinder):
    """An import of the project fails here even where it is installed."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> None:
        if fullname.split(".")[0] in OURS:
            raise ImportError(f"the exported model must work without {fullname}")


def main(folder: Path, result: Path) -> None:
    sys.meta_path.insert(0, _RefuseOurCode())
    import pyarrow.parquet as pq
    import scann  # noqa: F401  (registers the index's operations)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    table = pq.read_table(folder / FIXTURE)
    config = json.loads(table.schema.metadata[b"parity"])
    model = tf.saved_model.load(str(folder))
    differences = []
    for signature in config["signatures"]:
        differences += compare_signature(model.signatures[signature], signature, table, config)
    result.write_text(json.dumps({"examples": table.num_rows, "differences": differences}))


def compare_signature(function: Any, signature: str, table: Any, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The first difference of each output of one signature, as {output, example, expected, found, rows}."""
    import numpy as np
    import tensorflow as tf

    accepted = function.structured_input_signature[1]
    inputs = {name: dense(table, f"input.{name}") for name in accepted}
    answers: dict[str, list] = {}
    for rows in batches(table.num_rows):
        batch = {name: tf.constant(values[rows], accepted[name].dtype) for name, values in inputs.items()}
        for name, answer in function(**batch).items():
            answers.setdefault(name, []).append(answer.numpy())
    found = {name: np.concatenate(parts) for name, parts in answers.items()}
    expected = {
        column.removeprefix(f"{signature}."): dense(table, column)
        for column in table.column_names
        if column.startswith(f"{signature}.")
    }
    differences = []
    for name, values in expected.items():
        if name not in found:
            differences.append(difference(signature, name, table, 0, values[0], "no such output", table.num_rows))
            continue
        tied = expected[config["tied_by"][name]] if name in config["tied_by"] else None
        unequal = differing(values, found[name], config, tied)
        if unequal.any():
            row = int(np.argmax(unequal))
            differences.append(
                difference(signature, name, table, row, values[row], found[name][row], int(unequal.sum()))
            )
    return differences


def batches(rows: int) -> list[slice]:
    """One request alone, then the others together: a graph that depends on the batch size shows."""
    return [slice(0, 1), *(slice(start, start + BATCH) for start in range(1, rows, BATCH))]


def dense(table: Any, column: str) -> Any:
    """A column of (nested) lists of one length as an array; strings as objects."""
    import numpy as np
    import pyarrow as pa

    kind = table.schema.field(column).type
    while pa.types.is_list(kind):
        kind = kind.value_type
    dtype = object if pa.types.is_string(kind) else pa.nulls(0, kind).to_numpy(zero_copy_only=False).dtype
    return np.array(table[column].to_pylist(), dtype=dtype)


def differing(expected: Any, found: Any, config: dict[str, Any], tied_by: Any) -> Any:
    """Which rows differ `[B]` bool: ids and embedding rows exactly, numbers within the tolerances, NaN equals NaN.

    Args:
      tied_by: scores `[B, k]` that order the ids; ids whose score is within the tolerance of a neighbour's may swap.
    """
    import numpy as np

    if found.dtype == object:
        found = np.array([value.decode() for value in found.reshape(-1)], object).reshape(found.shape)
    if expected.dtype.kind == "i" and expected.ndim == found.ndim > 1:
        expected, found = (padded(rows, max(expected.shape[-1], found.shape[-1])) for rows in (expected, found))
    if expected.shape != found.shape:
        return np.ones(len(expected), bool)
    if np.issubdtype(expected.dtype, np.floating):
        equal = np.isclose(found, expected, rtol=config["rtol"], atol=config["atol"], equal_nan=True)
    else:
        equal = found == expected
    if tied_by is not None and tied_by.shape == expected.shape:
        gaps = np.isclose(tied_by[:, 1:], tied_by[:, :-1], rtol=config["rtol"], atol=config["atol"])
        edge = np.zeros((len(tied_by), 1), bool)
        last = ~edge if tied_by.shape[1] else edge  # beyond the last column may be an equal one
        equal |= np.concatenate([edge, gaps], axis=1) | np.concatenate([gaps, last], axis=1)
    return ~equal.reshape(len(equal), -1).all(axis=1)


def padded(rows: Any, width: int) -> Any:
    """Bags `[..., n]` padded with row 0 to one width; padding means nothing."""
    import numpy as np

    return np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, width - rows.shape[-1])])


def difference(signature: str, name: str, table: Any, row: int, expected: Any, found: Any, rows: int) -> dict[str, Any]:
    import numpy as np

    def text(value: Any) -> str:
        if isinstance(value, np.ndarray) and value.dtype == object:
            value = np.array([v.decode() if isinstance(v, bytes) else v for v in value.reshape(-1)])
        return np.array2string(np.asarray(value), threshold=12, separator=", ").replace("\n", "")

    return {
        "signature": signature,
        "output": name,
        "example": table["example"][row].as_py(),
        "expected": text(expected),
        "found": text(found),
        "rows": rows,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
