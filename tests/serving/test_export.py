"""Exports: published whole after a check in a process without this project, or refused with the reason."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from features.artifacts import read_manifest
from features.errors import ExportError
from features.spec import read_specs
from models.ranker import Ranker
from models.two_tower import TwoTower
from serving.export import (
    ExportConfig,
    VideoVectors,
    export_ranking,
    export_retrieval,
    next_version,
)
from serving.index import IndexConfig
from serving.index_recall import RecallConfig
from serving.stored_examples import StoredExamples
from tests.serving.conftest import GENERATOR_SPEC, RANKER_SPEC, VIDEOS, HandMadeFeatures, with_feature

QUERIES = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    generator: TwoTower,
    ranker: Ranker,
    videos: VideoVectors,
    generator_examples: StoredExamples,
    ranker_examples: StoredExamples,
    export_config: ExportConfig,
) -> Path:
    folder = tmp_path_factory.mktemp("run") / "export"
    features = HandMadeFeatures(GENERATOR_SPEC)
    export_retrieval(
        folder, generator, features, videos, generator_examples, QUERIES, export_config, {"run": "hand-made"}
    )
    export_ranking(folder, ranker, HandMadeFeatures(RANKER_SPEC), ranker_examples, export_config)
    return folder


def texts(tensor: tf.Tensor) -> list[list[str]]:
    return [[value.decode() for value in row] for row in tensor.numpy()]


def test_a_version_folder_holds_model_warmup_fixture_specification_and_manifest(exported: Path):
    for name in ("retrieval", "retrieval_brute_force", "ranking"):
        version = exported / name / "1"
        assert [entry.name for entry in (exported / name).iterdir()] == ["1"]
        for file in ("saved_model.pb", "assets.extra/tf_serving_warmup_requests", "assets.extra/parity.parquet"):
            assert (version / file).stat().st_size > 0
        manifest = read_manifest(version, verify=True)
        assert manifest["model"] == name and manifest["version"] == 1
    assert read_manifest(exported / "retrieval" / "1")["provenance"] == {"run": "hand-made"}
    assert read_specs(exported / "ranking/1/assets.extra/feature_spec.json") == {"ranker": RANKER_SPEC}


def test_signatures_are_named_and_typed(exported: Path):
    retrieval = read_manifest(exported / "retrieval" / "1")["signatures"]
    assert set(retrieval) == {"retrieval", "serving_default", "features"}
    assert (
        retrieval["retrieval"]
        == retrieval["serving_default"]
        == {
            "inputs": {
                "excluded_video_ids": {"dtype": "string", "shape": [None, None]},
                "region": {"dtype": "string", "shape": [None]},
                "watched_video_ids": {"dtype": "string", "shape": [None, None]},
            },
            "outputs": {
                "scores": {"dtype": "float32", "shape": [None, 10]},
                "video_ids": {"dtype": "string", "shape": [None, 10]},
            },
        }
    )
    ranking = read_manifest(exported / "ranking" / "1")["signatures"]["ranking"]
    assert set(ranking["inputs"]) == {"watched_video_ids", "hours", "candidate_ids"}
    assert ranking["outputs"] == {
        name: {"dtype": "float32", "shape": [None, None]}
        for name in ("score", "click_probability", "expected_watch_time_s")
    }
    brute_force = read_manifest(exported / "retrieval_brute_force" / "1")["signatures"]
    assert brute_force == retrieval
    loaded = tf.saved_model.load(str(exported / "retrieval" / "1")).signatures["retrieval"]
    assert loaded.structured_input_signature[1]["excluded_video_ids"].dtype == tf.string


def test_retrieval_answers_the_largest_dot_products_without_watched_excluded_and_unavailable(
    exported: Path, generator: TwoTower, videos: VideoVectors
):
    answer = tf.saved_model.load(str(exported / "retrieval" / "1")).signatures["retrieval"](
        watched_video_ids=tf.constant([["v3", "видео 1"]]),
        region=tf.constant(["SE"]),
        excluded_video_ids=tf.constant([["a b", "", "not a video"]]),
    )
    query = generator.query_embeddings(
        {
            "watched_video_ids": tf.constant([[7, 1, 0, 0]]),
            "region": tf.constant([2]),
            "example_age": tf.constant([0.0]),
        }
    ).numpy()
    scores = videos.vectors @ query[0]
    allowed = [i for i in np.argsort(-scores) if VIDEOS[i] not in {"v3", "видео 1", "a b", "🎬"}][:10]
    assert texts(answer["video_ids"]) == [[VIDEOS[i] for i in allowed]]
    np.testing.assert_allclose(answer["scores"].numpy()[0], scores[allowed], rtol=1e-5)


def test_ranking_answers_three_numbers_per_candidate_and_zero_for_padding(exported: Path, ranker: Ranker):
    answer = tf.saved_model.load(str(exported / "ranking" / "1")).signatures["ranking"](
        watched_video_ids=tf.constant([["v0"], [""]]),
        hours=tf.constant([1.0, np.nan]),
        candidate_ids=tf.constant([["v1", "v2", "unknown"], ["v2", "", ""]]),
    )
    score = answer["score"].numpy()
    assert (score[[0, 0, 0, 1], [0, 1, 2, 0]] > 0).all()
    for values in answer.values():
        assert values.shape == (2, 3)
        assert values.numpy()[1, 1:].tolist() == [0, 0]
    output = ranker(
        {
            "watched_video_ids": tf.constant([[4, 0, 0, 0]]),
            "hours": tf.constant([1.0]),
            "video_id": tf.constant([5]),
        }
    )
    assert score[0, 0] == pytest.approx(float(tf.exp(output.logit)[0]), rel=1e-5)


def test_warmup_requests_replay_against_the_signature(exported: Path):
    for name, signature, output in (("retrieval", "retrieval", "video_ids"), ("ranking", "ranking", "score")):
        folder = exported / name / "1"
        model = tf.saved_model.load(str(folder))
        sizes = []
        for record in tf.data.TFRecordDataset(str(folder / "assets.extra/tf_serving_warmup_requests")):
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            request = log.predict_log.request
            assert (request.model_spec.name, request.model_spec.signature_name) == (name, signature)
            inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
            sizes.append(model.signatures[signature](**inputs)[output].shape[0])
        assert sizes == [1, 2]


def test_only_variables_that_the_signatures_read_are_exported(exported: Path, generator: TwoTower):
    shapes = [shape for _, shape in tf.train.list_variables(str(exported / "retrieval/1/variables/variables"))]
    assert [41, 8] in shapes  # the table of watched videos
    assert shapes.count([41, 8]) == 1, "the output video table is in the index only"
    assert [39, 8] in shapes  # the index, without the video that is not available


ALONE = """
import json, sys
import scann, tensorflow as tf
folder = sys.argv[1]
retrieval = tf.saved_model.load(folder + "/retrieval/1").signatures["retrieval"]
ranking = tf.saved_model.load(folder + "/ranking/1").signatures["ranking"]
watched = tf.constant([["v3", "v5"]])
found = retrieval(watched_video_ids=watched, region=tf.constant(["SE"]), excluded_video_ids=tf.constant([[""]]))
ranked = ranking(watched_video_ids=watched, hours=tf.constant([1.0]), candidate_ids=found["video_ids"])
ours = sorted({"features", "models", "serving", "pipeline"} & set(sys.modules))
ids = [video.decode() for video in found["video_ids"].numpy()[0]]
print(json.dumps({"ids": ids, "score": ranked["score"].numpy()[0].tolist(), "ours": ours}))
"""


def test_an_export_answers_after_everything_else_was_deleted(exported: Path, tmp_path: Path):
    moved = tmp_path / "elsewhere" / "models"
    shutil.copytree(exported, moved)
    hidden = exported.parent.rename(exported.parent.with_name("hidden"))
    try:
        process = subprocess.run(
            [sys.executable, "-I", "-c", ALONE, str(moved)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    finally:
        hidden.rename(exported.parent)
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout.splitlines()[-1])
    assert answer["ours"] == []
    assert len(set(answer["ids"])) == 10 and not {"v3", "v5", "🎬"} & set(answer["ids"])
    assert len(answer["score"]) == 10 and min(answer["score"]) > 0


def test_a_feature_that_differs_refuses_the_export_and_is_named(
    tmp_path: Path, ranker: Ranker, ranker_examples: StoredExamples, export_config: ExportConfig
):
    tampered = with_feature(ranker_examples, "hours", np.array([2.5, 7.0], np.float32))
    with pytest.raises(
        ExportError, match=r"features 'hours' .* 1 of 2; example user 'b'.*expected 7.*, found nan"
    ) as e:
        export_ranking(tmp_path, ranker, HandMadeFeatures(RANKER_SPEC), tampered, export_config)
    assert "also ranking." in str(e.value)
    assert "\n" not in str(e.value)
    assert list((tmp_path / "ranking").iterdir()) == []


def test_recall_below_the_floor_refuses_the_export(
    tmp_path: Path, generator: TwoTower, generator_examples: StoredExamples, export_config: ExportConfig
):
    rng = np.random.default_rng(0)
    size = 2000
    videos = VideoVectors(
        np.array([f"v{i}" for i in range(size)], object), rng.normal(size=(size, 8)), np.arange(size)[::-1]
    )
    index = IndexConfig(exact_below=0, tree_from=1, num_leaves=20, leaves_to_search=1, reorder=100)
    config = export_config.model_copy(update={"index": index, "recall": RecallConfig(k=10, min_hits=1, floor=0.9)})
    features = HandMadeFeatures(GENERATOR_SPEC)
    with pytest.raises(ExportError, match=r"recall@10 of exact search is below the floor of 0\.9 in head 0"):
        export_retrieval(tmp_path, generator, features, videos, generator_examples, QUERIES, config)
    assert not list(tmp_path.glob("*/1"))


def test_a_tree_index_travels_inside_the_saved_model(
    tmp_path: Path, generator: TwoTower, generator_examples: StoredExamples, export_config: ExportConfig
):
    size = 1500
    vectors = np.random.default_rng(0).normal(size=(size, 8)).astype(np.float32)
    videos = VideoVectors(np.array([f"v{i}" for i in range(size)], object), vectors, np.ones(size))
    tree = IndexConfig(exact_below=0, tree_from=1, num_leaves=20, leaves_to_search=20, reorder=1000)
    config = export_config.model_copy(update={"index": tree})
    features = HandMadeFeatures(GENERATOR_SPEC)
    published = export_retrieval(tmp_path, generator, features, videos, generator_examples, QUERIES, config)
    manifest = read_manifest(published["retrieval"])
    assert not manifest["index"]["exact"] and manifest["recall"]["all"]["recall"] > 0.9
    request = {
        "watched_video_ids": tf.constant([["v3"], ["v7"], [""]]),
        "region": tf.constant(["SE", "NO", "SE"]),
        "excluded_video_ids": tf.constant([["v1"], [""], [""]]),
    }
    answers = [tf.saved_model.load(str(p)).signatures["retrieval"](**request)["video_ids"] for p in published.values()]
    assert texts(answers[0]) == texts(answers[1])


def test_versions_count_up_from_the_largest_of_either_folder(tmp_path: Path):
    assert next_version(tmp_path / "absent") == 1
    for name in ("a/2", "a/10", "a/.11.tmp", "b/3", "b/notes"):
        (tmp_path / name).mkdir(parents=True)
    assert next_version(tmp_path / "a", tmp_path / "b") == 11
