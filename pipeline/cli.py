"""The command line. Heavy libraries are imported inside the commands, so that `--help` answers at once."""

import _thread
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

app = typer.Typer(
    name="upnext",
    help="YouTube's published recommenders on your own platform's logs.",
    epilog="UPNEXT_TRACEBACK=1 in the environment shows the traceback of an error beside its message.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

ConfigArgument = Annotated[
    str, typer.Argument(help="A built-in configuration's name (see `upnext configs`) or a file.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, such as source.path=logs.")
]
WorkdirOption = Annotated[
    Path | None, typer.Option(help="The run's folder.  [default: runs/<name of the configuration>]")
]
BEAM_HELP = "Options after `--` go to Apache Beam as they are, such as `-- --runner=DataflowRunner --project=...`."
BEAM_CONTEXT = {"allow_extra_args": True}
INTERRUPTED = 130
COMMANDS = "upnext.commands"
"""Entry point group of functions that add a command to the app."""

_asked_to_stop = threading.Event()
"""An interruption came: libraries turn it into errors of their own (Beam, C extensions), which then mean no more."""


def main() -> None:
    """The command line: an error is one line and exit code 1, an interruption one line and 130, never a traceback."""
    try:
        with interruptions_kept():
            complete_app()()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # what Typer makes of an interruption
            _interrupted()
        raise
    except Exception as error:
        if _asked_to_stop.is_set():
            _interrupted()
        from pipeline.failures import TRACEBACK, one_line

        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        _say("error:", one_line(error))
        sys.exit(1)


@contextmanager
def interruptions_kept() -> Iterator[None]:
    """Notes an interruption, and raises it again if it came in a callback of C code, which prints and drops it.

    C code may make an error of its own of it first.
    """
    _asked_to_stop.clear()
    printed, ignored = sys.excepthook, sys.unraisablehook
    handler = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        _asked_to_stop.set()
        if callable(handler):
            handler(number, frame)

    def kept(kind: type[BaseException]) -> bool:
        dropped = issubclass(kind, KeyboardInterrupt) or _asked_to_stop.is_set()
        if dropped:  # a moment later, when the callback has returned
            threading.Timer(0.05, _thread.interrupt_main).start()
        return dropped

    def on_ignored(raised: Any) -> None:
        if not kept(raised.exc_type):
            ignored(raised)

    sys.excepthook = lambda kind, *raised: None if kept(kind) else printed(kind, *raised)
    sys.unraisablehook = on_ignored
    if callable(handler):  # not where interruptions are ignored, as in the background of a script
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if callable(handler):
            signal.signal(signal.SIGINT, handler)
        sys.excepthook, sys.unraisablehook = printed, ignored


def _interrupted() -> NoReturn:
    """Stages continue; what is no run begins again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would cut the line short
    begins_again = sys.argv[1:2] in (["simulate"], ["recommend"], ["configs"])
    _say("interrupted:", f"run the same command again to {'begin again' if begins_again else 'continue'}")
    sys.stdout.flush()
    # Threads of libraries would keep the process until their work is done.
    os._exit(INTERRUPTED)


def _say(what: str, message: str) -> None:
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    errors.print(f"[bold red]{what}[/bold red] ", end="")
    errors.print(message, markup=False)


def open_console() -> Console:
    """Where a command speaks: as wide as the terminal, or wide enough for the tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


@app.command(context_settings=BEAM_CONTEXT, epilog=BEAM_HELP)
def run(
    context: typer.Context,
    config: ConfigArgument,
    set_: SetOption = None,
    workdir: WorkdirOption = None,
) -> None:
    """Everything: raw logs to exported models, evaluation and recommendations."""
    _run(context, config, set_, workdir, only=None)


def _run(context: typer.Context, config: str, set_: list[str] | None, workdir: Path | None, only: str | None) -> None:
    from pipeline.config_file import read_settings

    # What no file or setting can be is said before the libraries are loaded, which takes seconds.
    read_settings(config, set_ or [])
    from pipeline.funnel import run_funnel

    run_funnel(config, set_ or [], workdir, beam_options=context.args, only=only, console=open_console())


def _add_stage_command(name: str, about: str) -> None:
    def command(
        context: typer.Context,
        config: ConfigArgument,
        set_: SetOption = None,
        workdir: WorkdirOption = None,
    ) -> None:
        _run(context, config, set_, workdir, only=name)

    app.command(name, help=about, context_settings=BEAM_CONTEXT, epilog=BEAM_HELP, rich_help_panel="One stage alone")(
        command
    )


STAGES = {
    "ingest": "Raw logs to canonical tables; bad rows kept aside with a reason.",
    "analyze": "Vocabularies, statistics and the video catalogue (Beam).",
    "examples": "Training, validation and test examples, checked for leaks (Beam).",
    "quantiles": "Quantiles of the continuous ranking features (Beam).",
    "train-generator": "Trains the candidate generator.",
    "train-ranker": "Trains the ranker.",
    "export": "SavedModels with the index, refused when they do not agree with the training examples.",
    "evaluate": "Metrics with intervals, beside the baselines.",
}
for _name, _about in STAGES.items():
    _add_stage_command(_name, _about)


@app.command()
def configs() -> None:
    """Lists the built-in configurations."""
    from pipeline.builtin_configurations import configurations_table

    open_console().print(configurations_table())


@app.command()
def simulate(
    output: Annotated[Path, typer.Argument(help="Folder for the tables (Parquet).")],
    set_: SetOption = None,
) -> None:
    """Writes a simulated platform's logs and their truth, without training anything."""
    from pipeline.simulated_logs import simulate_to

    simulate_to(output, set_ or [], open_console())


@app.command()
def recommend(
    workdir: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    user: Annotated[str, typer.Option(help="User id, as in the logs.")],
    page: Annotated[str | None, typer.Option(help="Page the list is for.")] = None,
    device: Annotated[str | None, typer.Option(help="Device the list is for.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many videos.")] = 10,
) -> None:
    """Retrieval, then ranking, from the exported models."""
    from pipeline.funnel import recommend_from

    recommend_from(workdir, user, page, device, count, open_console())


@cache
def complete_app() -> typer.Typer:
    """The app with the commands of packages that build on this one and are named under the entry point group."""
    for entry in entry_points(group=COMMANDS):
        entry.load()(app)
    return app
