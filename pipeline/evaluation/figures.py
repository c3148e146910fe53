"""Figures of a report: plain values that go to JSON, tables and plots."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

NO_VALIDATION = "no validation examples to choose its settings by (split.validation_days)"
"""Why a peer is left out of a run without a validation part."""


@dataclass(frozen=True)
class Figure:
    """A measured value with its interval; `n` is the number of users it was measured on."""

    name: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """A method's figure minus another's; see `bootstrap.paired_difference`."""

    name: str
    value: float
    low: float
    high: float
    share_a_not_above_b: float
    n: int


@dataclass(frozen=True)
class MethodFigures:
    """What one method reached.

    Args:
      method: its name in tables.
      figures: its metrics.
      settings: chosen hyper-parameters and how they were chosen.
      left_out: why the method was not run, if it was not.
    """

    method: str
    figures: tuple[Figure, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    left_out: str | None = None

    def figure(self, name: str) -> Figure:
        """The figure called `name`; KeyError with the names there are."""
        for figure in self.figures:
            if figure.name == name:
                return figure
        raise KeyError(f"{self.method}: no figure {name!r}; there are {', '.join(f.name for f in self.figures)}")


def to_json(value: Any) -> Any:
    """Plain JSON of figures, differences, methods and containers of them; NaN and infinities become null."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(entry) for entry in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes `to_json(value)`."""
    path.write_text(json.dumps(to_json(value), indent=2, allow_nan=False) + "\n")


def figures_table(methods: Sequence[MethodFigures], names: Sequence[str], title: str, digits: int = 4) -> Table:
    """A table with one row per method and one column per figure, each with its interval.

    A method that was left out has a row that says why; a figure that a method lacks is a dash.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for name in names:
        table.add_column(name, justify="right")
    for method in methods:
        if method.left_out is not None:
            table.add_row(method.method, f"left out: {method.left_out}")
            continue
        by_name = {figure.name: figure for figure in method.figures}
        table.add_row(method.method, *(_cell(by_name[name], digits) if name in by_name else "–" for name in names))
    return table


def differences_table(
    model: str, peers: Mapping[str, Sequence[Difference]], names: Sequence[str], title: str, digits: int = 4
) -> Table:
    """A model minus each of its peers: one row per peer, one column per figure with interval and share of A ≤ B."""
    table = Table(title=title, title_justify="left")
    table.add_column(f"{model} minus")
    for name in names:
        table.add_column(name, justify="right")
    for peer, differences in peers.items():
        by_name = {difference.name: difference for difference in differences}
        cells = [_difference_cell(by_name[name], digits) if name in by_name else "–" for name in names]
        table.add_row(peer, *cells)
    return table


def _difference_cell(difference: Difference, digits: int) -> str:
    interval = f"[{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"
    return f"{difference.value:+.{digits}f} {interval} P(≤0) {difference.share_a_not_above_b:.3f}"


def _cell(figure: Figure, digits: int) -> str:
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
