"""`python -m benchmarks.speed NAME|all [--scale smoke|full] [--results DIR] [--peers PYTHON]`."""

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report import results_folder
from benchmarks.speed import NAMES, Request
from benchmarks.speed.peers import Peers
from pipeline.huge_pages import restart_with_huge_pages


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="Speed benchmarks.")
    parser.add_argument("name", choices=[*NAMES, "all"], help="; ".join(f"{k}: {v}" for k, v in NAMES.items()))
    parser.add_argument("--scale", choices=["smoke", "full"], default="full")
    parser.add_argument("--results", type=Path, default=results_folder())
    parser.add_argument("--peers", type=Path, help="Python of the peers' environment; default: none")
    given = parser.parse_args(arguments)
    if given.name == "all":
        peers = ["--peers", str(given.peers)] if given.peers else []
        run_all(["--scale", given.scale, "--results", str(given.results), *peers])
        return
    module = importlib.import_module(f"benchmarks.speed.{given.name}")
    with tempfile.TemporaryDirectory(prefix=f"speed-{given.name}-") as scratch:
        module.run(Request(given.scale, given.results, Path(scratch), Peers(given.peers)))


def run_all(options: list[str]) -> None:
    """Every benchmark in a process of its own: together their models and indices do not fit into memory.

    Raises:
      SystemExit: some failed; the others were run all the same.
    """
    commands = {name: [sys.executable, "-m", "benchmarks.speed", name, *options] for name in NAMES}
    failed = {name: code for name, command in commands.items() if (code := subprocess.run(command).returncode)}
    if failed:
        raise SystemExit(f"failed: {', '.join(f'{name} (exit code {code})' for name, code in failed.items())}")


if __name__ == "__main__":
    restart_with_huge_pages()  # as the command does; processes that are started here inherit it, peers too
    main(sys.argv[1:])
