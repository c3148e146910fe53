"""Every effect of the simulator is in the logs when its switch is on, and gone when it is off.

Each effect is switched on alone on a platform where nothing else is, so that nothing else can explain what is measured.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.sources.simulator import SimulatedLogs, SimulatorConfig, simulate
from pipeline.sources.simulator_platform import DAY_US, DEVICES, PAGES, generate_platform

SWITCHES = (
    "long_term_taste", "short_term_taste", "demographics", "context", "time_of_day", "series", "freshness", "clickbait",
    "churn", "position", "loyalty", "related", "language", "duration_fit", "rewatch", "heavy_users",
    "replays",
)  # fmt: skip


def quiet(**switches: float) -> SimulatorConfig:
    """A platform without any effect but those named (searches, watches from outside and durations stay)."""
    scale = {"users": 1500, "videos": 500, "uploaders": 60, "topics": 12}
    return SimulatorConfig.model_validate({**scale, **dict.fromkeys(SWITCHES, 0.0), **switches})


class Frame:
    """Watches or impressions as arrays beside the latents they came from, sorted by user and time."""

    def __init__(self, logs: SimulatedLogs, table: str = "watches") -> None:
        events = logs.tables[table]
        self.platform = logs.truth.platform
        user = numbers(events["user_id"])
        time_us = events["timestamp"].cast(pa.int64()).to_numpy()
        order = np.lexsort((time_us, user))
        self.events = events.take(order)
        self.user, self.time_us = user[order], time_us[order]
        self.video = numbers(self.events["video_id"])
        self.topic = self.platform.topic[self.video]
        self.page = np.array([PAGES.index(p) for p in self.events["page"].to_pylist()])
        self.device = np.array([self.platform.device_names.index(d) for d in self.events["device"].to_pylist()])


def numbers(ids: pa.ChunkedArray) -> np.ndarray:
    return pc.cast(pc.utf8_slice_codeunits(ids, 1), pa.int64()).to_numpy()


def excess_association(rows: np.ndarray, columns: np.ndarray) -> float:
    """Chi-square of independence per event, less what chance gives: 0 when independent."""
    counts = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(counts, (rows, columns), 1)
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / counts.sum())


def stable_taste(logs: SimulatedLogs) -> float:
    """Correlation between users' topic shares (less everybody's) in the two halves of the window."""
    f = Frame(logs)
    half = (f.time_us - f.platform.start_us) // (f.platform.config.days * DAY_US // 2)
    shares = np.zeros((2, f.platform.config.users, f.platform.config.topics))
    np.add.at(shares, (np.minimum(half, 1), f.user, f.topic), 1)
    enough = (shares.sum(2) >= 10).all(0)
    shares = shares[:, enough] / shares[:, enough].sum(2, keepdims=True)
    first, second = (shares - shares.mean(1, keepdims=True)).reshape(2, -1)
    return float(np.corrcoef(first, second)[0, 1])


def drifting_taste(logs: SimulatedLogs) -> float:
    """How much more often a watch has the topic of the one before it than that of the twentieth before it."""
    f = Frame(logs)

    def same_topic(lag: int) -> float:
        pair = f.user[lag:] == f.user[:-lag]
        return float((f.topic[lag:] == f.topic[:-lag])[pair].mean())

    return same_topic(1) - same_topic(20)


def told_by_region(logs: SimulatedLogs) -> float:
    f = Frame(logs)
    return excess_association(f.platform.user_region[f.user], f.topic)


def topics_by_hour(logs: SimulatedLogs) -> float:
    f = Frame(logs)
    return excess_association(f.time_us // 3_600_000_000 % 24, f.topic)


def evening_peak(logs: SimulatedLogs) -> float:
    hour = Frame(logs).time_us // 3_600_000_000 % 24
    counts = np.bincount(hour, minlength=24)
    return float(counts[19:22].sum() / counts[7:10].sum())


def in_order(logs: SimulatedLogs) -> float:
    """Of a user's consecutive watches within a series, the share that goes to the very next episode."""
    f = Frame(logs)
    episodes = np.flatnonzero(f.platform.series[f.video] >= 0)
    order = episodes[np.lexsort((f.time_us[episodes], f.platform.series[f.video[episodes]], f.user[episodes]))]
    series, video, user = f.platform.series[f.video[order]], f.video[order], f.user[order]
    pair = (series[1:] == series[:-1]) & (user[1:] == user[:-1])
    return float((f.platform.next_episode[video[:-1]] == video[1:])[pair].mean())


def young_to_old(logs: SimulatedLogs) -> float:
    """Watches per video and day between one and three days after upload, over that after a month."""
    f = Frame(logs)

    def rate(low: float, high: float) -> float:
        days = (f.time_us - f.platform.upload_us[f.video]) / DAY_US
        uploaded = (f.platform.upload_us - f.platform.start_us) / DAY_US
        exposure = np.clip(np.minimum(uploaded + high, 28) - np.maximum(uploaded + low, 0), 0, None).sum()
        return float(((days >= low) & (days < high)).sum() / exposure)

    return rate(1, 3) / rate(30, 400)


def rise_after_upload(logs: SimulatedLogs) -> float:
    """Watches per hour between one and two days after upload, over that between 6 and 12 hours after."""
    f = Frame(logs)
    hours = (f.time_us - f.platform.upload_us[f.video]) / 3.6e9
    inside = f.platform.upload_us[f.video] < f.platform.start_us + 25 * DAY_US
    inside &= f.platform.upload_us[f.video] > f.platform.start_us
    later, first = ((hours >= low) & (hours < high) & inside for low, high in ((24, 48), (6, 12)))
    return float((later.sum() / 24) / (first.sum() / 6))


def bait_clicks(logs: SimulatedLogs) -> float:
    """Click rate of clickbait over that of other videos."""
    f = Frame(logs, "impressions")
    clicked, bait = f.events["clicked"].to_numpy(), f.platform.clickbait[f.video]
    return float(clicked[bait].mean() / clicked[~bait].mean())


def bait_watch_share(logs: SimulatedLogs) -> float:
    """Share of the length watched, clickbait over other videos."""
    f = Frame(logs)
    share, bait = f.events["watch_time_s"].to_numpy() / f.platform.duration_s[f.video], f.platform.clickbait[f.video]
    return float(share[bait].mean() / share[~bait].mean())


def clicks_after_ignoring(logs: SimulatedLogs) -> float:
    """Click rate of videos that the user was shown before and did not click, over that of videos never shown."""
    f = Frame(logs, "impressions")
    clicked = f.events["clicked"].to_numpy()
    order = np.lexsort((f.time_us, f.video, f.user))
    again = (np.diff(f.user[order], prepend=-1) == 0) & (np.diff(f.video[order], prepend=-1) == 0)
    previous_clicked = np.append(False, clicked[order][:-1])
    clicked = clicked[order]
    return float(clicked[again & ~previous_clicked].mean() / clicked[~again].mean())


def first_to_last_place(logs: SimulatedLogs) -> float:
    shown = logs.tables["impressions"]
    clicked, position = shown["clicked"].to_numpy(), shown["position"].to_numpy()
    return float(clicked[position == 0].mean() / clicked[position == 7].mean())


def favourite_uploaders(logs: SimulatedLogs) -> float:
    f = Frame(logs)
    return float((f.platform.uploader[f.video][:, None] == f.platform.favourites[f.user]).any(1).mean())


def related_to_seed(logs: SimulatedLogs) -> float:
    """Share of watch-next impressions with the topic of their seed, less that with the topic of another page's seed."""
    f = Frame(logs, "impressions")
    pages = pc.is_valid(f.events["seed_video_id"]).to_numpy()
    seed = f.platform.topic[numbers(f.events["seed_video_id"].drop_null())]
    other = np.random.default_rng(0).permutation(seed)
    return float((f.topic[pages] == seed).mean() - (f.topic[pages] == other).mean())


def own_language(logs: SimulatedLogs) -> float:
    """Share of watches in the user's language, less that of other users watching the same videos."""
    f = Frame(logs)
    own = f.platform.user_language[f.user] == f.platform.video_language[f.video]
    other = f.platform.user_language[np.random.default_rng(0).permutation(f.user)] == f.platform.video_language[f.video]
    return float(own.mean() - other.mean())


def longer_on_tv(logs: SimulatedLogs) -> float:
    """Mean log duration of what is watched on the television less that on the phone."""
    f = Frame(logs)
    log_duration = np.log(f.platform.duration_s)[f.video]
    return float(log_duration[f.device == 2].mean() - log_duration[f.device == 0].mean())


def repeats(logs: SimulatedLogs) -> float:
    """Share of watches of a video that the user has watched before."""
    f = Frame(logs)
    return 1 - len(np.unique(f.user * 10**6 + f.video)) / len(f.user)


def heavy_share(logs: SimulatedLogs) -> float:
    """Share of all watches made by the most active hundredth of the users."""
    counts = np.sort(np.bincount(Frame(logs).user, minlength=1500))
    return float(counts[-15:].sum() / counts.sum())


def queries_asked(logs: SimulatedLogs) -> float:
    return logs.tables["searches"].num_rows / logs.tables["watches"].num_rows


def from_outside(logs: SimulatedLogs) -> float:
    return float(pc.mean(pc.cast(pc.equal(logs.tables["watches"]["origin"], "external"), pa.float64())).as_py())


def spread_of_durations(logs: SimulatedLogs) -> float:
    return float(np.log(np.asarray(logs.tables["videos"]["duration_s"])).std())


def returns_to_the_first_completed(logs: SimulatedLogs) -> float:
    """Of watches from outside within a session, the share of the first video that the user completed of the uploader
    just watched, where that was another one."""
    f = Frame(logs)
    session = np.append(False, (f.user[1:] == f.user[:-1]) & (np.diff(f.time_us) < 3_600_000_000))
    uploader, completed = f.platform.uploader[f.video], f.events["completed"].to_numpy()
    first: dict[tuple[int, int], int] = {}
    returned = []
    for i, (user, video) in enumerate(zip(f.user.tolist(), f.video.tolist(), strict=True)):
        waiting = first.get((user, uploader[i - 1]), -1)
        if session[i] and f.page[i] == PAGES.index("external") and waiting not in (-1, f.video[i - 1]):
            returned.append(video == waiting)
        if completed[i]:
            first.setdefault((user, uploader[i]), video)
    return float(np.mean(returned))


Statistic = Callable[[SimulatedLogs], float]
# effect, what measures it, its range with the switch on and with the switch off
EFFECTS: list[tuple[str, Statistic, tuple[float, float], tuple[float, float]]] = [
    ("long_term_taste", stable_taste, (0.5, 1), (-0.03, 0.03)),
    ("short_term_taste", drifting_taste, (0.05, 1), (-0.01, 0.01)),
    ("demographics", told_by_region, (0.03, 1), (-0.002, 0.002)),
    ("time_of_day", topics_by_hour, (0.05, 1), (-0.004, 0.004)),
    ("time_of_day", evening_peak, (3, 20), (0.9, 1.1)),
    ("series", in_order, (0.6, 1), (0, 0.25)),
    ("freshness", young_to_old, (3, 30), (0.8, 1.25)),
    ("freshness", rise_after_upload, (1.3, 5), (0.8, 1.25)),
    ("clickbait", bait_clicks, (2, 5), (0.85, 1.15)),
    ("clickbait", bait_watch_share, (0.1, 0.6), (0.85, 1.15)),
    ("churn", clicks_after_ignoring, (0.2, 0.7), (0.9, 1.3)),
    ("position", first_to_last_place, (1.7, 2.5), (0.85, 1.15)),
    ("loyalty", favourite_uploaders, (0.2, 0.6), (0, 0.15)),
    ("related", related_to_seed, (0.2, 0.8), (-0.02, 0.02)),
    ("language", own_language, (0.1, 1), (-0.01, 0.01)),
    ("durations", spread_of_durations, (0.6, 1.2), (0, 0.01)),
    ("duration_fit", longer_on_tv, (0.3, 2), (-0.05, 0.05)),
    ("rewatch", repeats, (0, 0.08), (0.12, 0.5)),
    ("heavy_users", heavy_share, (0.12, 0.6), (0.02, 0.09)),
    ("replays", returns_to_the_first_completed, (0.985, 1), (0, 0.05)),
    ("searches", queries_asked, (0.15, 0.3), (0, 0)),
    ("external", from_outside, (0.5, 0.75), (0, 0)),
]


@pytest.fixture(scope="module")
def nothing() -> SimulatedLogs:
    return simulate(quiet())


@pytest.fixture(scope="module")
def alone() -> Callable[[str, float], SimulatedLogs]:
    """Logs with one switch set, each simulated once."""
    made: dict[tuple[str, float], SimulatedLogs] = {}

    def get(switch: str, strength: float) -> SimulatedLogs:
        if (switch, strength) not in made:
            made[switch, strength] = simulate(quiet(**{switch: strength}))
        return made[switch, strength]

    return get


@pytest.mark.parametrize(("switch", "statistic", "on", "off"), EFFECTS, ids=lambda v: getattr(v, "__name__", None))
def test_effect_is_there_when_switched_on_and_gone_when_off(
    alone: Callable[[str, float], SimulatedLogs],
    nothing: SimulatedLogs,
    switch: str,
    statistic: Statistic,
    on: tuple[float, float],
    off: tuple[float, float],
) -> None:
    by_default = switch in ("searches", "external", "durations")  # these stay on the quiet platform
    with_effect = nothing if by_default else alone(switch, 1.0)
    without = alone(switch, 0.0) if by_default else nothing
    assert on[0] <= statistic(with_effect) <= on[1]
    assert off[0] <= statistic(without) <= off[1]


def context_ratios(config: SimulatorConfig) -> tuple[np.ndarray, np.ndarray]:
    """How much taste moves topic choice by page, device and topic, and the gates that should explain it.

    The ratio is the log of a topic's share among watches of the users who like it most over that among those who like
    it least; with tastes t and gate g its expectation is close to g × (mean t of the first - mean t of the second).
    """
    f = Frame(simulate(config))
    gate = generate_platform(quiet(context=1.0)).gate
    K = config.topics
    ratios, gates = [], []
    for page in (2, 3):  # search and external: the topic comes from the user alone
        for device in range(len(DEVICES)):
            here = (f.page == page) & (f.device == device)
            for k in range(K):
                taste = f.platform.taste[:, k]
                low, high = np.quantile(taste, [0.4, 0.6])
                shares = [(f.topic[here & chosen[f.user]] == k).mean() for chosen in (taste > high, taste < low)]
                spread = taste[taste > high].mean() - taste[taste < low].mean()
                ratios.append((np.log(shares[0] + 1e-3) - np.log(shares[1] + 1e-3)) / spread)
                gates.append(gate[page, device, k])
    shape = (2, len(DEVICES), K)
    return np.reshape(ratios, shape), np.reshape(gates, shape)


def test_page_and_device_multiply_taste_and_do_nothing_when_off() -> None:
    scale = {"users": 4000, "long_term_taste": 0.7}
    ratio, gate = context_ratios(quiet(context=1.0, **scale))
    log_ratio, log_gate = np.log(np.maximum(ratio, 0.05)), np.log(gate)
    centred = [x - x.mean((0, 1)) for x in (log_ratio, log_gate)]
    assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.8
    # a product of page and device: in logs, what is left after their sum is small beside it
    left = centred[0] - centred[0].mean(0, keepdims=True) - centred[0].mean(1, keepdims=True)
    assert left.std() < 0.4 * centred[0].std()

    ratio_off, _ = context_ratios(quiet(context=0.0, **scale))
    off = ratio_off - ratio_off.mean((0, 1))
    assert abs(np.corrcoef(off.ravel(), centred[1].ravel())[0, 1]) < 0.3
    assert off.std() < 0.4 * (ratio - ratio.mean((0, 1))).std()


def liking_by_device(logs: SimulatedLogs) -> np.ndarray:
    """`[devices, topics]` how much more often users who like a topic watch it than users who do not."""
    f = Frame(logs)
    found = f.page >= 2  # search and external: the topic comes from the user alone
    likes = f.platform.taste > np.median(f.platform.taste, axis=0)
    return np.array(
        [
            [
                (f.topic[found & (f.device == d) & likes[f.user, k]] == k).mean()
                - (f.topic[found & (f.device == d) & ~likes[f.user, k]] == k).mean()
                for k in range(f.platform.config.topics)
            ]
            for d in range(len(f.platform.device_names))
        ]
    )


def test_a_device_turns_the_liking_of_some_topics_around() -> None:
    some = {"long_term_taste": 1.0, "device_models": 2, "main_device": 0.0, "topics": 6}
    logs = simulate(quiet(**some, reversal=0.5))
    gate = logs.truth.platform.gate[0]
    assert logs.truth.platform.device_names[:3] == ["phone 1", "phone 2", "desktop 1"]
    assert 0.3 < (gate < 0).mean() < 0.7
    assert ((liking_by_device(logs) > 0) == (gate > 0)).mean() > 0.95
    assert (liking_by_device(simulate(quiet(**some))) > 0).mean() > 0.95


@pytest.mark.parametrize(("main_device", "most"), [(0.0, (0.3, 0.6)), (1.0, (1, 1))])
def test_the_main_device_has_its_share_of_a_users_sessions(main_device: float, most: tuple[float, float]) -> None:
    f = Frame(simulate(quiet(main_device=main_device)))
    counts = np.zeros((f.platform.config.users, len(DEVICES)))
    np.add.at(counts, (f.user, f.device), 1)
    counts = counts[counts.sum(1) >= 40]
    assert most[0] <= (counts.max(1) / counts.sum(1)).mean() <= most[1]


def test_every_switch_is_tested() -> None:
    described = {
        name
        for name, field in SimulatorConfig.model_fields.items()
        if isinstance(field.default, float) and field.default in (0.0, 1.0)
    }
    assert described == {effect[0] for effect in EFFECTS} | {"context", "reversal"}
