"""Label protocols: the papers' numbers, and who is trained on, judged and left out in histories made by hand."""

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.splits import Part, Split, resolve
from pipeline.config import RunConfig
from pipeline.protocols import PROTOCOLS
from tests.features.example_logs import DAY_US, START_US
from tests.features.test_sequence_examples import build, watch

# Watches in a sequence; users with fewer are left out of training, of what is judged; only the last watches, days
# are labels; labels of a user in training and in a part that is judged; whether the first watch is one.
NUMBERS = (
    "features.watch_window",
    "sequence_examples.min_watches",
    "candidate_examples.evaluation_min_watches",
    "sequence_examples.max_watches",
    "sequence_examples.label_days",
    "sequence_examples.labels_per_user",
    "candidate_examples.evaluation_labels_per_user",
    "sequence_examples.first_watch",
)
PAPERS: dict[str, tuple] = {
    "latent_cross_production": (100, 1, 1, None, 7, 100, 16, True),  # "at most 16": ours, the paper gives no number
    "latent_cross_comparative": (100, 50, 50, None, None, None, 5, False),
    "m3_youtube": (300, 150, 150, 300, 7, None, 16, False),
    "m3_movielens": (300, 20, 20, None, None, None, 1, False),
    "m3_movielens_s": (20, 20, 20, 50, None, None, 1, False),
    "m3_movielens_m": (50, 50, 50, 150, None, None, 1, False),
    "m3_movielens_l": (150, 150, 150, 300, None, None, 1, False),
    "m3_movielens_xl": (300, 300, 300, None, None, None, 1, False),
}
BY_USERS = {"split.test_days": None, "split.test_user_share": 0.1, "split.validation_user_share": 0.1}
BY_TIME = {"split.test_days": 2, "split.test_user_share": 0.1, "split.validation_user_share": 0.0}


def setting(config: RunConfig, name: str) -> Any:
    return reduce(getattr, name.split("."), config)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_has_the_numbers_of_its_paper(name: str) -> None:
    """Beutel et al. 2018, sections 5.4, 7.1.1 and 7.2.1; Tang et al. 2019, sections 5.1 and 5.2, table 3."""
    config = RunConfig.model_validate({"protocol": name})
    assert {number: setting(config, number) for number in NUMBERS} == dict(zip(NUMBERS, PAPERS[name], strict=True))
    by_time = name in ("latent_cross_production", "m3_youtube")
    expected = BY_TIME if by_time else BY_USERS
    assert {key: setting(config, key) for key in expected} == expected
    if by_time:
        assert config.split.gap_hours == {"latent_cross_production": 4, "m3_youtube": 0}[name]
    else:
        assert config.candidate_examples.evaluation_choice == "last"
    assert config.analysis.of_space("video").min_count == (20 if name.startswith("m3_movielens") else 0)


def user_of(split: Split, part: Part, skip: int = 0) -> str:
    """A user whom the split's hash puts into a part."""
    users = [f"user {number}" for number in range(200)]
    return [user for user, group in zip(users, split.groups(pa.array(users)), strict=True) if group == part][skip]


def history(user: str, count: int, last_hours: float, every_hours: float = 1.0) -> list[dict]:
    """`count` watches, the last one at `last_hours`; video number i is the i-th watch of a user, from 1."""
    hours = last_hours - every_hours * np.arange(count)[::-1]
    return [watch(user, f"v{number:03}", hour) for number, hour in enumerate(hours, start=1)]


def labels_of(
    tmp_path: Path, config: RunConfig, split: Split, watches: list[dict]
) -> dict[tuple[Part, str], list[tuple[int, int]]]:
    """(part, user) -> of each example the number of the label's watch, and how many labels its sequence predicts."""
    parts, _ = build(tmp_path, watches, config.sequence_examples, config.candidate_examples, split, config.features)
    found: dict[tuple[Part, str], list[tuple[int, int]]] = {}
    for part, rows in parts.items():
        for row in rows:
            predicted = 1 + np.count_nonzero(row["label_weights"])
            found.setdefault((part, row["user_id"]), []).append((int(row["label_video_id"][1:]), predicted))
    return found


@pytest.mark.parametrize(
    ("name", "least", "judged"),
    [("latent_cross_comparative", 50, 5), ("m3_movielens", 20, 1), ("m3_movielens_m", 50, 1)],
)
def test_users_are_split_and_of_those_with_enough_watches_the_last_are_judged(
    tmp_path: Path, name: str, least: int, judged: int
) -> None:
    """In each part one user who has just enough watches and one who has one too few; in training all but the first."""
    config = RunConfig.model_validate({"protocol": name})
    split = resolve(config.split, START_US + 10 * DAY_US)
    parts = (Part.TRAIN, Part.VALIDATION, Part.TEST)
    watches = [row for part in parts for row in history(user_of(split, part), least, 200)]
    watches += [row for part in parts for row in history(user_of(split, part, skip=1), least - 1, 200)]
    last = [(number, 1) for number in range(least - judged + 1, least + 1)]
    assert labels_of(tmp_path, config, split, watches) == {
        (Part.TRAIN, user_of(split, Part.TRAIN)): [(least, least - 1)],
        (Part.VALIDATION, user_of(split, Part.VALIDATION)): last,
        (Part.TEST, user_of(split, Part.TEST)): last,
    }


def test_a_window_of_300_slides_over_a_longer_history_of_movielens(tmp_path: Path) -> None:
    """Of 450 watches the last window predicts 151 to 450, the one before it 2 to 150."""
    config = RunConfig.model_validate({"protocol": "m3_movielens"})
    split = resolve(config.split, START_US + 30 * DAY_US)
    user = user_of(split, Part.TRAIN)
    found = labels_of(tmp_path, config, split, history(user, 450, 700))
    assert found == {(Part.TRAIN, user): [(150, 149), (450, 300)]}


def test_m3_on_youtube_learns_from_seven_days_of_the_last_300_watches_and_is_tested_on_two(tmp_path: Path) -> None:
    """The log ends with day 15, so t0 is the end of day 13; day 13 validates, days 7 to 12 are left of the seven.

    Hourly watches of these six days at the full hour: 144, of which the one at the very start is not inside. A watch
    every ten minutes: only the last 300 of them. 149 watches before day 13 are one too few.
    """
    config = RunConfig.model_validate({"protocol": "m3_youtube"})
    split = resolve(config.split, START_US + 15 * DAY_US - 1)
    assert (split.t0_us, split.test_start_us) == (START_US + 13 * DAY_US,) * 2
    hourly, dense, few = (user_of(split, Part.TRAIN, skip) for skip in range(3))
    tested, tested_few = (user_of(split, Part.TEST, skip) for skip in range(2))
    watches = [
        *history(hourly, 200, 12 * 24 - 1),
        *history(dense, 400, 12 * 24 - 1, 1 / 6),
        *history(few, 149, 12 * 24 - 1),
        *history(tested, 150, 15 * 24 - 1, 4),  # 12 in the last two days, from number 139 on
        *history(tested_few, 149, 15 * 24 - 1, 4),
    ]
    found = labels_of(tmp_path, config, split, watches)
    assert found == {
        (Part.TRAIN, hourly): [(200, 143)],
        (Part.TRAIN, dense): [(400, 300)],
        (Part.TEST, tested): [(number, 1) for number in range(139, 151)],
    }
