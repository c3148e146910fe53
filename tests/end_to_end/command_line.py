"""The command line as a user meets it: run in this process, or in one of its own."""

import io
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from pipeline import cli

# An interruption is ignored by what a script starts in the background, tests among it, unless it is set again.
_MAIN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from pipeline.cli import main; main()"
PROGRAM = [sys.executable, "-c", _MAIN]


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one line of an error that a user can act on."""
        lines = [line for line in self.err.splitlines() if not line.startswith("epoch ")]
        assert self.code == 1, self
        assert "Traceback" not in self.err + self.out, self.err
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: "), lines
        assert "UPNEXT_TRACEBACK" not in lines[0], lines  # a defect, not an answer
        return lines[0].removeprefix("error: ")


def upnext(*arguments: object) -> Answer:
    """Runs `upnext arguments...` in this process, which spares the import of TensorFlow."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with mock.patch.object(sys, "argv", ["upnext", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Answer(code, out.getvalue(), err.getvalue())


def start(*arguments: object, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts `upnext arguments...` in a process of its own."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )


def stages_run(answer: Answer) -> list[str]:
    """The stages that did their work."""
    assert answer.code == 0, answer
    return [line.split(": done in")[0] for line in answer.out.splitlines() if ": done in" in line]


def stages_skipped(answer: Answer) -> list[str]:
    assert answer.code == 0, answer
    skipped = ": unchanged, skipped"
    return [line.removesuffix(skipped) for line in answer.out.splitlines() if line.endswith(skipped)]


def write_csv(path: Path, header: str, rows: Iterable[Iterable[object]]) -> Path:
    """Rows of values that need no quoting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path
