"""What is true of simulated logs: click probabilities, expected watch time, and next-watch distributions."""

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import ArtifactError, DataError
from pipeline.sources.simulator_behaviour import MEMORY, Moment, Pairs, examination, topic_probabilities
from pipeline.sources.simulator_candidates import (
    FAVOURITE_SHARES,
    SERIES,
    TASTE,
    UPLOADER,
    Candidates,
    episode_probabilities,
)
from pipeline.sources.simulator_config import SimulatorConfig
from pipeline.sources.simulator_platform import EXTERNAL, HOME, HOUR_US, SEARCH, WATCH_NEXT, Platform
from pipeline.sources.simulator_sessions import SEARCH_ABANDONED, mode_probabilities

FORMAT_VERSION = 2


class Given(StrEnum):
    """What is known of the step that leads to the next watch, beside the user's state before it."""

    STATE = "state"  # user, time, device and everything that happened before; not how the video will be found
    PAGE = "page"  # also the page: home, watch_next, search or external
    QUERY = "query"  # also the query, where a search precedes the watch


@dataclass(frozen=True)
class Truth:
    """The known truth of one simulation.

    Args:
      platform: latent users, videos and popularity.
      impressions: one row per impression, in the order of the impressions table: impression_id,
        click_probability, expected_watch_time_given_click_s, expected_watch_time_s (their product: per impression),
        examination (the share of click_probability that is due to the position alone).
      watches: one row per watch sorted by user and time: user int32, timestamp (us since epoch) int64, video int32,
        step int64 (row of `steps`).
      ignored: the impressions that were not clicked, in the order of each user's steps: user, video, step.
      steps: the users' state before each step, sorted by user and time.
    """

    platform: Platform
    impressions: pa.Table
    watches: dict[str, np.ndarray]
    ignored: dict[str, np.ndarray]
    steps: dict[str, np.ndarray]

    @cached_property
    def video_ids(self) -> np.ndarray:
        """`[V]` video ids in the order of the columns of `next_watch_probabilities`."""
        return numbered_ids("v", np.arange(len(self.platform.topic))).to_numpy(zero_copy_only=False)

    def next_watch_probabilities(
        self,
        user_ids: np.ndarray | pa.Array,
        timestamps_us: np.ndarray,
        completed_only: bool = False,
        given: Given = Given.STATE,
        chunk: int = 64,
    ) -> np.ndarray:
        """The true distribution of the video of each given watch.

        The distribution is that of the videos watched in one step of the user, given the user's state before the
        step and that something is watched in it:

            p(v) = E[number of watches of v in the step] / E[number of watches in the step],

        a mixture over the ways to find a video (a page of recommendations, a search, from outside). It is exact: a
        step's choices depend on nothing but that state, places of a page are drawn independently and clicked
        independently. Two watches of the same page view share one state, the one at the request.

        Args:
          user_ids, timestamps_us: `[n]` the watches, named by user and start (microseconds since epoch).
          completed_only: the distribution of completed watches only, p(v) × P(completed | watched).
          given: what else is known of the step. A search made for the watch itself is part of the step and not of
            the state, so a model that sees it may do better than `Given.STATE`; `Given.QUERY` is the bound for that.
          chunk: watches computed at a time (memory is about 150 bytes × chunk × videos).

        Returns:
          `[n, V]` float32, columns in the order of `video_ids`; rows sum to 1.

        Raises:
          DataError: a key is no watch of this simulation.
        """
        steps = self.watches["step"][self._watch_rows(user_ids, timestamps_us)]
        result = np.empty((len(steps), len(self.platform.topic)), np.float32)
        for begin in range(0, len(steps), chunk):
            result[begin : begin + chunk] = self._distribution(steps[begin : begin + chunk], completed_only, given)
        return result

    def _watch_rows(self, user_ids: np.ndarray | pa.Array, timestamps_us: np.ndarray) -> np.ndarray:
        users = user_numbers(user_ids, self.platform.config.users)
        times = np.asarray(timestamps_us, np.int64) - self.platform.start_us
        span = 4 * (self.platform.end_us - self.platform.start_us)
        keys = self.watches["user"] * span + (self.watches["timestamp"] - self.platform.start_us)
        wanted = users * span + times
        rows = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        wrong = np.flatnonzero((keys[rows] != wanted) | (times < 0) | (times >= span)) if len(keys) else users
        if len(wrong):
            raise DataError(
                f"expected watches of the simulation, found {len(wrong)} keys that are none, the first being user "
                f"{user_ids[int(wrong[0])]} at {int(timestamps_us[int(wrong[0])])} us; use the tables simulated "
                "together with this truth"
            )
        return rows

    def _distribution(self, steps: np.ndarray, completed_only: bool, given: Given) -> np.ndarray:
        total = np.sum(list(self._expected_watches(steps, completed_only, given).values()), axis=0)
        return total / total.sum(1, keepdims=True)

    def _expected_watches(self, steps: np.ndarray, completed_only: bool, given: Given) -> dict[int, np.ndarray]:
        """Expected number of watches of each video in each step, `[n, V]` by page."""
        platform = self.platform
        moment = self._moment(steps)
        ignored = self._remembered(self.ignored, steps, np.uint8)
        watched = self._remembered(self.watches, steps, np.uint8) > 0
        shares = mode_probabilities(platform)[(moment.seed >= 0).astype(int)]
        if given != Given.STATE:
            known = np.zeros_like(shares)
            known[np.arange(len(steps)), self.steps["mode"][steps]] = 1.0
            shares = known
        result = {page: np.zeros(ignored.shape) for page in (HOME, WATCH_NEXT, SEARCH, EXTERNAL)}
        for page, total in result.items():
            rows = np.flatnonzero(shares[:, page] > 0)
            if not len(rows):
                continue
            part = moment[rows]
            everything = np.arange(len(platform.topic))[None, :]
            pairs = Pairs(platform, part, np.full(len(rows), page), everything, ignored[rows], watched[rows])
            if page == SEARCH:
                expected = (1 - SEARCH_ABANDONED) * self._searched(pairs, steps[rows], given)
            elif page == EXTERNAL:
                expected = self._external(pairs)
            else:
                expected = self._recommended(pairs, page)
            if completed_only:
                expected = expected * pairs.completion()
            total[rows] = shares[rows, page, None] * expected
        return result

    def _moment(self, steps: np.ndarray) -> Moment:
        state = {name: column[steps] for name, column in self.steps.items()}
        return Moment(
            user=state["user"],
            time_us=state["time_us"],
            bin=state["bin"],
            hour=state["time_us"] // HOUR_US % 24,
            device=state["device"],
            focus=state["focus"],
            followed=state["followed"],
            seed=state["seed"],
            cherished=state["cherished"],
        )

    def _remembered(self, events: dict[str, np.ndarray], steps: np.ndarray, dtype: type) -> np.ndarray:
        """`[n, V]` how often each video is among the user's last `MEMORY` events before the step."""
        # steps are sorted by user, so the events of earlier steps of the same user are one slice
        end = np.searchsorted(events["step"], steps, side="left")
        begin = np.maximum(end - MEMORY, np.searchsorted(events["user"], self.steps["user"][steps], side="left"))
        length = end - begin
        rows = np.repeat(np.arange(len(steps)), length)
        place = np.arange(len(rows)) - np.repeat(np.cumsum(length) - length, length) + np.repeat(begin, length)
        counts: np.ndarray = np.zeros((len(steps), len(self.platform.topic)), dtype)
        np.add.at(counts, (rows, events["video"][place]), 1)
        return counts

    def _recommended(self, pairs: Pairs, page: int) -> np.ndarray:
        """`[n, V]` expected clicks on each video of one page view.

        A video stands at place j when it is drawn there and was not drawn at a higher place (a repeated draw leaves
        its place empty): probability q (1 − q)^j.
        """
        q = self._candidates.probabilities(pairs.moment, page, self.platform.long_term[pairs.moment.user])
        looked_at = np.zeros_like(q)
        not_higher = q.copy()
        for share in examination(self.platform):
            looked_at += share * not_higher
            not_higher *= 1 - q
        return looked_at * pairs.appeal()

    def _external(self, pairs: Pairs) -> np.ndarray:
        topics = topic_probabilities(self.platform, pairs.moment, pairs.page)
        weight = self._candidates.probabilities(pairs.moment, EXTERNAL, topics) * pairs.acceptance()
        chosen = weight / weight.sum(1, keepdims=True)
        cherished = pairs.moment.cherished
        rows = np.flatnonzero(cherished >= 0)
        chosen[rows] *= 1 - self.platform.config.replays
        chosen[rows, cherished[rows]] += self.platform.config.replays
        return chosen

    def _searched(self, pairs: Pairs, steps: np.ndarray, given: Given) -> np.ndarray:
        """`[n, V]` distribution of the watched video over queries, or of the query that was made."""
        platform, moment = self.platform, pairs.moment
        rows = np.arange(len(moment))
        mix = self._candidates.mixes[SEARCH, (moment.followed >= 0).any(1).astype(int)]
        topic_weight = mix[:, TASTE, None] * topic_probabilities(platform, moment, pairs.page)
        uploader_weight = np.zeros((len(moment), platform.config.uploaders))
        for j, share in enumerate(FAVOURITE_SHARES):
            uploader_weight[rows, platform.favourites[moment.user, j]] += mix[:, UPLOADER] * share
        episodes = mix[:, SERIES, None] * episode_probabilities(moment.followed, len(platform.topic))
        if given == Given.QUERY:
            for weights in (topic_weight, uploader_weight, episodes):
                weights[:] = 0.0
            group, video = self.steps["asked_group"][steps], self.steps["asked_video"][steps]
            K = platform.config.topics
            at = np.flatnonzero((group >= 0) & (group < K))
            topic_weight[at, group[at]] = 1.0
            at = np.flatnonzero(group >= K)
            uploader_weight[at, group[at] - K] = 1.0
            at = np.flatnonzero(video >= 0)
            episodes[at, video[at]] = 1.0
        accepted = platform.popularity[moment.bin] * pairs.acceptance()
        topic_weight /= platform.gather_topics(accepted)
        by_uploader = np.argsort(platform.uploader, kind="stable")
        begin = np.searchsorted(platform.uploader[by_uploader], np.arange(platform.config.uploaders))
        uploader_weight /= np.add.reduceat(accepted[:, by_uploader], begin, axis=1)
        return accepted * (platform.spread_topics(topic_weight) + uploader_weight[:, platform.uploader]) + episodes

    @cached_property
    def _candidates(self) -> Candidates:
        return Candidates(self.platform)

    def write(self, folder: Path) -> None:
        """Writes the truth into an existing folder (the caller publishes it)."""
        folder = Path(folder)
        config = self.platform.config.model_dump(mode="json")
        (folder / "simulator.json").write_text(
            json.dumps({"version": FORMAT_VERSION, "config": config}, indent=2) + "\n"
        )
        np.savez_compressed(folder / "platform.npz", allow_pickle=False, **self.platform.arrays())
        pq.write_table(self.impressions, folder / "impressions.parquet")
        pq.write_table(pa.table(self.watches), folder / "watches.parquet")
        pq.write_table(pa.table(self.ignored), folder / "ignored.parquet")
        followed = self.steps["followed"]
        flat = {name: column for name, column in self.steps.items() if name != "followed"}
        flat |= {f"followed_{j}": followed[:, j] for j in range(followed.shape[1])}
        pq.write_table(pa.table(flat), folder / "steps.parquet")

    @classmethod
    def read(cls, folder: Path) -> "Truth":
        """Reads what `write` wrote.

        Raises:
          ArtifactError: a file is missing or was written by another version.
        """
        folder = Path(folder)
        path = folder / "simulator.json"
        if not path.is_file():
            raise ArtifactError(f"{path}: expected the truth of a simulation, found none; simulate the source again")
        value = json.loads(path.read_text())
        if value["version"] != FORMAT_VERSION:
            raise ArtifactError(
                f"{path}: expected format version {FORMAT_VERSION}, found {value['version']}; simulate the source again"
            )
        with np.load(folder / "platform.npz", allow_pickle=False) as arrays:
            platform = Platform(config=SimulatorConfig.model_validate(value["config"]), **arrays)
        steps = _columns(folder / "steps.parquet")
        names = sorted(name for name in steps if name.startswith("followed_"))
        steps["followed"] = np.stack([steps.pop(name) for name in names], 1)
        return cls(
            platform,
            pq.read_table(folder / "impressions.parquet"),
            _columns(folder / "watches.parquet"),
            _columns(folder / "ignored.parquet"),
            steps,
        )


def _columns(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


def numbered_ids(prefix: str, numbers: np.ndarray, digits: int = 6) -> pa.Array:
    """Ids such as `u000123`."""
    text = pc.utf8_lpad(pc.cast(pa.array(numbers), pa.string()), digits, "0")
    return pc.binary_join_element_wise(pa.scalar(prefix), text, "")


def user_numbers(user_ids: np.ndarray | pa.Array, users: int) -> np.ndarray:
    """The numbers of user ids; -1 for ids that are none."""
    ids = pa.array(user_ids, pa.string()) if not isinstance(user_ids, pa.Array | pa.ChunkedArray) else user_ids
    return pc.fill_null(pc.index_in(ids, numbered_ids("u", np.arange(users))), -1).to_numpy().astype(np.int64)
