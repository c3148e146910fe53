"""The command `upnext reproduce`, which the installed package adds to the command line."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.reproduce import EXPERIMENTS
from benchmarks.reproduce import reproduce as run_experiment
from pipeline.cli import SetOption, open_console

HELP = "A result of the papers, beside the papers' figures.\n\n" + "\n\n".join(
    f"[bold]{name}[/bold]: {about}" for name, about in EXPERIMENTS.items()
)


def add_commands(app: typer.Typer) -> None:
    """Adds `reproduce`."""
    app.command(no_args_is_help=True, help=HELP)(reproduce)


def reproduce(
    name: Annotated[str, typer.Argument(help="An experiment, see above.")],
    scale: Annotated[str, typer.Option(help="smoke: seconds, says that it runs; full: the figures.")] = "full",
    source: Annotated[str, typer.Option(help="simulator, kuairand or movielens.")] = "simulator",
    set_: SetOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Results folder.  [default: benchmarks/results in a checkout, else results]")
    ] = None,
    workdir: Annotated[Path, typer.Option(help="Where data and trained variants are kept.")] = Path("runs/reproduce"),
    trainings: Annotated[
        int | None, typer.Option(min=1, help="Trainings of each variant.  [default: 3; at smoke scale 1]")
    ] = None,
    peers: Annotated[
        Path | None, typer.Option(help="Interpreter of an environment with RecBole, for outside_peers.")
    ] = None,
) -> None:
    """Runs one experiment."""
    run_experiment(name, scale, source, set_ or [], output, workdir, open_console(), trainings, peers)
