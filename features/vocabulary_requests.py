"""What the vocabularies count: requests for columns of tables, and the Beam transform that answers them.

The attributes of videos (uploader, topics, ...) are counted by the watches of their videos, so that an id's row tells
how often it is met in training and not how many videos carry it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import ArtifactError, ConfigError
from features.feature_lists import IdSource
from features.search_tokens import search_tokens
from features.vocabulary import COUNTS, CountIds, Vocabulary, VocabularyConfig, add_counts, count_values


class Only(StrEnum):
    """Which rows of a table are counted. Ids of the others have a row too, counted 0 times: were they left out, "not in
    the vocabulary" would tell a ranker that an impression of the training part was not clicked."""

    ALL = "all"
    CLICKED = "clicked"  # of impressions
    COMPLETED = "completed"  # of watches
    NONE = "none"


@dataclass(frozen=True)
class VocabularyRequest:
    """One column whose values are counted for an id space; a space's requests add up.

    Args:
      space: the id space.
      table, column: where the ids are: text, numbers with a text form, or lists of them.
      only: which rows.
      tokens: count the search tokens of the column's queries in place of its values.
      by_watches: of a column of `videos`: each row counts as often as its video was watched in the training part (or
        clicked, where there is no table of watches). Values of videos that were shown and never watched count 0 times.
    """

    space: str
    table: str
    column: str
    only: Only = Only.ALL
    tokens: bool = False
    by_watches: bool = False

    def __post_init__(self) -> None:
        if self.by_watches and self.table != "videos":
            raise ConfigError(f"vocabulary {self.space!r}: by_watches is for columns of videos, not of {self.table}")


def vocabulary_requests(sources: Iterable[IdSource]) -> tuple[VocabularyRequest, ...]:
    """The requests for the id spaces of the models' features (`features.feature_lists.id_sources`).

    `clicked_video` counts clicked impressions (section 4.1: the order of its rows, and what `top_n` keeps), queries are
    counted by their tokens, attributes of videos by watches, and everything else by rows.
    """
    return tuple(
        VocabularyRequest(
            space,
            table,
            column,
            only=Only.CLICKED if space == "clicked_video" else Only.ALL,
            tokens=(table, column) == ("searches", "query"),
            by_watches=table == "videos",
        )
        for space, table, column in sources
    )


class WriteVocabularies(beam.PTransform):
    """(table name, batch of the training part) -> `<space>.parquet` for every space with ids.

    Args:
      requests: what to count.
      configs: space -> which ids get a row.
      folder: where the files go.
      counted_by: the event table that `by_watches` counts: watches, else impressions (their clicks).
    """

    def __init__(
        self,
        requests: Sequence[VocabularyRequest],
        configs: Mapping[str, VocabularyConfig],
        folder: Path,
        counted_by: str | None,
    ) -> None:
        super().__init__()
        self._by_rows = [request for request in requests if not request.by_watches]
        self._by_watches = [request for request in requests if request.by_watches]
        self._configs, self._folder, self._counted_by = dict(configs), folder, counted_by
        if self._by_watches and counted_by is None:
            raise ArtifactError("expected a table of watches or impressions to count by, found none; ingest one")

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        counts = batches | "Count" >> beam.FlatMap(count_ids, self._by_rows) | "AddUp" >> beam.CombinePerKey(CountIds())
        if self._by_watches:
            counts = (counts, self._attributes(batches)) | "Both" >> beam.Flatten()
            counts = counts | "AddBoth" >> beam.CombinePerKey(CountIds())
        return counts | "Write" >> beam.Map(_write_vocabulary, self._configs, self._folder)

    def _attributes(self, batches: beam.PCollection) -> beam.PCollection:
        by_watches = self._counted_by == "watches"
        watches = [
            *([VocabularyRequest("video", "watches", "video_id")] if by_watches else []),
            VocabularyRequest("video", "impressions", "video_id", Only.NONE if by_watches else Only.CLICKED),
        ]
        weights = (
            batches
            | "CountWatches" >> beam.FlatMap(count_ids, watches)
            | beam.Values()
            | "AddWatches" >> beam.CombineGlobally(CountIds())
        )
        columns = ["video_id", *dict.fromkeys(request.column for request in self._by_watches)]
        # What waits for the watches is kept aside by the runner, so only these columns go there.
        videos = batches | "Videos" >> beam.FlatMap(_columns_of_videos, columns)
        return videos | "CountByWatches" >> beam.FlatMap(
            count_weighted, self._by_watches, beam.pvalue.AsSingleton(weights)
        )


def _columns_of_videos(table: tuple[str, pa.Table], columns: Sequence[str]) -> Iterator[pa.Table]:
    name, batch = table
    if name == "videos":
        yield batch.select(columns)


def count_ids(table: tuple[str, pa.Table], requests: Sequence[VocabularyRequest]) -> Iterator[tuple[str, pa.Table]]:
    """(space, counts of schema `COUNTS`) of every request on the table of this name and batch."""
    name, batch = table
    for request in requests:
        if request.table != name:
            continue
        values = search_tokens(batch[request.column]) if request.tokens else batch[request.column]
        counts = count_values(values)
        if request.only != Only.ALL:
            counts = counts.set_column(1, COUNTS.field(1), pa.array(np.zeros(len(counts), np.int64)))
        if request.only in (Only.CLICKED, Only.COMPLETED):
            chosen = values.filter(pc.fill_null(batch[request.only.value], False))
            counts = add_counts([counts, count_values(chosen)])
        yield request.space, counts


def count_weighted(
    batch: pa.Table, requests: Sequence[VocabularyRequest], weights: pa.Table
) -> Iterator[tuple[str, pa.Table]]:
    """(space, counts) of columns of `videos`, each row weighing its video's count in `weights` (schema `COUNTS`).

    Videos that are not there are left out.
    """
    found = pc.index_in(batch["video_id"], value_set=weights["id"].combine_chunks())
    batch = batch.filter(pc.is_valid(found))
    weight = weights["count"].take(pc.drop_null(found))
    for request in requests:
        values, of_value = batch[request.column], weight
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            of_value = weight.take(pc.list_parent_indices(values))
            values = pc.list_flatten(values)
        counts = pa.Table.from_arrays([values.cast(pa.string()), of_value.cast(pa.int64())], schema=COUNTS)
        named = pc.and_(pc.is_valid(counts["id"]), pc.not_equal(counts["id"], ""))
        yield request.space, add_counts([counts.filter(named)])


def _write_vocabulary(counted: tuple[str, pa.Table], configs: Mapping[str, VocabularyConfig], folder: Path) -> None:
    space, counts = counted
    Vocabulary.from_counts(counts, configs[space]).write(folder / f"{space}.parquet")
