"""Parquet and CSV logs of any shape become canonical tables by configuration; mistakes are told in one line."""

import gzip
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from features.errors import ConfigError, DataError, UpnextError
from features.tables import read_table
from pipeline.sources import readers
from pipeline.sources.files import FilesConfig, FilesSource
from pipeline.sources.ingest import ingest
from pipeline.sources.validation import ValidationConfig

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
UNRELATED = ValidationConfig(max_unmatched_share=1.0)
WATCHES = "user_id,video_id,timestamp\nu,v,2024-05-01T12:00:00Z\nu,w,2024-05-01T13:00:00Z\n"


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")
    return str(path)


def run(folder: Path, config: ValidationConfig | None = None, **tables: dict):
    source = FilesSource(FilesConfig(tables=tables))
    return ingest(source, folder / "run/tables", folder / "run/rejected", config)


def read(folder: Path, name: str) -> list[dict]:
    return read_table(folder / "run/tables", name).to_pylist()


def test_csv_columns_are_renamed_converted_mapped_and_filled(tmp_path):
    write(tmp_path / "plays/1.csv", "uid;item;started;ms;tv\nAnn Ü;v 1;1714564800000;1500;yes\n")
    write(tmp_path / "plays/2.csv", "tv;uid;item;started;ms\nno;Bob;v 2;1714568400000;;\n".replace(";;", ";"))
    users = write(tmp_path / "users.csv", "user_id,sex,fans,code,plan\nAnn Ü,F,3,007,gold\nBob,M,,012,\n")
    videos = write(tmp_path / "videos.csv", 'id,tags,len,title\nv 1,"a|b",61000,"One, two"\nv 2,,NULL,\n')
    run(
        tmp_path,
        watches={
            "path": str(tmp_path / "plays/*.csv"),
            "delimiter": ";",
            "columns": {
                "user_id": "uid",
                "video_id": "item",
                "timestamp": "started",
                "watch_time_s": "ms",
                "device": "tv",
            },
            "units": {"timestamp": "ms", "watch_time_s": "ms"},
            "values": {"device": {"yes": "tv", "no": "phone"}},
            "constants": {"origin": "search"},
        },
        users={
            "path": users,
            "columns": {"gender": "sex"},
            "values": {"gender": {"F": 0, "M": 1}},
            "extra": ["fans", "code", "plan"],
        },
        videos={
            "path": videos,
            "columns": {"video_id": "id", "topics": "tags", "duration_s": "len"},
            "units": {"duration_s": "ms"},
            "separators": {"topics": "|"},
            "extra": {"title": "string"},
        },
    )
    ann, bob = read(tmp_path, "watches")
    assert ann == {
        "user_id": "Ann Ü",
        "video_id": "v 1",
        "timestamp": NOON,
        "watch_time_s": 1.5,
        "device": "tv",
        "origin": "search",
    }
    assert (bob["watch_time_s"], bob["device"]) == (None, "phone")
    assert read(tmp_path, "users") == [
        {"user_id": "Ann Ü", "gender": 0.0, "fans": 3, "code": "007", "plan": "gold"},
        {"user_id": "Bob", "gender": 1.0, "fans": None, "code": "012", "plan": None},
    ]
    assert read(tmp_path, "videos") == [
        {"video_id": "v 1", "duration_s": 61.0, "topics": ["a", "b"], "title": "One, two"},
        {"video_id": "v 2", "duration_s": None, "topics": None, "title": None},
    ]


def test_parquet_folders_are_read_with_their_types(tmp_path):
    (tmp_path / "log/day=1").mkdir(parents=True)
    rows = {"user_id": pa.array([7]), "video_id": ["v"], "timestamp": pa.array([NOON], pa.timestamp("ms", "UTC"))}
    pq.write_table(pa.table({**rows, "topic_scores": [[0.5]]}), tmp_path / "log/day=1/x.parquet")
    (tmp_path / "log/_SUCCESS").touch()
    run(tmp_path, watches={"path": str(tmp_path / "log"), "extra": ["topic_scores"]})
    assert read(tmp_path, "watches") == [{"user_id": "7", "video_id": "v", "timestamp": NOON, "topic_scores": [0.5]}]


def test_uuid_ids_of_parquet_are_the_text_that_csv_has_and_bare_bytes_are_told(tmp_path):
    user = uuid.UUID(int=0xABCDEF << 96)
    users = write(tmp_path / "u.csv", f"user_id,region\n{user},DE\n")
    rows = {"video_id": ["v", "w"], "timestamp": [NOON, NOON]}
    ids = pa.array([user.bytes] * 2, pa.uuid())
    pq.write_table(pa.table({"user_id": ids, **rows}), tmp_path / "w.parquet")
    summary = run(tmp_path, watches={"path": str(tmp_path / "w.parquet")}, users={"path": users})
    assert read(tmp_path, "watches")[0]["user_id"] == str(user)
    assert summary.tables["watches"].unmatched == {"user_id not in users": 0}

    pq.write_table(pa.table({"user_id": ids.storage, **rows}), tmp_path / "bytes.parquet")
    message = bad(tmp_path / "2", watches={"path": str(tmp_path / "bytes.parquet")})
    assert "2 of 2 rows are rejected" in message
    assert "the bytes of 'user_id' are not UTF-8: write them as text, UUIDs also as Parquet's UUID type; " in message


def test_an_optional_column_that_means_something_else_is_left_out_by_null_as_the_error_says(tmp_path):
    path = write(tmp_path / "w.csv", "user_id,video_id,timestamp,order\nu,v,1714564800,ORD-17\nu,w,1714564801,ORD-18\n")
    message = bad(tmp_path, watches={"path": path})
    assert "wrong type in order: 2 rows" in message
    assert "where the files mean something else by 'order', leave it out: columns: {order: null}; " in message
    run(tmp_path, watches={"path": path, "columns": {"order": None}})
    assert set(read(tmp_path, "watches")[0]) == {"user_id", "video_id", "timestamp"}


def test_what_maps_words_and_milliseconds_is_told_with_the_rows_it_would_read(tmp_path):
    watches = write(tmp_path / "w.csv", "user_id,video_id,timestamp,watch_time_s\nu,v,1714564800,90000000\n")
    users = write(tmp_path / "u.csv", "user_id,gender\nu,F\n")
    assert "set units: {watch_time_s: ms}; " in bad(tmp_path, watches={"path": watches})
    told = 'words are mapped to numbers, as values: {gender: {F: 0, M: 1, "?": null}}; '
    assert told in bad(tmp_path, watches={"path": watches, "units": {"watch_time_s": "ms"}}, users={"path": users})


def test_a_column_that_is_needed_cannot_be_left_out(tmp_path):
    watches = {"path": write(tmp_path / "w.csv", WATCHES), "columns": {"video_id": None}}
    message = bad(tmp_path, watches=watches)
    told = "source.tables.watches.columns.video_id: expected a column of the files, found null, which leaves it out, "
    assert f"{told}but every row needs it; name a column" in message
    kept_too = {**watches, "columns": {"mood": None}, "extra": ["mood"]}
    assert "columns.mood: expected a column of the files, found null, " in bad(tmp_path, watches=kept_too)
    run(tmp_path, watches={**watches, "constants": {"video_id": "v"}})
    assert {row["video_id"] for row in read(tmp_path, "watches")} == {"v"}


def test_compressed_csv_and_relative_paths_are_read(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "w.csv.gz", "wt") as stream:
        stream.write(WATCHES)
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path, watches={"path": "w.csv.gz"}).tables["watches"].kept == 2


def test_a_value_that_is_mapped_to_null_is_missing_and_not_judged(tmp_path):
    watches = write(tmp_path / "w.csv", "user_id,video_id,timestamp\na,v,1714564800\n")
    users = write(tmp_path / "u.csv", "user_id,gender,language\na,F,en\nb,?,xx\nc,M,de\nd,,xx\n")
    values = {"gender": {"F": 0, "M": 1, "?": None}, "language": {"xx": None}}
    run(tmp_path, watches={"path": watches}, users={"path": users, "values": values})
    rows = {row["user_id"]: (row["gender"], row["language"]) for row in read(tmp_path, "users")}
    assert rows == {"a": (0.0, "en"), "b": (None, None), "c": (1.0, "de"), "d": (None, None)}


def test_values_without_a_mapping_are_judged_like_any_other(tmp_path):
    users = write(tmp_path / "u.csv", "user_id,gender\nu,F\nw,?\n")
    config = ValidationConfig(max_rejected_share=0.5)
    watches = write(tmp_path / "w.csv", WATCHES)
    summary = run(tmp_path, config, watches={"path": watches}, users={"path": users, "values": {"gender": {"F": 0}}})
    assert summary.tables["users"].rejected == {"wrong type": 1}


def test_a_later_value_that_breaks_the_type_of_the_first_rows_costs_only_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CSV_BLOCK_BYTES", 64)
    lines = [f"user{n},{n}" for n in range(50)] + ["last,many"]
    users = write(tmp_path / "u.csv", "\n".join(["user_id,fans", *lines]))
    watches = {"path": write(tmp_path / "w.csv", WATCHES)}
    summary = run(tmp_path, UNRELATED, watches=watches, users={"path": users, "extra": ["fans"]})
    assert summary.tables["users"].rejected == {"not of the type that the first rows suggest": 1}
    rejected = read_table(tmp_path / "run/rejected", "users").to_pylist()
    assert [(r["column"], r["row"], json.loads(r["raw"])["fans"]) for r in rejected] == [("fans", 51, "many")]


def test_rows_with_too_many_columns_are_rejected_with_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CSV_BLOCK_BYTES", 256)
    lines = [f"u,v{n},2024-05-01T12:00:00Z" + (",extra" if n in {0, 17, 60} else "") for n in range(61)]
    lines[18] = "u,,2024-05-01T12:00:00Z"
    path = write(tmp_path / "w.csv", "\n".join(["user_id,video_id,timestamp", *lines]))
    summary = run(tmp_path, ValidationConfig(max_rejected_share=0.1), watches={"path": path})
    assert (summary.tables["watches"].read, summary.tables["watches"].kept) == (61, 57)
    assert summary.tables["watches"].rejected == {"malformed row": 3, "missing id": 1}
    rejected = read_table(tmp_path / "run/rejected", "watches").to_pylist()
    assert sorted((r["row"], r["reason"]) for r in rejected) == [
        (1, "malformed row"),
        (18, "malformed row"),
        (19, "missing id"),
        (61, "malformed row"),
    ]
    assert "v17,2024-05-01T12:00:00Z,extra" in next(r["raw"] for r in rejected if r["row"] == 18)


def test_row_numbers_count_from_one_in_every_file(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"log/{name}.csv", f"user_id,video_id,timestamp\n{name},v,2024-05-01\n,v,2024-05-01\n")
    run(tmp_path, ValidationConfig(max_rejected_share=0.5), watches={"path": str(tmp_path / "log")})
    rejected = read_table(tmp_path / "run/rejected", "watches").to_pylist()
    assert [(Path(r["origin"]).name, r["row"]) for r in rejected] == [("a.csv", 2), ("b.csv", 2)]


def bad(folder: Path, **tables: dict) -> str:
    """The message of the error a configuration leads to: one line, and nothing is published."""
    with pytest.raises(UpnextError) as error:
        run(folder, **tables)
    assert "\n" not in str(error.value)
    assert not (folder / "run/tables").exists()
    return str(error.value)


def test_mistakes_are_told_in_one_line(tmp_path):
    good = {"path": write(tmp_path / "w.csv", WATCHES)}
    assert "no such file or folder" in bad(tmp_path, watches={"path": str(tmp_path / "x.csv")})
    assert "no file matches this pattern" in bad(tmp_path, watches={"path": str(tmp_path / "x*.csv")})
    (tmp_path / "none").mkdir()
    assert "has no .parquet" in bad(tmp_path, watches={"path": str(tmp_path / "none")})

    message = bad(tmp_path, watches={**good, "columns": {"video_id": "videoid"}})
    assert "no column 'videoid' for watches.video_id, did you mean 'video_id'?" in message
    message = bad(tmp_path, watches={**good, "columns": {"watchtime_s": "x"}})
    assert "'watchtime_s' is not a column of watches, did you mean 'watch_time_s'?" in message
    renamed = write(tmp_path / "r.csv", "User_ID,video_id,timestamp\nu,v,1\n")
    assert "no column 'user_id' for watches.user_id, did you mean 'User_ID'?" in bad(
        tmp_path, watches={"path": renamed}
    )
    assert "no column 'mood' for watches.mood" in bad(tmp_path, watches={**good, "extra": ["mood"]})
    videos = {"path": write(tmp_path / "v.csv", "video_id,topics\nv,a\n"), "values": {"topics": {"a": "b"}}}
    assert "'topics' holds lists" in bad(tmp_path, watches=good, videos=videos)

    assert "the file is empty" in bad(tmp_path, watches={"path": write(tmp_path / "e.csv", "")})
    header = write(tmp_path / "h.csv", "user_id,video_id,timestamp\n")
    assert "expected rows in" in bad(tmp_path, watches={"path": header})
    assert "'searches': expected rows" in bad(
        tmp_path, watches=good, searches={"path": write(tmp_path / "s.csv", "user_id,timestamp,query\n")}
    )
    assert "cannot be read as Parquet" in bad(tmp_path, watches={"path": write(tmp_path / "w.parquet", "text")})
    twice = write(tmp_path / "t.csv", "user_id,user_id,video_id,timestamp\nu,u,v,1\n")
    assert "occurs twice" in bad(tmp_path, watches={"path": twice})
    assert "has no table 'watches'" in bad(tmp_path, videos={"path": write(tmp_path / "o.csv", "video_id\nv\n")})

    wrong = write(tmp_path / "n.csv", "user_id,video_id,timestamp\nu,v,never\nu,w,soon\n")
    message = bad(tmp_path, watches={"path": wrong})
    assert "2 of 2 rows are rejected" in message
    assert "missing or unparsable time in timestamp: 2 rows, as" in message
    assert 'n.csv row 1: {"user_id": "u", "video_id": "v", "timestamp": "never"}' in message


def test_files_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("user_id,video_id,timestamp\nJosé,v,2024-05-01\n".encode("latin1"))
    with pytest.raises(DataError, match=r"latin\.csv: cannot be read as CSV"):
        run(tmp_path, watches={"path": str(path)})
    run(tmp_path, watches={"path": str(path), "encoding": "latin1"})
    assert read(tmp_path, "watches")[0]["user_id"] == "José"


def test_every_table_is_checked_before_the_first_row_is_read(tmp_path):
    tables = {
        "watches": {"path": write(tmp_path / "w.csv", WATCHES)},
        "users": {"path": write(tmp_path / "u.csv", "id\nu\n")},
    }
    with pytest.raises(ConfigError, match=r"users\.user_id"):
        FilesSource(FilesConfig(tables=tables)).tables()


def test_unknown_tables_and_settings_are_refused():
    with pytest.raises(ValidationError, match="watchs"):
        FilesConfig.model_validate({"tables": {"watchs": {"path": "x"}}})
    with pytest.raises(ValidationError, match="colums"):
        FilesConfig.model_validate({"tables": {"watches": {"path": "x", "colums": {}}}})


def test_the_fingerprint_follows_the_content(tmp_path):
    path = write(tmp_path / "w.csv", WATCHES)
    source = FilesSource(FilesConfig.model_validate({"tables": {"watches": {"path": path}}}))
    before = source.fingerprint()
    assert source.fingerprint() == before
    write(tmp_path / "w.csv", WATCHES.replace("u,v", "u,x"))
    assert source.fingerprint() != before


def test_the_fingerprint_follows_names_contents_and_order_but_not_the_place(tmp_path):
    def fingerprint_of(path: Path, table: str = "watches"):
        return FilesSource(FilesConfig.model_validate({"tables": {table: {"path": str(path)}}})).fingerprint()

    for day, text in (("1", WATCHES), ("2", WATCHES.replace("u,v", "u,x"))):
        write(tmp_path / f"here/day={day}/part-0.csv", text)
        write(tmp_path / f"there/day={day}/part-0.csv", text)
        write(tmp_path / f"otherwise/day={3 - int(day)}/part-0.csv", text)
    here = fingerprint_of(tmp_path / "here")
    assert fingerprint_of(tmp_path / "there") == here
    assert fingerprint_of(tmp_path / "otherwise") != here
    assert fingerprint_of(tmp_path / "here/day=1") != here
    assert fingerprint_of(tmp_path / "here", "searches") != here
    assert str(tmp_path) not in json.dumps(here)


def test_long_numerals_stay_text_where_no_type_is_given(tmp_path):
    users = write(
        tmp_path / "u.csv",
        "user_id,account,follower,share,fans\nu,1234567890123456,-12345678901234567.5,0.12345678901234567,1\nw,7,8,9,2\n",
    )
    extra = ["account", "follower", "share", "fans"]
    run(tmp_path, watches={"path": write(tmp_path / "w.csv", WATCHES)}, users={"path": users, "extra": extra})
    assert read(tmp_path, "users")[0] == {
        "user_id": "u",
        "account": "1234567890123456",
        "follower": "-12345678901234567.5",
        "share": 0.12345678901234567,
        "fans": 1,
    }


def test_a_type_that_was_guessed_is_said_to_be_guessed_where_rows_do_not_fit_it(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CSV_BLOCK_BYTES", 64)
    lines = [f"video{n},{n}" for n in range(50)] + [f"film{n},Studio {n}" for n in range(50)]
    videos = write(tmp_path / "v.csv", "\n".join(["video_id,studio", *lines]))
    watches = {"path": write(tmp_path / "w.csv", WATCHES)}
    message = bad(tmp_path, watches=watches, videos={"path": videos, "extra": ["studio"]})
    assert "50 of 100 rows are rejected" in message
    assert "the type of 'studio' was guessed from the first rows: give it, as extra: {studio: string}" in message
    told = bad(tmp_path, watches=watches, videos={"path": videos, "extra": {"studio": "integer"}})
    assert "wrong type in studio: 50 rows" in told
    assert "was guessed" not in told
    run(tmp_path, UNRELATED, watches=watches, videos={"path": videos, "extra": {"studio": "string"}})
    assert read(tmp_path, "videos")[50]["studio"] == "Studio 0"


def test_whole_numbers_that_a_column_of_fractions_cannot_hold_name_the_column(tmp_path):
    for name, followers in (("a", pa.array([2**53 + 1])), ("b", pa.array([0.5]))):
        (tmp_path / "users").mkdir(exist_ok=True)
        pq.write_table(pa.table({"user_id": [name], "followers": followers}), tmp_path / f"users/{name}.parquet")
    watches = {"path": write(tmp_path / "w.csv", WATCHES)}
    message = bad(tmp_path, watches=watches, users={"path": str(tmp_path / "users"), "extra": ["followers"]})
    assert "users.followers" in message
    assert "9007199254740993" in message
    assert "extra: {followers: string}" in message
    users = {"path": str(tmp_path / "users"), "extra": {"followers": "string"}}
    run(tmp_path, UNRELATED, watches=watches, users=users)
    assert [row["followers"] for row in read(tmp_path, "users")] == ["9007199254740993", "0.5"]
