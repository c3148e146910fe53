"""Publishing SavedModels: numbered versions that appear whole, checked, or not at all.

`export/<name>/<version>/` holds `saved_model.pb`, its variables, `assets.extra/` with warm-up requests, feature
specification and parity fixture, and `manifest.json`, written last. A version is built under a hidden name beside its
place, loaded and checked there in a process of its own, and then renamed, so a server that watches the folder never
sees a part of it.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import Field

from features.artifacts import publish
from features.settings import Settings
from features.spec import FeatureSpec, write_specs
from models.candidate_generator import CandidateGenerator
from models.ranker import Ranker
from serving.index import Index, IndexConfig
from serving.index_recall import RecallConfig, check_recall, recall_by_slice
from serving.parity import ParityConfig, ParityFixture, check_parity, write_fixture
from serving.ranking import RankingModule
from serving.retrieval import RetrievalConfig, RetrievalModule
from serving.signatures import ConcreteFunction, RawFeatureTransform
from serving.stored_examples import StoredExamples
from serving.warmup import write_warmup_requests

RETRIEVAL = "retrieval"
BRUTE_FORCE_SUFFIX = "brute_force"
BRUTE_FORCE = f"{RETRIEVAL}_{BRUTE_FORCE_SUFFIX}"
RANKING = "ranking"
SPEC_FILE = "assets.extra/feature_spec.json"


class ExportConfig(Settings):
    """How models are exported and what they must reach."""

    retrieval: RetrievalConfig = RetrievalConfig()
    index: IndexConfig = IndexConfig()
    recall: RecallConfig = RecallConfig()
    parity: ParityConfig = ParityConfig()
    warmup_batch_sizes: tuple[int, ...] = Field(
        default=(1, 8), min_length=1, description="rows of each warm-up request"
    )


@dataclass(frozen=True)
class VideoVectors:
    """The videos of the catalogue with what the index needs of them.

    Args:
      ids: `[N]` video ids.
      vectors: `[N, d]` float32.
      training_watches: `[N]` watches in the training part; they make the popularity slices.
      available: `[N]` bool; False keeps a video out of the index. None: all are available.
    """

    ids: np.ndarray
    vectors: np.ndarray
    training_watches: np.ndarray
    available: np.ndarray | None = None


def export_retrieval(
    folder: Path,
    generator: CandidateGenerator,
    raw_features: RawFeatureTransform,
    videos: VideoVectors,
    examples: StoredExamples,
    validation_queries: np.ndarray,
    config: ExportConfig,
    provenance: Mapping[str, Any] | None = None,
    name: str = RETRIEVAL,
    source: str = "candidate_generator",
) -> dict[str, Path]:
    """Publishes `<name>` and, with the same signature and version, `<name>_brute_force`.

    Args:
      folder: the run's `export` folder.
      generator: the trained candidate generator.
      raw_features: raw inputs to its query features.
      videos: what is indexed.
      examples: stored examples of the candidate-generation example set with their raw rows.
      validation_queries: `[Q, d]` query vectors of validation examples; recall is measured with them.
      config: index, number of videos answered, floors and tolerances.
      provenance: what the models were made from, for the manifest.
      name: of the exported model, `retrieval` or `retrieval_<generator>`.
      source: what the ranker is told of where its candidates come from.

    Returns:
      model name -> published version folder.

    Raises:
      ExportError: vectors that cannot be indexed, recall below the floor (naming the slice), or stored examples and
        raw rows that differ (naming the feature). Nothing is published then.
    """
    exact_name = f"{name}_{BRUTE_FORCE_SUFFIX}"
    version = next_version(folder / name, folder / exact_name)
    available = np.ones(len(videos.ids), bool) if videos.available is None else videos.available
    published = {}
    with ExitStack() as both_or_none:
        for exported, exact in ((name, False), (exact_name, True)):
            index = Index(videos.vectors, videos.ids, config.index, available, exact)
            if not exact:
                counts = videos.training_watches[available]
                recalls = recall_by_slice(index, videos.vectors[available], validation_queries, counts, config.recall)
                check_recall(recalls, config.recall)
            module = RetrievalModule(generator, raw_features, index, config.retrieval)
            manifest = {
                **_manifest(exported, version, provenance),
                "source": source,
                "index": {"videos": index.size, "exact": index.is_exact, **config.index.model_dump()},
                "recall": {} if exact else {"k": config.recall.k} | {n: asdict(found) for n, found in recalls.items()},
                "k": config.retrieval.k,
            }
            published[exported] = folder / exported / str(version)
            temporary = both_or_none.enter_context(publish(published[exported], manifest))
            specs = {"candidate_generator": generator.spec}
            _write_and_check(temporary, module, RETRIEVAL, exported, specs, examples, config, manifest)
    return published


def export_ranking(
    folder: Path,
    ranker: Ranker,
    raw_features: RawFeatureTransform,
    examples: StoredExamples,
    config: ExportConfig,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Publishes `ranking`; arguments and errors as of `export_retrieval`.

    Returns:
      the published version folder.
    """
    version = next_version(folder / RANKING)
    manifest = _manifest(RANKING, version, provenance)
    with publish(folder / RANKING / str(version), manifest) as temporary:
        module = RankingModule(ranker, raw_features)
        _write_and_check(temporary, module, RANKING, RANKING, {"ranker": ranker.spec}, examples, config, manifest)
    return folder / RANKING / str(version)


def next_version(*folders: Path) -> int:
    """One more than the largest version in any of the folders; 1 where there is none."""
    names = [entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    return 1 + max((int(name) for name in names if name.isascii() and name.isdecimal()), default=0)


def _manifest(name: str, version: int, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    packages = {package: package_version(package) for package in ("tensorflow", "scann")}
    return {"model": name, "version": version, "packages": packages, "provenance": dict(provenance or {})}


def _write_and_check(
    folder: Path,
    module: RetrievalModule | RankingModule,
    main: str,
    name: str,
    specs: dict[str, FeatureSpec],
    examples: StoredExamples,
    config: ExportConfig,
    manifest: dict[str, Any],
) -> None:
    """Writes the SavedModel with all that ships beside it, checks it, and adds what was found to the manifest."""
    signatures = module.signatures()
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
    tf.saved_model.save(module, str(folder), signatures=signatures, options=options)
    (folder / SPEC_FILE).parent.mkdir(exist_ok=True)
    write_specs(folder / SPEC_FILE, specs)
    inputs = {n: examples.inputs[n] if n in examples.inputs else _none(examples) for n in module.input_specs}
    features = examples.at_serving(module.raw_features)
    answers = module.answer(
        {n: tf.constant(value) for n, value in features.items()}, {n: tf.constant(v) for n, v in inputs.items()}
    )
    fixture = ParityFixture(
        descriptions=examples.descriptions,
        inputs=inputs,
        expected={"features": features, main: {n: _values(answer) for n, answer in answers.items()}},
        tied_by={"video_ids": "scores"} if main == RETRIEVAL else {},
    )
    write_fixture(folder, fixture, config.parity)
    manifest["parity"] = check_parity(folder, config.parity)
    manifest["warmup_requests"] = write_warmup_requests(
        folder, name, main, inputs, module.input_specs, config.warmup_batch_sizes
    )
    manifest["signatures"] = {signature: describe(function) for signature, function in signatures.items()}


def describe(function: ConcreteFunction) -> dict[str, dict[str, dict[str, Any]]]:
    """Inputs and outputs of a signature with dtype and shape (None: any size), JSON-serialisable."""

    def tensors(specs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {n: {"dtype": s.dtype.name, "shape": s.shape.as_list()} for n, s in sorted(specs.items())}

    return {
        "inputs": tensors(function.structured_input_signature[1]),
        "outputs": tensors(function.structured_outputs),
    }


def _none(examples: StoredExamples) -> np.ndarray:
    """An input of lists that the examples have nothing for."""
    return np.empty((len(examples.descriptions), 0), object)


def _values(tensor: tf.Tensor) -> np.ndarray:
    values = tensor.numpy()
    if values.dtype != object:
        return values
    return np.array([value.decode() for value in values.reshape(-1)], object).reshape(values.shape)
