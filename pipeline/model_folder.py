"""Trained models as published folders: weights, the configuration to rebuild the model, its features, its history."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tensorflow as tf
import tf_keras

from features.artifacts import publish, read_manifest
from features.errors import ArtifactError
from features.spec import FeatureSpec, read_specs, write_specs
from models.candidate_generator import CandidateGenerator
from models.latent_cross import LatentCross
from models.m3 import M3
from models.ranker import Ranker
from models.sequence_baselines import BagOfWatches, Caser
from models.sequence_generator import SequenceGenerator
from models.two_tower import TwoTower

FEATURES = "features.json"
MODEL = "model.json"
HISTORY = "history.json"
WEIGHTS = "weights"


class Describable(Protocol):
    """A model that says how it is rebuilt."""

    spec: FeatureSpec

    def description(self) -> dict[str, Any]: ...


CANDIDATE_GENERATORS: Mapping[str, type[TwoTower | SequenceGenerator]] = {
    "two_tower": TwoTower,
    "latent_cross": LatentCross,
    "m3": M3,
    "bag_of_watches": BagOfWatches,
    "caser": Caser,
}
"""Kind of model -> its class; each has `description` and `from_description`."""

RANKERS: Mapping[str, type[Ranker]] = {"ranker": Ranker}
"""The same of rankers."""


def weights_checkpoint(model: tf_keras.Model) -> tf.train.Checkpoint:
    """A checkpoint of the model's weights without those of its optimizer, the same under every strategy.

    Raises:
      ArtifactError: a weight is not held by one of the model's layers, so that it would be lost.
    """
    held = {id(variable) for layer in model.layers for variable in layer.variables}
    metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    lost = [v.name for v in model.variables if id(v) not in held | metrics]
    if lost:
        raise ArtifactError(f"model {model.name}: weights {', '.join(lost)} are held by no layer; keep them in a layer")
    return tf.train.Checkpoint(layers=list(model.layers))


def save_model(
    folder: Path, model: Describable, kind: str, history: Mapping[str, Sequence[float]], training: Mapping[str, Any]
) -> None:
    """Publishes a trained model.

    Args:
      folder: for example `runs/<id>/models/candidate_generator`.
      model: a Keras model that describes itself.
      kind: a key of `CANDIDATE_GENERATORS` or `RANKERS`.
      history: metric -> value by epoch.
      training: configuration and figures of the training, kept for the report.
    """
    with publish(folder, {"kind": "model", "model": kind, "training": dict(training)}) as temporary:
        write_specs(temporary / FEATURES, {kind: model.spec})
        (temporary / MODEL).write_text(json.dumps(model.description(), indent=2) + "\n")
        (temporary / HISTORY).write_text(json.dumps({k: list(map(float, v)) for k, v in history.items()}) + "\n")
        weights_checkpoint(model).write(str(temporary / WEIGHTS))


def read_description(folder: Path) -> tuple[str, dict[str, Any], FeatureSpec]:
    """Kind, description and features of a published model.

    Raises:
      ArtifactError: no model is published there.
    """
    manifest = read_manifest(folder)
    if manifest.get("kind") != "model":
        raise ArtifactError(f"{folder}: expected a trained model, found {manifest.get('kind')!r}")
    kind = manifest["model"]
    return kind, json.loads((folder / MODEL).read_text()), read_specs(folder / FEATURES)[kind]


def load_weights(folder: Path, model: tf_keras.Model) -> None:
    """Puts the published weights into a model of the same description.

    Raises:
      ArtifactError: the weights are of another shape.
    """
    try:
        weights_checkpoint(model).read(str(folder / WEIGHTS)).assert_consumed()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{folder}: the weights do not fit the model ({reason}); train it again") from error


def read_history(folder: Path) -> dict[str, list[float]]:
    """Metric -> value by epoch."""
    read_manifest(folder)
    return dict(json.loads((folder / HISTORY).read_text()))


def load_candidate_generator(folder: Path) -> CandidateGenerator:
    """The trained candidate generator of a published folder.

    Raises:
      ArtifactError: no candidate generator is published there, or it cannot be rebuilt.
    """
    return _load(folder, CANDIDATE_GENERATORS, "a candidate generator")


def load_ranker(folder: Path) -> Ranker:
    """The trained ranker of a published folder; errors as of `load_candidate_generator`."""
    return _load(folder, RANKERS, "a ranker")


def _load(folder: Path, kinds: Mapping[str, Any], wanted: str) -> Any:
    kind, description, spec = read_description(folder)
    if kind not in kinds:
        raise ArtifactError(f"{folder}: expected {wanted} ({', '.join(kinds)}), found {kind!r}")
    model = kinds[kind].from_description(description, spec)
    load_weights(folder, model)
    return model
