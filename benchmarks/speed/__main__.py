"""`python -m benchmarks.speed NAME|all [--scale smoke|full] [--results DIR] [--peers PYTHON]`."""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

from benchmarks.report import results_folder
from benchmarks.speed import NAMES, Request
from benchmarks.speed.peers import Peers


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="Speed benchmarks.")
    parser.add_argument("name", choices=[*NAMES, "all"], help="; ".join(f"{k}: {v}" for k, v in NAMES.items()))
    parser.add_argument("--scale", choices=["smoke", "full"], default="full")
    parser.add_argument("--results", type=Path, default=results_folder())
    parser.add_argument("--peers", type=Path, help="Python of the peers' environment; default: none")
    given = parser.parse_args(arguments)
    for name in NAMES if given.name == "all" else [given.name]:
        module = importlib.import_module(f"benchmarks.speed.{name}")
        with tempfile.TemporaryDirectory(prefix=f"speed-{name}-") as scratch:
            module.run(Request(given.scale, given.results, Path(scratch), Peers(given.peers)))


if __name__ == "__main__":
    main(sys.argv[1:])
