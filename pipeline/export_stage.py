"""The stage that exports: trained models to checked, versioned SavedModels."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.table import Table

from features.artifacts import is_published, publish, read_manifest
from features.errors import ArtifactError
from features.example_reader import ExampleSet
from features.feature_lists import FeatureListConfig, Model
from features.spec import FeatureSpec
from features.splits import Part
from features.vocabulary import Vocabulary
from models.candidate_generator import LABEL
from models.raw_features import RawFeatures
from pipeline.config import RunConfig
from pipeline.evaluation.figures import write_json
from pipeline.input_pipeline import ExampleColumns
from pipeline.model_folder import load_candidate_generator, load_ranker
from pipeline.model_stages import RANKER_FOLDER, generator_folder
from pipeline.run import RANKER, Run
from pipeline.vectors import catalogue_vectors, query_vectors, represented
from serving.export import BRUTE_FORCE_SUFFIX, RETRIEVAL, VideoVectors, export_ranking, export_retrieval
from serving.stored_examples import StoredExamples, stored_examples

REPORT = "reports/export"


def export(run: Run) -> None:
    """Publishes new versions under `export/`, and `reports/export` with what was found about them."""
    published = [folder for name in run.config.generators for folder in _export_generator(run, name)]
    if run.has_ranker:
        published.append(_export_ranker(run))
    manifests = {str(folder.relative_to(run.folder)): read_manifest(folder) for folder in published}
    told = {"kind": "report", "exported": list(manifests), "features": run.config.features.model_dump(mode="json")}
    with publish(run.folder / REPORT, told) as report:
        write_json(report / "export.json", {name: dict(manifest) for name, manifest in manifests.items()})
    view = Table(title="Exported")
    for column in ("model", "index", "recall against exact search", "parity"):
        view.add_column(column, overflow="fold")
    for name, manifest in manifests.items():
        index = manifest.get("index")
        size = f"{index['videos']:,} videos, {'exact' if index['exact'] else 'ScaNN'}" if index else ""
        recall = {part: found for part, found in manifest.get("recall", {}).items() if part != "k"}
        at = manifest.get("recall", {}).get("k")
        judged = {part: found["recall"] for part, found in recall.items() if found["recall"] is not None}
        recalls = ", ".join(f"{part} {share:.3f}" for part, share in judged.items())
        parity = ", ".join(f"{key} {value:,}" for key, value in manifest["parity"].items())
        view.add_row(name, size, f"@{at}: {recalls}" if recalls else "", parity)
    run.console.print(view)


def exported_names(config: RunConfig) -> dict[str, str]:
    """Generator of the configuration -> name of its export: `retrieval` of the first, else `retrieval_<name>`."""
    first = next(iter(config.generators))
    return {name: RETRIEVAL if name == first else f"{RETRIEVAL}_{name}" for name in config.generators}


def exported_folders(run: Path) -> tuple[str, ...]:
    """The published folders that the last export left at its end, relative to the run's folder.

    Raises:
      ArtifactError: no export came to its end.
    """
    exported = read_manifest(run / REPORT).get("exported") if is_published(run / REPORT) else None
    if not exported:
        raise ArtifactError(
            f"{run / REPORT}: expected the record of a finished export, found none; run `upnext export`, or copy "
            f"{REPORT} from where the models were exported"
        )
    return tuple(exported)


def exported_features(run: Path) -> FeatureListConfig | None:
    """The feature settings that the last finished export was made with; None where its record does not hold them.

    The run's configuration may be another one since: a stage of it was run again, or a run was stopped.
    """
    found = read_manifest(run / REPORT).get("features") if is_published(run / REPORT) else None
    return None if found is None else FeatureListConfig.model_validate(found)


def models_to_recommend(run: Path) -> list[Path]:
    """The versions that the last finished export published together, its exact indexes left out.

    `export/` may hold others: of earlier configurations, and of an export that was stopped.

    Args:
      run: the run's folder.

    Raises:
      ArtifactError: no export came to its end.
    """
    return [run / name for name in exported_folders(run) if not Path(name).parent.name.endswith(BRUTE_FORCE_SUFFIX)]


def _part(run: Run, model: Model) -> Part:
    """Validation examples or, where there are none, those of the test part, or of the training part."""
    examples = ExampleSet(run.examples(model))
    return next(part for part in (Part.VALIDATION, Part.TEST, Part.TRAIN) if examples.num_examples(part))


def _stored(run: Run, model: Model, spec: FeatureSpec, raw_features: RawFeatures) -> StoredExamples:
    return stored_examples(
        run.examples(model) / _part(run, model).folder,
        run.tables,
        model,
        spec,
        raw_features.input_specs,
        run.config.features,
        run.config.export.parity.examples,
    )


def _provenance(run: Run, folder: str) -> dict:
    return {"run": run.folder.name, "training": read_manifest(run.folder / folder)["training"]}


def _export_generator(run: Run, name: str) -> list[Path]:
    """Publishes the index of one generator, approximate and exact."""
    folder = generator_folder(name)
    generator = load_candidate_generator(run.folder / folder)
    model = run.features_of_generator(name)
    encoder = run.encoder
    spec = FeatureSpec(generator.query_inputs)
    raw_features = RawFeatures(spec, encoder, run.config.features, run.split.utc_offset_s)
    counts = Vocabulary.read(run.features / "vocabularies" / "video.parquet").counts
    watches = np.concatenate([[0], counts])[encoder.catalogue["video"].to_numpy()]
    examples = ExampleSet(run.examples(model))
    vectors = catalogue_vectors(generator, encoder, run.split, examples)
    videos = VideoVectors(
        np.array(encoder.catalogue["video_id"].to_pylist(), object),
        vectors,
        watches,
        _available(encoder.catalogue) & represented(vectors),
    )
    columns = ExampleColumns(examples, (_part(run, model),), (LABEL,))
    return list(
        export_retrieval(
            run.folder / "export",
            generator,
            raw_features,
            videos,
            _stored(run, model, spec, raw_features),
            query_vectors(generator, columns),
            run.config.export,
            _provenance(run, folder),
            exported_names(run.config)[name],
            name,
        ).values()
    )


def _available(catalogue: pa.Table) -> np.ndarray:
    """bool `[videos]`: all but those that the table of videos says are not available."""
    if "available" not in catalogue.column_names:
        return np.ones(len(catalogue), bool)
    return catalogue["available"].to_numpy() != 0  # NaN: not known to be unavailable


def _export_ranker(run: Run) -> Path:
    ranker = load_ranker(run.folder / RANKER_FOLDER)
    raw_features = RawFeatures(run.specs[RANKER], run.encoder, run.config.features, run.split.utc_offset_s)
    return export_ranking(
        run.folder / "export",
        ranker,
        raw_features,
        _stored(run, RANKER, run.specs[RANKER], raw_features),
        run.config.export,
        _provenance(run, RANKER_FOLDER),
    )
