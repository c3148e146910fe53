"""What the vocabularies count: requests for columns of tables, and the Beam transform that answers them.

The attributes of videos (uploader, topics, ...) are counted by the watches of their videos, so that an id's row tells
how often it is met in training and not how many videos carry it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.typehints.decorators import no_annotations

from features.errors import ArtifactError, ConfigError
from features.feature_lists import IdSource
from features.search_tokens import search_tokens
from features.vocabulary import COUNTS, CountIds, Vocabulary, VocabularyConfig, add_counts, count_values


class Only(StrEnum):
    """Which rows of a table are counted."""

    ALL = "all"
    CLICKED = "clicked"  # of impressions
    COMPLETED = "completed"  # of watches


@dataclass(frozen=True)
class VocabularyRequest:
    """One column whose values are counted for an id space; a space's requests add up.

    Args:
      space: the id space.
      table, column: where the ids are: text, numbers with a text form, or lists of them.
      only: which rows.
      tokens: count the search tokens of the column's queries in place of its values.
      by_watches: of a column of `videos`: each row counts as often as its video was watched in the training part (or
        clicked, where there is no table of watches).
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

    `clicked_video` counts clicked impressions (section 4.1), queries are counted by their tokens, attributes of videos
    by watches, and everything else by rows.
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
    """Table name -> batches of the training part; writes `<space>.parquet` for every space with ids.

    Args:
      requests: what to count.
      configs: space -> which ids get a row.
      folder: where the files go.
    """

    def __init__(
        self, requests: Sequence[VocabularyRequest], configs: Mapping[str, VocabularyConfig], folder: Path
    ) -> None:
        super().__init__()
        self._requests, self._configs, self._folder = tuple(requests), dict(configs), folder

    @no_annotations
    def expand(self, batches: dict[str, beam.PCollection]) -> beam.PCollection:
        counts = []
        for name, table in batches.items():
            by_rows = [request for request in self._requests if request.table == name and not request.by_watches]
            if by_rows:
                counts.append(
                    table
                    | f"Count_{name}" >> beam.FlatMap(count_ids, by_rows)
                    | f"AddUp_{name}" >> beam.CombinePerKey(CountIds())
                )
        by_watches = [request for request in self._requests if request.by_watches]
        if by_watches:
            weights = beam.pvalue.AsSingleton(self._watches_of_videos(batches))
            counts.append(batches["videos"] | "CountByWatches" >> beam.FlatMap(count_weighted, by_watches, weights))
        return (
            counts
            | "Gather" >> beam.Flatten()
            | "AddUp" >> beam.CombinePerKey(CountIds())
            | "Write" >> beam.Map(_write_vocabulary, self._configs, self._folder)
        )

    def _watches_of_videos(self, batches: dict[str, beam.PCollection]) -> beam.PCollection:
        if "watches" in batches:
            request = VocabularyRequest("video", "watches", "video_id")
        elif "impressions" in batches:
            request = VocabularyRequest("video", "impressions", "video_id", Only.CLICKED)
        else:
            raise ArtifactError("expected a table of watches or impressions to count by; ingest one of them")
        counts = batches[request.table] | "Watches" >> beam.FlatMap(count_ids, [request])
        return counts | beam.Values() | "OfVideos" >> beam.CombineGlobally(CountIds())


def count_ids(batch: pa.Table, requests: Sequence[VocabularyRequest]) -> Iterator[tuple[str, pa.Table]]:
    """(space, counts of schema `COUNTS`) of every request on a batch's table."""
    for request in requests:
        values = batch[request.column]
        if request.only != Only.ALL:
            values = values.filter(pc.fill_null(batch[request.only.value], False))
        yield request.space, count_values(search_tokens(values) if request.tokens else values)


def count_weighted(
    batch: pa.Table, requests: Sequence[VocabularyRequest], weights: pa.Table
) -> Iterator[tuple[str, pa.Table]]:
    """(space, counts) of columns of `videos`, each row weighing its video's count in `weights` (schema `COUNTS`)."""
    found = pc.index_in(batch["video_id"], value_set=weights["id"].combine_chunks())
    weight = pc.fill_null(weights["count"].take(found), 0)
    for request in requests:
        values, of_value = batch[request.column], weight
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            of_value = weight.take(pc.list_parent_indices(values))
            values = pc.list_flatten(values)
        counts = pa.Table.from_arrays([values.cast(pa.string()), of_value.cast(pa.int64())], schema=COUNTS)
        named = pc.and_(pc.is_valid(counts["id"]), pc.not_equal(counts["id"], ""))
        yield request.space, add_counts([counts.filter(pc.and_(named, pc.greater(counts["count"], 0)))])


def _write_vocabulary(counted: tuple[str, pa.Table], configs: Mapping[str, VocabularyConfig], folder: Path) -> None:
    space, counts = counted
    Vocabulary.from_counts(counts, configs[space]).write(folder / f"{space}.parquet")
