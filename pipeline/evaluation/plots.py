"""Plots of a report."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Plot

from pipeline.evaluation.figures import MethodFigures


def new_plot(width: float = 6.5, height: float = 4.5) -> Plot:
    """An empty plot (inches) that needs no display; `plot.subplots()` gives its axes."""
    plot = Plot(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(plot)
    return plot


def plot_methods(methods: Sequence[MethodFigures], names: Sequence[str], path: Path) -> None:
    """Draws methods from top to bottom with their intervals, one panel per figure; format by suffix.

    The first method is the reference: a line through its value makes who is above it visible. Methods without a figure
    have no mark; those that were left out have no line of their own.
    """
    shown = [method for method in methods if method.left_out is None]
    plot = new_plot(2.2 + 2.6 * len(names), 1.0 + 0.26 * len(shown))
    for axes, name in zip(plot.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        for place, method in enumerate(shown):
            for figure in (figure for figure in method.figures if figure.name == name):
                color = "tab:blue" if place == 0 else "dimgrey"
                # A percentile interval need not hold the value, so that no error bar can draw it.
                axes.plot([figure.low, figure.high], [place, place], color=color)
                axes.plot([figure.value], [place], marker="o", markersize=4, color=color)
                if place == 0:
                    axes.axvline(figure.value, color=color, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(shown)), [method.method for method in shown])
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
    axes.invert_yaxis()
    plot.savefig(path)
