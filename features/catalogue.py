"""The catalogue: every video with its rows and its encoded attributes, in the order of the index.

One row per video: first the videos of the `video` vocabulary by their row (so that their position is their class), then
all others by the bytes of their id. A video is in it when it is in that vocabulary, in the table of videos, in watches
or in impressions.

Columns: `video_id`; `video` and `clicked_video` (int32 rows of those id spaces, where they exist); every column c of
the table of videos by its type:

- text, or the source of a categorical feature: `c` int32 rows of the feature's id space (list<int32> for lists; absent
  where no feature uses it), and `c_raw` the values themselves;
- numbers (decimals too) and booleans: `c` float32, NaN where missing;
- times: `c` as timestamp.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.artifacts import publish
from features.errors import ConfigError, DataError
from features.history import REQUIREMENTS, derivation_of
from features.spec import Feature, FeatureSpec, Kind
from features.tables import has_table, read_table, table_batches
from features.vocabulary import Vocabulary, serving_row

VIDEO_SPACES = ("video", "clicked_video")
"""Id spaces whose ids are video ids."""

HISTORY_SPACES = {"uploader_id": "uploader", "topics": "topic"}
"""Columns of videos that derivations of the history compare, whether or not a feature shows them to a model, and the id
spaces they have unless a feature gives them another."""


def build_catalogue(
    tables: Path,
    output: Path,
    vocabularies: Mapping[str, Vocabulary],
    specs: Iterable[FeatureSpec],
    manifest: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Publishes `<output>/catalogue/catalogue.parquet`; the manifest counts its videos by where they are known from.

    Args:
      tables: the run's canonical tables; that of videos may be absent.
      output: the run's `features` folder.
      vocabularies: id space -> vocabulary, with at least one of `VIDEO_SPACES`.
      specs: the models' features; those of source `videos.*` say which columns are encoded.
      manifest: entries to add to the manifest.

    Returns:
      The catalogue, with the columns of the module's text.

    Raises:
      ConfigError: two features want one column in different id spaces, a feature's space has no vocabulary, or its
        serving value is not in it.
      DataError: there is no video at all.
    """
    specs = tuple(specs)
    for feature in (feature for spec in specs for feature in spec.kind(Kind.CATEGORICAL)):
        if feature.serving_value is not None:
            serving_row(feature, vocabularies)  # told now, long before a model with it is exported
    videos = read_table(tables, "videos") if has_table(tables, "videos") else None
    listed = videos["video_id"] if videos is not None else pa.chunked_array([], pa.string())
    space = next((space for space in VIDEO_SPACES if space in vocabularies), None)
    if space is None:
        raise ConfigError(f"catalogue: expected a vocabulary of {' or '.join(VIDEO_SPACES)}, found none")
    ids = _in_order(_video_ids(tables, [listed, vocabularies[space].ids]), vocabularies[space])
    if len(ids) == 0:
        raise DataError(f"{tables}: expected videos in videos, watches or impressions, found none; check the source")
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"video_id": ids}
    for space in VIDEO_SPACES:
        if space in vocabularies:
            columns[space] = pa.array(vocabularies[space].lookup(ids))
    known = pc.index_in(ids, value_set=listed.combine_chunks())
    if videos is not None:
        clashing = sorted(set(VIDEO_SPACES) & set(videos.column_names))
        if clashing:
            raise ConfigError(
                f"videos: a column named {clashing[0]!r} clashes with that id space; map it to another name"
            )
        attributes = videos.drop_columns("video_id").take(known)  # null where the table has no such video
        columns |= _encoded(attributes, _spaces(specs, attributes.column_names, vocabularies), vocabularies)
    counts = {"videos": len(ids), "not_in_videos_table": known.null_count}
    counts |= {f"in_{space}": int((columns[space].to_numpy() > 0).sum()) for space in VIDEO_SPACES if space in columns}
    with publish(Path(output) / "catalogue", {"counts": counts, **(manifest or {})}) as folder:
        pq.write_table(pa.table(columns), folder / "catalogue.parquet")
    return pa.table(columns)


def _video_ids(tables: Path, listed: Iterable[pa.Array | pa.ChunkedArray]) -> pa.Array:
    """Every video id of `listed` and of the event tables, once."""
    ids = pc.unique(pa.chunked_array([chunk for column in listed for chunk in _chunks(column)], pa.string()))
    for name in ("watches", "impressions"):
        if has_table(tables, name):
            for batch in table_batches(tables, name, ["video_id"], rows=1 << 23, dictionaries=True):
                ids = pc.unique(pa.chunked_array([ids, *(chunk.dictionary for chunk in batch["video_id"].chunks)]))
    return ids.filter(pc.not_equal(ids, ""))


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _in_order(ids: pa.Array, vocabulary: Vocabulary) -> pa.Array:
    row = vocabulary.lookup(ids)
    keys = pa.table({"row": np.where(row == 0, np.iinfo(np.int32).max, row), "id": ids})
    return ids.take(pc.sort_indices(keys, sort_keys=[("row", "ascending"), ("id", "ascending")]))


def _spaces(specs: Iterable[FeatureSpec], columns: Collection[str], vocabularies: Collection[str]) -> dict[str, str]:
    """Column of videos -> the id space that encodes it."""
    spaces: dict[str, str] = {}
    shown = [(feature, column) for spec in specs for feature in spec.features for column in _columns_shown_by(feature)]
    for feature, column in shown:
        space = str(feature.id_space)
        if spaces.setdefault(column, space) != space:
            raise ConfigError(
                f"feature {feature.name!r}: id space {space!r} for videos.{column}, but another feature has it in "
                f"{spaces[column]!r}; give both one id_space"
            )
        if space not in vocabularies:
            raise ConfigError(f"feature {feature.name!r}: expected a vocabulary {space!r}; run the analysis again")
    for column, space in HISTORY_SPACES.items():
        if column in columns and space in vocabularies:
            spaces.setdefault(column, space)
    return spaces


def _columns_shown_by(feature: Feature) -> tuple[str, ...]:
    """The columns of videos whose rows are the feature's values, but for the videos themselves."""
    room, name = feature.source.split(".", 1)
    if feature.kind != Kind.CATEGORICAL:
        return ()
    if room == "history":
        return tuple(column for table, column in REQUIREMENTS[derivation_of(name)].columns if table == "videos")
    return (name,) if room == "videos" and name != "video_id" else ()


def _encoded(
    attributes: pa.Table, spaces: Mapping[str, str], vocabularies: Mapping[str, Vocabulary]
) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    for name, column in zip(attributes.column_names, attributes.columns, strict=True):
        values = column.combine_chunks()
        if name in spaces:
            columns[name] = _rows(values, vocabularies[spaces[name]])
        if name in spaces or _is_text(values.type):
            columns[f"{name}_raw"] = values
        elif pa.types.is_timestamp(values.type):
            columns[name] = values
        elif pa.types.is_boolean(values.type):
            columns[name] = _numbers(values.cast(pa.uint8()))
        elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
            columns[name] = _numbers(values)
    return columns


def _is_text(dtype: pa.DataType) -> bool:
    return _is_list(dtype) or pa.types.is_string(dtype) or pa.types.is_large_string(dtype)


def _is_list(dtype: pa.DataType) -> bool:
    return pa.types.is_list(dtype) or pa.types.is_large_list(dtype)


def _numbers(values: pa.Array) -> pa.Array:
    # By float64: Arrow casts a decimal 0.1 to the float32 beside the nearest.
    return pc.fill_null(values.cast(pa.float64(), safe=False).cast(pa.float32(), safe=False), np.nan)


def _rows(values: pa.Array, vocabulary: Vocabulary) -> pa.Array:
    """int32 rows, or lists of them (empty where null)."""
    if not _is_list(values.type):
        return pa.array(vocabulary.lookup(values.cast(pa.string())))
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    items = vocabulary.lookup(values.flatten().cast(pa.string()))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(items, pa.int32()))
