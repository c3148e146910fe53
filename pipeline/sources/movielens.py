"""MovieLens (Harper and Konstan 2015) through tensorflow-datasets: each rating is a watch.

tensorflow-datasets provides the addresses, checksums, download cache, manual placement and extraction; the extracted
tables are read by columns. (Its own preparation writes one record per rating, 0.3 ms each or two hours for 25m, and
stops at the first bad row.) The rating is kept as a further column of watches, title as one of videos.
"""

import threading
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.artifacts import file_sha256
from features.errors import ConfigError, DataError
from features.settings import Settings
from pipeline.sources.conversion import plain
from pipeline.sources.readers import CsvDialect, FileChunk, column_names, read_chunks
from pipeline.sources.source import RawChunk, Unit, file_fingerprints, nearest

Version = Literal["latest-small", "100k", "1m", "20m", "25m"]

_UNITS: dict[str, Unit] = {"timestamp": "s"}
_TYPES = {"rating": pa.float64()}
# The flags of u.item in their order; the first means that no genre is known.
_GENRES_100K = (
    "", "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


class MovieLensConfig(Settings):
    """MovieLens as a source."""

    kind: Literal["movielens"] = "movielens"
    version: Version = Field(default="latest-small", description="which MovieLens data set")
    archive: str | None = Field(
        default=None, description="a MovieLens zip archive, or a folder with its files, to read as it is"
    )
    data_dir: str = Field(
        default="~/tensorflow_datasets", description="folder of tensorflow-datasets; archives are under its downloads/"
    )
    verify_checksum: bool = Field(
        default=True, description="refuse an archive in data_dir that is not GroupLens' own, byte for byte"
    )
    connect_timeout_s: float = Field(default=10.0, gt=0, description="seconds until the download is given up")


@dataclass(frozen=True)
class MovieLensSource:
    """Reads what a `MovieLensConfig` names."""

    config: MovieLensConfig
    _opened: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def tables(self) -> Mapping[str, Iterator[RawChunk]]:
        """Watches and videos; users too where there are demographics (100k, 1m).

        Raises:
          ConfigError: there is no such archive, or it holds something else.
          DataError: the download cannot be reached, the archive is damaged or not GroupLens' own.
        """
        folder = self._folder()
        if self.config.version == "100k":
            return {"watches": _ratings_100k(folder), "videos": _movies_100k(folder), "users": _users_100k(folder)}
        if self.config.version == "1m":
            return {"watches": _ratings_1m(folder), "videos": _movies_1m(folder), "users": _users_1m(folder)}
        return {"watches": _ratings(folder), "videos": _movies(folder)}

    def fingerprint(self) -> dict[str, Any]:
        files = {entry.pop("name"): entry for entry in file_fingerprints(_tables_in(self._folder(), self.config))}
        return {"source": "movielens", "version": self.config.version, "files": files}

    def _folder(self) -> Path:
        """The folder with the extracted files; a configured archive is extracted for the life of this object."""
        if "folder" not in self._opened:
            extracted = self._extract_given() if self.config.archive else _fetch(self.config)
            self._opened["folder"] = _tables_in(extracted, self.config)[0].parent
        return self._opened["folder"]

    def _extract_given(self) -> Path:
        given = Path(self.config.archive or "").expanduser()
        if given.is_dir():
            return given
        if not given.is_file():
            raise ConfigError(f"{given}: no such archive (looked for {given.absolute()}); correct source.archive")
        self._opened["temporary"] = TemporaryDirectory(prefix="movielens-")
        target = Path(self._opened["temporary"].name)
        try:
            with zipfile.ZipFile(given) as archive:
                archive.extractall(target)
        except zipfile.BadZipFile as error:
            raise DataError(f"{given}: not a readable zip archive ({error}); download it again") from error
        return target


def _fetch(config: MovieLensConfig) -> Path:
    """Downloads (or finds) and extracts the archive by tensorflow-datasets."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError
    from tensorflow_datasets.core.download.resource import get_dl_fname

    builder = tfds.builder_cls("movielens")
    (url,) = {c.download_url for c in builder.BUILDER_CONFIGS if c.name == f"{config.version}-ratings"}
    info = builder.url_infos[url]
    downloads = Path(config.data_dir).expanduser() / "downloads"
    manual = downloads / "manual" / info.filename
    cached = [downloads / sub / get_dl_fname(url, info.checksum) for sub in ("movielens", ".")]
    by_hand = f"download {url} elsewhere and place it as {manual}, or name the file with source.archive"
    present = manual.is_file() or any(path.is_file() for path in cached)
    if manual.is_file():
        found = file_sha256(manual)
        if not config.verify_checksum:
            info = tfds.core.download.checksums.UrlInfo(
                size=tfds.core.units.Size(manual.stat().st_size), checksum=found, filename=info.filename
            )
        identity = found
    else:
        identity = info.checksum
        if not present:
            _require_reachable(url, config.connect_timeout_s, by_hand)
    manager = tfds.download.DownloadManager(
        download_dir=downloads,
        extract_dir=downloads / "extracted" / identity[:16],  # an exchanged archive is extracted anew
        manual_dir=manual.parent,
        url_infos={url: info},
        dataset_name="movielens",
    )
    tfds.display_progress_bar(not present)
    try:
        return Path(manager.download_and_extract(url))
    except NonMatchingChecksumError as error:
        raise DataError(
            f"{manual if manual.is_file() else url}: not the archive that GroupLens published (expected sha256 "
            f"{info.checksum[:16]}... of {info.size}); download it again, or set source.verify_checksum=false if it "
            f"was zipped anew on purpose"
        ) from error
    except (OSError, tfds.download.DownloadError, ExtractError, zipfile.BadZipFile, ValueError) as error:
        what = f"{manual}: cannot be extracted" if manual.is_file() else f"{url}: download or extraction failed"
        raise DataError(f"{what} ({' '.join(str(error).split())[:200]}); try again, or {by_hand}") from error


def _require_reachable(url: str, timeout_s: float, by_hand: str) -> None:
    """Asks for the header first: the downloader itself would try ten times, for minutes."""
    outcome: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout_s):
                outcome.append("")
        except (OSError, ValueError) as error:
            outcome.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)  # name resolution has no time-out of its own
    thread.start()
    thread.join(timeout_s)
    reason = outcome[0] if outcome else f"no answer within {timeout_s:g} s"
    if reason:
        raise DataError(f"{url}: cannot be reached ({reason}); {by_hand}")


def _tables_in(folder: Path, config: MovieLensConfig) -> list[Path]:
    """The table files, which may lie in a folder of their own within the archive."""
    wanted = {
        "100k": ("u.data", "u.item", "u.user"),
        "1m": ("ratings.dat", "movies.dat", "users.dat"),
    }.get(config.version, ("ratings.csv", "movies.csv"))
    home = next((path.parent for path in sorted(folder.rglob(wanted[0]))), folder)
    for name in wanted:
        if not (home / name).is_file():
            found = sorted(path.name for path in folder.rglob("*") if path.is_file())
            raise ConfigError(
                f"{config.archive or folder}: MovieLens {config.version} has {', '.join(wanted)}; {name} is missing, "
                f"{nearest(name, found)}; correct source.archive or source.version"
            )
    return [home / name for name in wanted]


def _raw(chunk: FileChunk, columns: Mapping[str, Any], separators: Mapping[str, str] | None = None) -> RawChunk:
    data = pa.table(dict(columns))
    types = {name: kind for name, kind in _TYPES.items() if name in columns}
    return RawChunk(data, str(chunk.path), chunk.rows, _UNITS, separators or {}, types, chunk.malformed)


def _renamed(path: Path, columns: Mapping[str, str], separators: Mapping[str, str] | None = None) -> Iterator[RawChunk]:
    present = column_names(path)
    for name in columns.values():
        if name not in present:
            raise DataError(f"{path}: no column {name!r}, {nearest(name, present)}; is this MovieLens' file?")
    for chunk in read_chunks(path, list(columns.values())):
        yield _raw(chunk, {name: chunk.data[column] for name, column in columns.items()}, separators)


def _ratings(folder: Path) -> Iterator[RawChunk]:
    columns = {"user_id": "userId", "video_id": "movieId", "timestamp": "timestamp", "rating": "rating"}
    return _renamed(folder / "ratings.csv", columns)


def _movies(folder: Path) -> Iterator[RawChunk]:
    columns = {"video_id": "movieId", "title": "title", "topics": "genres"}
    for chunk in _renamed(folder / "movies.csv", columns, {"topics": "|"}):
        genres = plain(chunk.data["topics"])[0]
        known = pc.if_else(pc.equal(genres, "(no genres listed)"), None, genres)
        data = chunk.data.set_column(chunk.data.column_names.index("topics"), "topics", known)
        yield RawChunk(data, chunk.origin, chunk.rows, chunk.units, chunk.separators, chunk.types, chunk.malformed)


def _ratings_100k(folder: Path) -> Iterator[RawChunk]:
    names = ["user_id", "video_id", "rating", "timestamp"]
    return _headless(folder / "u.data", "\t", names, names)


def _movies_100k(folder: Path) -> Iterator[RawChunk]:
    flags = [f"genre{number}" for number in range(len(_GENRES_100K))]
    header = ["video_id", "title", "released", "video_released", "address", *flags]
    for chunk in read_chunks(folder / "u.item", dialect=_text("|", header)):
        named = [
            pc.if_else(pc.equal(chunk.data[flag], "1"), genre, "")
            for flag, genre in zip(flags, _GENRES_100K, strict=True)
        ]
        topics = pc.binary_join_element_wise(*named, "|", null_handling="skip")
        columns = {"video_id": chunk.data["video_id"], "title": chunk.data["title"], "topics": topics}
        yield _raw(chunk, columns, {"topics": "|"})


def _users_100k(folder: Path) -> Iterator[RawChunk]:
    header = ["user_id", "age", "gender", "occupation", "zip_code"]
    for chunk in read_chunks(folder / "u.user", dialect=_text("|", header)):
        yield _raw(chunk, {**_by_name(chunk, header), "gender": _gender(chunk.data["gender"])})


def _ratings_1m(folder: Path) -> Iterator[RawChunk]:
    header = ["user_id", "_1", "video_id", "_2", "rating", "_3", "timestamp"]
    return _headless(folder / "ratings.dat", ":", header, ["user_id", "video_id", "rating", "timestamp"])


def _movies_1m(folder: Path) -> Iterator[RawChunk]:
    # Titles contain colons: the line is read whole and split at its first and last "::".
    for chunk in read_chunks(folder / "movies.dat", dialect=_text("\x01", ["line"])):
        line = plain(chunk.data["line"])[0]
        parts = pc.extract_regex(line, r"^(?P<video_id>[^:]+)::(?P<title>.*)::(?P<topics>[^:]*)$")
        genres = pc.replace_substring(pc.struct_field(parts, "topics"), "Children's", "Children")
        columns = {name: pc.struct_field(parts, name) for name in ("video_id", "title")}
        yield _raw(chunk, {**columns, "topics": genres}, {"topics": "|"})


def _users_1m(folder: Path) -> Iterator[RawChunk]:
    """Ages are the lowest of their bracket (1, 18, 25, 35, 45, 50, 56); occupations are codes."""
    names = ["user_id", "gender", "age", "occupation", "zip_code"]
    header = [name for number, each in enumerate(names) for name in (each, f"_{number}")][:-1]
    for chunk in read_chunks(folder / "users.dat", names, _text(":", header)):
        yield _raw(chunk, {**_by_name(chunk, names), "gender": _gender(chunk.data["gender"])})


def _headless(path: Path, delimiter: str, header: list[str], names: list[str]) -> Iterator[RawChunk]:
    for chunk in read_chunks(path, names, _text(delimiter, header)):
        yield _raw(chunk, _by_name(chunk, names))


def _by_name(chunk: FileChunk, names: list[str]) -> dict[str, Any]:
    return {name: chunk.data[name] for name in names}


def _text(delimiter: str, header: list[str]) -> CsvDialect:
    return CsvDialect(delimiter, quote=None, encoding="latin1", header=header)


def _gender(column: pa.ChunkedArray) -> pa.Array:
    """F is 0 and M is 1, as in tensorflow-datasets."""
    text = plain(column)[0]
    numbers = pa.array(["0", "1"]).take(pc.index_in(text, value_set=pa.array(["F", "M"])))
    return pc.coalesce(numbers, text)
