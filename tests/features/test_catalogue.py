import json
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.catalogue import build_catalogue
from features.errors import ConfigError, DataError
from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from features.vocabulary import Vocabulary

UPLOADED = datetime(2024, 1, 2, tzinfo=UTC)

VIDEOS = pa.table(
    {
        "video_id": ["d", "b", "a", "new"],
        "uploader_id": ["u2", "u1", None, "u9"],
        "topics": pa.array([["x", "y"], None, ["q", "x"], []], pa.list_(pa.string())),
        "upload_time": pa.array([UPLOADED, None, UPLOADED, UPLOADED], pa.timestamp("us", "UTC")),
        "duration_s": [10.5, None, 30.0, 40.0],
        "hd": [True, None, False, True],
        "title": ["D", "B", None, "New"],
        "season": [2, 1, None, 2],
    }
)
VOCABULARIES = {
    "video": Vocabulary.of(["b", "a", "gone"]),
    "clicked_video": Vocabulary.of(["a", "d"]),
    "uploader": Vocabulary.of(["u1", "u2"]),
    "topic": Vocabulary.of(["x", "y"]),
    "season": Vocabulary.of(["2"]),
}
SPEC = FeatureSpec(
    (
        Feature("uploader", Kind.CATEGORICAL, Side.IMPRESSION, "videos.uploader_id", "uploader"),
        Feature("season", Kind.CATEGORICAL, Side.IMPRESSION, "videos.season", "season"),
        Feature("duration_s", Kind.CONTINUOUS, Side.IMPRESSION, "videos.duration_s", normaliser=Normaliser.QUANTILE),
        Feature("video_id", Kind.CATEGORICAL, Side.IMPRESSION, "videos.video_id", "clicked_video"),
    )
)


def write(tables, name, table):
    (tables / name).mkdir(parents=True, exist_ok=True)
    pq.write_table(table, tables / name / "part-0.parquet")


@pytest.fixture
def tables(tmp_path):
    write(tmp_path / "tables", "videos", VIDEOS)
    write(tmp_path / "tables", "watches", pa.table({"video_id": ["b", "a", "b", "gone"]}))
    write(tmp_path / "tables", "impressions", pa.table({"video_id": ["a", "c c", "é"]}))
    return tmp_path / "tables"


def test_every_video_once_in_vocabulary_order_then_by_id(tables, tmp_path):
    catalogue = build_catalogue(tables, tmp_path, VOCABULARIES, [SPEC])
    assert catalogue["video_id"].to_pylist() == ["b", "a", "gone", "c c", "d", "new", "é"]
    assert catalogue["video"].to_numpy().tolist() == [1, 2, 3, 0, 0, 0, 0]
    assert catalogue["clicked_video"].to_numpy().tolist() == [0, 1, 0, 0, 2, 0, 0]
    assert catalogue["video"].to_numpy().dtype == np.int32
    assert len(catalogue) == 7
    counts = json.loads((tmp_path / "catalogue" / "manifest.json").read_text())["counts"]
    assert counts == {"videos": 7, "not_in_videos_table": 3, "in_video": 3, "in_clicked_video": 2}


def test_attributes_are_encoded_and_kept_for_people(tables, tmp_path):
    build_catalogue(tables, tmp_path, VOCABULARIES, [SPEC])
    catalogue = pq.read_table(tmp_path / "catalogue" / "catalogue.parquet")
    assert catalogue["uploader_id"].to_numpy().tolist() == [1, 0, 0, 0, 2, 0, 0]
    assert catalogue["uploader_id_raw"].to_pylist() == ["u1", None, None, None, "u2", "u9", None]
    assert catalogue["topics"].to_pylist() == [[], [0, 1], [], [], [1, 2], [], []]
    assert catalogue["topics"].type == pa.list_(pa.int32())
    assert catalogue["topics_raw"].to_pylist()[1] == ["q", "x"]
    assert catalogue["season"].to_numpy().tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert catalogue["title_raw"].to_pylist()[4] == "D" and "title" not in catalogue.column_names
    np.testing.assert_array_equal(
        catalogue["duration_s"].to_numpy(), np.array([np.nan, 30, np.nan, np.nan, 10.5, 40, np.nan], np.float32)
    )
    assert catalogue["duration_s"].to_numpy().dtype == np.float32
    assert catalogue["hd"].to_numpy()[4:6].tolist() == [1.0, 1.0] and np.isnan(catalogue["hd"].to_numpy()[0])
    assert catalogue["upload_time"].to_pylist()[:2] == [None, UPLOADED]


def test_without_a_table_of_videos(tmp_path):
    write(tmp_path / "tables", "watches", pa.table({"video_id": ["m2", "m1"]}))
    catalogue = build_catalogue(tmp_path / "tables", tmp_path, {"video": Vocabulary.of(["m2"])}, [])
    assert catalogue["video_id"].to_pylist() == ["m2", "m1"]
    assert catalogue.column_names == ["video_id", "video"]


def test_clicked_videos_give_the_order_where_nothing_was_watched(tables, tmp_path):
    vocabularies = {space: VOCABULARIES[space] for space in ("clicked_video", "uploader", "season")}
    catalogue = build_catalogue(tables, tmp_path, vocabularies, [SPEC])
    assert catalogue["video_id"].to_pylist()[:3] == ["a", "d", "b"]
    assert "topics" not in catalogue.column_names and "topics_raw" in catalogue.column_names


def test_one_column_in_two_id_spaces_is_refused(tables, tmp_path):
    other = FeatureSpec((Feature("by", Kind.CATEGORICAL, Side.IMPRESSION, "videos.uploader_id", "topic"),))
    with pytest.raises(ConfigError, match=r"feature 'by': id space 'topic' for videos\.uploader_id, but .* 'uploader'"):
        build_catalogue(tables, tmp_path, VOCABULARIES, [SPEC, other])
    assert not (tmp_path / "catalogue").exists()


def watched_uploaders(id_space):
    source = "history.watched_uploader_ids"
    return FeatureSpec((Feature("watched_uploader_ids", Kind.CATEGORICAL, Side.QUERY, source, id_space, 3),))


def test_uploaders_of_watches_have_the_id_space_of_their_feature(tables, tmp_path):
    vocabularies = {**VOCABULARIES, "channel": Vocabulary.of(["u2", "u9"])}
    catalogue = build_catalogue(tables, tmp_path / "alone", vocabularies, [watched_uploaders("channel")])
    assert catalogue["uploader_id"].to_numpy().tolist() == [0, 0, 0, 0, 1, 2, 0]  # of b, a, gone, c c, d, new, é
    with pytest.raises(ConfigError, match=r"id space 'channel' for videos\.uploader_id, but .* 'uploader'"):
        build_catalogue(tables, tmp_path / "beside", vocabularies, [SPEC, watched_uploaders("channel")])


def test_a_serving_value_that_its_vocabulary_does_not_hold_is_refused(tables, tmp_path):
    def spec(value):
        return FeatureSpec(
            (Feature("season", Kind.CATEGORICAL, Side.QUERY, "users.season", "season", None, serving_value=value),)
        )

    with pytest.raises(ConfigError, match="feature 'season': serving_value 3 is not in the vocabulary"):
        build_catalogue(tables, tmp_path, VOCABULARIES, [spec(3)])
    assert not (tmp_path / "catalogue").exists()
    build_catalogue(tables, tmp_path, VOCABULARIES, [spec(2)])


def test_a_space_without_vocabulary_is_refused(tables, tmp_path):
    vocabularies = {space: VOCABULARIES[space] for space in ("video", "uploader")}
    with pytest.raises(ConfigError, match="feature 'season': expected a vocabulary 'season'"):
        build_catalogue(tables, tmp_path, vocabularies, [SPEC])
    with pytest.raises(ConfigError, match="expected a vocabulary of video or clicked_video"):
        build_catalogue(tables, tmp_path, {}, [])


def test_no_video_at_all_is_refused(tmp_path):
    write(tmp_path / "tables", "watches", pa.table({"video_id": pa.array([], pa.string())}))
    with pytest.raises(DataError, match=r"expected videos .* found none"):
        build_catalogue(tmp_path / "tables", tmp_path, {"video": Vocabulary.of([])}, [])
