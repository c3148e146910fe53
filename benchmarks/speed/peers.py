"""Peers: libraries that are compared with and that we do not depend on, in an environment of their own."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.measuring import ProcessRun, run_process
from features.errors import DataError

SCRIPTS = Path(__file__).parent


class Peer:
    """A peer's process that answers every line it is sent with a line of JSON."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def read(self) -> Any:
        """Its next answer."""
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            said = (self._process.stderr.read().strip().splitlines() or ["nothing"])[-1]
            raise DataError(f"{self._process.args}: expected a line of JSON, found its end: {said}")
        return json.loads(line)

    def ask(self, question: object) -> Any:
        """Its answer to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return self.read()


@dataclass(frozen=True)
class Peers:
    """Where the peers are.

    Args:
      python: interpreter of their environment; None: there is none.
      scripts: the folder of the `peer_*.py` that run there.
      advice: how to get what is missing.
    """

    python: Path | None
    scripts: Path = SCRIPTS
    advice: str = "`make bench` installs the peers"

    def version(self, module: str) -> str | None:
        """The version of a peer's module; None where it is not installed."""
        if self.python is None:
            return None
        code = f"import {module} as m; print(getattr(m, '__version__', 'installed'))"
        found = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else None

    def missing(self, modules: Sequence[str]) -> list[str]:
        """A sentence for each of `modules` that is not there."""
        return [
            f"{module}: not installed, so not measured ({self.advice})."
            for module in modules
            if self.version(module) is None
        ]

    def run(self, script: str, *arguments: str | Path) -> ProcessRun:
        """Runs one of the `peer_*.py` under the peers' interpreter."""
        return run_process(self._command(script, arguments))

    @contextmanager
    def start(self, script: str, *arguments: str | Path) -> Iterator[Peer]:
        """The same as a process that is asked line by line, so that it can take turns with us; ends with the block."""
        pipe = subprocess.PIPE
        command = self._command(script, arguments)
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            try:
                yield Peer(process)
            finally:
                process.terminate()

    def _command(self, script: str, arguments: Sequence[str | Path]) -> list[str]:
        return [str(self.python), str(self.scripts / script), *map(str, arguments)]
