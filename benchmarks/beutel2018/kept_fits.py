"""Trainings of many models that are kept, so that an experiment that was stopped goes on where it was."""

import hashlib
import re
from dataclasses import asdict

import numpy as np

from benchmarks.beutel2018.fit_tables import spread
from benchmarks.beutel2018.many_models import Fit, ManyModels, Training, train
from benchmarks.beutel2018.synthetic_tensors import SyntheticTensors
from benchmarks.experiments import Request, kept


def kept_fit(request: Request, name: str, models: ManyModels, tensors: SyntheticTensors, how: Training) -> Fit:
    """What `train` gives, trained once for the same name, initial values, tensors and training.

    Args:
      request: where it is kept, and where progress is told.
      name: of the models among those of the experiment.
      models, tensors, how: see `train`.
    """
    start = hashlib.sha256(tensors.values.tobytes())
    for variable in models.trainable_variables:
        start.update(variable.numpy().tobytes())
    depends_on = {"name": name, "training": asdict(how), "start": start.hexdigest()}

    def make() -> dict[str, np.ndarray]:
        fit = train(models, tensors, how)
        return {
            "steps": np.array(fit.steps),
            "correlations": fit.correlations,
            "converged": fit.converged,
            "parameters": np.array(fit.parameters),
        }

    folder = re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")
    stored = kept(request.workdir / request.name, folder, depends_on, make)
    steps = tuple(stored["steps"].tolist())
    fit = Fit(steps, stored["correlations"], stored["converged"], int(stored["parameters"]))
    request.say(f"{name}: R {spread(fit).value:.4f} after {steps[-1]:,} steps")
    return fit
