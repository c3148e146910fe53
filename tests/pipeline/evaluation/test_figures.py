"""Figures as JSON and tables."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from pipeline.evaluation.figures import (
    Difference,
    Figure,
    MethodFigures,
    differences_table,
    figures_table,
    write_json,
)

EASE = MethodFigures("EASE", (Figure("MAP@20", 0.0361, 0.034, 0.0385, 900),), {"regularisation": np.float64(100)})
LEFT_OUT = MethodFigures("ALS", left_out="30000 videos are more than 20000")


def test_json_has_plain_numbers_and_null_for_nan(tmp_path):
    write_json(tmp_path / "figures.json", [EASE, MethodFigures("x", (Figure("AUC", float("nan"), 0, 1, 2),))])
    ease, other = json.loads((tmp_path / "figures.json").read_text())
    assert ease["figures"][0] == {"name": "MAP@20", "value": 0.0361, "low": 0.034, "high": 0.0385, "n": 900}
    assert ease["settings"] == {"regularisation": 100.0}
    assert other["figures"][0]["value"] is None


def test_table_shows_interval_missing_figure_and_reason():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(figures_table([EASE, LEFT_OUT], ["MAP@20", "recall@100"], "Retrieval"))
    text = console.export_text()
    assert "0.036 [0.034, 0.038]" in text
    assert "–" in text
    assert "left out: 30000 videos" in text


def test_a_column_of_small_figures_shows_two_digits_of_the_largest():
    console = Console(width=120, record=True, file=io.StringIO())
    values = (0.0042, 0.0009, 0.0)
    methods = [MethodFigures(str(value), (Figure("MAP@20", value, value / 2, 2 * value, 9),)) for value in values]
    console.print(figures_table(methods, ["MAP@20"], "Retrieval"))
    text = console.export_text()
    assert "0.0042 [0.0021, 0.0084]" in text
    assert "0.0009 [" in text
    assert "0.0000 [0.0000, 0.0000]" in text


def test_asking_for_an_unknown_figure_names_those_there_are():
    assert EASE.figure("MAP@20").n == 900
    with pytest.raises(KeyError, match="there are MAP@20"):
        EASE.figure("MAP@10")


def test_differences_show_sign_interval_and_share():
    console = Console(width=160, record=True, file=io.StringIO())
    peers = {"EASE": [Difference("MAP@20", 0.004, -0.001, 0.009, 0.06, 900)], "ALS": []}
    console.print(differences_table("two-tower", peers, ["MAP@20"], "Paired"))
    text = console.export_text()
    assert "two-tower minus" in text
    assert "+0.0040 [-0.0010, +0.0090] 6.0%" in text
    assert text.count("–") == 1
