"""Dependence over distance, gates by group and removed context, by hand."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
import tensorflow as tf
from rich.console import Console

from features.spec import Feature, FeatureSpec, Kind, Side
from features.splits import Part
from features.vocabulary import Vocabulary
from models.context_features import NUM_SECOND_ROWS, ContextFeature, CrossedContext, Use
from models.latent_cross import LatentCross, LatentCrossConfig
from models.m3 import M3, M3Config
from models.two_tower import TwoTower, TwoTowerConfig
from pipeline.config import RunConfig
from pipeline.evaluation.retrieval_metrics import RetrievalTargets
from pipeline.evaluation.sequence_insight import gate_means, queries_without, temporal_dependence, vectors_by_row
from pipeline.insight import context_ids, insight_of
from pipeline.run import Run
from tests.models.sequence_batches import SIZES, SPEC, batch, tensors
from tests.pipeline.synthetic_examples import publish_examples


class Batches:
    """Examples as `ExampleColumns` gives them."""

    def ordered(self, rows: int) -> Iterator[dict[str, np.ndarray]]:
        yield batch()

    def at_serving(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return columns


def test_dependence_is_the_trace_of_the_covariance_at_each_distance() -> None:
    """Vectors 1: (1, 0), 2: (0, 1), 3: (-1, 0). Last and previous watches: (1, 1), (3, 3), (2, 1).

    Products of the centred coordinates: first (1, -1, 0) with (2/3, -4/3, 2/3): 2 in all; second (-1/3, -1/3, 2/3)
    with zeros. So the trace at distance 1 is 2/3. At distance 2 only two histories reach, (1, 2) and (3, 2): none.
    """
    vectors = np.array([[9, 9], [1, 0], [0, 1], [-1, 0]], np.float32)
    histories = np.array([[2, 1, 1, 0], [2, 3, 3, 0], [1, 2, 0, 0], [3, 0, 0, 0]], np.int32)
    found = temporal_dependence(histories, np.array([3, 3, 2, 1]), vectors)
    assert found.lags.tolist() == [1, 2] and found.pairs.tolist() == [3, 2]
    np.testing.assert_allclose(found.traces, [2 / 3, 0], atol=1e-12)


def test_watches_out_of_vocabulary_are_no_pairs() -> None:
    vectors = np.eye(4, dtype=np.float32)
    histories = np.array([[0, 1], [1, 0], [2, 3], [3, 2]], np.int32)
    assert temporal_dependence(histories, np.full(4, 2), vectors).pairs.tolist() == [2]


def test_gates_are_averaged_by_context_and_by_length_of_the_history() -> None:
    """Four requests: pages 2, 1, 0 and 1, after 3, 0, 1 and 90 watches."""
    context = (ContextFeature(name="page", pre=Use.CONCATENATE, post=Use.CONCATENATE),)
    model = M3(M3Config(dimension=4, encoder_dimension=4, gate="contextual", context=context), SPEC, SIZES)
    found = {(mean.grouped_by, mean.group): mean for mean in gate_means(model, Batches(), {"page": ["home", "next"]})}
    gates = model.gate_values(tensors({k: v for k, v in batch().items() if k in SPEC})).numpy()
    assert {key: mean.requests for key, mean in found.items()} == {
        ("all", "all"): 4,
        ("page", "(other)"): 1,
        ("page", "home"): 2,
        ("page", "next"): 1,
        ("watches before", "1 to 9"): 2,
        ("watches before", "30 to 99"): 1,
    }
    assert list(found["page", "home"].gates) == ["tiny", "short", "long"]
    np.testing.assert_allclose(list(found["page", "home"].gates.values()), gates[[1, 3]].mean(axis=0), rtol=1e-5)


NAMES = ("page", "uploader", "time_delta", "watch_age", "share")


@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_context_feature_is_removed_with_all_that_its_vectors_give(name: str, identity: bool) -> None:
    """By hand: all its embeddings 0, all its factors 0 or, where crosses have no 1, what they started from, 1/5.

    Another feature that is made of the same gaps (time_delta, watch_age) keeps them.
    """
    context = tuple(ContextFeature(name=n, pre=Use.BOTH, post=Use.BOTH) for n in NAMES)
    config = LatentCrossConfig(dimension=4, units=4, projection=True, context=context, cross_identity=identity)
    tf.keras.utils.set_random_seed(0)
    model = LatentCross(config, SPEC, SIZES)
    features = tensors({k: v for k, v in batch().items() if k in SPEC})
    before = model.query_embeddings(features)
    found = queries_without(model, name, Batches())
    np.testing.assert_array_equal(model.query_embeddings(features), before)  # the model has the feature again
    for layer in (model.context_before, model.context_after, model.cross_before, model.cross_after):
        table = layer.tables[name].embeddings
        start = 0.2 if isinstance(layer, CrossedContext) and not identity else 0.0
        table.assign(tf.fill(table.shape, start))
    np.testing.assert_allclose(found, model.query_embeddings(features), rtol=1e-5, atol=1e-7)
    assert not np.allclose(found, before)


def test_the_worth_of_a_feature_that_is_never_missing_does_not_depend_on_the_vector_of_missing_values() -> None:
    context = (ContextFeature(name="time_delta", pre=Use.BOTH, post=Use.BOTH),)
    model = LatentCross(LatentCrossConfig(dimension=4, units=4, projection=True, context=context), SPEC, SIZES)
    found = queries_without(model, "time_delta", Batches())
    for layer in (model.context_before, model.context_after, model.cross_before, model.cross_after):
        table = layer.tables["time_delta"].embeddings
        table.scatter_nd_update([[NUM_SECOND_ROWS]], tf.fill([1, table.shape[1]], 1e6))
    np.testing.assert_array_equal(queries_without(model, "time_delta", Batches()), found)


HISTORIES = [  # of the test users' examples in the order of the file; the last one of each counts
    ("a", [1, 2]), ("b", [3, 1, 4]), ("a", [1, 2, 5]), ("c", [2, 0, 6]), ("d", [7]), ("e", [1, 6]),
]  # fmt: skip


def published(folder: Path, spec: FeatureSpec, model: str) -> None:
    table = pa.table(
        {
            "user_id": [user for user, _ in HISTORIES],
            "watched_video_ids": pa.array([videos for _, videos in HISTORIES], pa.list_(pa.int32())),
            "watch_count": pa.array([len(videos) for _, videos in HISTORIES], pa.float32()),
        }
    )
    publish_examples(folder, {Part.TEST: table}, spec, model, files=1)


def trace(table: np.ndarray, pairs: list[tuple[int, int]]) -> float:
    """Of the covariance of (last, earlier) vectors."""
    last, earlier = table[[last for last, _ in pairs]], table[[earlier for _, earlier in pairs]]
    return np.trace((last - last.mean(axis=0)).T @ (earlier - earlier.mean(axis=0)) / len(pairs))


@pytest.mark.parametrize("kind", ["two_tower", "latent_cross", "shared"])
def test_dependence_is_that_of_the_embeddings_of_watched_videos_in_any_generator(tmp_path: Path, kind: str) -> None:
    """Last watches 5, 4, 6, 7, 6 of five users; one before them 2, 1, nothing known, none, 1; two before 1, 3, 2."""
    tf.keras.utils.set_random_seed(3)
    model: TwoTower | LatentCross
    if kind == "two_tower":
        spec = FeatureSpec((SPEC["watched_video_ids"],))
        model = TwoTower(TwoTowerConfig(dimension=4, depth=1), spec, SIZES)
        table = model.embeddings.tables["video"]
    else:
        spec = FeatureSpec((SPEC["watched_video_ids"], SPEC["watch_count"]))
        config = LatentCrossConfig(dimension=4, units=4, shared_embeddings=kind == "shared")
        model = LatentCross(config, spec, SIZES)
        table = model.watch_table
    vectors = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    vectors[0] = 0
    table.embeddings.assign(vectors)
    np.testing.assert_array_equal(vectors_by_row(model), vectors)

    generators = {"one": {"model": {"kind": "two_tower" if kind == "two_tower" else "latent_cross"}}}
    run = Run(tmp_path, RunConfig.model_validate({"generators": generators}), (), Console(quiet=True))
    features = run.features_of_generator("one")
    published(run.examples(features), spec, features)
    nothing = RetrievalTargets(np.zeros(0), np.zeros(0, np.int64), sp.csr_matrix((0, 7)))
    insight = insight_of(run, "one", model, nothing)
    assert (insight.worth, insight.gates) == ({}, [])
    assert (insight.dependence.lags.tolist(), insight.dependence.pairs.tolist()) == ([1, 2], [3, 3])
    expected = [trace(vectors, [(5, 2), (4, 1), (6, 1)]), trace(vectors, [(5, 1), (4, 3), (6, 2)])]
    np.testing.assert_allclose(insight.dependence.traces, expected, rtol=1e-5)


def test_an_attribute_of_videos_is_no_context_of_the_request_whatever_its_name(tmp_path: Path) -> None:
    attribute = Feature("uploader", Kind.CATEGORICAL, Side.IMPRESSION, "videos.uploader_id", "uploader")
    context = [ContextFeature(name=name, pre=Use.CONCATENATE) for name in ("uploader", "page")]
    spec = FeatureSpec((*SPEC.features, attribute))
    model = LatentCross(LatentCrossConfig(dimension=4, units=4, context=context), spec, SIZES)
    run = Run(tmp_path, RunConfig(), (), Console(quiet=True))
    (run.features / "vocabularies").mkdir(parents=True)
    Vocabulary(pa.array(["home", "next"]), np.ones(2, np.int64)).write(run.features / "vocabularies" / "page.parquet")
    assert context_ids(run, model) == {"page": ["home", "next"]}
