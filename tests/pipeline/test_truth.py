"""The truth is true: what it predicts is what the logs show, within sampling error."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from features.errors import ArtifactError, DataError
from pipeline.sources.simulator import SimulatedLogs, SimulatorConfig, simulate
from pipeline.sources.simulator_behaviour import Pairs, examination, topic_probabilities
from pipeline.sources.simulator_candidates import Candidates
from pipeline.sources.simulator_platform import EXTERNAL, HOME, PAGES, WATCH_NEXT
from pipeline.sources.truth import Given, Truth

CONFIG = SimulatorConfig(users=1200, videos=600, uploaders=80, topics=16)
LABELS = 3000


@pytest.fixture(scope="module")
def logs() -> SimulatedLogs:
    return simulate(CONFIG)


def keys(watches: pa.Table) -> tuple[pa.ChunkedArray, np.ndarray]:
    return watches["user_id"], watches["timestamp"].cast(pa.int64()).to_numpy()


def labels(truth: Truth, watches: pa.Table) -> np.ndarray:
    return pc.index_in(watches["video_id"], pa.array(truth.video_ids)).to_numpy()


def sampled(watches: pa.Table) -> pa.Table:
    rows = np.random.default_rng(0).choice(len(watches), min(LABELS, len(watches)), replace=False)
    return watches.take(np.sort(rows))


def test_clicks_agree_with_click_probability_overall_and_by_decile(logs: SimulatedLogs) -> None:
    p = logs.truth.impressions["click_probability"].to_numpy()
    clicked = logs.tables["impressions"]["clicked"].to_numpy()
    assert logs.truth.impressions["impression_id"].equals(logs.tables["impressions"]["impression_id"])
    assert abs(clicked.sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    decile = np.searchsorted(np.quantile(p, np.arange(0.1, 1, 0.1)), p)
    for d in range(10):
        at = decile == d
        assert abs(clicked[at].sum() - p[at].sum()) < 4 * np.sqrt((p[at] * (1 - p[at])).sum()), f"decile {d}"


def test_watch_time_of_clicks_agrees_with_its_expectation_overall_and_by_decile(logs: SimulatedLogs) -> None:
    clicked = logs.tables["impressions"]["clicked"].to_numpy()
    expected = logs.truth.impressions["expected_watch_time_given_click_s"].to_numpy()[clicked]
    watched = logs.tables["impressions"]["watch_time_s"].drop_null().to_numpy()
    decile = np.searchsorted(np.quantile(expected, np.arange(0.1, 1, 0.1)), expected)
    for at in [np.ones(len(expected), bool), *(decile == d for d in range(10))]:
        error = watched[at] - expected[at]
        assert abs(error.mean()) < 4 * error.std() / np.sqrt(at.sum())
    product = logs.truth.impressions["click_probability"].to_numpy()[clicked] * expected
    np.testing.assert_allclose(logs.truth.impressions["expected_watch_time_s"].to_numpy()[clicked], product)


def test_click_probability_follows_from_the_state_the_truth_keeps(logs: SimulatedLogs) -> None:
    """What was used during the simulation can be computed again from the logs: nothing of the state is lost."""
    truth, impressions = logs.truth, logs.tables["impressions"]
    platform = truth.platform
    rows = np.sort(np.random.default_rng(1).choice(len(impressions), 3000, replace=False))
    shown = impressions.take(rows)
    span = 1 << 50
    user = np.array([int(u[1:]) for u in shown["user_id"].to_pylist()])
    time = shown["timestamp"].cast(pa.int64()).to_numpy() - platform.start_us
    step = np.searchsorted(
        truth.steps["user"].astype(np.int64) * span + truth.steps["time_us"] - platform.start_us, user * span + time
    )
    video = np.array([int(v[1:]) for v in shown["video_id"].to_pylist()])[:, None]
    ignored = np.take_along_axis(truth._remembered(truth.ignored, step, np.uint8), video, 1)
    watched = np.take_along_axis(truth._remembered(truth.watches, step, np.uint8), video, 1) > 0
    assert ignored.max() > 1
    assert watched.any()
    page = np.array([PAGES.index(p) for p in shown["page"].to_pylist()])
    pairs = Pairs(platform, truth._moment(step), page, video, ignored, watched)
    position = shown["position"].to_numpy()
    np.testing.assert_allclose(
        pairs.appeal()[:, 0] * examination(platform)[position],
        truth.impressions["click_probability"].to_numpy()[rows],
        rtol=1e-9,
    )


@pytest.mark.parametrize("page", [HOME, WATCH_NEXT, EXTERNAL])
def test_draws_from_the_sources_follow_their_probabilities(logs: SimulatedLogs, page: int) -> None:
    truth = logs.truth
    candidates = Candidates(truth.platform)
    state = truth.steps
    fits = (state["seed"] >= 0) & (state["followed"] >= 0).any(1) & (state["bin"] > 10)
    one = truth._moment(np.flatnonzero(fits)[:1])
    topics = topic_probabilities(truth.platform, one, np.array([page]))
    p = candidates.probabilities(one, page, topics)[0]
    n = 200_000
    many = one[np.zeros(n, int)]
    rng = np.random.default_rng(3)
    source = candidates.draw_sources(rng, many, np.full(n, page), 1)
    drawn = candidates.draw(rng, many, source, np.repeat(np.cumsum(topics, 1), n, 0))
    counts = np.bincount(drawn[:, 0], minlength=len(p))
    assert p.sum() == pytest.approx(1)
    assert counts[p == 0].sum() == 0
    z = (counts - n * p)[p > 0] / np.sqrt(n * p * (1 - p))[p > 0]
    assert np.abs(z).max() < 5.5
    assert (z**2).mean() == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("given", list(Given))
@pytest.mark.parametrize("completed_only", [False, True])
def test_labels_are_as_frequent_as_their_probability_says(
    logs: SimulatedLogs, given: Given, completed_only: bool
) -> None:
    watches = logs.tables["watches"]
    if completed_only:
        watches = watches.filter(watches["completed"])
    watches = sampled(watches)
    p = logs.truth.next_watch_probabilities(*keys(watches), completed_only=completed_only, given=given)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-4)
    assert_calibrated(p, labels(logs.truth, watches))


@pytest.fixture(scope="module")
def returning() -> SimulatedLogs:
    return simulate(CONFIG.model_copy(update={"uploaders": 24, "replays": 0.6, "reversal": 0.4, "device_models": 2}))


@pytest.mark.parametrize("given", list(Given))
@pytest.mark.parametrize("completed_only", [False, True])
def test_replays_are_as_frequent_as_their_probability_says(
    returning: SimulatedLogs, given: Given, completed_only: bool
) -> None:
    truth, watches = returning.truth, returning.tables["watches"]
    if completed_only:
        watches = watches.filter(watches["completed"])
    watches = sampled(watches)
    cherished = truth.steps["cherished"][truth.watches["step"][truth._watch_rows(*keys(watches))]]
    p = truth.next_watch_probabilities(*keys(watches), completed_only=completed_only, given=given)
    assert_calibrated(p, labels(truth, watches))
    waiting = np.flatnonzero(cherished >= 0)
    own = p[waiting, cherished[waiting]]
    returns = (labels(truth, watches)[waiting] == cherished[waiting]).sum()
    assert returns > 100
    assert abs(returns - own.sum()) < 4 * np.sqrt((own * (1 - own)).sum())


def assert_calibrated(p: np.ndarray, label: np.ndarray) -> None:
    """In every range of probabilities, as many labels as the probabilities add up to."""
    own = p[np.arange(len(p)), label]
    edges = [0, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.5, 1.0001]
    observed = np.histogram(own, edges)[0]
    for low, high, count in zip(edges[:-1], edges[1:], observed, strict=True):
        inside = p[(p >= low) & (p < high)].astype(np.float64)
        deviation = np.sqrt((inside * (1 - inside)).sum())
        # watches of one page view share their distribution, so counts vary a little more than independent ones
        assert abs(count - inside.sum()) <= 4.5 * deviation + 1, f"[{low}, {high}): {count} against {inside.sum():.1f}"


def test_pages_that_would_repeat_a_video_are_accounted_for() -> None:
    """Forty videos on pages of twelve places: most draws repeat one that stands higher on the page."""
    scale = {"users": 500, "videos": 40, "uploaders": 12, "topics": 4, "slots": 12}
    logs = simulate(SimulatorConfig.model_validate({**scale, "external": 0, "searches": 0}))
    shown, watches = logs.tables["impressions"], sampled(logs.tables["watches"])
    requests = pc.count_distinct(shown["request_id"]).as_py()
    assert shown.num_rows < 0.75 * 12 * requests
    assert_calibrated(logs.truth.next_watch_probabilities(*keys(watches)), labels(logs.truth, watches))


@pytest.mark.parametrize("completed_only", [False, True])
def test_ways_to_find_a_video_are_as_frequent_as_the_truth_says(completed_only: bool) -> None:
    small = {"users": 600, "videos": 60, "uploaders": 12, "topics": 4}
    logs = simulate(SimulatorConfig.model_validate(small))
    watches = logs.tables["watches"]
    if completed_only:
        watches = watches.filter(watches["completed"])
    steps = logs.truth.watches["step"][logs.truth._watch_rows(*keys(watches))]
    expected = logs.truth._expected_watches(steps, completed_only, Given.STATE)
    by_page = np.stack([expected[page].sum(1) for page in range(len(PAGES))], 1)
    p = by_page / by_page.sum(1, keepdims=True)
    for page, name in enumerate(PAGES):
        observed = pc.sum(pc.equal(watches["page"], name)).as_py()
        deviation = np.sqrt((p[:, page] * (1 - p[:, page])).sum())
        assert abs(observed - p[:, page].sum()) < 3.5 * deviation, name


def test_completed_only_tells_completed_from_abandoned_watches(logs: SimulatedLogs) -> None:
    watches = logs.tables["watches"]
    completed = sampled(watches.filter(watches["completed"]))
    rows = np.arange(len(completed)), labels(logs.truth, completed)
    with_completion = logs.truth.next_watch_probabilities(*keys(completed), completed_only=True)[rows]
    without = logs.truth.next_watch_probabilities(*keys(completed))[rows]
    assert np.log(with_completion).mean() > np.log(without).mean() + 0.01


def test_the_true_distribution_beats_popularity_and_more_knowledge_beats_less(logs: SimulatedLogs) -> None:
    watches = sampled(logs.tables["watches"])
    label = labels(logs.truth, watches)
    popularity = np.bincount(labels(logs.truth, logs.tables["watches"]), minlength=CONFIG.videos) + 0.5
    popularity /= popularity.sum()
    likelihood, recall = [np.log(popularity[label]).mean()], [np.isin(label, np.argsort(-popularity)[:20]).mean()]
    for given in (Given.STATE, Given.PAGE, Given.QUERY):
        p = logs.truth.next_watch_probabilities(*keys(watches), given=given)
        own = p[np.arange(len(p)), label]
        likelihood.append(np.log(own).mean())
        recall.append(((p > own[:, None]).sum(1) < 20).mean())
    assert likelihood[1] > likelihood[0] + 1
    assert recall[1] > 3 * recall[0]
    assert likelihood[1] < likelihood[2] < likelihood[3]


def test_chunks_and_storage_do_not_change_the_answer(logs: SimulatedLogs, tmp_path: Path) -> None:
    watches = logs.tables["watches"].slice(1000, 40)
    expected = logs.truth.next_watch_probabilities(*keys(watches))
    logs.truth.write(tmp_path)
    truth = Truth.read(tmp_path)
    np.testing.assert_array_equal(truth.video_ids, logs.tables["videos"]["video_id"].to_numpy())
    np.testing.assert_allclose(truth.next_watch_probabilities(*keys(watches), chunk=7), expected, rtol=1e-6)
    assert truth.impressions.equals(logs.truth.impressions)


def test_a_key_that_is_no_watch_is_refused(logs: SimulatedLogs) -> None:
    user, time = keys(logs.tables["watches"].slice(5, 1))
    for wrong_user, wrong_time in ((user, time + 1), (pa.array(["nobody"]), time), (user, time - (1 << 55))):
        with pytest.raises(DataError, match=r"expected watches of the simulation, found 1 keys that are none"):
            logs.truth.next_watch_probabilities(wrong_user, wrong_time)


def test_a_folder_without_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="simulate the source again"):
        Truth.read(tmp_path)
