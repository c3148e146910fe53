"""Recall against latency over a million videos: our signature beside ScaNN's binding, TFRS layers, faiss and hnswlib.

Ours is timed whole: a raw request (50 watched video ids) through the SavedModel signature, with string lookups, query
tower, search, and watched videos left out, asked in both ways of `signature_calls.py`. The others are given a ready
query vector. All take turns, one query at a time; each has a small sweep of its own setting.
"""

import gc
import math
import operator
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scann
import tensorflow as tf
import tensorflow_recommenders as tfrs
from matplotlib.figure import Figure as Plot

from benchmarks.report import ResultTable, publish_result
from benchmarks.speed import Request
from benchmarks.speed.signature_calls import Answer, answers_by_python, answers_by_session
from benchmarks.speed.training_models import TowerSizes, tower_spec
from benchmarks.speed.video_vectors import (
    DIMENSION,
    WATCHES,
    VideoSpace,
    nearest,
    queries,
    recall,
    video_space,
    watched_rows,
)
from features.encoding import make_encoder
from features.feature_lists import FeatureListConfig
from features.spec import FeatureSpec, Side
from features.vocabulary import Vocabulary
from models.raw_features import RawFeatures
from models.two_tower import TwoTower, TwoTowerConfig
from pipeline.evaluation.plots import new_plot
from serving.index import Index, IndexConfig
from serving.retrieval import RetrievalConfig, RetrievalModule

K = 100
TARGETS = {"recall@100": 0.95, "p50, ms": 1.0}
WAYS = {"ours, session in the caller's thread": answers_by_session, "ours, Python call": answers_by_python}


@dataclass
class Contender:
    """One setting of one index.

    Args:
      family, name: of the index; of the setting.
      search: answers every query once: latencies in seconds, and rows found (of our signature: already compared).
      build_seconds, bytes: of the index.
    """

    family: str
    name: str
    search: Callable[[], tuple[Sequence[float], np.ndarray]]
    build_seconds: float
    bytes: int
    latencies: list[float] = field(default_factory=list)
    recall: float = math.nan

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        return float(np.quantile(self.latencies, share)) * 1e3


def run(request: Request) -> None:
    """Measures and publishes `retrieval`."""
    videos, users, turns = (2_000, 20, 1) if request.smoke else (1_000_000, 200, 5)
    space = video_space(videos)
    watched = watched_rows(space, users)
    asked = queries(space, watched)
    exact = nearest(space.vectors, asked, K)
    without_watched = _exact_without_watched(space, asked, watched)
    notes = request.peers.missing(["faiss", "hnswlib"])
    with ExitStack() as stack:
        ours = own_contenders(space, watched, request.scratch, request.smoke)
        contenders = [*ours, *_scann(space.vectors, asked, request.smoke), *_tfrs(space.vectors, asked, request.smoke)]
        for library in ("faiss", "hnswlib"):
            if request.peers.version(library) is not None:
                contenders += _peer(request, stack, library, space.vectors, asked)
        for contender in contenders:  # not timed: first calls trace, load and fault pages in
            _, found = contender.search()
            contender.recall = recall(found, without_watched if contender in ours else exact)
        for _ in range(turns):
            for contender in contenders:
                contender.latencies += contender.search()[0]
    table = ResultTable(
        f"{K} of {videos:,} videos in {DIMENSION} dimensions, one query at a time",
        ["index", f"recall@{K}", "p50, ms", "p95, ms", "MiB", "seconds to build"],
        [
            [c.name, c.recall, c.percentile(0.5), c.percentile(0.95), c.bytes / 2**20, c.build_seconds]
            for c in contenders
        ],
        [
            f"{users} users with {WATCHES} watches each, {turns} turns of all. Ours: raw request through the "
            "SavedModel signature, query tower included, watched videos left out; MiB of the whole SavedModel with "
            "ids, vocabulary and tower. Others: a ready query vector, one thread; MiB of the index.",
            "Python call: the function of tf.saved_model.load. Session: the same SavedModel in a session in this "
            "process, the kind that TensorFlow Serving runs requests in, with inter_op_parallelism_threads: -1, "
            "so that no thread hands it to another; no server was run, and none of its own costs are in here.",
            *notes,
        ],
        reference="videos around topics around fields, longer where popular; queries are averages of watched videos",
    )
    by_way = [_best([c for c in ours if c.family == way]) for way in WAYS]
    best = _best(by_way)
    publish_result(
        request.results,
        "retrieval",
        [table],
        _plot(contenders),
        {
            "command": f"python -m benchmarks.speed retrieval --scale {request.scale}",
            "summary": [
                f"{c.name}: recall@{K} {c.recall:.3f} (target {TARGETS['recall@100']}) at p50 "
                f"{c.percentile(0.5):.2f} ms (target {TARGETS['p50, ms']:g} ms)"
                for c in by_way
            ],
            "targets": TARGETS,
            "found": {"recall@100": best.recall, "p50, ms": best.percentile(0.5)},
        },
    )


def _best(contenders: Sequence[Contender]) -> Contender:
    """The fastest that reaches the recall asked for; the last where none does."""
    reaching = (c for c in contenders if c.recall >= TARGETS["recall@100"])
    return min(reaching, key=lambda c: c.percentile(0.5), default=contenders[-1])


def _exact_without_watched(space: VideoSpace, asked: np.ndarray, watched: np.ndarray) -> np.ndarray:
    found = nearest(space.vectors, asked, K + WATCHES)
    rows = []
    for query, candidates, seen in zip(asked, found, watched, strict=True):
        left = np.setdiff1d(candidates, seen)
        rows.append(left[np.argsort(-(space.vectors[left] @ query))[:K]])
    return np.array(rows)


def _timed(search: Callable[[Any], Any], asked: Sequence[Any]) -> tuple[list[float], list[Any]]:
    latencies, found = [], []
    for query in asked:
        started = time.perf_counter()
        rows = search(query)
        latencies.append(time.perf_counter() - started)
        found.append(rows)
    return latencies, found


def own_contenders(space: VideoSpace, watched: np.ndarray, scratch: Path, smoke: bool) -> list[Contender]:
    """Our index over the space at several numbers of leaves searched, each SavedModel asked in both ways."""
    sizes = TowerSizes(videos=len(space.vectors), tokens=1_000 if smoke else 100_000, length=WATCHES)
    ids = [f"v{row:07d}" for row in range(sizes.videos)]
    spec = FeatureSpec(tower_spec(WATCHES).side(Side.QUERY))
    model = averaging_tower(sizes, spec, space.vectors)
    vocabularies = {
        "video": Vocabulary.of(ids),
        "search_token": Vocabulary.of(f"token{i}" for i in range(sizes.tokens)),
    }
    catalogue = pa.table({"video_id": ids, "video": pa.array(np.arange(1, sizes.videos + 1, dtype=np.int32))})
    raw = RawFeatures(spec, make_encoder(vocabularies, catalogue), FeatureListConfig())
    leaves = round(2 * math.sqrt(sizes.videos))
    contenders = []
    for searched in (None,) if smoke else (leaves // 40, leaves // 27, leaves // 20, leaves // 10):
        started = time.perf_counter()
        config = IndexConfig(exact_below=1, tree_from=1, leaves_to_search=searched)
        index = Index(space.vectors, ids, config)
        seconds = time.perf_counter() - started
        folder = scratch / f"retrieval-{searched}"
        module = RetrievalModule(model, raw, index, RetrievalConfig(k=K))
        options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
        tf.saved_model.save(module, str(folder), signatures=module.signatures(), options=options)
        del module, index
        gc.collect()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        requests = [[ids[row] for row in rows] for rows in watched]
        contenders += [
            Contender(
                way,
                f"{way}, {searched or 'default'} of {leaves} leaves",
                partial(_ask, answers_of(folder, requests)),
                seconds,
                size,
            )
            for way, answers_of in WAYS.items()
        ]
    return contenders


def averaging_tower(sizes: TowerSizes, spec: FeatureSpec, vectors: np.ndarray) -> TwoTower:
    """A two-tower model whose query vector is the average of the watched videos' vectors: relu(x) - relu(-x) = x."""
    config = TwoTowerConfig(dimension=DIMENSION, depth=1, projection=True)
    model = TwoTower(config, spec, {"video": sizes.videos, "search_token": sizes.tokens})
    model.embeddings.tables["video"].embeddings.assign(np.concatenate([np.zeros((1, DIMENSION), np.float32), vectors]))
    both = np.concatenate([np.eye(DIMENSION), -np.eye(DIMENSION)], axis=1)
    first = np.zeros(model.hidden[0].kernel.shape)
    names = [feature.name for feature in model.inputs_of_tower]
    start = sum(model._width(name) for name in names[: names.index("watched_video_ids")])
    first[start : start + DIMENSION] = both
    model.hidden[0].kernel.assign(first)
    model.hidden[1].kernel.assign(both.T)
    return model


def _ask(answers: Sequence[Answer]) -> tuple[list[float], np.ndarray]:
    latencies, found = _timed(operator.call, answers)
    return latencies, np.array([[int(name[1:]) for name in names] for names in found])


def _scann(vectors: np.ndarray, asked: np.ndarray, smoke: bool) -> list[Contender]:
    leaves = round(2 * math.sqrt(len(vectors)))
    started = time.perf_counter()
    length = float(np.sqrt(np.mean(np.sum(np.square(vectors), axis=1))))
    builder = scann.scann_ops_pybind.builder(vectors, K, "dot_product")
    sample = min(100_000, len(vectors))
    tree = builder.tree(leaves, max(leaves // 20, 1), training_sample_size=sample)
    hashed = tree.score_ah(2, anisotropic_quantization_threshold=0.2 * length, training_sample_size=sample)
    index = hashed.reorder(500).build()
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        index.serialize(folder)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    return [
        Contender(
            "ScaNN, Python binding",
            f"ScaNN binding, {searched} of {leaves} leaves",
            lambda searched=searched: _rows(_timed(lambda q: index.search(q, leaves_to_search=searched)[0], asked)),
            seconds,
            size,
        )
        for searched in sorted({max(leaves // part, 1) for part in (80, 40, 20, 10)})
    ]


def _rows(answered: tuple[list[float], list[np.ndarray]]) -> tuple[list[float], np.ndarray]:
    """What was found as `[n, K]`, -1 where an index found fewer."""
    rows = np.full((len(answered[1]), K), -1, np.int64)
    for row, found in zip(rows, answered[1], strict=True):
        row[: len(found)] = found
    return answered[0], rows


def _tfrs(vectors: np.ndarray, asked: np.ndarray, smoke: bool) -> list[Contender]:
    leaves = round(2 * math.sqrt(len(vectors)))
    layers = tfrs.layers.factorized_top_k
    made = []
    for name, layer in (
        ("TFRS BruteForce", layers.BruteForce(k=K)),
        (f"TFRS ScaNN, {leaves // 20} of {leaves} leaves", _tfrs_scann(layers, leaves)),
    ):
        started = time.perf_counter()
        layer.index(tf.constant(vectors))
        seconds = time.perf_counter() - started
        answer = tf.function(layer.call, input_signature=[tf.TensorSpec([1, DIMENSION])])
        batches = [tf.constant(query[np.newaxis]) for query in asked]
        search = partial(_search, answer, batches)
        made.append(Contender(name.split(",")[0], name, search, seconds, vectors.nbytes))
    return made


def _search(answer: Any, batches: list[tf.Tensor]) -> Any:
    return _rows(_timed(lambda query: answer(query)[1].numpy()[0], batches))


def _tfrs_scann(layers: Any, leaves: int) -> Any:
    return layers.ScaNN(
        k=K,
        num_leaves=leaves,
        num_leaves_to_search=max(leaves // 20, 1),
        training_iterations=12,
        dimensions_per_block=2,
        num_reordering_candidates=500,
    )


def _peer(request: Request, stack: ExitStack, library: str, vectors: np.ndarray, asked: np.ndarray) -> list[Contender]:
    np.save(request.scratch / "vectors.npy", vectors)
    np.save(request.scratch / "queries.npy", asked)
    files = request.scratch / "vectors.npy", request.scratch / "queries.npy"
    peer = stack.enter_context(request.peers.start("peer_ann.py", library, *files, str(K)))
    built = peer.read()

    def search(setting: int) -> tuple[list[float], np.ndarray]:
        answer = peer.ask(setting)
        return answer["latencies"], np.array(answer["found"])

    return [
        Contender(library, name, lambda i=i: search(i), built["seconds"], built["bytes"])
        for i, name in enumerate(built["names"])
    ]


def _plot(contenders: Sequence[Contender]) -> Plot:
    plot = new_plot(7.5, 5.0)
    axes = plot.subplots()
    for family in dict.fromkeys(c.family for c in contenders):
        of_family = [c for c in contenders if c.family == family]
        first = of_family[0]
        label = f"{family}: {first.bytes / 2**20:,.0f} MiB, built in {first.build_seconds:,.0f} s"
        points = [(c.percentile(0.5), c.recall) for c in of_family]
        axes.plot(
            *zip(*points, strict=True), marker="o", linewidth=2.5 if family.startswith("ours") else 1, label=label
        )
    axes.axhline(TARGETS["recall@100"], color="black", linestyle="dashed", linewidth=0.8)
    axes.axvline(TARGETS["p50, ms"], color="black", linestyle="dashed", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds, median of one query (dashed: target)")
    axes.set_ylabel(f"recall@{K}")
    axes.legend(fontsize=8)
    return plot
