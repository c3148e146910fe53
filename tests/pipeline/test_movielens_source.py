"""MovieLens in its three layouts, and every way its archive gets here."""

import time
import urllib.error
import urllib.request
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from features.errors import ConfigError, DataError
from features.tables import read_table
from pipeline.sources.ingest import ingest
from pipeline.sources.movielens import MovieLensConfig, MovieLensSource

REAL = Path(__file__).parents[3] / "shared/data/ml-latest-small/ml-latest-small.zip"

CURRENT = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,10,4.5,964982703\n2,10,1.0,964982704\n1,20,3.0,964982705\n",
    "movies.csv": 'movieId,title,genres\n10,"Piano, The (1993)",Drama|Romance\n20,Ünknown,(no genres listed)\n',
}
ML_1M = {
    "ratings.dat": "1::10::5::964982703\n2::20::3::964982704\n",
    "movies.dat": "10::Léon: The Professional (1994)::Action|Crime\n20::Toy (1995)::Animation|Children's\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::70072-1234\n",
}
ML_100K = {
    "u.data": "1\t10\t5\t964982703\n2\t20\t3\t964982704\n",
    "u.item": "10|Léon \"X\" (1994)|01-Jan-1994||http://x|" + "|".join("0100000000000000010") + "\n"
    "20|Unknown|||http://y|" + "|".join("1000000000000000000") + "\n",
    "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
}  # fmt: skip


def archive(path: Path, files: dict[str, str], inside: str = "", encoding: str = "utf8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as target:
        for name, text in files.items():
            target.writestr(inside + name, text.encode(encoding))
    return path


def run(folder: Path, **config) -> Path:
    source = MovieLensSource(MovieLensConfig(**config))
    ingest(source, folder / "run/tables", folder / "run/rejected")
    return folder / "run/tables"


@pytest.mark.parametrize("version", ["latest-small", "20m", "25m"])
@pytest.mark.parametrize("inside", ["", "ml-latest-small/"])
def test_each_rating_is_a_watch_and_genres_are_topics(tmp_path, version, inside):
    tables = run(tmp_path, version=version, archive=str(archive(tmp_path / "mine.zip", CURRENT, inside)))
    assert read_table(tables, "watches").to_pylist()[0] == {
        "user_id": "1",
        "video_id": "10",
        "timestamp": datetime(2000, 7, 30, 18, 45, 3, tzinfo=UTC),
        "rating": 4.5,
    }
    assert read_table(tables, "watches").num_rows == 3
    assert read_table(tables, "videos").to_pylist() == [
        {"video_id": "10", "topics": ["Drama", "Romance"], "title": "Piano, The (1993)"},
        {"video_id": "20", "topics": None, "title": "Ünknown"},
    ]


def test_1m_has_demographics_and_colons_in_titles(tmp_path):
    tables = run(tmp_path, version="1m", archive=str(archive(tmp_path / "m.zip", ML_1M, "ml-1m/", "latin1")))
    assert read_table(tables, "users").to_pylist() == [
        {"user_id": "1", "gender": 0.0, "age": 1.0, "occupation": "10", "zip_code": "48067"},
        {"user_id": "2", "gender": 1.0, "age": 56.0, "occupation": "16", "zip_code": "70072-1234"},
    ]
    assert read_table(tables, "videos").to_pylist() == [
        {"video_id": "10", "topics": ["Action", "Crime"], "title": "Léon: The Professional (1994)"},
        {"video_id": "20", "topics": ["Animation", "Children"], "title": "Toy (1995)"},
    ]
    assert read_table(tables, "watches")["rating"].to_pylist() == [5.0, 3.0]


def test_100k_has_demographics_and_genre_flags(tmp_path):
    tables = run(tmp_path, version="100k", archive=str(archive(tmp_path / "m.zip", ML_100K, "ml-100k/", "latin1")))
    assert read_table(tables, "users").to_pylist() == [
        {"user_id": "1", "gender": 1.0, "age": 24.0, "occupation": "technician", "zip_code": "85711"},
        {"user_id": "2", "gender": 0.0, "age": 53.0, "occupation": "other", "zip_code": "94043"},
    ]
    assert read_table(tables, "videos").to_pylist() == [
        {"video_id": "10", "topics": ["Action", "War"], "title": 'Léon "X" (1994)'},
        {"video_id": "20", "topics": [], "title": "Unknown"},
    ]
    assert read_table(tables, "watches")["video_id"].to_pylist() == ["10", "20"]


def test_an_unpacked_folder_is_an_archive_too(tmp_path):
    for name, text in CURRENT.items():
        (tmp_path / name).write_text(text, encoding="utf8")
    assert read_table(run(tmp_path, archive=str(tmp_path)), "watches").num_rows == 3


def test_an_archive_placed_by_hand_for_tensorflow_datasets_is_found(tmp_path):
    placed = archive(tmp_path / "tfds/downloads/manual/ml-latest-small.zip", CURRENT, "ml-latest-small/")
    config = {"data_dir": str(tmp_path / "tfds"), "verify_checksum": False}
    assert read_table(run(tmp_path, **config), "watches").num_rows == 3
    archive(placed, {**CURRENT, "ratings.csv": "userId,movieId,rating,timestamp\n1,10,4,964982703\n"})
    assert read_table(run(tmp_path, **config), "watches").num_rows == 1  # another archive, not the extracted one


def test_an_archive_that_is_not_grouplens_own_is_refused_unless_told(tmp_path):
    placed = archive(tmp_path / "downloads/manual/ml-latest-small.zip", CURRENT, "ml-latest-small/")
    source = MovieLensSource(MovieLensConfig(data_dir=str(tmp_path)))
    with pytest.raises(
        DataError, match=r"not the archive that GroupLens published.*source\.verify_checksum=false"
    ) as error:
        source.tables()
    assert str(placed) in str(error.value)
    assert "\n" not in str(error.value)


def refused(*_, **__):
    raise urllib.error.URLError("no route to host")


def silent(*_, **__):
    time.sleep(20)
    raise TimeoutError("no answer")


@pytest.mark.parametrize(("network", "reason"), [(refused, "no route to host"), (silent, "no answer within 0.2 s")])
def test_without_a_network_it_fails_soon_and_says_what_to_place_where(tmp_path, monkeypatch, network, reason):
    monkeypatch.setattr(urllib.request, "urlopen", network)
    source = MovieLensSource(MovieLensConfig(version="1m", data_dir=str(tmp_path), connect_timeout_s=0.2))
    started = time.monotonic()
    with pytest.raises(DataError, match=r"https://files\.grouplens\.org/datasets/movielens/ml-1m\.zip") as error:
        source.tables()
    assert time.monotonic() - started < 10
    assert reason in str(error.value)
    assert f"place it as {tmp_path}/downloads/manual/ml-1m.zip" in str(error.value)
    assert "source.archive" in str(error.value)


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK not really")
    with pytest.raises(DataError, match=r"x\.zip: not a readable zip archive"):
        MovieLensSource(MovieLensConfig(archive=str(tmp_path / "x.zip"))).tables()
    (tmp_path / "downloads/manual").mkdir(parents=True)
    (tmp_path / "downloads/manual/ml-latest-small.zip").write_bytes(b"abc")
    with pytest.raises(DataError, match=r"ml-latest-small\.zip: cannot be extracted"):
        MovieLensSource(MovieLensConfig(data_dir=str(tmp_path), verify_checksum=False)).tables()


def test_another_version_than_configured_says_which_file_is_missing(tmp_path):
    path = archive(tmp_path / "m.zip", ML_1M)
    with pytest.raises(
        ConfigError, match=r"MovieLens latest-small has ratings\.csv, movies\.csv; ratings\.csv is missing"
    ):
        MovieLensSource(MovieLensConfig(archive=str(path))).tables()
    with pytest.raises(ConfigError, match="no such archive"):
        MovieLensSource(MovieLensConfig(archive=str(tmp_path / "none.zip"))).tables()


def test_the_fingerprint_does_not_depend_on_where_the_archive_is(tmp_path):
    prints = [
        MovieLensSource(MovieLensConfig(archive=str(archive(tmp_path / name / "m.zip", CURRENT)))).fingerprint()
        for name in ("a", "b")
    ]
    assert prints[0] == prints[1]


@pytest.mark.skipif(not REAL.is_file(), reason="MovieLens latest-small is not beside the repository")
def test_the_real_archive_is_kept_whole(tmp_path):
    source = MovieLensSource(MovieLensConfig(archive=str(REAL)))
    counts = ingest(source, tmp_path / "tables", tmp_path / "rejected").tables
    assert (counts["watches"].read, counts["watches"].kept, counts["watches"].rejected) == (100_836, 100_836, {})
    assert counts["videos"].kept == 9_742
    assert counts["watches"].unmatched == {"video_id not in videos": 0}
