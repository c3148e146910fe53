"""From a shard's strings to rows and numbers: what the example jobs look up in vocabularies and in the catalogue."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import ConfigError
from features.event_windows import ORDER_ONLY, Events
from features.history import VideoTable
from features.search_tokens import search_tokens
from features.shards import EventRows
from features.spec import Feature, Kind
from features.vocabulary import Vocabulary


@dataclass(frozen=True)
class Encoder:
    """Looks up ids.

    Args:
      vocabularies: id space → vocabulary.
      catalogue: the encoded catalogue, one row per video; its row number is the video's position.
      videos: what history needs of it.
    """

    vocabularies: Mapping[str, Vocabulary]
    catalogue: pa.Table
    videos: VideoTable

    def positions(self, video_ids: pa.Array) -> np.ndarray:
        """int32 `[n]`: position of each video in the catalogue, -1 where it does not hold it."""
        found = pc.index_in(video_ids, self.catalogue["video_id"].combine_chunks())
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False)

    def events(self, rows: EventRows | None, users: int) -> Events:
        """The rows of an event table as history joins them."""
        if rows is None:
            return Events.none(users)
        table = rows.table
        columns = set(table.column_names)
        tokens, token_offsets = (
            self._tokens(table) if "query" in columns and "search_token" in self.vocabularies else (None, None)
        )
        video = self.positions(_array(table["video_id"])) if "video_id" in columns else np.full(len(table), -1)
        return Events(
            rows.offsets,
            rows.time_us,
            video.astype(np.int32),
            numbers(table["watch_time_s"]) if "watch_time_s" in columns else None,
            numbers(table["clicked"]) if "clicked" in columns else None,
            tokens,
            token_offsets,
        )

    def _tokens(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        tokens = search_tokens(_array(table["query"]))
        rows = self.vocabularies["search_token"].lookup(tokens.flatten())
        return rows, tokens.offsets.to_numpy().astype(np.int64)

    def column(self, feature: Feature, column: pa.ChunkedArray) -> pa.Array:
        """A raw column as the feature's values: `feature.arrow_type` `[n]`.

        Scalars: rows of the id space (0 where null or out of vocabulary), or float32 (NaN where null). Bags keep the
        first `max_length` values. A list under a continuous feature gives its largest value (the best score).
        """
        values = _array(column)
        is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        if feature.kind == Kind.CONTINUOUS:
            return pa.array(_largest(values) if is_list else numbers(values))
        vocabulary = self.vocabularies[str(feature.id_space)]
        if not feature.multivalent:
            return pa.array(vocabulary.lookup(values.cast(pa.string())))
        if not is_list:
            lengths = values.is_valid().cast(pa.int32()).to_numpy(zero_copy_only=False)
            return _lists(vocabulary.lookup(values.drop_null().cast(pa.string())), lengths)
        return first_of_lists(_map_lists(values, vocabulary), int(feature.max_length or 0))

    def video_column(self, feature: Feature) -> pa.Array:
        """A feature of videos, `feature.arrow_type` `[videos + 1]` by position; the last is of no video."""
        name = feature.source.removeprefix("videos.")
        if name == "video_id":
            return pa.array(self.videos.rows[str(feature.id_space)])
        if name not in self.catalogue.column_names:
            raise ConfigError(f"feature {feature.name!r}: the catalogue has no column {name!r}; run the analysis again")
        if feature.kind == Kind.CONTINUOUS:
            raw = f"{name}_raw"  # there are rows in `name` where another feature has the column as categorical
            values = _array(self.catalogue[raw if raw in self.catalogue.column_names else name])
            return pa.array(_and_absent(numbers(values), np.nan))
        values = _array(self.catalogue[name])
        if feature.multivalent:
            lists = first_of_lists(values, int(feature.max_length or 0))
            return pa.concat_arrays([lists, pa.array([[]], lists.type)]).cast(feature.arrow_type)
        return pa.array(_and_absent(values.to_numpy(), 0))


def numbers(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """float32 `[n]` of a number or boolean column, NaN where null."""
    values = _array(values)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return pc.fill_null(values.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False).astype(np.float32)


def padded_rows(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A column of rows, 0 where null, or of lists of rows padded with 0: int32 `[n]` or `[n, longest]`."""
    values = _array(column)
    if not pa.types.is_list(values.type):
        return pc.fill_null(values, 0).to_numpy(zero_copy_only=False).astype(np.int32)
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    padded = np.zeros((len(lengths), max(int(lengths.max(initial=0)), 1)), np.int32)
    padded[np.arange(padded.shape[1]) < lengths[:, np.newaxis]] = values.flatten().to_numpy(zero_copy_only=False)
    return padded


def first_of_lists(lists: pa.ListArray, length: int) -> pa.ListArray:
    """The first `length` values of every list; a null list becomes empty."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    if lists.null_count == 0 and lengths.max(initial=0) <= length:
        return lists
    rank = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return _lists(lists.flatten().to_numpy(zero_copy_only=False)[rank < length], np.minimum(lengths, length))


def _map_lists(values: pa.ListArray, vocabulary: Vocabulary) -> pa.ListArray:
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    return _lists(vocabulary.lookup(values.flatten().cast(pa.string())), lengths)


def _lists(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.int32)))


def _largest(values: pa.ListArray) -> np.ndarray:
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    largest = np.full(len(values), np.nan, np.float32)
    scores = np.append(numbers(values.flatten()), np.float32(np.nan))
    starts = np.cumsum(lengths) - lengths
    if lengths.any():
        largest[lengths > 0] = np.fmax.reduceat(scores, starts[lengths > 0])
    return largest


def _array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def load_encoder(features: Path) -> Encoder:
    """The encoder of a run's published `features` folder.

    Args:
      features: holds `vocabularies/<space>.parquet` and `catalogue/catalogue.parquet`.
    """
    files = sorted((features / "vocabularies").glob("*.parquet"))
    vocabularies = {file.stem: Vocabulary.read(file) for file in files}
    return make_encoder(vocabularies, pq.read_table(features / "catalogue" / "catalogue.parquet"))


def make_encoder(vocabularies: Mapping[str, Vocabulary], catalogue: pa.Table) -> Encoder:
    """The encoder of these vocabularies and this catalogue."""
    columns = set(catalogue.column_names)
    return Encoder(
        vocabularies,
        catalogue,
        VideoTable(
            rows={
                space: _and_absent(catalogue[space].to_numpy(), 0)
                for space in ("video", "clicked_video")
                if space in columns
            },
            uploader=_and_absent(catalogue["uploader_id"].to_numpy(), 0) if "uploader_id" in columns else None,
            topics=_topics(catalogue["topics"]) if "topics" in columns else None,
            upload_us=_and_absent(_upload_us(catalogue), ORDER_ONLY) if "upload_time" in columns else None,
        ),
    )


def _and_absent(values: np.ndarray, absent: float) -> np.ndarray:
    return np.append(values, np.asarray(absent, values.dtype))


def _upload_us(catalogue: pa.Table) -> np.ndarray:
    times = _array(catalogue["upload_time"]).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return pc.fill_null(times, ORDER_ONLY).to_numpy(zero_copy_only=False)


def _topics(lists: pa.ChunkedArray) -> np.ndarray:
    """int32 `[videos + 1, most topics]`, padded with 0; the last row is of no video."""
    return np.pad(padded_rows(lists), [(0, 1), (0, 0)])
