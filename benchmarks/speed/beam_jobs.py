"""The Beam jobs of a run over given tables, in a process of their own: what `benchmarks/speed/analysis.py` measures.

    python -m benchmarks.speed.beam_jobs TABLES WORKDIR STAGE [BEAM OPTION ...]

STAGE is `analysis` (vocabularies, statistics) or `examples` (user shards, candidate-generation and ranking examples;
needs the analysis in WORKDIR). Prints the seconds of each step and the examples written as one line of JSON.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.speed.event_logs import END_US
from features.analysis import analyze_tables, fit_quantiles
from features.artifacts import read_manifest
from features.catalogue import build_catalogue
from features.example_sets import CandidateExamplesJob, RankingExamplesJob, build_examples
from features.feature_lists import columns_of, default_candidate_features, default_ranking_features, id_sources
from features.shards import write_shards
from features.splits import SplitConfig, resolve
from features.vocabulary import Vocabulary
from features.vocabulary_requests import vocabulary_requests


def analysis(tables: Path, folder: Path, beam_args: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """Vocabularies and statistics, then the catalogue."""
    specs = _specs(tables)
    split = resolve(SplitConfig(), END_US - 1)
    started = time.perf_counter()
    requests = vocabulary_requests(id_sources(specs))
    analyze_tables(tables, folder / "features", requests, split, beam_args=beam_args)
    analysed = time.perf_counter()
    sizes = read_manifest(folder / "features" / "vocabularies")["sizes"]
    names = {space: folder / "features" / "vocabularies" / f"{space}.parquet" for space in sizes}
    vocabularies = {space: Vocabulary.read(path) for space, path in names.items()}
    build_catalogue(tables, folder / "features", vocabularies, specs.values())
    return {"seconds": {"analysis": analysed - started, "catalogue": time.perf_counter() - analysed}, "rows": {}}


def examples(tables: Path, folder: Path, beam_args: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """User shards, both example sets, and the quantiles of the ranking examples."""
    specs = _specs(tables)
    split = resolve(SplitConfig(), END_US - 1)
    seconds, rows = {}, {}
    shards, features = folder / "shards", folder / "features"
    started = time.perf_counter()
    write_shards(tables, shards, beam_args=beam_args)
    seconds["shards"] = time.perf_counter() - started
    for job in (CandidateExamplesJob(specs["candidate_generator"], split), RankingExamplesJob(specs["ranker"], split)):
        started = time.perf_counter()
        counts = build_examples(job, shards, features, folder / "examples" / job.model, beam_args)["counts"]
        step = f"{job.model.replace('_', ' ')} examples"
        seconds[step] = time.perf_counter() - started
        rows[step] = sum(counts["kept"].values())
    started = time.perf_counter()
    fit_quantiles(folder / "examples" / "ranker", specs["ranker"], features, beam_args=beam_args)
    seconds["quantiles"] = time.perf_counter() - started
    return {"seconds": seconds, "rows": rows}


def _specs(tables: Path) -> dict:
    columns = columns_of(tables)
    return {
        "candidate_generator": default_candidate_features(columns).spec,
        "ranker": default_ranking_features(columns).spec,
    }


if __name__ == "__main__":
    stage = {"analysis": analysis, "examples": examples}[sys.argv[3]]
    print(json.dumps(stage(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:])))
