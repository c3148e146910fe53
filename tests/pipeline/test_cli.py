"""The command line before any library is loaded: what it answers at once, and interruptions."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from pipeline.cli import interruptions_kept

RUN = """
import sys
sys.argv = ["upnext", *sys.argv[1:]]
from pipeline.cli import main
try:
    main()
finally:
    print([name for name in ("tensorflow", "apache_beam") if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["run", "nosuch.yaml"], 1, "error: configuration 'nosuch.yaml': no such file"),
        (["run", "demo", "--set", "name"], 1, "error: --set 'name': expected key=value"),
        (["train-ranker", "demo", "--set", "name.x=1"], 1, "error: --set 'name.x=1': name is a value, not a group"),
        (["run", "--help"], 0, ""),
        (["configs"], 0, ""),
        (["simulate", "logs", "--set", "user=5"], 1, "error: simulator: user: no such setting; did you mean 'users'?"),
    ],
)
def test_what_needs_no_library_is_answered_before_they_are_loaded(arguments: list[str], code: int, told: str) -> None:
    ended = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert ended.stderr.startswith(told)
    assert ended.stdout.splitlines()[-1] == "[]"


class RaisesWhenRemoved:
    """Python prints what is raised in here and goes on, as C code does with what its callbacks raise."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


def print_and_go_on(error: type[BaseException]) -> None:
    sys.excepthook(error, error(), None)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A command in the background of a script is started with interruptions ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("drop", [RaisesWhenRemoved, print_and_go_on])
def test_an_interruption_that_a_library_drops_is_raised_again(drop: Callable[[type[BaseException]], object]) -> None:
    with pytest.raises(KeyboardInterrupt), interruptions_kept():
        drop(KeyboardInterrupt)
        time.sleep(20)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("drop", [RaisesWhenRemoved, print_and_go_on])
def test_what_a_library_makes_of_an_interruption_and_drops_is_raised_as_the_interruption(
    drop: Callable[[type[BaseException]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), interruptions_kept():
        with suppress(KeyboardInterrupt):  # C code that turns it into an error of its own
            signal.raise_signal(signal.SIGINT)
        drop(SystemError)
        time.sleep(20)
    assert "SystemError" not in capsys.readouterr().err


def test_other_errors_that_a_library_drops_are_printed_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    with interruptions_kept():
        print_and_go_on(ValueError)
        time.sleep(0.2)
    assert "ValueError" in capsys.readouterr().err
