"""The data contract: canonical tables as Arrow schemas.

Tables are Parquet, partitioned by UTC day (`<table>/day=YYYY-MM-DD/part-*.parquet`; users and videos are not
partitioned; event rows whose time is not known are under `day=unknown`).

Conventions: times are UTC; `*_s` are seconds; ids are non-empty UTF-8 strings without line breaks. A row with
`time_known = false` has a null timestamp and comes before every timed row of its user, ordered by `order`; it may be
history, never a label. `order` also breaks ties between rows of equal time (the order of the source). A column that
the source does not have is absent from the table. Any further column of a source may stand beside these.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from features.errors import ArtifactError

TIMESTAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Table:
    """A canonical table: its required and optional columns."""

    name: str
    required: pa.Schema
    optional: pa.Schema
    partitioned: bool = True

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*self.required, *self.optional])


_ORDER = [pa.field("time_known", pa.bool_()), pa.field("order", pa.int64())]

WATCHES = Table(
    "watches",
    pa.schema([("user_id", pa.string()), ("video_id", pa.string()), ("timestamp", TIMESTAMP)]),
    pa.schema(
        [
            ("watch_time_s", pa.float64()),
            ("completed", pa.bool_()),
            ("page", pa.string()),
            ("device", pa.string()),
            ("origin", pa.string()),  # recommended, search, external
            ("impression_id", pa.string()),
            *_ORDER,
        ]
    ),
)

IMPRESSIONS = Table(
    "impressions",
    pa.schema(
        [
            ("user_id", pa.string()),
            ("video_id", pa.string()),
            ("timestamp", TIMESTAMP),
            ("clicked", pa.bool_()),  # null only where time_known is false
        ]
    ),
    pa.schema(
        [
            ("watch_time_s", pa.float64()),
            ("page", pa.string()),
            ("device", pa.string()),
            ("position", pa.int64()),
            ("request_id", pa.string()),
            ("impression_id", pa.string()),
            ("seed_video_id", pa.string()),
            ("candidate_sources", pa.list_(pa.string())),
            ("candidate_scores", pa.list_(pa.float64())),
            *_ORDER,
        ]
    ),
)

SEARCHES = Table(
    "searches",
    pa.schema([("user_id", pa.string()), ("timestamp", TIMESTAMP), ("query", pa.string())]),
    pa.schema([*_ORDER]),
)

USERS = Table(
    "users",
    pa.schema([("user_id", pa.string())]),
    pa.schema(
        [
            ("region", pa.string()),
            ("gender", pa.float64()),  # in [0, 1]; null when not known
            ("age", pa.float64()),  # years
            ("logged_in", pa.bool_()),
            ("language", pa.string()),
        ]
    ),
    partitioned=False,
)

VIDEOS = Table(
    "videos",
    pa.schema([("video_id", pa.string())]),
    pa.schema(
        [
            ("uploader_id", pa.string()),
            ("upload_time", TIMESTAMP),
            ("duration_s", pa.float64()),
            ("language", pa.string()),
            ("topics", pa.list_(pa.string())),
            ("available", pa.bool_()),  # false keeps a video out of the index
        ]
    ),
    partitioned=False,
)

TABLES = {table.name: table for table in (WATCHES, IMPRESSIONS, SEARCHES, USERS, VIDEOS)}


def table_files(folder: Path, name: str) -> list[Path]:
    """The part files of table `name` under `folder` (the run's `tables`): order-only rows first, then by day."""
    files = (Path(folder) / name).rglob("part-*.parquet")
    return sorted(files, key=lambda file: ("day=unknown" not in file.parts, str(file)))


def has_table(folder: Path, name: str) -> bool:
    """Whether table `name` is there."""
    return any((Path(folder) / name).rglob("part-*.parquet"))


def table_columns(folder: Path, name: str) -> list[str]:
    """The columns of table `name`, the same in all its parts.

    Raises:
      ArtifactError: there is no such table.
    """
    return list(table_types(folder, name))


def table_types(folder: Path, name: str) -> dict[str, pa.DataType]:
    """The columns of table `name` and their types, the same in all its parts.

    Raises:
      ArtifactError: there is no such table.
    """
    schema = pq.read_schema(_required_files(folder, name)[0])
    return dict(zip(schema.names, schema.types, strict=True))


def read_table(folder: Path, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads table `name` whole, in the order of `table_files`; meant for users and videos and for small logs.

    Args:
      folder: the run's `tables` folder.
      name: one of `TABLES`.
      columns: the columns to read; None for all.

    Raises:
      ArtifactError: there is no such table, or it lacks one of `columns`.
    """
    files = _required_files(folder, name)
    if columns is not None:
        absent = sorted(set(columns) - set(table_columns(folder, name)))
        if absent:
            raise ArtifactError(f"{folder}/{name}: no column {', '.join(absent)}; make the source provide it")
    dataset = ds.dataset([str(file) for file in files], format="parquet")
    return dataset.to_table(columns=None if columns is None else list(columns))


def table_batches(
    folder: Path, name: str, columns: Sequence[str], rows: int = 1 << 20, dictionaries: bool = False
) -> Iterator[pa.Table]:
    """Columns of table `name` in the order of `table_files`, some `rows` rows at a time, over however many files.

    Args:
      folder, name, columns: as of `read_table`.
      rows: held at a time.
      dictionaries: read text columns as dictionaries, which is faster where values are only counted.

    Raises:
      ArtifactError: there is no such table.
    """
    text = ds.ParquetFileFormat(dictionary_columns=list(columns) if dictionaries else None)
    dataset = ds.dataset([str(file) for file in _required_files(folder, name)], format=text)
    waiting: list[pa.RecordBatch] = []
    held = 0
    for batch in dataset.to_batches(columns=list(columns)):
        waiting.append(batch)
        held += batch.num_rows
        if held >= rows:
            yield pa.Table.from_batches(waiting)
            waiting, held = [], 0
    if held:
        yield pa.Table.from_batches(waiting)


def _required_files(folder: Path, name: str) -> list[Path]:
    files = table_files(folder, name)
    if not files:
        raise ArtifactError(
            f"{folder}: expected table {name!r}, found none; run the ingest stage with a source that has it"
        )
    return files
