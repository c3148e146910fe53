"""The simulation: every user's sessions, step by step, vectorised over users.

A step is one visit to a page of recommendations, one search, or one watch from outside. Step k of all users is taken
at once; users with few steps drop out early. Within a step all choices depend only on the state before it, which is
what makes the truth exact.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.sources.simulator_behaviour import (
    COMPLETED_SHARE,
    FOLLOWED,
    MEMORY,
    Moment,
    Pairs,
    examination,
    mean_watched_share,
    topic_probabilities,
)
from pipeline.sources.simulator_candidates import Candidates
from pipeline.sources.simulator_platform import (
    EXTERNAL,
    HOUR_US,
    SEARCH,
    WATCH_NEXT,
    Platform,
    draw_rows,
)
from pipeline.sources.simulator_schedule import SECOND_US, draw_schedule

SEARCH_SETS_FOCUS = 0.5
SEARCH_ABANDONED = 0.12  # searches that no watch follows
# home, watch_next, search, external: for the first step of a session, and for later ones (after a watch)
MODES = np.array([[0.3, 0.0, 0.2, 0.5], [0.04, 0.16, 0.2, 0.6]])
QUERIES_PER_TOPIC = 4


@dataclass(frozen=True)
class SessionLogs:
    """What happened, as flat arrays; rows are in the order of the simulation (a user's rows are in time order)."""

    steps: dict[str, np.ndarray]
    watches: dict[str, np.ndarray]
    impressions: dict[str, np.ndarray]
    searches: dict[str, np.ndarray]


def mode_probabilities(platform: Platform) -> np.ndarray:
    """`[2, pages]` what a step is, for users without and with a video watched just before."""
    config = platform.config
    table = MODES * np.array([1.0, 1.0, config.searches, config.external])
    return table / table.sum(1, keepdims=True)


class _Recorder:
    """Collects columns batch by batch."""

    def __init__(self) -> None:
        self._batches: list[dict[str, np.ndarray]] = []

    def add(self, **columns: np.ndarray) -> None:
        if len(next(iter(columns.values()))):
            self._batches.append(columns)

    def columns(self, dtypes: dict[str, type]) -> dict[str, np.ndarray]:
        if not self._batches:
            return {name: np.zeros(0, dtype) for name, dtype in dtypes.items()}
        return {
            name: np.concatenate([batch[name] for batch in self._batches]).astype(dtype, copy=False)
            for name, dtype in dtypes.items()
        }


class _Simulation:
    """State of all users, and the step that moves it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.candidates = Candidates(platform)
        self.rng = np.random.Generator(np.random.SFC64([platform.config.seed, 5]))
        self.schedule = draw_schedule(self.rng, platform)
        U = platform.config.users
        self.clock_us = np.full(U, platform.start_us)
        self.focus = draw_rows(self.rng, np.cumsum(platform.long_term, 1))
        self.last_watch = np.full(U, -1)
        self.followed = np.full((U, FOLLOWED), -1)  # next episode, perhaps not uploaded yet
        self.followed_series = np.full((U, FOLLOWED), -1)
        self.replaced = np.zeros(U, np.int64)  # which followed series makes room next
        self.watched = np.full((U, MEMORY), -1, np.int32)
        self.ignored = np.full((U, MEMORY), -1, np.int32)
        self.watched_count = np.zeros(U, np.int64)
        self.ignored_count = np.zeros(U, np.int64)
        # of each uploader the first video that the user completed; only where users return to it, since it is large
        self.first_completed = (
            np.full((U, platform.config.uploaders), -1, np.int32) if platform.config.replays else None
        )
        self.modes = np.cumsum(mode_probabilities(platform), 1)
        self.policy_topics = np.cumsum(platform.long_term, 1)
        self.examination = examination(platform)
        self.requests = 0
        self.shown = 0
        self.taken = 0
        self.steps, self.watches, self.impressions, self.searches = (_Recorder() for _ in range(4))

    def run(self) -> SessionLogs:
        schedule = self.schedule
        order = np.argsort(-schedule.count, kind="stable")
        active_at = np.searchsorted(-schedule.count[order], -np.arange(schedule.count.max(initial=0)), side="left")
        for k, active in enumerate(active_at):
            users = order[:active]
            self._step(users, schedule.begin[users] + k)
        return SessionLogs(
            self.steps.columns(STEP_COLUMNS),
            self.watches.columns(WATCH_COLUMNS),
            self.impressions.columns(IMPRESSION_COLUMNS),
            self.searches.columns(SEARCH_COLUMNS),
        )

    def _step(self, users: np.ndarray, rows: np.ndarray) -> None:
        schedule, platform = self.schedule, self.platform
        session, first = schedule.session[rows], schedule.first[rows]
        time_us = self.clock_us[users] + schedule.gap_us[rows]
        time_us = np.where(first, np.maximum(time_us, schedule.start_us[session]), time_us)
        self.clock_us[users] = time_us
        here = np.flatnonzero(time_us < platform.end_us)
        if not len(here):
            return
        users, session, first, time_us = users[here], session[here], first[here], time_us[here]
        new_focus = schedule.new_focus[session]
        self.focus[users] = np.where(first & (new_focus >= 0), new_focus, self.focus[users])
        bins = (time_us - platform.start_us) // platform.bin_us
        followed = self.followed[users]
        seed = np.where(first, -1, self.last_watch[users])
        moment = Moment(
            user=users,
            time_us=time_us,
            bin=bins,
            hour=time_us // HOUR_US % 24,
            device=schedule.device[session],
            focus=self.focus[users],
            followed=np.where(followed < platform.available[bins][:, None], followed, -1),
            seed=seed,
            cherished=self._cherished(users, seed),
        )
        mode = (self.rng.random(len(users))[:, None] >= self.modes[(moment.seed >= 0).astype(int), :-1]).sum(1)
        step = self.taken + np.arange(len(users))
        self.taken += len(users)
        self.steps.add(
            user=users, time_us=time_us, bin=bins, device=moment.device, focus=moment.focus,
            followed=moment.followed, seed=moment.seed, cherished=moment.cherished, mode=mode,
        )  # fmt: skip
        found = np.flatnonzero(mode >= SEARCH)
        shown = np.flatnonzero(mode < SEARCH)
        outcomes = [self._find(moment[found], mode[found], step[found])] if len(found) else []
        if len(shown):
            outcomes.append(self._show(moment[shown], mode[shown], step[shown]))
        for outcome in outcomes:
            self._watch(*outcome)

    def _cherished(self, users: np.ndarray, seed: np.ndarray) -> np.ndarray:
        """What users may return to after the video `seed` (-1: none before): a video, or -1."""
        if self.first_completed is None:
            return np.full(len(users), -1)
        video = self.first_completed[users, self.platform.uploader[seed]]
        return np.where((seed >= 0) & (video != seed), video, -1)

    # Watches by search or from outside

    def _find(self, moment: Moment, mode: np.ndarray, step: np.ndarray) -> tuple:
        rng = self.rng
        searching = np.flatnonzero(mode == SEARCH)
        topics = np.cumsum(topic_probabilities(self.platform, moment, mode), 1)
        group, video = np.full(len(mode), -1), np.full(len(mode), -1)
        if len(searching):
            asked = moment[searching]
            source = self.candidates.draw_sources(rng, asked, mode[searching], 1)[:, 0]
            group[searching], video[searching] = self.candidates.draw_groups(
                rng, asked, source, np.arange(len(asked)), topics[searching]
            )
            self._record_searches(asked, group[searching], video[searching], step[searching])
        waiting = np.flatnonzero((mode == EXTERNAL) & (moment.cherished >= 0))
        returns = waiting[rng.random(len(waiting)) < self.platform.config.replays]
        video[returns] = moment.cherished[returns]
        video = self._accepted(moment, mode, topics, group, video)
        watched = np.ones(len(mode), bool)
        delay_us = np.zeros(len(mode), np.int64)
        if len(searching):
            watched[searching] = rng.random(len(searching)) >= SEARCH_ABANDONED
            delay_us[searching] = (rng.uniform(4, 40, len(searching)) * SECOND_US).astype(np.int64)
        self.clock_us[moment.user] = moment.time_us + delay_us
        rows = np.flatnonzero(watched)
        return moment, mode, step, rows, video[rows], delay_us[rows], np.full(len(rows), -1)

    def _accepted(
        self, moment: Moment, mode: np.ndarray, topics: np.ndarray, group: np.ndarray, video: np.ndarray
    ) -> np.ndarray:
        """Proposes videos until one is accepted, which draws from proposal × acceptance exactly.

        Users who search propose from the group they asked for; the others draw a source anew for every proposal. Who
        asked for an episode, or returns to a video, has it already.
        """
        rng, candidates = self.rng, self.candidates
        video = video.copy()
        left = np.flatnonzero(video < 0)
        m = 2 if len(left) > 1000 else 4  # fewer to throw away, or fewer rounds; the outcome's law is the same
        while len(left):
            part, asked = moment[left], group[left]
            proposed = np.empty((len(left), m), np.int64)
            rows = np.flatnonzero(asked >= 0)
            shape = (len(rows), m)
            proposed[rows] = candidates.groups.draw(
                np.broadcast_to(part.bin[rows, None], shape).ravel(),
                np.broadcast_to(asked[rows, None], shape).ravel(),
                rng.random(len(rows) * m),
            ).reshape(shape)
            rows = np.flatnonzero(asked < 0)
            free = part[rows]
            source = candidates.draw_sources(rng, free, mode[left[rows]], m)
            proposed[rows] = candidates.draw(rng, free, source, topics[left[rows]])
            watched = self._has_watched(part, proposed)
            pairs = Pairs(self.platform, part, mode[left], proposed, NOTHING, watched)
            accepted = rng.random(proposed.shape) < pairs.acceptance()
            done = accepted.any(1)
            chosen = proposed[np.arange(len(left)), accepted.argmax(1)]
            video[left[done]] = chosen[done]
            left = left[~done]
            m = min(4 * m, 256)
        return video

    def _has_watched(self, moment: Moment, videos: np.ndarray) -> np.ndarray:
        if not self.platform.config.rewatch:
            return NOTHING
        return (self.watched[moment.user][:, None, :] == videos.astype(np.int32)[:, :, None]).any(-1)

    def _times_ignored(self, moment: Moment, videos: np.ndarray) -> np.ndarray:
        if not self.platform.config.churn:
            return NOTHING
        return (self.ignored[moment.user][:, None, :] == videos.astype(np.int32)[:, :, None]).sum(-1, dtype=np.int8)

    def _record_searches(self, moment: Moment, group: np.ndarray, video: np.ndarray, step: np.ndarray) -> None:
        variant = self.rng.integers(0, QUERIES_PER_TOPIC, len(group))
        self.searches.add(
            user=moment.user, time_us=moment.time_us, group=group, video=video, variant=variant, step=step
        )
        topic = (group >= 0) & (group < self.platform.config.topics)
        sets = topic & (self.rng.random(len(group)) < SEARCH_SETS_FOCUS)
        self.focus[moment.user[sets]] = group[sets]

    # Pages of recommendations

    def _show(self, moment: Moment, mode: np.ndarray, step: np.ndarray) -> tuple:
        rng, platform = self.rng, self.platform
        slots = platform.config.slots
        source = self.candidates.draw_sources(rng, moment, mode, slots)
        videos = self.candidates.draw(rng, moment, source, self.policy_topics[moment.user])
        # a video that stands higher on the page already leaves its place empty
        kept = np.ones(videos.shape, bool)
        for j in range(1, slots):
            kept[:, j] = ~(videos[:, :j] == videos[:, j, None]).any(1)
        ignored, watched = self._times_ignored(moment, videos), self._has_watched(moment, videos)
        pairs = Pairs(platform, moment, mode, videos, ignored, watched)
        probability = pairs.appeal() * self.examination
        clicked = kept & (rng.random(videos.shape) < probability)
        rows, places = np.nonzero(kept)
        number = np.full(videos.shape, -1)
        number[rows, places] = self.shown + np.arange(len(rows))
        self.shown += len(rows)
        at = (rows, places)
        share = mean_watched_share(pairs.completion()[at], pairs.abandonment()[at])
        self.impressions.add(
            user=moment.user[rows], time_us=moment.time_us[rows], video=videos[at], clicked=clicked[at],
            page=mode[rows], device=moment.device[rows], position=places, request=self.requests + rows,
            seed=np.where(mode == WATCH_NEXT, moment.seed, -1)[rows], source=source[at], bin=moment.bin[rows],
            click_probability=probability[at],
            expected_watch_time_s=share * platform.duration_s[videos[at]],
            step=step[rows],
        )  # fmt: skip
        self.requests += len(mode)
        self._remember_ignored(moment.user, videos, kept & ~clicked)
        self.clock_us[moment.user] = moment.time_us + 10 * SECOND_US
        rows, places = np.nonzero(clicked)
        delay_us = (rng.uniform(2, 12, len(rows)) * SECOND_US).astype(np.int64)
        return moment, mode, step, rows, videos[rows, places], delay_us, number[rows, places]

    def _remember_ignored(self, users: np.ndarray, videos: np.ndarray, ignored: np.ndarray) -> None:
        place = (self.ignored_count[users, None] + np.cumsum(ignored, 1) - 1) % MEMORY
        rows, columns = np.nonzero(ignored)
        self.ignored[users[rows], place[rows, columns]] = videos[rows, columns]
        self.ignored_count[users] += ignored.sum(1)

    # Watches

    def _watch(
        self,
        moment: Moment,
        mode: np.ndarray,
        step: np.ndarray,
        rows: np.ndarray,
        video: np.ndarray,
        delay_us: np.ndarray,
        impression: np.ndarray,
    ) -> None:
        """Watches, one after the other where one step led to several; `rows` are ascending."""
        if not len(rows):
            return
        rng, platform = self.rng, self.platform
        part = moment[rows]
        pairs = Pairs(platform, part, mode[rows], video[:, None], NOTHING, NOTHING)
        completed = rng.random(len(rows)) < pairs.completion()[:, 0]
        r = rng.random(len(rows))
        share = np.where(
            completed, COMPLETED_SHARE + (1 - COMPLETED_SHARE) * r, COMPLETED_SHARE * r ** pairs.abandonment()[:, 0]
        )
        watch_time_s = share * platform.duration_s[video]
        begin = np.searchsorted(rows, rows, side="left")
        rank = np.arange(len(rows)) - begin
        length_us = delay_us + (watch_time_s * SECOND_US).astype(np.int64)
        end_us = np.cumsum(length_us)
        end_us = part.time_us + end_us - (end_us - length_us)[begin]
        start_us = end_us - length_us + delay_us
        self.watches.add(
            user=part.user, time_us=start_us, video=video, watch_time_s=watch_time_s, completed=completed,
            page=mode[rows], device=part.device, impression=impression, step=step[rows],
        )  # fmt: skip
        last = np.append(rows[1:] != rows[:-1], True)
        self.clock_us[part.user[last]] = end_us[last]
        self.last_watch[part.user[last]] = video[last]
        place = (self.watched_count[part.user] + rank) % MEMORY
        self.watched[part.user, place] = video
        self.watched_count[part.user[last]] += rank[last] + 1
        if self.first_completed is not None:
            finished = np.flatnonzero(completed)[::-1]  # the first of several is written last
            place = (part.user[finished], platform.uploader[video[finished]])
            new = self.first_completed[place] < 0
            self.first_completed[place[0][new], place[1][new]] = video[finished][new]
        if platform.config.series:
            episodes = np.flatnonzero(platform.series[video] >= 0)
            for j in range(int(rank[episodes].max(initial=-1)) + 1):
                now = episodes[rank[episodes] == j]
                self._follow(part.user[now], video[now], completed[now])

    def _follow(self, users: np.ndarray, videos: np.ndarray, completed: np.ndarray) -> None:
        """A completed episode makes the next one wait; an abandoned one ends the following of its series."""
        series, upcoming = self.platform.series[videos], self.platform.next_episode[videos]
        same = self.followed_series[users] == series[:, None]
        known = same.any(1)
        place = np.where(known, same.argmax(1), self.replaced[users] % FOLLOWED)
        waits = completed & (upcoming >= 0)
        change = waits | known
        users, place, waits = users[change], place[change], waits[change]
        self.followed[users, place] = np.where(waits, upcoming[change], -1)
        self.followed_series[users, place] = np.where(waits, series[change], -1)
        self.replaced[users] += waits & ~known[change]


NOTHING = np.zeros((1, 1), bool)

STEP_COLUMNS: dict[str, type] = {
    "user": np.int32, "time_us": np.int64, "bin": np.int32, "device": np.int32, "focus": np.int16,
    "followed": np.int32, "seed": np.int32, "cherished": np.int32, "mode": np.int8,
}  # fmt: skip
WATCH_COLUMNS: dict[str, type] = {
    "user": np.int32, "time_us": np.int64, "video": np.int32, "watch_time_s": np.float64, "completed": np.bool_,
    "page": np.int8, "device": np.int32, "impression": np.int64, "step": np.int64,
}  # fmt: skip
IMPRESSION_COLUMNS: dict[str, type] = {
    "user": np.int32, "time_us": np.int64, "video": np.int32, "clicked": np.bool_, "page": np.int8,
    "device": np.int32, "position": np.int8, "request": np.int64, "seed": np.int32, "source": np.int8,
    "bin": np.int32, "click_probability": np.float64, "expected_watch_time_s": np.float64, "step": np.int64,
}  # fmt: skip
SEARCH_COLUMNS: dict[str, type] = {
    "user": np.int32, "time_us": np.int64, "group": np.int32, "video": np.int32, "variant": np.int8, "step": np.int64,
}  # fmt: skip


def run_sessions(platform: Platform) -> SessionLogs:
    """Simulates the whole window."""
    return _Simulation(platform).run()
