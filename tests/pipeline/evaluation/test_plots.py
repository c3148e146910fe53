"""Plots of a report."""

import matplotlib.image
import numpy as np
import pytest

from pipeline.evaluation.figures import Figure, MethodFigures
from pipeline.evaluation.plots import plot_methods

MODEL = MethodFigures("two-tower", (Figure("MAP@20", 0.05, 0.04, 0.06, 90), Figure("recall@100", 0.4, 0.3, 0.5, 90)))
PEER = MethodFigures("popularity", (Figure("MAP@20", 0.02, 0.01, 0.03, 90),))
LEFT_OUT = MethodFigures("EASE", left_out="too many videos")
UNDEFINED = MethodFigures("co-watch", (Figure("MAP@20", np.nan, np.nan, np.nan, 0),))
OUTSIDE = MethodFigures("item-kNN", (Figure("MAP@20", 0.5, 0.2, 0.4, 1),))  # the value is outside its interval


def test_methods_that_ran_are_drawn_by_name_with_a_panel_for_each_figure(tmp_path):
    methods = [MODEL, PEER, LEFT_OUT, UNDEFINED, OUTSIDE]
    plot_methods(methods, ["MAP@20", "recall@100"], tmp_path / "retrieval.svg")
    drawn = (tmp_path / "retrieval.svg").read_text()
    names = ("two-tower", "popularity", "co-watch", "item-kNN", "MAP@20", "recall@100")
    assert all(f"<!-- {name} -->" in drawn for name in names)
    assert "<!-- EASE -->" not in drawn


@pytest.mark.parametrize("methods", [1, 30])
def test_the_plot_grows_with_the_methods(tmp_path, methods):
    plot_methods([MODEL] * methods, ["MAP@20"], tmp_path / "retrieval.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "retrieval.png").shape
    assert (height, width) == (round(100 * (1.0 + 0.26 * methods)), 480)
