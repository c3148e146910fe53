"""What a CSV file says is read as it was meant, in every way files are written; what cannot be so stops the run."""

import bz2
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import ConfigError, DataError, UpnextError
from features.tables import read_table
from pipeline.sources import data_files, readers
from pipeline.sources.data_files import find_files
from pipeline.sources.files import FilesConfig, FilesSource
from pipeline.sources.ingest import ingest
from pipeline.sources.readers import CsvDialect, column_names, read_chunks

HEADER = "user_id,video_id,timestamp\n"
TWO = HEADER + "u,v,2024-05-01\nu,w,2024-05-02\n"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(path: Path, dialect: CsvDialect | None = None, columns: list[str] | None = None) -> list[dict]:
    return [row for chunk in read_chunks(path, columns, dialect) for row in chunk.data.to_pylist()]


def kept_of(folder: Path, path: Path, **settings) -> int:
    config = FilesConfig(tables={"watches": {"path": str(path), **settings}})
    return ingest(FilesSource(config), folder / "run/tables", folder / "run/rejected").tables["watches"].kept


def test_a_quote_that_is_not_closed_stops_the_run_where_it_begins(tmp_path):
    lines = [f"{n},{n % 7},x{n}" for n in range(2_000)]
    lines[499] = '34,"15,x499'
    path = write(tmp_path / "w.csv", "\n".join(["a,b,c", *lines]))
    with pytest.raises(DataError, match=r"w\.csv row 500: the file ends inside a quoted value.*quote: null") as error:
        rows_of(path)
    assert "\n" not in str(error.value)
    assert len(rows_of(path, CsvDialect(quote=None))) == 2_000


def test_a_quote_that_swallows_rows_up_to_the_next_quote_stops_the_run(tmp_path):
    lines = [f"u{n},{n},cats" for n in range(100)]
    lines[9] = 'u9,9,"cats'
    lines[70] = 'u70,70,cats"'
    path = write(tmp_path / "s.csv", "\n".join(["user_id,timestamp,query", *lines]) + "\n")
    with pytest.raises(DataError, match=r"s\.csv row 10: expected at most 20 line breaks in a row, found 61"):
        rows_of(path)
    with pytest.raises(DataError, match=r"s\.csv row 10"):  # also where the column is not one of those wanted
        rows_of(path, columns=["user_id"])
    assert len(rows_of(path, CsvDialect(max_line_breaks=61))) == 39


@pytest.mark.parametrize("last", ['3,"c', '3,"c\n', '"3,c', '3,c,"d', '3,"', '3,"c ""d""'])
def test_a_file_that_ends_inside_a_quote_stops_the_run(tmp_path, last):
    path = write(tmp_path / "w.csv", f"n,letter\n1,a\n2,b\n{last}")
    with pytest.raises(DataError, match=r"w\.csv row 3: the file ends inside a quoted value.*quote: null"):
        rows_of(path)


@pytest.mark.parametrize("block", [64, 16 << 20])
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("last", ['3,"c"', "3,c", '3,"c ""d"""', '3,5" wide', "3,"])
def test_files_end_in_many_ways(tmp_path, monkeypatch, block, end, last):
    monkeypatch.setattr(readers, "CSV_BLOCK_BYTES", block)
    path = write(tmp_path / "w.csv", "n,letter\n" + "1,abcdefghijklm\n" * 20 + last + end)
    expected = {'3,"c"': "c", "3,c": "c", '3,"c ""d"""': 'c "d"', '3,5" wide': '5" wide', "3,": None}[last]
    rows = rows_of(path)
    assert rows[20:] == [{"n": "3", "letter": expected}]
    assert [chunk.malformed for chunk in read_chunks(path) if chunk.malformed] == []


def test_a_last_row_like_no_other_is_malformed_and_not_an_end(tmp_path):
    path = write(tmp_path / "w.csv", "n,letter\n1,a\n,,\n")
    assert [list(chunk.malformed) for chunk in read_chunks(path)] == [[], [(2, ",,")]]
    assert rows_of(path) == [{"n": "1", "letter": "a"}]
    broken = write(tmp_path / "b.csv", 'n,letter\n1,a\n,,\n3,"c\n')
    with pytest.raises(DataError, match=r"b\.csv row 3: the file ends inside"):
        rows_of(broken)


def test_quoted_values_keep_their_line_breaks(tmp_path):
    text = "\n".join(f"line {n}, of a description" for n in range(20))
    path = write(tmp_path / "v.csv", f'video_id,text\nv,"{text}"\nw,"one ""two"""\n')
    assert rows_of(path) == [{"video_id": "v", "text": text}, {"video_id": "w", "text": 'one "two"'}]


def test_a_quote_open_for_longer_than_a_block_names_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CSV_BLOCK_BYTES", 64)
    path = write(tmp_path / "w.csv", "a,b\n1,2\n3,4\n" + '5,"6\n' + "7,8\n" * 100)
    with pytest.raises(DataError, match=r"w\.csv row 3: .*quote: null"):
        rows_of(path)


@pytest.mark.parametrize("suffix", ["gz", "GZ", "bz2", "zst", "lz4"])
def test_compressed_files_are_read_by_their_suffix(tmp_path, suffix):
    path = tmp_path / f"w.csv.{suffix}"
    codec = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}[suffix.lower()]
    with pa.CompressedOutputStream(str(path), codec) as stream:
        stream.write(TWO.encode())
    assert column_names(path) == ["user_id", "video_id", "timestamp"]
    assert [row["video_id"] for row in rows_of(path)] == ["v", "w"]


def test_every_compressed_file_of_a_folder_is_read(tmp_path):
    write(tmp_path / "log/1.csv", TWO)
    write(tmp_path / "log/2.csv.bz2", bz2.compress(TWO.replace("u,", "b,").encode()))
    write(tmp_path / "log/3.txt.gz", gzip.compress(TWO.replace("u,", "c,").encode()))
    assert kept_of(tmp_path, tmp_path / "log") == 6
    assert read_table(tmp_path / "run/tables", "watches")["user_id"].to_pylist() == ["u", "b", "c", "u", "b", "c"]


@pytest.mark.parametrize("pattern", ["", "/**/*.csv", "/**/day=*/*.csv", "/**/**"])
def test_links_to_folders_are_followed_once_and_loops_end(tmp_path, pattern):
    log = tmp_path / "log"
    for place in ("log/day=1", "elsewhere/deep/day=2", "log/day=3"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.csv").write_text(TWO)
    (log / "archive").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/deep/back").symlink_to(log)
    (log / "up").symlink_to("..")
    (log / "again").symlink_to("day=1")
    (log / "_aside").symlink_to("day=3")
    found = [log / name / "a.csv" for name in ("archive/deep/day=2", "day=1", "day=3")]
    assert find_files(f"{log}{pattern}") == found
    (tmp_path / "link").symlink_to("log")
    assert len(find_files(f"{tmp_path}/link{pattern}")) == 3


@pytest.mark.parametrize("pattern", ["", "/**/*.csv"])
def test_what_cannot_be_read_in_a_folder_is_named_and_not_left_out(tmp_path, pattern, monkeypatch):
    (tmp_path / "log/sub").mkdir(parents=True)
    (tmp_path / "log/sub/1.csv").write_text(TWO)
    (tmp_path / "log/gone.csv").symlink_to(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match=r"log/gone\.csv: expected a file, found a link that leads nowhere; mend or"):
        find_files(f"{tmp_path}/log{pattern}")
    (tmp_path / "log/gone.csv").unlink()
    scandir = data_files.os.scandir

    def refusing(folder):
        if Path(folder).name == "sub":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(data_files.os, "scandir", refusing)
    with pytest.raises(ConfigError, match=r"log/sub: expected a folder .* found none \(Permission denied\); make it"):
        find_files(f"{tmp_path}/log{pattern}")


def test_a_folder_with_files_that_would_be_left_out_is_refused(tmp_path):
    write(tmp_path / "log/1.csv", TWO)
    for silent in ("_SUCCESS", "manifest.json", ".1.csv.crc", "_temporary/2.json"):
        write(tmp_path / "log" / silent, "")
    assert find_files(str(tmp_path / "log")) == [tmp_path / "log/1.csv"]
    write(tmp_path / "log/day=2/2.json", "{}")
    write(tmp_path / "log/3.csv.xz", b"")
    with pytest.raises(ConfigError, match=r"3\.csv\.xz, day=2/2\.json; .*pattern"):
        find_files(str(tmp_path / "log"))
    assert find_files(str(tmp_path / "log/**/*.csv")) == [tmp_path / "log/1.csv"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "cp1252", "utf8"])
def test_names_and_rows_are_in_the_encoding_of_the_file(tmp_path, encoding):
    path = write(tmp_path / "w.csv", "größe,b\n1,ü\n2,é\n".encode(encoding))
    dialect = CsvDialect(encoding=encoding)
    assert column_names(path, dialect) == ["größe", "b"]
    assert rows_of(path, dialect) == [{"größe": "1", "b": "ü"}, {"größe": "2", "b": "é"}]


def test_a_header_may_follow_blank_lines_and_have_line_breaks(tmp_path):
    path = write(tmp_path / "w.csv", '\n\r\n"user\nid",b\n1,2\n,,,\n3,4\n')
    assert column_names(path) == ["user\nid", "b"]
    (chunk,) = read_chunks(path)
    assert chunk.data.to_pylist() == [{"user\nid": "1", "b": "2"}, {"user\nid": "3", "b": "4"}]
    assert (chunk.rows.tolist(), list(chunk.malformed)) == ([1, 3], [(2, ",,,")])


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_a_header_is_said_to_be_empty(tmp_path, content):
    with pytest.raises(DataError, match=r"w\.csv: the file is empty, expected a header line"):
        column_names(write(tmp_path / "w.csv", content))


def test_names_that_end_in_tsv_mean_tabs(tmp_path):
    text = TWO.replace(",", "\t")
    assert kept_of(tmp_path / "plain", write(tmp_path / "w.tsv", text)) == 2
    assert kept_of(tmp_path / "packed", write(tmp_path / "w.TSV.gz", gzip.compress(text.encode()))) == 2
    assert kept_of(tmp_path / "commas", write(tmp_path / "c.tsv", TWO), delimiter=",") == 2


@pytest.mark.parametrize(("delimiter", "shown"), [(";", "';'"), ("\t", r"'\\t'"), ("|", r"'\|'")])
def test_a_wrong_delimiter_is_suspected_where_the_header_is_one_name(tmp_path, delimiter, shown):
    path = write(tmp_path / "w.csv", TWO.replace(",", delimiter))
    with pytest.raises(UpnextError, match=rf"set source\.tables\.watches\.delimiter.* {shown}") as error:
        kept_of(tmp_path, path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_small_file_is_one_chunk_whose_types_are_guessed_from_all_rows(tmp_path, end):
    path = write(tmp_path / "w.csv", "n,letter\n1,a\n2,b\nthree,c" + end)
    assert [chunk.rows.tolist() for chunk in read_chunks(path)] == [[1, 2, 3]]


def test_an_encoding_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"encoding: .*found 'klingon'"):
        column_names(write(tmp_path / "w.csv", TWO), CsvDialect(encoding="klingon"))


def test_half_a_compressed_file_is_no_file(tmp_path):
    content = gzip.compress("".join(f"{n},{n * 7919 % 1000}\n" for n in range(10_000)).encode())
    path = write(tmp_path / "w.csv.gz", content[: len(content) // 2])
    with pytest.raises(DataError, match=r"w\.csv\.gz: cannot be read as CSV \(Truncated"):
        rows_of(path)


def test_a_file_of_another_encoding_than_the_one_given_is_named(tmp_path):
    path = write(tmp_path / "w.csv", "user_id,video_id\nu,é\n")
    with pytest.raises(DataError, match=r"w\.csv: cannot be read as CSV \('ascii' codec can't decode"):
        rows_of(path, CsvDialect(encoding="ascii"))


@pytest.mark.parametrize("text", ["user_id,größe\nu,1\n", "user_id,size\nu,größe\n"])
def test_a_file_that_is_not_utf8_is_told_with_the_setting_of_its_encoding(tmp_path, text):
    path = write(tmp_path / "w.csv", text.encode("latin1"))
    with pytest.raises(DataError, match=r"w\.csv: cannot be read as CSV .*; set the table's encoding to that of the"):
        rows_of(path)


def test_a_file_that_arrow_has_no_way_to_read_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")

    path = tmp_path / "w.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", refuse)
    with pytest.raises(DataError, match=r"w\.parquet: cannot be read as Parquet \(Nested data conversions"):
        rows_of(path)
