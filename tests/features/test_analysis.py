import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.analysis import AnalysisConfig, analyze_tables, fit_quantiles, read_statistics, training_part
from features.errors import ArtifactError, ConfigError, DataError
from features.feature_lists import IdSource
from features.quantiles import QuantilesConfig, read_quantiles
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from features.splits import Split
from features.vocabulary import Vocabulary, VocabularyConfig
from features.vocabulary_requests import Only, VocabularyRequest, vocabulary_requests

END = 1_000
REQUESTS = (
    VocabularyRequest("video", "watches", "video_id"),
    VocabularyRequest("finished", "watches", "video_id", Only.COMPLETED),
    VocabularyRequest("clicked_video", "impressions", "video_id", Only.CLICKED),
    VocabularyRequest("device", "watches", "device"),
    VocabularyRequest("device", "impressions", "device"),
    VocabularyRequest("source", "impressions", "candidate_sources"),
    VocabularyRequest("search_token", "searches", "query", tokens=True),
    VocabularyRequest("uploader", "videos", "uploader_id", by_watches=True),
    VocabularyRequest("topic", "videos", "topics", by_watches=True),
    VocabularyRequest("region", "users", "region"),
)


def split_at(end_us: int, test_user_share: float = 0.0) -> Split:
    return Split(end_us, end_us, end_us, end_us, test_user_share, 0, True)


def times(*values):
    return pa.array(values, pa.timestamp("us", "UTC"))


def write(tables, name, *parts):
    folder = tables / name
    folder.mkdir(parents=True)
    for index, part in enumerate(parts):
        pq.write_table(part, folder / f"part-{index}.parquet")


@pytest.fixture
def tables(tmp_path):
    root = tmp_path / "tables"
    watches = pa.table(
        {
            "user_id": ["a", "a", "b", "b", "c", "c"],
            "video_id": ["v1", "v2", "v2", "v3", "late", "v1"],
            "timestamp": times(1, 2, 3, 999, 1000, None),
            "completed": [True, False, True, None, True, True],
            "device": ["tv", "phone", "phone", None, "tv", "tv"],
        }
    )
    write(root, "watches", watches[:4], watches[4:])
    write(
        root,
        "impressions",
        pa.table(
            {
                "user_id": ["a", "b", "b", "c"],
                "video_id": ["v3", "v3", "v1", "v9"],
                "timestamp": times(1, 2, 3, 5000),
                "clicked": [True, True, False, True],
                "device": ["phone", "phone", "tv", "watch"],
                "candidate_sources": [["home", "trend"], ["home"], None, ["late"]],
            }
        ),
    )
    write(
        root,
        "searches",
        pa.table({"user_id": ["a", "b"], "timestamp": times(5, 6), "query": ["Big Cats!", "cats"]}),
    )
    write(root, "users", pa.table({"user_id": ["a", "b", "c"], "region": ["DE", "FR", "DE"]}))
    write(
        root,
        "videos",
        pa.table(
            {
                "video_id": ["v1", "v2", "v3", "late"],
                "uploader_id": ["u1", "u2", "u1", "u3"],
                "topics": pa.array([["x"], ["y", "x"], None, ["z"]], pa.list_(pa.string())),
                "upload_time": times(0, None, 5, 2000),
                "duration_s": [10.0, 20.0, 30.0, 40.0],
            }
        ),
    )
    return root


def counts(folder, space):
    vocabulary = Vocabulary.read(folder / "vocabularies" / f"{space}.parquet")
    return dict(zip(vocabulary.ids.to_pylist(), vocabulary.counts.tolist(), strict=True))


def test_vocabularies_count_the_training_part(tables, tmp_path):
    analyze_tables(tables, tmp_path, REQUESTS, split_at(END))
    assert counts(tmp_path, "video") == {"v1": 2, "v2": 2, "v3": 1}
    assert counts(tmp_path, "finished") == {"v1": 2, "v2": 1, "v3": 0}  # watched, but not to the end
    assert counts(tmp_path, "clicked_video") == {"v3": 2, "v1": 0}  # shown, never clicked
    assert counts(tmp_path, "device") == {"phone": 4, "tv": 3}
    assert counts(tmp_path, "source") == {"home": 2, "trend": 1}
    assert counts(tmp_path, "search_token") == {"cats": 2, "big": 1, "big cats": 1}
    assert counts(tmp_path, "region") == {"DE": 2, "FR": 1}
    # By watches: v1 twice, v2 twice, v3 once; v1 and v3 are of u1.
    assert counts(tmp_path, "uploader") == {"u1": 3, "u2": 2}
    assert counts(tmp_path, "topic") == {"x": 4, "y": 2}
    assert list(counts(tmp_path, "hour")) == [str(hour) for hour in range(24)]
    manifest = json.loads((tmp_path / "vocabularies" / "manifest.json").read_text())
    assert manifest["rows"]["watches"] == {"read": 6, "used": 5, "outside_training_part": 1}
    assert manifest["rows"]["videos"] == {"read": 4, "used": 3, "outside_training_part": 1}
    assert manifest["sizes"]["device"] == 2


def test_statistics_describe_the_training_part(tables, tmp_path):
    analyze_tables(tables, tmp_path, REQUESTS[:1], split_at(END))
    statistics = read_statistics(tmp_path / "statistics")
    assert sorted(statistics) == ["impressions", "searches", "users", "videos", "watches"]
    assert statistics["watches"]["rows"] == {"read": 6, "used": 5, "outside_training_part": 1}
    device = statistics["watches"]["columns"]["device"]
    assert (device["count"], device["missing"], device["distinct"]) == (5, 1, 2)
    assert statistics["watches"]["columns"]["timestamp"]["max"] == "1970-01-01T00:00:00.000999+00:00"
    assert statistics["videos"]["columns"]["duration_s"]["max"] == 30.0


def test_held_out_users_are_outside_the_training_part():
    ids = [f"user {i}" for i in range(1000)]
    split = split_at(END, test_user_share=0.3)
    held_out = split.is_test_user(pa.array(ids))
    assert 200 < held_out.sum() < 400
    expected = [user for user, out in zip(ids, held_out, strict=True) if not out]
    events = pa.table({"user_id": ids, "timestamp": times(*[1] * 1000)})
    for name, batch in (("users", events.select(["user_id"])), ("searches", events)):
        found, (read, used) = training_part((name, batch), split)
        assert (found, read) == (name, 1000) and used["user_id"].to_pylist() == expected


def test_top_n_and_minimum_count_by_space(tables, tmp_path):
    config = AnalysisConfig(
        vocabulary=VocabularyConfig(top_n=1), vocabularies={"device": VocabularyConfig(min_count=4)}
    )
    analyze_tables(tables, tmp_path, REQUESTS, split_at(END), config)
    assert counts(tmp_path, "video") == {"v1": 2}
    assert counts(tmp_path, "device") == {"phone": 4}
    assert len(counts(tmp_path, "hour")) == 24


def test_a_column_without_values_gives_an_empty_vocabulary(tables, tmp_path):
    no_regions = pa.table({"user_id": ["a"], "region": pa.nulls(1, pa.string())})
    pq.write_table(no_regions, tables / "users" / "part-0.parquet")
    analyze_tables(tables, tmp_path, [VocabularyRequest("region", "users", "region")], split_at(END))
    assert counts(tmp_path, "region") == {}


def test_what_was_shown_and_never_chosen_has_a_row_and_what_was_not_shown_has_none(tables, tmp_path):
    shown = {"user_id": ["a"], "video_id": ["v4"], "timestamp": times(4), "clicked": [False], "device": ["tv"]}
    sources = pa.array([["home"]], pa.list_(pa.string()))
    pq.write_table(pa.table({**shown, "candidate_sources": sources}), tables / "impressions" / "part-9.parquet")
    videos = pq.read_table(tables / "videos" / "part-0.parquet")
    more = {"video_id": ["v4", "v5"], "uploader_id": ["u9", "u8"], "topics": [["w"], ["q"]]}
    rest = {"upload_time": times(1, 1), "duration_s": [1.0, 1.0]}
    pq.write_table(pa.table({**more, **rest}, schema=videos.schema), tables / "videos" / "part-1.parquet")
    analyze_tables(tables, tmp_path, REQUESTS, split_at(END))
    assert counts(tmp_path, "clicked_video") == {"v3": 2, "v1": 0, "v4": 0}
    assert counts(tmp_path, "uploader") == {"u1": 3, "u2": 2, "u9": 0}
    assert counts(tmp_path, "topic") == {"x": 4, "y": 2, "w": 0}


def test_videos_are_weighed_by_clicks_where_there_are_no_watches(tables, tmp_path):
    (tables / "watches" / "part-0.parquet").unlink()
    (tables / "watches" / "part-1.parquet").unlink()
    analyze_tables(tables, tmp_path, [REQUESTS[7]], split_at(END))
    assert counts(tmp_path, "uploader") == {"u1": 2}


def test_nothing_in_the_training_part_is_refused_and_nothing_is_published(tables, tmp_path):
    with pytest.raises(DataError, match=r"'searches': .*before 1970-01-01T00:00:00\.000002.* found none among 2"):
        analyze_tables(tables, tmp_path, REQUESTS, split_at(2))
    assert not (tmp_path / "vocabularies").exists() and not (tmp_path / "statistics").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"tables"}


def test_an_absent_table_is_named(tmp_path):
    write(tmp_path / "tables", "users", pa.table({"user_id": ["a"]}))
    with pytest.raises(ArtifactError, match="expected table 'watches' for a vocabulary, found users"):
        analyze_tables(tmp_path / "tables", tmp_path, REQUESTS[:1], split_at(END))


def test_requests_for_the_features_id_spaces():
    sources = [
        IdSource("clicked_video", "impressions", "video_id"),
        IdSource("search_token", "searches", "query"),
        IdSource("uploader", "videos", "uploader_id"),
        IdSource("region", "users", "region"),
    ]
    assert vocabulary_requests(sources) == (
        VocabularyRequest("clicked_video", "impressions", "video_id", Only.CLICKED),
        VocabularyRequest("search_token", "searches", "query", tokens=True),
        VocabularyRequest("uploader", "videos", "uploader_id", by_watches=True),
        VocabularyRequest("region", "users", "region"),
    )
    with pytest.raises(ConfigError, match="by_watches is for columns of videos, not of users"):
        VocabularyRequest("region", "users", "region", by_watches=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["multi_threading", "multi_processing"])
def test_parallel_workers_write_the_same_bytes(tables, tmp_path, workers):
    rng = np.random.default_rng(0)
    rows = 20_000
    many = pa.table(
        {
            "user_id": ["u"] * rows,
            "video_id": pa.array([f"v{i}" for i in rng.zipf(1.3, rows) % 3000]),
            "timestamp": times(*rng.integers(0, END, rows).tolist()),
        }
    )
    for part in range(6):
        pq.write_table(many.take(pa.array(range(part, rows, 6))), tables / "watches" / f"part-{part}.parquet")
    beam_args = [f"--direct_running_mode={workers}", "--direct_num_workers=2"]
    requests = [request for request in REQUESTS if request.table != "watches"] + [REQUESTS[0]]
    analyze_tables(tables, tmp_path / "one", requests, split_at(END))
    analyze_tables(tables, tmp_path / "two", requests, split_at(END), beam_args=beam_args)
    for file in sorted((tmp_path / "one" / "vocabularies").glob("*.parquet")):
        assert file.read_bytes() == (tmp_path / "two" / "vocabularies" / file.name).read_bytes(), file.name


def continuous(name, normaliser=Normaliser.QUANTILE):
    return Feature(name, Kind.CONTINUOUS, Side.IMPRESSION, f"request.{name}", normaliser=normaliser)


SPEC = FeatureSpec((continuous("x"), continuous("empty"), continuous("age", Normaliser.SCALE)))


def test_quantiles_of_the_training_examples(tmp_path):
    train = tmp_path / "ranking" / "train"
    train.mkdir(parents=True)
    for part, values in enumerate(([0.0, 1.0, None], [2.0, np.nan])):
        table = pa.table({"x": pa.array(values, pa.float32()), "empty": pa.nulls(len(values), pa.float32())})
        pq.write_table(table, train / f"part-{part}.parquet")
    returned = fit_quantiles(tmp_path / "ranking", SPEC, tmp_path, QuantilesConfig(boundaries=3))
    found = read_quantiles(tmp_path / "quantiles" / "quantiles.json")
    assert sorted(found) == sorted(returned) == ["empty", "x"]
    assert found["x"].boundaries.tolist() == [0.0, 1.0, 2.0]
    assert (found["x"].count, found["x"].missing, found["x"].rank_error) == (3, 2, 0.0)
    assert found["empty"].boundaries.tolist() == [0.0, 0.0, 0.0] and found["empty"].missing == 5
    assert json.loads((tmp_path / "quantiles" / "manifest.json").read_text())["examples"] == 5


def test_quantiles_without_examples_or_column(tmp_path):
    with pytest.raises(ArtifactError, match=r"ranking/train: expected part-\*\.parquet, found none"):
        fit_quantiles(tmp_path / "ranking", SPEC, tmp_path)
    (tmp_path / "ranking" / "train").mkdir(parents=True)
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "ranking" / "train" / "part-0.parquet")
    with pytest.raises(DataError, match="no column empty"):
        fit_quantiles(tmp_path / "ranking", SPEC, tmp_path)
    assert not (tmp_path / "quantiles").exists()


def test_a_model_without_quantile_features_has_none(tmp_path):
    (tmp_path / "ranking" / "train").mkdir(parents=True)
    pq.write_table(pa.table({"age": [1.0]}), tmp_path / "ranking" / "train" / "part-0.parquet")
    assert fit_quantiles(tmp_path / "ranking", FeatureSpec(SPEC.features[2:]), tmp_path) == {}
    assert read_quantiles(tmp_path / "quantiles" / "quantiles.json") == {}
