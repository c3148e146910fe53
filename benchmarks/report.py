"""What every benchmark shares: result tables, the machine and the date, and publishing a result whole or not at all.

A result called NAME is three files in a results folder: `NAME.md` (tables, command, machine and date), `NAME.json` (the
same figures as plain values) and `NAME.png` (the plot, where there is one). The JSON is written last and holds the
SHA-256 of the others; a result without it does not exist.
"""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Plot
from rich.console import Console
from rich.table import Table

from features.artifacts import file_sha256
from features.errors import DataError
from pipeline.evaluation.figures import Difference, Figure, to_json
from pipeline.huge_pages import VARIABLE

Cell = str | int | float | Figure | Difference | None
"""What a table holds: a figure or a difference is shown with its interval, None as a dash."""


@dataclass(frozen=True)
class Machine:
    """Where and when something was measured."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    tensorflow: str
    date: str
    glibc_tunables: str

    def __str__(self) -> str:
        tunables = f", GLIBC_TUNABLES={self.glibc_tunables}" if self.glibc_tunables else ""
        return (
            f"{self.cpu}, {self.cores} cores, {self.memory_gib:.0f} GiB, {self.system}, Python {self.python}, "
            f"TensorFlow {self.tensorflow}{tunables}, {self.date}"
        )


def machine() -> Machine:
    """This machine, and the present moment (UTC)."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        tensorflow=package_version("tensorflow"),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        glibc_tunables=os.environ.get(VARIABLE, ""),
    )


def package_version(name: str) -> str:
    """The installed version of a package, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@dataclass(frozen=True)
class ResultTable:
    """One table of a result.

    Args:
      title: what it shows.
      columns: headings; the first column names the rows.
      rows: one cell per column.
      notes: sentences below the table.
      reference: where the figures come from that stand beside ours; "" where there are none.
      digits: decimals of floats, figures and differences.

    Raises:
      DataError: a row has another number of cells than there are columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    reference: str = ""
    digits: int = 3

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise DataError(
                    f"result table {self.title!r}: expected {len(self.columns)} cells in a row, found {len(row)} in "
                    f"{row!r}; give one cell per column"
                )

    def texts(self) -> list[list[str]]:
        """The rows as shown."""
        return [[cell_text(cell, self.digits) for cell in row] for row in self.rows]

    def below(self) -> list[str]:
        """Reference and notes, one line each."""
        return [*([f"Beside: {self.reference}"] if self.reference else []), *self.notes]

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [
            f"**{self.title}**",
            "",
            _markdown_row(self.columns),
            _markdown_row(["---", *["---:"] * (len(self.columns) - 1)]),
            *(_markdown_row(row) for row in self.texts()),
        ]
        for line in self.below():
            lines += ["", line]
        return "\n".join(lines) + "\n"

    def rich(self) -> Table:
        """The table for the terminal."""
        view = Table(title=self.title, title_justify="left", caption="\n".join(self.below()), caption_justify="left")
        for index, column in enumerate(self.columns):
            view.add_column(column, justify="right" if index else "left", overflow="fold")
        for row in self.texts():
            view.add_row(*row)
        return view


def cell_text(cell: Cell, digits: int) -> str:
    """A cell as shown: `0.123 [0.101, 0.145]` for a figure, with signs for a difference, thousands for integers."""
    if cell is None:
        return "–"
    if isinstance(cell, Difference):
        return f"{cell.value:+.{digits}f} [{cell.low:+.{digits}f}, {cell.high:+.{digits}f}]"
    if isinstance(cell, Figure):
        return f"{cell.value:.{digits}f} [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"
    if isinstance(cell, float):
        return f"{cell:,.{digits}f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def results_folder() -> Path:
    """Where results go unless told otherwise: `benchmarks/results` from within a checkout, `./results` elsewhere."""
    checkout = Path(__file__).resolve().parents[1]
    inside = Path.cwd().resolve().is_relative_to(checkout) and (checkout / "setup.py").is_file()
    return checkout / "benchmarks" / "results" if inside else Path("results")


def publish_result(
    folder: Path,
    name: str,
    tables: Sequence[ResultTable],
    figure: Plot | None,
    facts: Mapping[str, Any],
    console: Console | None = None,
) -> None:
    """Prints the tables and writes `NAME.md`, `NAME.json` and `NAME.png` into `folder`, all of them or none.

    Args:
      folder: made where it does not exist; results of other names in it are left alone.
      name: of the result.
      tables: what was measured.
      figure: the plot; None: there is no PNG.
      facts: whatever else is to be kept. `command` is shown as code, `summary` (a text or a list of texts) stands
        above the tables, other texts and numbers are listed below them, and everything is in the JSON.
      console: where the tables are printed; None: standard output.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    here = machine()
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as temporary:
        made = Path(temporary)
        if figure is not None:
            figure.savefig(made / f"{name}.png", dpi=130)
        markdown = _markdown(name, tables, figure is not None, facts, here)
        (made / f"{name}.md").write_text(markdown, encoding="utf-8")
        files = {path.name: file_sha256(path) for path in sorted(made.iterdir())}
        value = {
            "name": name,
            "facts": to_json(facts),
            "tables": to_json([asdict(table) for table in tables]),
            "machine": asdict(here),
            "files": files,
        }
        (made / f"{name}.json").write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for suffix in ("json", "md", "png"):  # the old result ends here, the new one begins with its JSON
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        for file in (*files, f"{name}.json"):
            shutil.move(made / file, folder / file)
    console = console or Console()
    for line in _summary(facts):
        console.print(line, markup=False)
    for table in tables:
        console.print(table.rich())
    console.print(f"Written to {folder / name}.md", markup=False, soft_wrap=True)


def is_whole(folder: Path, name: str) -> bool:
    """Whether the result `name` is in `folder`, every file as it was published."""
    try:
        files = json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))["files"]
        return all(file_sha256(Path(folder) / file) == sha256 for file, sha256 in files.items())
    except (OSError, ValueError):
        return False


def _summary(facts: Mapping[str, Any]) -> list[str]:
    summary = facts.get("summary", [])
    return [summary] if isinstance(summary, str) else list(summary)


def _markdown(
    name: str, tables: Sequence[ResultTable], with_plot: bool, facts: Mapping[str, Any], here: Machine
) -> str:
    parts = [f"# {name.replace('_', ' ')}\n"]
    if "command" in facts:
        parts.append(f"    {facts['command']}\n")
    parts += [f"- {line}" for line in _summary(facts)]
    parts += ["", *(table.markdown() for table in tables)]
    if with_plot:
        parts.append(f"![{name.replace('_', ' ')}]({name}.png)\n")
    shown = {k: v for k, v in facts.items() if k not in ("command", "summary") and isinstance(v, str | int | float)}
    parts += [f"- {key.replace('_', ' ')}: {value}" for key, value in shown.items()]
    return "\n".join([*parts, "", f"Measured on {here}.", ""])
