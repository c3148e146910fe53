"""The leakage check is bounded for a user with very many events, and is no weaker for that."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features import leakage_samples
from features.errors import LeakageError
from features.event_windows import Events
from features.example_reader import ExampleSet
from features.example_sets import RankingExamplesJob
from features.leakage import LeakageConfig, LeakageReport, check_leakage
from features.leakage_reference import oldest_first
from features.leakage_samples import UserLog
from features.splits import PARTS
from tests.features.example_logs import DAY_US, START_US, Run, build_here, platform, split_of, table

EVERYTHING = LeakageConfig(examples_per_part=10_000, shards=3)


def half_shared(rows: pa.Table) -> pa.Table:
    """Half of the users of a table as one."""
    users = ["guest" if int(user[1:]) % 2 else user for user in rows["user_id"].to_pylist()]
    return rows.set_column(rows.column_names.index("user_id"), "user_id", pa.array(users))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    tables = platform(users=40)
    shared = {name: half_shared(tables[name]) for name in ("watches", "impressions", "searches")}
    tables = {**tables, **shared}
    return Run(tmp_path_factory.mktemp("run"), tables, split_of(tables))


def built(run: Run, tmp_path: Path) -> Path:
    return build_here(RankingExamplesJob(run.specs["ranker"], run.split), run, tmp_path / "ranker")


def check(run: Run, examples: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LeakageReport, list[int]]:
    """What was checked, and the rows of history in each copy."""
    copied = []
    honest = leakage_samples.make_shard

    def counted(tables: dict[str, pa.Table], user_ids: pa.Array) -> object:
        copied.append(sum(len(rows) for rows in tables.values()))
        return honest(tables, user_ids)

    with monkeypatch.context() as patch:
        patch.setattr(leakage_samples, "make_shard", counted)
        return check_leakage(examples, run.shards, run.features, EVERYTHING), copied


def test_the_rows_copied_are_bounded_and_examples_of_other_users_all_made_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = built(run, tmp_path)
    whole, all_rows = check(run, examples, monkeypatch)
    events = {name: run.tables[name]["user_id"].to_pylist() for name in ("watches", "impressions", "searches")}
    of_guest = sum(users.count("guest") for users in events.values())
    monkeypatch.setattr(leakage_samples, "_MOST_ROWS_OF_A_USER", 5 * of_guest)
    monkeypatch.setattr(leakage_samples, "_MOST_ROWS_AT_ONCE", 2 * of_guest)
    bounded, rows = check(run, examples, monkeypatch)
    assert max(rows) <= 2 * of_guest < max(all_rows)
    assert sum(rows) < sum(all_rows) / 3
    for part in PARTS:
        users = ExampleSet(examples).read(part, ["user_id"])["user_id"].to_pylist()
        assert whole.examples[part.folder] == len(users)
        assert bounded.examples[part.folder] == len(users) - users.count("guest") + 5


def test_a_leak_among_the_examples_of_a_shared_id_is_caught(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Events.before

    def before(events: Events, user: np.ndarray, snapshot_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        longest = int(np.argmax(np.diff(events.offsets)))
        return honest(events, user, snapshot_us + np.where(user == longest, DAY_US, 0))

    monkeypatch.setattr(Events, "before", before)
    leaky = built(run, tmp_path)
    monkeypatch.setattr(leakage_samples, "_MOST_ROWS_OF_A_USER", 1)
    with pytest.raises(LeakageError, match="example of user 'guest'"):
        check_leakage(leaky, run.shards, run.features, EVERYTHING)


def random_watches(rng: np.random.Generator, rows: int) -> pa.Table:
    """Watches of one user in a muddle: equal moments, unknown times, impressions told again, near and long after."""
    told = []
    for i in range(rows):
        time_us = None if rng.random() < 0.3 else START_US + int(rng.integers(0, rows // 2)) * 1_000_000
        row = {"user_id": "u", "video_id": f"v{int(rng.integers(4))}", "time_us": time_us}
        row |= {"order": int(rng.integers(0, rows // 2)) if time_us is None else None}
        row |= {"impression_id": f"i{int(rng.integers(rows))}" if rng.random() < 0.5 else None, "device": f"row {i}"}
        told.append(row)
    return table("watches", told)


@pytest.mark.parametrize("seed", range(5))
def test_the_end_of_a_long_history_has_the_last_events_of_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_watches(rng, 900)
    log = UserLog(rows, pa.array(["u"]))
    for second in (50, 300, 450):
        snapshot_us = START_US + second * 1_000_000
        everything = log.rows(log.before("u", snapshot_us))
        short = log.last_before("u", snapshot_us, 5)
        assert oldest_first(short)[-5:] == oldest_first(everything)[-5:]
        times = rows["timestamp"].cast(pa.int64()).to_pylist()
        assert len(everything) == sum(time_us is None or time_us < snapshot_us for time_us in times)
    assert len(short) < len(everything) / 2
