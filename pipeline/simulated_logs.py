"""A simulated platform's logs as files, without a run: the command `upnext simulate`."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from features.artifacts import publish, require_replaceable
from pipeline import config_file
from pipeline.sources.simulator import SimulatorConfig, simulate


def simulate_to(output: Path, overrides: Sequence[str], console: Console) -> None:
    """Publishes a simulated platform's tables and truth at `output`.

    Raises:
      ArtifactError: `output` holds something that was not published.
    """
    require_replaceable(output)
    value: dict = {}
    config_file.apply_overrides(value, overrides)
    config = config_file.validate(SimulatorConfig, value, "simulator")
    with console.status("Simulating a platform ..."):
        logs = simulate(config)
    manifest = {"kind": "simulation", "config": config.model_dump(mode="json")}
    with publish(output, manifest) as folder:
        for name, table in logs.tables.items():
            pq.write_table(table, folder / f"{name}.parquet")
        logs.truth.write(_new(folder / "truth"))
        manifest["rows"] = {name: len(table) for name, table in logs.tables.items()}
    console.print(_rows_table(logs.tables, f"Simulated logs in {output}"))


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _rows_table(tables: dict[str, pa.Table], title: str) -> Table:
    view = Table(title=title, title_justify="left")
    view.add_column("table")
    view.add_column("rows", justify="right")
    for name, table in tables.items():
        view.add_row(name, f"{len(table):,}")
    return view
