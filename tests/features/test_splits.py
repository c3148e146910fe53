import dataclasses
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from features.errors import ConfigError
from features.event_windows import ORDER_ONLY
from features.splits import Part, Split, SplitConfig, resolve

HOUR = 3_600_000_000
DAY = 24 * HOUR
T = 19_700 * DAY  # a UTC midnight


def parts(split: Split, *times: int, user: str = "u") -> list[Part]:
    return [Part(part) for part in split.part_of(np.array(times), pa.array([user] * len(times)))]


def test_parts_lie_in_order_with_a_gap_of_four_hours_before_the_test() -> None:
    split = resolve(SplitConfig(test_days=2, validation_days=1), T + 5 * HOUR)
    t0 = T - DAY  # the last two UTC days are T - 1 day and T
    assert split.t0_us == t0
    assert parts(split, t0 - DAY - 1, t0 - DAY, t0 - 1, t0, t0 + 4 * HOUR - 1, t0 + 4 * HOUR) == [
        Part.TRAIN, Part.VALIDATION, Part.VALIDATION, Part.NONE, Part.NONE, Part.TEST,
    ]  # fmt: skip


def test_labels_in_the_gap_are_told_apart_from_those_of_users_who_are_not_tested() -> None:
    split = resolve(SplitConfig(test_days=2, validation_days=1), T + 5 * HOUR)
    t0 = T - DAY
    times = np.array([t0 - 1, t0, t0 + 4 * HOUR - 1, t0 + 4 * HOUR, ORDER_ONLY])
    trained, tested = np.full(5, Part.TRAIN), np.full(5, Part.TEST)
    assert split.in_gap(times, trained).tolist() == [False, True, True, False, False]
    held_out = dataclasses.replace(split, test_user_share=0.5)
    assert not held_out.in_gap(times, trained).any()
    assert held_out.in_gap(times, tested).tolist() == [False, True, True, False, False]
    by_users = resolve(SplitConfig(test_days=None, test_user_share=0.5), T)
    assert not by_users.in_gap(times, tested).any()


def test_test_days_are_local_days() -> None:
    latest = T + 17 * HOUR  # 01:00 of the next day eight hours east
    assert resolve(SplitConfig(test_days=1, utc_offset_hours=8, gap_hours=0), latest).t0_us == T + 16 * HOUR
    assert resolve(SplitConfig(test_days=2, utc_offset_hours=8), latest).t0_us == T - 8 * HOUR
    assert resolve(SplitConfig(test_days=1, utc_offset_hours=-5, gap_hours=0), T + HOUR).t0_us == T - 19 * HOUR


def test_t0_can_be_given() -> None:
    t0 = datetime.fromtimestamp(T / 1e6, UTC)
    assert resolve(SplitConfig(t0=t0), T + DAY).t0_us == T
    assert resolve(SplitConfig(t0=t0.replace(tzinfo=None)), T + DAY).t0_us == T


def test_the_validation_gap_belongs_to_no_part() -> None:
    split = resolve(SplitConfig(test_days=1, validation_days=1, validation_gap_hours=2), T + DAY - 1)
    assert parts(split, T - DAY - 1, T - DAY, T - DAY + 2 * HOUR) == [Part.TRAIN, Part.NONE, Part.VALIDATION]


def test_without_validation_training_ends_at_t0() -> None:
    split = resolve(SplitConfig(test_days=1, validation_days=0), T + DAY - 1)
    assert parts(split, T - 1, T) == [Part.TRAIN, Part.NONE]


def test_an_order_only_row_is_never_a_label_but_may_be_fitted_on() -> None:
    split = resolve(SplitConfig(), T)
    assert parts(split, ORDER_ONLY) == [Part.NONE]
    assert split.fits(np.array([ORDER_ONLY]), pa.array(["u"])).tolist() == [True]


def test_vocabularies_are_fitted_before_validation_or_before_t0_when_refitting() -> None:
    for refit, end in ((True, T), (False, T - DAY)):
        split = resolve(SplitConfig(test_days=1, validation_days=1, refit=refit), T + DAY - 1)
        assert split.fits(np.array([end - 1, end]), pa.array(["u", "u"])).tolist() == [True, False]


def test_held_out_users_are_tested_and_never_trained_on() -> None:
    split = resolve(SplitConfig(test_days=1, test_user_share=0.1, seed=1), T + DAY - 1)
    users = pa.array([f"u{i}" for i in range(5000)])
    held_out = split.is_test_user(users)
    assert abs(held_out.mean() - 0.1) < 0.02
    early, late = np.full(5000, T - 2 * DAY), np.full(5000, T + 5 * HOUR)
    assert set(split.part_of(early, users)[held_out]) == {Part.NONE}
    assert set(split.part_of(early, users)[~held_out]) == {Part.TRAIN}
    assert set(split.part_of(late, users)[held_out]) == {Part.TEST}
    assert set(split.part_of(late, users)[~held_out]) == {Part.NONE}
    assert not split.fits(early, users)[held_out].any()


def test_by_users_alone_the_whole_log_is_trained_and_tested_on() -> None:
    split = resolve(SplitConfig(test_days=None, test_user_share=0.5, validation_days=1), T)
    users = [f"u{i}" for i in range(50)]
    held_out = split.is_test_user(pa.array(users))
    for user, out in zip(users, held_out, strict=True):
        expected = [Part.TEST, Part.TEST] if out else [Part.TRAIN, Part.VALIDATION]
        assert parts(split, T - 9 * DAY, T, user=user) == expected


def test_a_split_that_tests_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing would be tested"):
        SplitConfig(test_days=None)
    with pytest.raises(ConfigError, match=r"test labels would start at .* but the log ends at"):
        resolve(SplitConfig(t0=datetime(2100, 1, 1)), T)


def test_a_split_survives_its_manifest() -> None:
    split = resolve(SplitConfig(test_user_share=0.1), T)
    assert Split.from_json(split.as_json()) == split


def test_validation_users_are_held_out_of_training_and_join_the_final_training() -> None:
    config = SplitConfig(test_days=None, test_user_share=0.1, validation_user_share=0.1, seed=3)
    split = resolve(config, T)
    users = pa.array([f"u{i}" for i in range(5000)])
    validation, tested = split.is_validation_user(users), split.is_test_user(users)
    assert abs(validation.mean() - 0.1) < 0.02 and not (validation & tested).any()
    found = split.part_of(np.full(5000, T - 300 * DAY), users)
    assert set(found[validation]) == {Part.VALIDATION}
    assert set(found[tested]) == {Part.TEST}
    assert set(found[~validation & ~tested]) == {Part.TRAIN}
    times = np.full(5000, T - DAY)
    assert split.fits(times, users).tolist() == (~tested).tolist()  # vocabularies reach as far as the final training
    alone = resolve(config.model_copy(update={"refit": False}), T)
    assert alone.fits(times, users).tolist() == (~tested & ~validation).tolist()


def test_with_validation_users_no_days_are_carved_from_training() -> None:
    split = resolve(SplitConfig(test_days=1, gap_hours=0, validation_days=5, validation_user_share=0.5), T + DAY - 1)
    users = [f"u{i}" for i in range(20)]
    for user in users:
        of_user = Part.VALIDATION if split.is_validation_user(pa.array([user]))[0] else Part.TRAIN
        tested = Part.NONE if of_user == Part.VALIDATION else Part.TEST
        assert parts(split, T - 1, T, user=user) == [of_user, tested]


def test_shares_that_leave_no_user_for_training_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave no user for training"):
        SplitConfig(test_user_share=0.5, validation_user_share=0.5)
