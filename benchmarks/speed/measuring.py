"""How speed is measured: processes with all their children, and competitors in turn within one run.

The machine may be shared, so nothing is compared between runs: competitors alternate, and medians and ratios are given.
"""

import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import DataError

_SAMPLE_S = 0.05


@dataclass(frozen=True)
class ProcessRun:
    """What a process and its children took.

    Args:
      seconds: wall time.
      cpu_seconds: user and system time of all of them.
      peak_gib: the largest sum of their memory (proportional set size, so shared pages count once).
      answer: the last line of standard output, as JSON.
    """

    seconds: float
    cpu_seconds: float
    peak_gib: float
    answer: Any


def run_process(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> ProcessRun:
    """Runs a command that prints a line of JSON at its end, in this process' environment if none is given.

    Raises:
      DataError: it failed or its last line is not JSON.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    words = [str(word) for word in command]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    peak = _Peak(process.pid)
    output, complaint = process.communicate()
    seconds = time.perf_counter() - started
    peak.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        answer = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        said = (complaint.strip().splitlines() or ["nothing"])[-1]
        raise DataError(
            f"{' '.join(words)}: expected a line of JSON, found exit {process.returncode}: {said}"
        ) from None
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return ProcessRun(seconds, cpu, peak.gib, answer)


def run_module(module: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> ProcessRun:
    """`run_process` of one of our modules under this interpreter."""
    return run_process([sys.executable, "-m", module, *arguments], environment)


class _Peak:
    """Samples the memory of a process and its descendants until stopped."""

    def __init__(self, pid: int) -> None:
        self.gib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(pid,), daemon=True)
        self._thread.start()

    def _follow(self, pid: int) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self.gib = max(self.gib, sum(_memory_gib(process) for process in _tree(pid)))

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


def _tree(pid: int) -> list[int]:
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:  # it has just ended
                continue
    return found


def _memory_gib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**20


def in_turn(
    steps: Mapping[str, Callable[[], object]], rounds: int, each: int = 1, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of one call of every step, competitors alternating.

    Args:
      steps: name -> what is timed; returns when it is done.
      rounds: times that each has its turn.
      each: calls of a turn, whose mean is one value.
      warm_up: calls of each before the first turn, not timed.
    """
    for step in steps.values():
        for _ in range(warm_up):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(each):
                step()
            seconds[name].append((time.perf_counter() - started) / each)
    return seconds


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times faster we are: the median over turns of their seconds divided by ours."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
