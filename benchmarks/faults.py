"""Faults: a small run is disturbed again and again, and what it does then is judged.

    python -m benchmarks.faults [--seconds N] [--seed S]

After every fault the same command has to continue and leave what an undisturbed run leaves, or to refuse with one line
that names what is broken; and nothing half-written may stand as published in between. Full disks are real ones (a small
file system) where the user may mount one, and otherwise errors given to Python's own file operations.
"""

import argparse
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console

from benchmarks.fault_injection import (
    At,
    Commands,
    Damage,
    Ending,
    Stop,
    copied,
    damage,
    small_file_systems,
    wait_for_lock,
)
from benchmarks.fault_outcomes import differences, half_published, unfinished
from benchmarks.report import ResultTable, publish_result, results_folder
from features.artifacts import MANIFEST
from pipeline.stages import RECORDS

SETTINGS = """
name: faults
source: {kind: simulator, users: 60, videos: 60, uploaders: 12, topics: 4, days: 6}
split: {test_days: 1}
features: {without: [candidate_sources, candidate_score]}
shards: {num_shards: 2}
leakage: {examples_per_part: 10}
generators:
  two_tower:
    model: {dimension: 4, depth: 0, loss: full}
    training: {epochs: 2, batch_size: 64}
ranker:
  model: {hidden_units: [4]}
  training: {epochs: 2, batch_size: 64}
export:
  retrieval: {k: 20}
  parity: {examples: 4}
evaluation:
  retrieval: {bootstrap: {resamples: 10}}
  retrieval_baselines: {methods: [popularity]}
  bootstrap: {resamples: 10}
  trees: null
  show_users: 0
"""
OUTPUTS = {
    "ingest": ("tables", "rejected", "truth"),
    "analyze": ("features/vocabularies", "features/statistics", "features/catalogue"),
    "examples": ("shards", "examples/candidate_generation", "examples/ranking"),
    "quantiles": ("features/quantiles",),
    "train-generator": ("models/two_tower",),
    "train-ranker": ("models/ranker",),
    "evaluate": ("reports/evaluation",),
    "export": ("export/retrieval", "export/retrieval_brute_force", "export/ranking"),
}
"""Stage -> what it publishes."""
LONG = ("train-generator", "train-ranker", "evaluate", "export")
"""Stages that take more than a second or two: their faults take turns with those of the others."""
LAST = ("evaluate", "export")
"""Stages that write much and only at their end: stops in their midst have a turn of their own."""
AT_A_MOMENT = ", at a moment"
NOTE = (
    "A damaged file that a later stage reads was refused by that stage first, naming it; it counts as continued where "
    "its own stage then made it again, which is not tried for models and exports."
)
RECOMMEND = "recommend"
READERS = {
    "tables": "analyze",
    "features/vocabularies": "examples",
    "features/catalogue": "examples",
    "examples/candidate_generation": "train-generator",
    "examples/ranking": "quantiles",
    "features/quantiles": "train-ranker",
    "truth": "evaluate",
    "models/two_tower": "export",
    "models/ranker": "evaluate",
    "export/retrieval": RECOMMEND,
    "export/ranking": RECOMMEND,
}
"""Published folder -> a command that reads it; the others are read by no later stage."""


class Outcome(StrEnum):
    """How a disturbed run ended."""

    CONTINUED = "continued, equal"
    REFUSED = "refused, named"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Case:
    """A kind of fault to one stage or artifact; `meet` does it and tells the outcome, with a reason if it failed."""

    fault: str
    what: str
    meet: Callable[[int], tuple[Outcome, str]]


class Campaign:
    """Disturbs copies of one undisturbed run.

    Args:
      workdir: where runs are made; the undisturbed one is kept there.
      console: where progress is said.
    """

    def __init__(self, workdir: Path, console: Console) -> None:
        workdir = workdir.resolve()
        workdir.mkdir(parents=True, exist_ok=True)
        self.config = workdir / "faults.yaml"
        self.config.write_text(SETTINGS)
        self.whole = workdir / "undisturbed"
        self.copy = workdir / "disturbed"
        self.commands = Commands(workdir)
        console.print(f"The undisturbed run, in {self.whole} ...")
        made = self.commands("run", self.config, "--workdir", self.whole)
        if made.code:
            raise SystemExit(f"the undisturbed run failed: {made.err}")
        self.seconds = {
            path.stem.partition(":")[0]: float(yaml.safe_load(path.read_text())["seconds"])
            for path in self.whole.glob(f"{RECORDS}/*")
        }
        self.user = "u000003"

    def cases(self, stages: tuple[str, ...]) -> list[Case]:
        """Every kind of fault to these stages and to what they publish."""
        found = []
        for stage in stages:
            found += [Case(f"{stop}, at a file operation", stage, self._stop_at(stage, stop)) for stop in Stop]
            for stop, number in ((Stop.KILL, signal.SIGKILL), (Stop.INTERRUPT, signal.SIGINT)):
                found.append(Case(f"{stop}{AT_A_MOMENT}", stage, self._stop_after(stage, number)))
            if small_file_systems():
                found.append(Case("disk full, a small file system", stage, self._small(stage)))
            found.append(Case("two runs at once", stage, self._two(stage)))
            for name in OUTPUTS[stage]:
                found += [Case(how, name, self._damage(stage, name, how)) for how in Damage]
                if name in READERS:
                    found.append(Case("no read permission", name, self._unreadable(name)))
        return found

    def records(self) -> list[Case]:
        """Damage to what is no artifact: the records of stages and the run's configuration."""
        return [Case(how, "stage records", self._damaged_record(how)) for how in Damage] + [
            Case(how, "config.yaml", self._damaged_config(how)) for how in Damage
        ]

    def _run(self, stage: str, run: Path, at: At | None = None, **options: object) -> Ending:
        if stage == RECOMMEND:
            return self.commands(RECOMMEND, run, "--user", self.user, at=at, **options)
        return self.commands(stage, self.config, "--workdir", run, at=at, **options)

    def _undone(self, run: Path, stage: str) -> None:
        for record in (run / RECORDS).glob(f"{stage}*.json"):
            record.unlink()

    def _continues(self, run: Path, stage: str, first: Ending) -> tuple[Outcome, str]:
        """Judges a stage that was stopped: how it ended, what stands there, and what the same command makes of it."""
        if reason := first.complaint() or "; ".join(half_published(run)):
            return Outcome.FAILED, reason
        again = self._run(stage, run)
        if again.code:
            return Outcome.FAILED, f"the same command again: {again.err.strip()[:300]}"
        left = differences(run, self.whole, OUTPUTS[stage]) + unfinished(run)
        return (Outcome.FAILED, "; ".join(left)) if left else (Outcome.CONTINUED, "")

    def _stop_at(self, stage: str, stop: Stop) -> Callable[[int], tuple[Outcome, str]]:
        def meet(seed: int) -> tuple[Outcome, str]:
            draw = np.random.default_rng(seed)
            # A third at the renaming of a folder into place, the others anywhere among the first operations.
            at = At(stop, 1, "os.rename") if draw.random() < 1 / 3 else At(stop, int(draw.integers(1, 25)))
            if stop == Stop.DISK_FULL:
                at = At(stop, int(draw.integers(1, 8)))
            with copied(self.whole, self.copy) as run:
                self._undone(run, stage)
                return self._continues(run, stage, self._run(stage, run, at))

        return meet

    def _stop_after(self, stage: str, number: signal.Signals) -> Callable[[int], tuple[Outcome, str]]:
        def meet(seed: int) -> tuple[Outcome, str]:
            with copied(self.whole, self.copy) as run:
                self._undone(run, stage)
                command = self.commands.start([stage, self.config, "--workdir", run])
                wait_for_lock(run, command.process)
                command.process.join(float(np.random.default_rng(seed).uniform(0, self.seconds[stage])))
                command.send(number)
                return self._continues(run, stage, command.ending())

        return meet

    def _small(self, stage: str) -> Callable[[int], tuple[Outcome, str]]:
        def meet(seed: int) -> tuple[Outcome, str]:
            with copied(self.whole, self.copy) as run:
                self._undone(run, stage)
                room = int(np.random.default_rng(seed).integers(0, 1 << 17))
                return self._continues(run, stage, self._run(stage, run, full_folder=(str(run), room)))

        return meet

    def _two(self, stage: str) -> Callable[[int], tuple[Outcome, str]]:
        def meet(seed: int) -> tuple[Outcome, str]:
            with copied(self.whole, self.copy) as run:
                self._undone(run, stage)
                first = self.commands.start([stage, self.config, "--workdir", run])
                wait_for_lock(run, first.process)
                second = self._run(stage, run)
                ended = first.ending()
                if ended.code or (second.code and "in use by process" not in second.err):
                    return Outcome.FAILED, f"{ended.err.strip()} / {second.err.strip()}"
                outcome, reason = self._continues(run, stage, second)
                refused = second.code != 0 and outcome == Outcome.CONTINUED
                return (Outcome.REFUSED, "") if refused else (outcome, reason)

        return meet

    def _damage(self, stage: str, name: str, how: Damage) -> Callable[[int], tuple[Outcome, str]]:
        """The stage that reads it refuses; then the stage that made it makes it again."""

        def meet(seed: int) -> tuple[Outcome, str]:
            with copied(self.whole, self.copy) as run:
                path = _some_file(run / name, seed)
                damage(path, how, seed)
                refused = name not in READERS
                if not refused:
                    self._undone(run, READERS[name])
                    outcome, reason = self._refuses(READERS[name], run, run / name)
                    if outcome == Outcome.FAILED or stage in LONG:
                        return outcome, f"{path.relative_to(run)}: {reason}"
                return self._continues(run, stage, self._run(stage, run))

        return meet

    def _refuses(self, reader: str, run: Path, named: Path, **options: object) -> tuple[Outcome, str]:
        ending = self._run(reader, run, **options)
        if reason := ending.complaint():
            return Outcome.FAILED, reason
        if ending.code == 0 or str(named) not in ending.err:
            return Outcome.FAILED, f"{reader} ended with {ending.code}: {ending.err.strip()[:300]}"
        return Outcome.REFUSED, ""

    def _unreadable(self, name: str) -> Callable[[int], tuple[Outcome, str]]:
        def meet(seed: int) -> tuple[Outcome, str]:
            with copied(self.whole, self.copy) as run:
                path = _some_file(run / name, seed)
                path.chmod(0)
                if READERS[name] != RECOMMEND:
                    self._undone(run, READERS[name])
                return self._refuses(READERS[name], run, path, obey_permissions=True)

        return meet

    def _damaged_record(self, how: Damage) -> Callable[[int], tuple[Outcome, str]]:
        def meet(seed: int) -> tuple[Outcome, str]:
            with copied(self.whole, self.copy) as run:
                damage(run / RECORDS / "quantiles.json", how, seed)
                return self._continues(run, "quantiles", self._run("quantiles", run))

        return meet

    def _damaged_config(self, how: Damage) -> Callable[[int], tuple[Outcome, str]]:
        def meet(seed: int) -> tuple[Outcome, str]:
            with copied(self.whole, self.copy) as run:
                damage(run / "config.yaml", how, seed)
                return self._refuses(RECOMMEND, run, run)

        return meet


def _some_file(folder: Path, seed: int) -> Path:
    """A file of a published folder, of an export's latest version; now and then the manifest."""
    if not (folder / MANIFEST).exists():
        folder = max(folder.glob("[0-9]*"), key=lambda version: int(version.name))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return files[int(np.random.default_rng(seed + 1).integers(len(files)))]


def in_turn(kinds: Sequence[tuple[int, Sequence[Case]]], draw: np.random.Generator) -> Iterator[Case]:
    """All cases again and again, each kind in random order.

    Args:
      kinds: how many cases of a kind come in a row before the next kind's turn, and the cases.
      draw: of the order.
    """

    def endless(cases: Sequence[Case]) -> Iterator[Case]:
        while True:
            yield from (cases[index] for index in draw.permutation(len(cases)))

    orders = [(count, endless(cases)) for count, cases in kinds]
    while True:
        for count, cases in orders:
            yield from islice(cases, count)


def campaign(seconds: float, seed: int, workdir: Path, output: Path, console: Console) -> int:
    """Runs the campaign, publishes its table and returns how many faults ended badly."""
    met = Campaign(workdir, console)
    draw = np.random.default_rng(seed)
    quick = met.cases(tuple(stage for stage in OUTPUTS if stage not in LONG)) + met.records()
    long = met.cases(LONG)
    midst = [case for case in long if case.what in LAST and case.fault.endswith(AT_A_MOMENT)]
    kinds = [(5, quick), (1, [case for case in long if case not in midst]), (1, midst)]
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    failures: list[str] = []
    deadline = time.monotonic() + seconds
    for case in in_turn(kinds, draw):
        if time.monotonic() > deadline:
            break
        case_seed = int(draw.integers(1 << 30))
        started = time.monotonic()
        try:
            outcome, reason = case.meet(case_seed)
        except TimeoutError as error:
            outcome, reason = Outcome.FAILED, str(error)
        counts[case.fault, case.what][outcome] += 1
        told = f"{case.fault}: {case.what}: {outcome} {reason if outcome == Outcome.FAILED else ''}"
        console.print(f"{time.monotonic() - started:5.1f} s  {told}", markup=False, soft_wrap=True)
        if outcome == Outcome.FAILED:
            failures.append(f"{told} (seed {case_seed})")
    rows = [
        [f"{fault}: {what}", *(counts[fault, what][outcome] for outcome in Outcome)] for fault, what in sorted(counts)
    ]
    total = [sum(row[1 + i] for row in rows) for i in range(len(Outcome))]
    table = ResultTable(
        "Faults and what came of them", ["fault", *Outcome], [*rows, ["all", *total]], [NOTE, *failures]
    )
    facts = {
        "command": f"python -m benchmarks.faults --seconds {seconds:.0f} --seed {seed}",
        "summary": f"{sum(total)} faults of {len(rows)} kinds: {total[0]} continued and left what an undisturbed run "
        f"leaves, {total[1]} were refused by one line naming what is broken, {total[2]} failed.",
        "full disks": "a small file system, and errors given to Python's file operations"
        if small_file_systems()
        else "errors given to Python's file operations",
    }
    publish_result(output, "faults", [table], None, facts, console)
    return len(failures)


def main() -> None:
    parser = argparse.ArgumentParser(description="Disturbs a small run and judges what it does then.")
    parser.add_argument("--seconds", type=float, default=600, help="how long, beside the undisturbed run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workdir", type=Path, default=Path("runs/faults"))
    parser.add_argument("--output", type=Path, default=None, help="default: benchmarks/results, or ./results")
    given = parser.parse_args()
    output = given.output or results_folder()
    raise SystemExit(min(campaign(given.seconds, given.seed, given.workdir, output, Console(width=150)), 1))


if __name__ == "__main__":
    main()
