"""Figures of a report: plain values that go to JSON, tables and plots."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
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


def figures_table(methods: Sequence[MethodFigures], names: Sequence[str], title: str) -> Table:
    """A table with one row per method and one column per figure, each with its interval.

    A method that was left out has a row that says why; a figure that a method lacks is a dash.
    """
    of_methods = [{figure.name: figure for figure in method.figures} for method in methods]
    digits = {name: _digits(figures[name].value for figures in of_methods if name in figures) for name in names}
    table = _table(title, "method", names)
    for method, figures in zip(methods, of_methods, strict=True):
        if method.left_out is not None:
            table.add_row(method.method, f"left out: {method.left_out}")
            continue
        table.add_row(
            method.method, *(_cell(figures[name], digits[name]) if name in figures else "–" for name in names)
        )
    return table


def differences_table(model: str, peers: Mapping[str, Sequence[Difference]], names: Sequence[str], title: str) -> Table:
    """A model minus each of its peers: one row per peer, one column per figure with interval and share of A ≤ B."""
    of_peers = {peer: {difference.name: difference for difference in found} for peer, found in peers.items()}
    digits = {name: _digits(found[name].value for found in of_peers.values() if name in found) for name in names}
    table = _table(f"{title}: difference and its interval, share of resamples at or below 0", f"{model} minus", names)
    for peer, found in of_peers.items():
        cells = [_difference_cell(found[name], digits[name]) if name in found else "–" for name in names]
        table.add_row(peer, *cells)
    return table


def _table(title: str, of_rows: str, names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(of_rows)
    for name in names:
        table.add_column(name, justify="right")
    return table


def _digits(values: Iterable[float]) -> int:
    """Three decimals, more where the largest of a column would show fewer than two digits with them."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return max(3, 1 - math.floor(math.log10(largest))) if largest > 0 else 3


def _difference_cell(difference: Difference, digits: int) -> str:
    interval = f"[{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"
    return f"{difference.value:+.{digits}f} {interval} {difference.share_a_not_above_b:.1%}"


def _cell(figure: Figure, digits: int) -> str:
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
