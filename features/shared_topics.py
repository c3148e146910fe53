"""Which videos share a topic, for many pairs at once and with lists of very different lengths."""

import numpy as np

from features.event_windows import Bags

FEW = 1 / 16
"""A place in the lists that fewer of the videos fill is looked up, not compared for all."""


class TopicLists:
    """The topics of the catalogue's videos, made for comparison.

    The first places of the lists, which many videos fill, are compared column by column. What stands behind them, in
    the few longer lists, is looked up: one video with hundreds of topics costs what its own topics cost.

    Args:
      topics: int32 `[videos + 1, most topics of a video]`, rows of `topic`, 0 for none; the last entry is of position
        -1.
    """

    def __init__(self, topics: np.ndarray) -> None:
        filled = np.count_nonzero(topics, axis=0) >= FEW * len(topics)
        compared = max(int(filled.nonzero()[0].max(initial=0)) + 1, 1)
        self._videos = len(topics)
        self._columns = np.ascontiguousarray(topics[:, :compared].T)
        video, place = topics[:, compared:].nonzero()
        self._rest = topics[video, compared + place].astype(np.int64)
        self._offsets = np.searchsorted(video, np.arange(len(topics) + 1))
        self._apart = int(topics.max(initial=0)) + 1  # more than any topic, so that (request, topic) is one number

    def shared(self, watched: np.ndarray, request: np.ndarray, candidate: np.ndarray) -> np.ndarray:
        """bool `[B, n]`: whether a watched video has a topic of the candidate.

        Args:
          watched: int32 `[R, n]` catalogue positions of each request's watches, -1 for none.
          request: int64 `[B]`, the request of each candidate.
          candidate: int32 `[B]` catalogue positions.
        """
        same = np.zeros((len(request), watched.shape[1]), bool)
        for column in self._columns:
            rows = column[watched][request]
            for other in self._columns:
                topic = other[candidate]
                same |= rows == np.where(topic == 0, np.int32(-1), topic)[:, None]
        if len(self._rest):
            videos = watched[request]
            self._look_up_watched(same, videos, candidate)
            self._look_up_candidates(same, videos, candidate)
        return same

    def _look_up_watched(self, same: np.ndarray, watched: np.ndarray, candidate: np.ndarray) -> None:
        """Adds pairs by the rest of the watched videos' topics and any topic of the candidate."""
        example, place = self._has_rest(watched).nonzero()
        rest = self._rest_of(watched[example, place])
        pair = rest.example
        there = np.unique(example)
        of_candidates = self._rest_of(candidate[there])
        known = [there[of_candidates.example] * self._apart + of_candidates.values]
        for column in self._columns:
            topic = column[candidate[there]]
            known.append((there * self._apart + topic)[topic != 0])
        found = pair[np.isin(example[pair] * self._apart + rest.values, np.concatenate(known))]
        same[example[found], place[found]] = True

    def _look_up_candidates(self, same: np.ndarray, watched: np.ndarray, candidate: np.ndarray) -> None:
        """Adds pairs by the rest of the candidates' topics and the first topics of the watched videos."""
        (there,) = self._has_rest(candidate).nonzero()
        rest = self._rest_of(candidate[there])
        known = there[rest.example] * self._apart + rest.values
        for column in self._columns:
            same[there] |= np.isin(there[:, None] * self._apart + column[watched[there]], known)

    def _has_rest(self, videos: np.ndarray) -> np.ndarray:
        return np.diff(self._offsets)[videos] > 0

    def _rest_of(self, videos: np.ndarray) -> Bags:
        """The rest of the topics of each of `[n]` videos."""
        position = videos % self._videos  # -1 is the last entry
        return Bags.of_ranges(self._rest, self._offsets[position], self._offsets[position + 1])
