"""The funnel: for a user of the log, candidates from the retrieval SavedModel, ordered by the ranking SavedModel.

Only the exported folders and the canonical tables are read: what a server and its client would have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import scann  # noqa: F401  (registers the operations of an exported index)
import tensorflow as tf

from features.artifacts import read_manifest
from features.errors import ArtifactError
from features.feature_lists import FeatureListConfig
from features.raw_requests import raw_requests
from features.tables import TIMESTAMP, has_table, read_table, table_columns, table_files
from serving.export import RANKING, RETRIEVAL
from serving.index import NO_VIDEO
from serving.retrieval import EXCLUDED
from serving.signatures import ConcreteFunction
from serving.stored_examples import numpy_inputs

RANK_OFFSET = 60
"""Added to ranks when lists are blended without a ranker (reciprocal rank fusion; Cormack et al. 2009: 60)."""


@dataclass(frozen=True)
class Recommendation:
    """One row of the list: the candidate generators that nominated the video, and their scores.

    `candidate_score` is the one number that the ranker is told (see `blend`). The ranker's own numbers are None where
    no ranker is exported.
    """

    video_id: str
    sources: tuple[str, ...]
    retrieval_scores: tuple[float, ...]
    candidate_score: float
    score: float | None = None
    expected_watch_time_s: float | None = None
    click_probability: float | None = None


@dataclass(frozen=True)
class RecommendationList:
    """What to watch next, best first.

    Args:
      user_id: for whom.
      now: the moment of the request, UTC.
      rows: ordered by the ranker's score or, without a ranker, by their places in the generators' lists.
      watched: the user's last watched videos, latest first.
      notes: what a reader should know, such as a user without history.
    """

    user_id: str
    now: datetime
    rows: list[Recommendation]
    watched: list[str]
    notes: list[str] = field(default_factory=list)


class Recommender:
    """Loads exported models once and answers for users of the tables.

    Args:
      models: published version folders of one export: candidate generators, and the ranker if one orders the list.
      tables: the run's `tables` folder.
      lists: lengths of the histories that are sent.

    Raises:
      ArtifactError: a model is not published.
    """

    def __init__(self, models: Sequence[Path], tables: Path, lists: FeatureListConfig | None = None) -> None:
        self._tables = tables
        self._lists = lists or FeatureListConfig()
        self._models = []  # a signature does not keep its model
        self._retrieval: dict[str, ConcreteFunction] = {}
        self._nominations: dict[str, int] = {}
        self._index_sizes: dict[str, int] = {}
        self._ranking: ConcreteFunction | None = None
        self._fed: list[ConcreteFunction] = []
        for folder in models:
            manifest = read_manifest(folder)
            self._models.append(tf.saved_model.load(str(folder)))
            self._fed.append(self._models[-1].signatures["features"])
            if manifest["model"] == RANKING:
                self._ranking = self._models[-1].signatures[RANKING]
            else:
                self._retrieval[manifest["source"]] = self._models[-1].signatures[RETRIEVAL]
                self._nominations[manifest["source"]] = manifest["k"]
                self._index_sizes[manifest["source"]] = manifest["index"]["videos"]

    def recommend(
        self, user_id: str, count: int = 10, now: datetime | None = None, request: Mapping[str, Any] | None = None
    ) -> RecommendationList:
        """The list for one user.

        Args:
          user_id: a user who is not in the tables gets what users without history get.
          count: rows, at most.
          now: moment of the request (UTC where it has no zone); only what happened before is known. Default: just
            after the last event of the tables.
          request: page, device, seed_video_id and other columns of the request.
        """
        now = latest_moment(self._tables) if now is None else now if now.tzinfo else now.replace(tzinfo=UTC)
        watched = self._watched(user_id, now)
        requests = pa.table(
            {
                "user_id": [user_id],
                "request_timestamp": pa.array([now], TIMESTAMP),
                EXCLUDED: [list(dict.fromkeys(watched))],
                **{name: [value] for name, value in (request or {}).items() if value is not None},
            }
        )
        nominated = {source: self._nominated(retrieval, requests) for source, retrieval in self._retrieval.items()}
        rows = blend(nominated)
        notes = self._notes(user_id, now, watched) + self._unread(requests, request or {})
        if not rows:
            notes.append(f"nothing is left to recommend: user {user_id!r} watched every video of the index")
        elif len(rows) < count:
            notes.append(self._fewer(len(rows), count, nominated))
        if self._ranking is None:
            notes.append("no ranker is exported: ordered by the candidate generators")
        elif rows:
            rows = self._rank(requests, rows)
        return RecommendationList(user_id, now, rows[:count], watched[:count], notes)

    def _nominated(self, retrieval: ConcreteFunction, requests: pa.Table) -> list[tuple[str, float]]:
        """Video ids and scores of one candidate generator, best first."""
        found = self._call(retrieval, requests)
        ids = [video.decode() for video in found["video_ids"][0] if video.decode() != NO_VIDEO]
        return list(zip(ids, found["scores"][0][: len(ids)].tolist(), strict=True))

    def _rank(self, requests: pa.Table, rows: list[Recommendation]) -> list[Recommendation]:
        candidates = {
            "candidate_ids": [[row.video_id for row in rows]],
            "candidate_sources": [[list(row.sources) for row in rows]],
            "candidate_scores": [[row.candidate_score for row in rows]],
        }
        for name, values in candidates.items():
            requests = requests.append_column(name, pa.array(values))
        found = self._call(self._ranking, requests)
        ranked = [
            replace(
                row,
                score=float(found["score"][0, i]),
                expected_watch_time_s=float(found["expected_watch_time_s"][0, i]),
                click_probability=float(found["click_probability"][0, i]),
            )
            for i, row in enumerate(rows)
        ]
        return sorted(ranked, key=lambda row: -(row.score or 0.0))

    def _call(self, signature: ConcreteFunction, requests: pa.Table) -> dict[str, np.ndarray]:
        specs = signature.structured_input_signature[1]
        raw = raw_requests(self._tables, requests, numpy_inputs(specs), self._lists)
        answer = signature(**{name: tf.constant(values, specs[name].dtype) for name, values in raw.items()})
        return {name: values.numpy() for name, values in answer.items()}

    def _watched(self, user_id: str, now: datetime) -> list[str]:
        """All watched videos, latest first."""
        if not has_table(self._tables, "watches"):
            return []
        columns = [c for c in ("video_id", "timestamp", "order") if c in table_columns(self._tables, "watches")]
        files = [str(file) for file in table_files(self._tables, "watches")]
        watches = ds.dataset(files, format="parquet").to_table(columns, filter=pc.field("user_id") == user_id)
        known = pc.fill_null(watches["timestamp"], datetime(1, 1, 1, tzinfo=UTC))  # order-only watches come first
        watches = watches.set_column(watches.column_names.index("timestamp"), "timestamp", known)
        watches = watches.filter(pc.less(known, pa.scalar(now, TIMESTAMP)))
        return watches.sort_by([(column, "ascending") for column in columns[1:]])["video_id"].to_pylist()[::-1]

    def _fewer(self, found: int, count: int, nominated: Mapping[str, Sequence[tuple[str, float]]]) -> str:
        exhausted = [
            len(videos) < self._nominations[source] or self._index_sizes[source] <= self._nominations[source]
            for source, videos in nominated.items()
        ]
        if all(exhausted):
            return (
                f"{found} of the {count} videos asked for: the index has {max(self._index_sizes.values()):,}, and "
                "those that the user has watched are left out"
            )
        most = ", ".join(f"{source} {k}" for source, k in self._nominations.items())
        return (
            f"{found} of the {count} videos asked for: each candidate generator nominates at most "
            f"export.retrieval.k ({most}) that the user has not watched"
        )

    def _notes(self, user_id: str, now: datetime, watched: list[str]) -> list[str]:
        if watched:
            return []
        known = has_table(self._tables, "users") and user_id in set(
            read_table(self._tables, "users", ["user_id"])["user_id"].to_pylist()
        )
        if known:
            return [
                f"user {user_id!r} watched nothing before {now:%Y-%m-%d %H:%M}: recommended from what else is known"
            ]
        return [f"user {user_id!r} is not in the log: recommended as to a user about whom nothing is known"]

    def _unread(self, requests: pa.Table, request: Mapping[str, Any]) -> list[str]:
        """A note for each given column of the request that no model reads, or whose value none of them knows."""
        given = {name: value for name, value in request.items() if value not in (None, "")}
        if not given:
            return []
        of_models = [self._call(fed, requests) for fed in self._fed]
        inputs = {name for fed in self._fed for name in fed.structured_input_signature[1]}
        notes = []
        for name, value in given.items():
            rows = [features[name] for features in of_models if name in features]
            if name not in inputs:
                notes.append(f"no exported model reads {name}: the list is the same without it")
            elif rows and all(np.issubdtype(row.dtype, np.integer) and not row.any() for row in rows):
                notes.append(f"no exported model met {name} {value!r} in training: recommended as where none is told")
        return notes


def blend(nominated: Mapping[str, Sequence[tuple[str, float]]]) -> list[Recommendation]:
    """The union of several candidate generators' lists (Covington et al. 2016, figure 2: sources are blended).

    Scores of different generators cannot be compared, so the order is that of Σ 1 / (60 + rank) over the lists that
    name a video (reciprocal rank fusion); equal sums keep the order of the first list that named it.

    The rows' `candidate_score` is that sum, too, or the score itself where there is only one generator. A log that a
    ranker learns the feature `candidate_score` from has to hold the same in its column `candidate_scores`.

    Args:
      nominated: source -> video ids and scores, best first; a generator that names none counts as one.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    fused: dict[str, float] = {}
    for source, videos in nominated.items():
        for rank, (video, score) in enumerate(videos, 1):
            found.setdefault(video, []).append((source, score))
            fused[video] = fused.get(video, 0.0) + 1 / (RANK_OFFSET + rank)
    rows = []
    for video in sorted(found, key=lambda video: -fused[video]):
        sources, scores = zip(*found[video], strict=True)
        rows.append(Recommendation(video, sources, scores, scores[0] if len(nominated) == 1 else fused[video]))
    return rows


def latest_moment(tables: Path) -> datetime:
    """Just after the last event of the tables.

    Raises:
      ArtifactError: no event has a time.
    """
    latest = None
    for name in ("watches", "impressions", "searches"):
        files = [file for file in table_files(tables, name) if "day=unknown" not in file.parts]
        last_day = [str(file) for file in files if file.parent == files[-1].parent]
        if last_day:
            times = ds.dataset(last_day, format="parquet").to_table(["timestamp"])["timestamp"]
            latest = max(filter(None, (latest, pc.max(times).as_py())), default=None)
    if latest is None:
        raise ArtifactError(f"{tables}: expected events with a time, found none; give the moment of the request")
    return latest + timedelta(microseconds=1)
