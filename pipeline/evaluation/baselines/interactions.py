"""What the peers are fitted on (watches) and scored with (histories), as flat arrays.

Videos are columns 0 … num_videos − 1 of the scores: the vocabulary's row − 1, or the catalogue's position.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from features.encoding import Encoder
from features.errors import DataError
from pipeline.evaluation.retrieval_metrics import RetrievalTargets

US_PER_DAY = 86_400_000_000


@dataclass(frozen=True)
class Histories:
    """Watched videos of each example, oldest to newest; out-of-catalogue watches are not in it.

    Args:
      videos: `[sum of lengths]` int32 columns.
      offsets: `[n + 1]` int64; example i has `videos[offsets[i]:offsets[i + 1]]`.
    """

    videos: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def last(self) -> np.ndarray:
        """`[n]` the newest watch of each example, −1 where there is none."""
        if not self.videos.size:
            return np.full(len(self), -1, np.int64)
        return np.where(self.lengths > 0, self.videos[np.maximum(self.offsets[1:] - 1, 0)], -1)

    def matrix(self, num_videos: int) -> sp.csr_matrix:
        """`[n, num_videos]` float32, 1 where watched at all."""
        return _binary(np.repeat(np.arange(len(self)), self.lengths), self.videos, (len(self), num_videos))

    def take(self, rows: slice) -> "Histories":
        """The examples of a slice with step one."""
        start, stop, _ = rows.indices(len(self))
        offsets = self.offsets[start : stop + 1]
        return Histories(self.videos[offsets[0] : offsets[-1]], offsets - offsets[0])

    @staticmethod
    def from_lists(column: pa.Array | pa.ChunkedArray, columns_of_rows: np.ndarray) -> "Histories":
        """Histories from a list column of vocabulary rows.

        Args:
          column: lists of rows, oldest to newest; null lists are empty.
          columns_of_rows: `[vocabulary rows]` the score column of each row, −1 for row 0 and others to be left out.
        """
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        lengths = np.asarray(column.value_lengths().fill_null(0), np.int64)
        videos = columns_of_rows[np.asarray(column.flatten(), np.int64)]
        kept = videos >= 0
        of_example = np.repeat(np.arange(len(lengths)), lengths)
        counts = np.bincount(of_example[kept], minlength=len(lengths))
        return Histories(videos[kept].astype(np.int32), np.concatenate([[0], np.cumsum(counts)]))


@dataclass(frozen=True)
class Interactions:
    """Watches to fit on, sorted by user and, within a user, oldest to newest.

    Args:
      users: `[n]` int64 index of the user.
      videos: `[n]` int32 column of the video.
      times_us: `[n]` int64 microseconds since the epoch; 0 where `time_known` is false.
      time_known: `[n]` bool; rows without a time count as history, never as recent.
      num_users, num_videos: sizes of the user × video matrix.
    """

    users: np.ndarray = field(repr=False)
    videos: np.ndarray = field(repr=False)
    times_us: np.ndarray = field(repr=False)
    time_known: np.ndarray = field(repr=False)
    num_users: int
    num_videos: int

    @staticmethod
    def of(
        users: np.ndarray,
        videos: np.ndarray,
        times_us: np.ndarray,
        num_videos: int,
        time_known: np.ndarray | None = None,
    ) -> "Interactions":
        """Sorts watches given in any order of users (rows of unknown time: in their order of history).

        Args:
          users: `[n]` user ids of any sortable type.
          videos: `[n]` columns; −1 (outside the catalogue) is left out.
          times_us: `[n]` microseconds.
          num_videos: number of columns.
          time_known: `[n]`, default all true.
        """
        known = np.ones(len(users), bool) if time_known is None else np.asarray(time_known, bool)
        kept = np.asarray(videos) >= 0
        if not kept.any():
            raise DataError("baselines: no training watch of a video in the catalogue; check the split's dates")
        ids, rows = np.unique(np.asarray(users)[kept], return_inverse=True)
        videos, known = np.asarray(videos)[kept], known[kept]
        times = np.where(known, np.asarray(times_us, np.int64)[kept], 0)
        order = np.lexsort((times, known, rows))
        return Interactions(
            rows[order].astype(np.int64),
            videos[order].astype(np.int32),
            times[order],
            known[order],
            len(ids),
            num_videos,
        )

    @cached_property
    def last_time_us(self) -> int:
        """The newest known time: the moment from which "recent" is counted."""
        return int(self.times_us[self.time_known].max()) if self.time_known.any() else 0

    @cached_property
    def matrix(self) -> sp.csr_matrix:
        """`[num_users, num_videos]` float32, 1 where the user watched the video at all."""
        return _binary(self.users, self.videos, (self.num_users, self.num_videos))

    @cached_property
    def watch_counts(self) -> np.ndarray:
        """`[num_videos]` watches of each video, of known time or not."""
        return np.bincount(self.videos, minlength=self.num_videos).astype(np.float64)


@dataclass(frozen=True)
class RetrievalExamples:
    """Held-out examples: what is to be retrieved and the histories the peers may use."""

    targets: RetrievalTargets
    histories: Histories

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def users(self) -> np.ndarray:
        return self.targets.users

    @staticmethod
    def from_table(
        table: pa.Table,
        targets: np.ndarray,
        columns_of_rows: np.ndarray,
        num_videos: int,
        history: str = "watched_video_ids",
    ) -> "RetrievalExamples":
        """Examples from a candidate-generation example set (validation or test).

        Args:
          table: columns `user_id`, `seen_video_ids` (score columns + 1) and the `history` lists.
          targets: `[n]` score columns of the labels, −1 where a label has none.
          columns_of_rows: `[vocabulary rows]` the score column of each row; row 0 is −1.
          num_videos: number of score columns.
          history: the feature with the watches, oldest to newest.
        """
        seen = Histories.from_lists(table["seen_video_ids"], np.arange(num_videos + 1) - 1)
        wanted = RetrievalTargets(np.asarray(table["user_id"]), targets, seen.matrix(num_videos))
        return RetrievalExamples(wanted, Histories.from_lists(table[history], columns_of_rows))

    @staticmethod
    def over_catalogue(table: pa.Table, encoder: Encoder) -> "RetrievalExamples":
        """As `from_table`, the score columns being the videos of the catalogue.

        Labels and watched videos without a class, uploaded since the training, count too. Histories, which the peers
        read, are of videos of the vocabulary.
        """
        rows = encoder.catalogue["video"].to_numpy()
        # The catalogue begins with the videos of the vocabulary in the order of their rows.
        columns_of_rows = np.arange(np.count_nonzero(rows) + 1) - 1
        targets = encoder.positions(table["label_video_id"].combine_chunks())
        return RetrievalExamples.from_table(table, targets, columns_of_rows, len(rows))

    def take_first(self, n: int, seed: int) -> "RetrievalExamples":
        """At most n examples, chosen at random by the seed, in their order."""
        if len(self) <= n:
            return self
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)))

    def take(self, rows: np.ndarray) -> "RetrievalExamples":
        """The examples at `rows`."""
        lengths = self.histories.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        flat = np.repeat(self.histories.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return RetrievalExamples(self.targets.take(rows), Histories(self.histories.videos[flat], offsets))


class FittedBaseline(Protocol):
    """A peer after fitting."""

    def score(self, histories: Histories) -> np.ndarray:
        """Scores float32 `[n, videos]`, the higher the better."""


def prefer_popular(scores: np.ndarray, histories: Histories, popularity: np.ndarray) -> np.ndarray:
    """Gives the videos of an example without any history the order of popularity, which a peer cannot know itself."""
    empty = histories.lengths == 0
    scores[empty] = popularity
    return scores


def _binary(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    matrix = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix
