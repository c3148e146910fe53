"""The judge of disturbed runs sees what differs, and allows what may."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fault_injection import Ending
from benchmarks.fault_outcomes import close, differences, half_published
from benchmarks.faults import Case, Outcome, in_turn
from features.artifacts import publish

RANKS = [float(rank) for rank in range(101)]


def summary(shift: float) -> dict:
    return {"boundaries": [rank + shift for rank in RANKS], "rank_error": 0.003, "count": 7}


def test_quantiles_may_differ_by_their_rank_error_and_nothing_else_may() -> None:
    assert close(summary(0), summary(0.4))
    assert not close(summary(0), summary(5))
    assert not close(summary(0), {**summary(0), "count": 8})


def test_figures_may_differ_by_rounding_and_times_at_will() -> None:
    assert close({"MAP": [0.5], "seconds": 1.0}, {"MAP": [0.5 + 1e-6], "seconds": 9.0})
    assert not close({"MAP": [0.5]}, {"MAP": [0.51]})
    assert not close({"method": "a"}, {"method": "b"})
    assert not close([1], [1, 1])


def test_other_bytes_missing_folders_and_halves_are_seen(tmp_path: Path) -> None:
    for run, text in (("one", "x"), ("other", "x")):
        with publish(tmp_path / run / "tables", {}) as folder:
            (folder / "data").write_text(text)
    one, other = tmp_path / "one", tmp_path / "other"
    assert differences(one, other, ("tables",)) == []
    assert "truth" in differences(one, other, ("truth",))[0]
    with publish(one / "tables", {}) as folder:
        (folder / "data").write_text("y")
    assert differences(one, other, ("tables",)) == [f"{one}/tables/data: other bytes"]
    assert half_published(one) == []
    (one / "tables/data").write_text("z")
    assert "tables/data: content differs" in half_published(one)[0]


@pytest.mark.parametrize(
    ("code", "err", "complaint"),
    [
        (1, "error: x/y: no space left; free some\n", ""),
        (130, "interrupted: run the same command again to continue\n", ""),
        (-9, "", ""),
        (0, "epoch 1/2: loss 0.1\n", ""),
        (1, "error: unexpected KeyError; set UPNEXT_TRACEBACK=1 to see where\n", "a defect"),
        (1, "Traceback (most recent call last)\nKeyError\n", "a traceback"),
        (1, "error: x\nmore\n", "2 lines"),
        (-11, "", "exit code -11"),
    ],
)
def test_a_command_succeeds_or_refuses_in_one_line(code: int, err: str, complaint: str) -> None:
    found = Ending(code, "", err, 0).complaint()
    assert complaint in found
    assert bool(found) == bool(complaint)


def test_kinds_of_faults_take_turns_and_none_is_forgotten() -> None:
    cases = {name: Case(name, "stage", lambda seed: (Outcome.CONTINUED, "")) for name in "abcd"}
    quick, midst = [cases[name] for name in "abc"], [cases["d"]]
    told = [case.fault for case in islice(in_turn([(2, quick), (1, midst)], np.random.default_rng(0)), 9)]
    assert told[2::3] == ["d", "d", "d"]
    assert sorted(told[0:2] + told[3:4]) == ["a", "b", "c"]  # each quick one once before any comes again
    assert sorted(told[4:5] + told[6:8]) == ["a", "b", "c"]
