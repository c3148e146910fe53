"""From the tables of a simulated platform to recommendations: what the Beam jobs stored is what the exports answer."""

import dataclasses
import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from rich.console import Console

from features.analysis import analyze_tables, fit_quantiles
from features.catalogue import build_catalogue
from features.encoding import load_encoder
from features.errors import ArtifactError, ExportError
from features.example_sets import CandidateExamplesJob, RankingExamplesJob, build_examples
from features.feature_lists import (
    FeatureListConfig,
    columns_of,
    default_candidate_features,
    default_ranking_features,
    id_sources,
)
from features.quantiles import read_quantiles
from features.shards import write_shards
from features.spec import FeatureSpec, Side
from features.splits import SplitConfig, resolve
from features.tables import read_table
from features.vocabulary import Vocabulary
from features.vocabulary_requests import vocabulary_requests
from models.ranker import Ranker, RankerConfig
from models.raw_features import RawFeatures
from models.two_tower import TwoTower, TwoTowerConfig
from models.weighted_logistic_regression import LabelStatistics
from pipeline.sources.simulator import SimulatorConfig, simulate
from serving.export import ExportConfig, VideoVectors, export_ranking, export_retrieval
from serving.index_recall import RecallConfig
from serving.recommend import Recommendation, Recommender, blend, latest_moment
from serving.recommendations_table import recommendations_table
from serving.retrieval import RetrievalConfig
from serving.stored_examples import StoredExamples, stored_examples

LISTS = FeatureListConfig(watch_window=20, impression_window=30, max_search_tokens=12)
UTC_OFFSET_S = 5.5 * 3600
CONFIG = ExportConfig(retrieval=RetrievalConfig(k=40), recall=RecallConfig(k=10, min_hits=1))


@dataclasses.dataclass(frozen=True)
class Platform:
    """A run folder up to its examples, with models that have random weights."""

    run: Path
    generator: TwoTower
    ranker: Ranker
    generator_features: RawFeatures
    ranker_features: RawFeatures

    def stored(self, model: str, count: int = 60) -> StoredExamples:
        folder, spec, features = {
            "candidate_generator": ("candidate_generation", self.generator.spec, self.generator_features),
            "ranker": ("ranking", self.ranker.spec, self.ranker_features),
        }[model]
        part = self.run / "examples" / folder / "validation"
        return stored_examples(part, self.run / "tables", model, spec, features.input_specs, LISTS, count)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    run = tmp_path_factory.mktemp("platform")
    tables, features = run / "tables", run / "features"
    for name, table in simulate(SimulatorConfig(users=150, videos=200, uploaders=30, days=6)).tables.items():
        (tables / name).mkdir(parents=True)
        pq.write_table(table, tables / name / "part-0.parquet")
    last_us = int(latest_moment(tables).timestamp() * 1e6)
    split = resolve(SplitConfig(test_days=1, utc_offset_hours=5.5), last_us)
    columns = columns_of(tables)
    specs = {
        "candidate_generator": default_candidate_features(columns, LISTS).spec,
        "ranker": default_ranking_features(columns, LISTS).spec,
    }
    analyze_tables(tables, features, vocabulary_requests(id_sources(specs)), split)
    vocabularies = {file.stem: Vocabulary.read(file) for file in (features / "vocabularies").glob("*.parquet")}
    build_catalogue(tables, features, vocabularies, specs.values())
    write_shards(tables, run / "shards")
    for name, job in {
        "candidate_generation": CandidateExamplesJob(specs["candidate_generator"], split, LISTS),
        "ranking": RankingExamplesJob(specs["ranker"], split, LISTS),
    }.items():
        build_examples(job, run / "shards", features, run / "examples" / name)
    fit_quantiles(run / "examples/ranking", specs["ranker"], features)
    sizes = {space: vocabulary.size for space, vocabulary in vocabularies.items()}
    quantiles = read_quantiles(features / "quantiles" / "quantiles.json")
    encoder = load_encoder(features)
    tf.keras.utils.set_random_seed(0)
    query = FeatureSpec(specs["candidate_generator"].side(Side.QUERY))
    return Platform(
        run,
        TwoTower(TwoTowerConfig(dimension=16, depth=1), specs["candidate_generator"], sizes),
        Ranker(RankerConfig(hidden_units=(16,)), specs["ranker"], sizes, quantiles, LabelStatistics(100, 20, 9000)),
        RawFeatures(query, encoder, LISTS, UTC_OFFSET_S),
        RawFeatures(specs["ranker"], encoder, LISTS, UTC_OFFSET_S),
    )


@pytest.fixture(scope="module")
def export(platform: Platform) -> Path:
    folder = platform.run / "export"
    catalogue = load_encoder(platform.run / "features").catalogue
    rows = catalogue["video"].to_numpy()
    videos = VideoVectors(
        np.array(catalogue["video_id"].to_pylist(), object),
        platform.generator.video_embeddings({"video": tf.constant(rows)}).numpy(),
        np.where(rows > 0, 1000 - rows, 0),
    )
    queries = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    stored = platform.stored("candidate_generator")
    export_retrieval(folder, platform.generator, platform.generator_features, videos, stored, queries, CONFIG)
    export_ranking(folder, platform.ranker, platform.ranker_features, platform.stored("ranker"), CONFIG)
    return folder


@pytest.fixture(scope="module")
def recommender(export: Path, platform: Platform) -> Recommender:
    return Recommender([export / "retrieval/1", export / "ranking/1"], platform.run / "tables", LISTS)


def test_stored_examples_hold_the_default_features_of_both_models(platform: Platform):
    ranker = platform.stored("ranker")
    assert len(ranker.descriptions) == 60
    assert set(ranker.features) == {f.name for f in platform.ranker.spec.features} - {"position"}
    assert ranker.features["topics"].shape == (60, 1, LISTS.max_topics)
    filled = {name: np.unique(values[values == values]).size for name, values in ranker.features.items()}
    assert min(filled[name] for name in ("uploader_watch_count", "click_rate", "search_tokens", "hour")) > 1
    assert ranker.inputs["candidate_sources"].ndim == 3
    generator = platform.stored("candidate_generator")
    assert set(generator.features) == {f.name for f in platform.generator.spec.side(Side.QUERY)} - {"example_age"}


def test_what_the_beam_jobs_stored_is_what_the_exported_signatures_compute(export: Path):
    """Exporting checks 60 examples of each model, every feature; it would have raised."""
    assert {path.parent.name for path in export.glob("*/1")} == {"retrieval", "retrieval_brute_force", "ranking"}


def test_a_client_that_sends_the_latest_events_first_gets_the_same_answer(export: Path, platform: Platform):
    """All lists of watches and impressions turned around, but those of one moment among each other."""
    loaded = tf.saved_model.load(str(export / "ranking/1"))
    raw = platform.stored("ranker").inputs
    turned = dict(raw)
    for kind in ("watched", "shown"):
        latest_first = np.argsort(-raw[f"{kind}_timestamps"], axis=1, kind="stable")
        for name in (name for name in raw if name.startswith(f"{kind}_")):
            turned[name] = np.take_along_axis(raw[name], latest_first, axis=1)
    assert np.any(turned["watched_video_ids"] != raw["watched_video_ids"])
    for signature in ("features", "ranking"):
        call = loaded.signatures[signature]
        specs = call.structured_input_signature[1]
        asked, answered = (
            call(**{name: tf.constant(inputs[name], spec.dtype) for name, spec in specs.items()})
            for inputs in (turned, raw)
        )
        for name, expected in answered.items():
            np.testing.assert_array_equal(asked[name], expected, name)


def test_derivations_that_differ_refuse_the_export_and_are_all_named(platform: Platform, tmp_path: Path):
    stored = platform.stored("ranker", 10)
    later = stored.features["seconds_since_last_watch"] + np.float32(1)
    reversed_bag = np.flip(stored.features["watched_video_ids"], axis=-1)
    topics = stored.features["topics"]
    tampered = dataclasses.replace(
        stored,
        features={
            **stored.features,
            "seconds_since_last_watch": later,
            "watched_video_ids": reversed_bag,
            "topics": np.where(topics > 0, topics % 5 + 1, topics).astype(np.int32),
        },
    )
    with pytest.raises(ExportError, match=r"parity: features '\w+' differs .* user '.*expected .*found") as refused:
        export_ranking(tmp_path, platform.ranker, platform.ranker_features, tampered, CONFIG)
    named = set(re.findall(r"features[. ]'?(\w+)", str(refused.value)))
    assert named == {"seconds_since_last_watch", "watched_video_ids", "topics"}


def test_recommendations_are_unwatched_videos_ordered_by_the_ranker(recommender: Recommender, platform: Platform):
    watches = read_table(platform.run / "tables", "watches", ["user_id", "video_id", "timestamp"])
    user = pc.value_counts(watches["user_id"])[0]["values"].as_py()
    found = recommender.recommend(user, count=15, request={"page": "home", "device": "phone"})
    mine = watches.filter(pc.equal(watches["user_id"], user)).sort_by("timestamp")["video_id"].to_pylist()
    assert found.watched == mine[::-1][:15]
    assert found.notes == []
    ids = [row.video_id for row in found.rows]
    assert len(set(ids)) == 15 and not set(ids) & set(mine)
    scores = [row.score for row in found.rows]
    assert scores == sorted(scores, reverse=True) and min(scores) > 0
    assert all(0 < row.click_probability < 1 and row.expected_watch_time_s > 0 for row in found.rows)
    assert {row.sources for row in found.rows} == {("candidate_generator",)}


def test_only_what_happened_before_the_given_moment_is_known(recommender: Recommender, platform: Platform):
    watches = read_table(platform.run / "tables", "watches", ["user_id", "video_id", "timestamp"]).sort_by("timestamp")
    user, moment = watches["user_id"][0].as_py(), watches["timestamp"][0].as_py()
    assert recommender.recommend(user, now=moment).watched == []
    later = recommender.recommend(user, now=moment + timedelta(microseconds=1))
    assert later.watched == [watches["video_id"][0].as_py()]


def test_lists_of_several_generators_are_blended_by_rank_and_keep_every_source_and_score():
    """1/62 + 1/61 for b, 1/61 for a, 1/62 for c, 1/63 for d; scores of different generators are not compared."""
    found = blend({"first": [("a", 0.1), ("b", 0.05)], "second": [("b", 900.0), ("c", 800.0), ("d", 700.0)]})
    assert [row.video_id for row in found] == ["b", "a", "c", "d"]
    assert (found[0].sources, found[0].retrieval_scores) == (("first", "second"), (0.05, 900.0))
    sums = [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63]
    np.testing.assert_allclose([row.candidate_score for row in found], sums)
    alone = blend({"first": [("a", 0.1), ("b", -0.05)]})
    assert [row.candidate_score for row in alone] == [0.1, -0.05]


def test_the_ranker_is_told_the_score_of_a_lone_generator_and_the_blends_figure_of_several(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
):
    told, call = [], Recommender._call

    def listening(self: Recommender, signature, requests):
        if "candidate_scores" in requests.column_names:
            told.append(requests["candidate_scores"].to_pylist()[0])
        return call(self, signature, requests)

    monkeypatch.setattr(Recommender, "_call", listening)
    rows = recommender.recommend("nobody", count=40).rows
    (scores,) = told
    assert sorted(scores) == sorted(score for row in rows for score in row.retrieval_scores)
    told.clear()
    (retrieval,) = recommender._retrieval.values()
    monkeypatch.setattr(recommender, "_retrieval", {"one": retrieval, "same": retrieval})
    recommender.recommend("nobody", count=40)
    np.testing.assert_allclose(told, [[2 / (60 + rank) for rank in range(1, 41)]])


def test_an_unknown_user_gets_a_list_and_a_note(recommender: Recommender):
    found = recommender.recommend("nobody 👤", count=5)
    assert len(found.rows) == 5 and found.watched == []
    assert found.notes == ["user 'nobody 👤' is not in the log: recommended as to a user about whom nothing is known"]


def test_what_is_asked_for_and_no_model_knows_or_reads_is_told(recommender: Recommender, platform: Platform):
    pages = pc.unique(read_table(platform.run / "tables", "impressions", ["page"])["page"]).to_pylist()
    assert not any("page" in note for note in recommender.recommend("nobody", request={"page": pages[0]}).notes)
    notes = recommender.recommend("nobody", request={"page": "nowhere", "device": None, "mood": "blue"}).notes
    assert notes[1:] == [
        "no exported model met page 'nowhere' in training: recommended as where none is told",
        "no exported model reads mood: the list is the same without it",
    ]


def test_a_list_shorter_than_asked_for_says_what_bounds_it(recommender: Recommender):
    found = recommender.recommend("nobody", count=500)
    assert len(found.rows) == 40  # k
    told = "40 of the 500 videos asked for: each candidate generator nominates at most export.retrieval.k "
    assert any(note.startswith(f"{told}(candidate_generator 40)") for note in found.notes)
    assert not any("asked for" in note for note in recommender.recommend("nobody", count=40).notes)


@pytest.mark.parametrize("k", [3, 40])
def test_a_list_shorter_than_asked_for_says_that_the_index_has_no_more(platform: Platform, tmp_path: Path, k: int):
    ids = read_table(platform.run / "tables", "videos", ["video_id"])["video_id"].to_pylist()[:3]
    vectors = np.eye(3, 16, dtype=np.float32)
    videos = VideoVectors(np.array(ids, object), vectors, np.array([9, 5, 2]))
    config = CONFIG.model_copy(update={"retrieval": CONFIG.retrieval.model_copy(update={"k": k})})
    stored = platform.stored("candidate_generator", 10)
    export_retrieval(tmp_path, platform.generator, platform.generator_features, videos, stored, vectors, config)
    found = Recommender([tmp_path / "retrieval/1"], platform.run / "tables", LISTS).recommend("nobody", count=10)
    assert {row.video_id for row in found.rows} == set(ids)
    assert (
        "3 of the 10 videos asked for: the index has 3, and those that the user has watched are left out" in found.notes
    )


def test_a_ranker_that_is_not_given_does_not_order_though_it_lies_beside(export: Path, platform: Platform):
    found = Recommender([export / "retrieval/1"], platform.run / "tables", LISTS).recommend("nobody", count=5)
    scores = [row.retrieval_scores for row in found.rows]
    assert scores == sorted(scores, reverse=True)
    assert {row.score for row in found.rows} == {None}
    assert found.notes[-1] == "no ranker is exported: ordered by the candidate generators"


def test_without_an_export_the_error_says_what_to_run(platform: Platform, tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"retrieval/1: no manifest.json, so nothing is published there; run the"):
        Recommender([tmp_path / "retrieval/1"], platform.run / "tables")


def test_the_printed_table_tells_what_the_videos_are_about(recommender: Recommender, platform: Platform):
    tables = platform.run / "tables"
    user = read_table(tables, "watches", ["user_id"])["user_id"][0].as_py()
    found = recommender.recommend(user, count=3)
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(recommendations_table(found, tables))
    text = console.export_text()
    videos = {row["video_id"]: row for row in read_table(tables, "videos").to_pylist()}
    for video_id in [row.video_id for row in found.rows] + found.watched:
        assert video_id in text and ", ".join(videos[video_id]["topics"]) in text
    assert f"{found.rows[0].expected_watch_time_s:.1f} s" in text


def test_the_printed_table_leaves_out_columns_that_tell_nothing(recommender: Recommender, platform: Platform):
    ranked = recommender.recommend("nobody", count=2)
    first, second = ranked.rows
    of_two = [first, dataclasses.replace(second, sources=("other", *second.sources), retrieval_scores=(0.5, 0.25))]
    unranked = [dataclasses.replace(row, expected_watch_time_s=None, click_probability=None) for row in ranked.rows]

    def columns(rows: list[Recommendation]) -> set[str]:
        console = Console(width=250, record=True, file=io.StringIO())
        console.print(recommendations_table(dataclasses.replace(ranked, rows=rows), platform.run / "tables"))
        lines = console.export_text().splitlines()
        heading = next(line for line in lines if "retrieval" in line)
        return {column for column in ("source", "retrieval", "watch time", "click") if column in heading}

    assert columns(ranked.rows) == {"retrieval", "watch time", "click"}
    assert columns(of_two) == {"source", "retrieval", "watch time", "click"}
    assert columns(unranked) == {"retrieval"}


def test_now_is_just_after_the_last_event(platform: Platform):
    tables = platform.run / "tables"
    last = max(pc.max(read_table(tables, name, ["timestamp"])["timestamp"]).as_py() for name in ("watches", "searches"))
    now = latest_moment(tables)
    assert now > last and now.tzinfo is not None and now < datetime(2026, 1, 1, tzinfo=UTC)
