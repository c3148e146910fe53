"""What `upnext reproduce` does: checks what is asked for and runs the experiment."""

import difflib
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console

from benchmarks import beutel2018, covington2016, tang2019
from features.errors import ConfigError

FOLDERS = {name: folder for folder in (covington2016, beutel2018, tang2019) for name in folder.EXPERIMENTS}
"""Name of each experiment -> the package its module is in."""
EXPERIMENTS = covington2016.EXPERIMENTS | beutel2018.EXPERIMENTS | tang2019.EXPERIMENTS
"""Name of each experiment -> what it shows."""
OWN_DATA = beutel2018.OWN_DATA
"""Experiments that make their own data and have no configuration."""
ON_REAL_LOGS = {
    "kuairand": ("ranker_layers", "label_choice", "outside_peers"),
    "movielens": ("outside_peers", "temporal_range"),
}
"""Source of real logs -> experiments that it can answer, without searches, demographics and fresh uploads."""


def reproduce(
    name: str,
    scale: str,
    source: str,
    overrides: Sequence[str],
    output: Path | None,
    workdir: Path,
    console: Console,
    trainings: int | None = None,
    peers: Path | None = None,
) -> None:
    """Runs one experiment and publishes its result.

    Args:
      name: of `EXPERIMENTS`.
      scale: `smoke` or `full`.
      source: `simulator`, `kuairand` or `movielens`.
      overrides: `key=value` texts on the run's configuration.
      output: results folder; None: the default of `report.results_folder`.
      workdir: where data and variants are kept.
      console: where it speaks.
      trainings: of each variant; None: three at full scale, one at smoke scale, unless the experiment says otherwise.
      peers: interpreter of an environment with the libraries that `outside_peers` compares with; None: none of them.

    Raises:
      ConfigError: there is no such experiment, scale or source, or the source has not what the experiment needs, or the
        experiment has no source and no configuration.
    """
    _one_of("experiment", name, EXPERIMENTS)
    # Imported here: they bring TensorFlow.
    from benchmarks.experiments import Request, Scale, SourceName
    from benchmarks.report import results_folder
    from pipeline.quiet_start import find_devices

    _one_of("scale", scale, list(Scale))
    _one_of("source", source, list(SourceName))
    if name in OWN_DATA and (overrides or source != SourceName.SIMULATOR):
        given = [f"--source {source}", *(f"--set {override}" for override in overrides)]
        raise ConfigError(f"{name}: makes its own data and has no settings, found {' '.join(given)}; leave that out")
    if name not in ON_REAL_LOGS.get(source, (name,)):
        raise ConfigError(
            f"{name}: {source} has not what it needs (searches, demographics, uploads through the window, the truth); "
            f"on {source} there are {', '.join(ON_REAL_LOGS[source])}"
        )
    find_devices()
    folder, logs = output or results_folder(), None if name in OWN_DATA else SourceName(source)
    request = Request(name, Scale(scale), logs, tuple(overrides), folder, workdir, console, trainings, peers)
    import_module(f"{FOLDERS[name].__name__}.{name}").reproduce(request)


def _one_of(what: str, value: str, known: Iterable[str]) -> None:
    names = [str(name) for name in known]
    if value in names:
        return
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
    raise ConfigError(f"{what} {value!r}: no such {what}; {hint}")
