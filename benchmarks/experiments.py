"""What experiments share: worlds whose data is prepared once, variants that are trained once, and verdicts.

A world is a run's folder with everything before training. A variant is a model trained on it; what it answers on the
test part is kept beside the data, so that an experiment that was stopped goes on where it was.
"""

import copy
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from features.artifacts import MANIFEST, file_sha256, fingerprint, is_published, publish
from pipeline import config_file
from pipeline.config import RunConfig
from pipeline.evaluation.bootstrap import Measurement, paired_difference
from pipeline.evaluation.figures import Difference
from pipeline.funnel import data_part, model_part, package_version
from pipeline.run import Run
from pipeline.sources.simulator_config import SimulatorConfig
from pipeline.sources.truth import Truth
from pipeline.stages import execute, locked

MODELS = {"name", "about", "generators", "ranker", "export", "evaluation"}
"""Settings that nothing before training depends on, but for whether there is a ranker."""
DATA_STAGES = ("analyze", "examples", "quantiles")


SMOKE_PLATFORM = {"users": 200, "videos": 100, "uploaders": 24, "topics": 8, "days": 8, "steps_per_user": 20.0}
"""Scale of the simulator at `Scale.SMOKE`."""
SMOKE_SETTINGS: dict[str, Any] = {"shards": {"num_shards": 2}, "leakage": {"examples_per_part": 8, "shards": 1}}
"""What makes a small world's data quickly."""


_PATH = re.compile(r"=\.{0,2}/.*")


class Scale(StrEnum):
    """How large an experiment is."""

    SMOKE = "smoke"  # seconds; says that it runs, not what is true
    FULL = "full"  # the published figures


class SourceName(StrEnum):
    """Whose logs."""

    SIMULATOR = "simulator"
    KUAIRAND = "kuairand"
    MOVIELENS = "movielens"


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Args:
      name: of the experiment.
      scale, source: see there; source None: the experiment makes its own data.
      overrides: `key=value` texts on the run's configuration.
      output: results folder.
      workdir: where data and variants are kept.
      console: where it speaks.
      trainings: of each variant, which differ in their seed; None: three at full scale, one at smoke scale.
      peers: interpreter of an environment with the libraries that are compared with; None: there is none.
    """

    name: str
    scale: Scale
    source: SourceName | None
    overrides: tuple[str, ...]
    output: Path
    workdir: Path
    console: Console
    trainings: int | None = None
    peers: Path | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the trainings of each variant."""
        return tuple(range(1, 1 + (self.trainings or (3 if self.scale == Scale.FULL else 1))))

    @property
    def result_name(self) -> str:
        """Names the published files."""
        source = "" if self.source in (None, SourceName.SIMULATOR) else f"_{self.source}"
        return self.name + source + ("" if self.scale == Scale.FULL else f"_{self.scale}")

    @property
    def command(self) -> str:
        """What repeats it."""
        settings = [word for override in self.overrides for word in ("--set", _PATH.sub("=DIR", override))]
        settings += ["--trainings", str(self.trainings)] if self.trainings else []
        settings += ["--peers", "PYTHON"] if self.peers else []
        source = ["--source", self.source] if self.source else []
        return shlex.join(["upnext", "reproduce", self.name, "--scale", self.scale, *source, *settings])

    def say(self, text: str) -> None:
        """One line of progress."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def configuration(
    request: Request, settings: Mapping[str, Any], switches: Mapping[str, float] | None = None
) -> RunConfig:
    """The configuration of a world: the experiment's settings, then the caller's, then the simulator's switches."""
    value: dict[str, Any] = copy.deepcopy(dict(settings))
    config_file.apply_overrides(value, request.overrides)
    if switches:
        value["source"] = {**value["source"], **switches}
    return config_file.validate(RunConfig, value, f"{request.name} ({request.scale})")


def prepare(request: Request, world: str, config: RunConfig) -> Run:
    """Everything before training, made once for a configuration: tables, vocabularies, examples, quantiles.

    The folder is named by what the data depends on, so that experiments with the same world share it.
    """
    made_of = config.model_dump(mode="json", exclude=MODELS) | {"ranker": config.ranker is not None}
    folder = request.workdir / f"{world}-{fingerprint(made_of)[:12]}"
    run = Run(folder, config, (), request.console)
    with locked(folder):
        config_file.write_run(folder, config)
        request.console.rule(f"[bold]{request.name}[/bold]: data of the world '{world}'", align="left")
        execute(data_part(run), folder, request.console, package_version())
        wanted = [stage for stage in model_part(run) if stage.name in DATA_STAGES]
        execute(wanted, folder, request.console, package_version())
    return run


def once(
    run: Run, name: str, settings: Any, read: Sequence[str], make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays that `make` gives, kept in the run's folder under the settings and the data they depend on.

    Args:
      run: whose folder.
      name: of the variant, for people.
      settings: JSON-serialisable; everything beside the data that the arrays depend on.
      read: published folders of the run they depend on.
      make: trains and measures.
    """
    manifests = {folder: file_sha256(run.folder / folder / MANIFEST) for folder in read}
    return kept(run.folder / "variants", name, {"settings": settings, "read": manifests}, make)


def kept(
    folder: Path, name: str, depends_on: Mapping[str, Any], make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays that `make` gives, kept in a folder of their own inside `folder`.

    Args:
      folder: of many such.
      name: for people.
      depends_on: JSON-serialisable; everything but the version of this package that the arrays depend on.
      make: trains and measures.
    """
    key = fingerprint({**depends_on, "version": package_version()})
    folder = folder / f"{name}-{key[:16]}"
    if not is_published(folder):
        arrays = dict(make())
        with publish(folder, {"kind": "variant", **depends_on}) as temporary:
            np.savez_compressed(temporary / "arrays.npz", allow_pickle=False, **arrays)
    with np.load(folder / "arrays.npz", allow_pickle=False) as stored:
        return dict(stored)


def published_settings(run: Run, parts: set[str]) -> dict[str, Any]:
    """The configuration's `parts` for a result that others read: folders of this machine are `DIR`."""
    value: dict[str, Any] = run.config.model_dump(mode="json", include=parts)
    for name in {"path", "archive"} & set(value.get("source", {})):
        value["source"][name] = "DIR"
    return value


def truth_of(run: Run) -> Truth | None:
    """What is true of the run's simulated logs; None where the logs are real."""
    return Truth.read(run.folder / "truth") if isinstance(run.config.source, SimulatorConfig) else None


def mean_of_seeds(measurements: Sequence[Measurement]) -> Measurement:
    """One metric of several trainings that differ only in their seed, averaged; over the same draws of users.

    In each draw of the users the trainings are drawn with replacement too, so that the interval holds their spread
    beside that of the users. Few trainings drawn so spread too little, by the factor √((n − 1) / n), which is undone.
    """
    first, n = measurements[0], len(measurements)
    samples = np.stack([measurement.samples for measurement in measurements])
    mean = samples.mean(axis=0)
    if n > 1:
        drawn = np.random.default_rng(n).integers(0, n, samples.shape)
        mean = mean + np.sqrt(n / (n - 1)) * (np.take_along_axis(samples, drawn, axis=0).mean(axis=0) - mean)
    value = float(np.mean([measurement.value for measurement in measurements]))
    return Measurement(first.name, value, mean, first.n, first.population, first.confidence)


def relative(above: Sequence[Measurement], below: Sequence[Measurement]) -> str:
    """How much more than one metric of some trainings that of others is, such as +10.9%; from 0 there is no share."""
    first, second = mean_of_seeds(above).value, mean_of_seeds(below).value
    return f"{first / second - 1:+.1%}" if second else f"from 0 to {first:.4f}"


class Outcome(StrEnum):
    """What a claim came to."""

    HOLDS = "holds"
    REVERSED = "does not hold: it is the other way round"
    NOISE = "lies within noise"
    VANISHES = "vanishes, as it should"
    TURNS = "vanishes: it is a disadvantage"
    STAYS = "does not vanish"


@dataclass(frozen=True)
class Claim:
    """A claim about the difference of two variants.

    A difference is told from noise where its interval over users and trainings does not hold 0 and all trainings agree
    on its sign.

    Args:
      text: the claim.
      difference: of the first variant minus the second, averaged over trainings.
      by_seed: the same, training by training.
      sign: −1 where the claim is that the difference is negative, 1 where positive.
      switched_off: the world lacks the cause of the claim, so that the difference is to vanish.
    """

    text: str
    difference: Difference
    by_seed: tuple[float, ...]
    sign: int
    switched_off: bool = False

    @property
    def outcome(self) -> Outcome:
        inside = not (self.difference.low > 0 or self.difference.high < 0)
        signs = set(np.sign(self.by_seed).tolist())
        if inside or len(signs) > 1:
            return Outcome.VANISHES if self.switched_off else Outcome.NOISE
        claimed = np.sign(self.difference.value) == self.sign
        if self.switched_off:
            return Outcome.STAYS if claimed else Outcome.TURNS
        return Outcome.HOLDS if claimed else Outcome.REVERSED

    def sentence(self, digits: int = 4) -> str:
        """The claim, its figure and what it came to."""
        d = self.difference
        interval = f"{d.value:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]"
        return f"{self.text}: {interval}: {self.outcome}"


def claim(
    text: str, first: Sequence[Measurement], second: Sequence[Measurement], sign: int, switched_off: bool = False
) -> Claim:
    """The claim that `first` minus `second` has a sign; one measurement per seed, in the same order."""
    difference = paired_difference(mean_of_seeds(first), mean_of_seeds(second))
    by_seed = tuple(a.value - b.value for a, b in zip(first, second, strict=True))
    return Claim(text, difference, by_seed, sign, switched_off)
