"""Splits: which part of an example set a label belongs to, by its time and by its user.

In time: training labels before t0, a gap, test labels after it; validation labels are carved from the end of training.
By users: the test users, chosen by a seeded hash, are held out of training and validation altogether; with validation
users, these are held out of training, and validation labels are theirs in place of those at the end of training.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from features.errors import ConfigError
from features.event_windows import ORDER_ONLY
from features.hashing import combine, hash_strings, shares
from features.settings import Settings

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US


class Part(IntEnum):
    """The part of an example set that a label belongs to; `NONE` belongs to no part (gap, held-out user, no time)."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2
    NONE = 3

    @property
    def folder(self) -> str:
        return self.name.lower()


IN_GAP = "in_split.gap_hours_after_t0"
"""Why a label of a tested user is none: its time is in the gap. Where times are whole days the first may lie in it."""

PARTS = (Part.TRAIN, Part.VALIDATION, Part.TEST)


class SplitConfig(Settings):
    """How labels are split."""

    t0: datetime | None = None
    """End of training (UTC where no zone is given); None: `test_days` before the end of the log."""
    test_days: int | None = Field(default=2, ge=1)
    """Last local days that are tested, when `t0` is not given; None: no split in time, only by users."""
    utc_offset_hours: float = Field(default=0.0, ge=-14, le=14)
    """Local time, for local days (and local hours and page groups), hours east of UTC."""
    gap_hours: float = Field(default=4.0, ge=0)
    """Hours after t0 whose labels belong to no part."""
    validation_days: float = Field(default=1.0, ge=0)
    """Days before t0 whose labels are validation; 0: no validation."""
    validation_gap_hours: float = Field(default=0.0, ge=0)
    """Hours at the start of the validation days whose labels belong to no part."""
    test_user_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of users held out of training (0.1 for 90/10), the only ones then tested; 0: all users in all parts."""
    validation_user_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of users whose labels are validation (0.1 for 80/10/10), in place of `validation_days`; 0: by time."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of test and validation users."""
    refit: bool = True
    """Whether the final model is trained on training and validation together; vocabularies then end at t0."""

    @model_validator(mode="after")
    def _splits_something(self) -> "SplitConfig":
        if self.t0 is None and self.test_days is None and self.test_user_share == 0:
            raise ValueError("expected t0, test_days or test_user_share, found none: nothing would be tested")
        if self.test_user_share + self.validation_user_share >= 1:
            raise ValueError("test_user_share and validation_user_share leave no user for training; lower them")
        return self

    @property
    def utc_offset_s(self) -> float:
        return self.utc_offset_hours * 3600


@dataclass(frozen=True)
class Split:
    """A split with its boundaries in microseconds since the epoch.

    Args:
      validation_start_us: end of the training labels.
      validation_labels_start_us: first validation label (after the validation gap).
      t0_us: end of the validation labels.
      test_start_us: first test label.
      test_user_share, seed: the held-out users.
      refit: see `SplitConfig.refit`.
      utc_offset_s: local time, seconds east of UTC.
      validation_user_share: the users whose labels are validation; 0: validation is by time.
    """

    validation_start_us: int
    validation_labels_start_us: int
    t0_us: int
    test_start_us: int
    test_user_share: float
    seed: int
    refit: bool
    utc_offset_s: float = 0.0
    validation_user_share: float = 0.0

    @property
    def fit_end_us(self) -> int:
        """Vocabularies and statistics are fitted on events before this moment."""
        return self.t0_us if self.refit else self.validation_start_us

    def is_test_user(self, user_ids: pa.Array) -> np.ndarray:
        """bool `[n]`: held out of training and validation."""
        return self._shares(user_ids) < self.test_user_share

    def is_validation_user(self, user_ids: pa.Array) -> np.ndarray:
        """bool `[n]`: held out of training, for validation."""
        drawn = self._shares(user_ids)
        return (drawn >= self.test_user_share) & (drawn < self.test_user_share + self.validation_user_share)

    def is_training_user(self, user_ids: pa.Array, with_validation: bool = False) -> np.ndarray:
        """bool `[n]`: users who are trained on; with the validation users, as the final training is."""
        drawn = self._shares(user_ids)
        return drawn >= self.test_user_share + (0.0 if with_validation else self.validation_user_share)

    def _shares(self, user_ids: pa.Array) -> np.ndarray:
        """float64 `[n]` in [0, 1), the same for a user always; 1 where users are not told apart."""
        if self.test_user_share == self.validation_user_share == 0:
            return np.ones(len(user_ids))
        return shares(combine(hash_strings(user_ids), np.asarray(self.seed)))

    def part_of(self, label_time_us: np.ndarray, user_ids: pa.Array) -> np.ndarray:
        """The part of every label.

        Args:
          label_time_us: int64 `[n]`; `ORDER_ONLY` (never a label) gives `Part.NONE`.
          user_ids: string `[n]`.

        Returns:
          int8 `[n]` of `Part`.
        """
        return self.part_of_group(label_time_us, self.groups(user_ids))

    def groups(self, user_ids: pa.Array) -> np.ndarray:
        """int8 `[n]` of `Part`: whom users are for; without held-out users all are for training, and tested too."""
        group = np.full(len(user_ids), Part.TRAIN, np.int8)
        group[self.is_validation_user(user_ids)] = Part.VALIDATION
        group[self.is_test_user(user_ids)] = Part.TEST
        return group

    def part_of_group(self, label_time_us: np.ndarray, group: np.ndarray) -> np.ndarray:
        """`part_of` where the users' `groups` are known already, `[n]`."""
        time_us = label_time_us
        part = np.full(len(time_us), Part.NONE, np.int8)
        trains = group == Part.TRAIN
        part[trains & (time_us < self.validation_start_us)] = Part.TRAIN
        validates = group == Part.VALIDATION if self.validation_user_share else trains
        start_us = ORDER_ONLY + 1 if self.validation_user_share else self.validation_labels_start_us
        part[validates & (time_us >= start_us) & (time_us < self.t0_us)] = Part.VALIDATION
        tests = group == Part.TEST if self.test_user_share else trains
        part[tests & (time_us >= self.test_start_us)] = Part.TEST
        part[time_us == ORDER_ONLY] = Part.NONE
        return part

    def in_gap(self, label_time_us: np.ndarray, group: np.ndarray) -> np.ndarray:
        """bool `[n]`: labels that the gap after t0 keeps from the test part; `group` as of `groups`."""
        tests = group == (Part.TEST if self.test_user_share else Part.TRAIN)
        return tests & (label_time_us >= self.t0_us) & (label_time_us < self.test_start_us)

    def fits(self, time_us: np.ndarray, user_ids: pa.Array) -> np.ndarray:
        """bool `[n]`: events that vocabularies and statistics may be fitted on (order-only events are the earliest)."""
        return (time_us < self.fit_end_us) & self.is_training_user(user_ids, with_validation=self.refit)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Split":
        return Split(**value)


def resolve(config: SplitConfig, max_timestamp_us: int) -> Split:
    """The split's boundaries.

    Args:
      config: the configuration.
      max_timestamp_us: the latest event of the log.

    Raises:
      ConfigError: t0 is after the end of the log, so nothing would be tested.
    """
    t0_us = _t0_us(config, max_timestamp_us)
    end_us = max_timestamp_us + 1 if t0_us is None else t0_us
    days = 0.0 if config.validation_user_share else config.validation_days
    validation_start_us = end_us - round(days * _DAY_US)
    labels_start_us = min(validation_start_us + round(config.validation_gap_hours * _HOUR_US), end_us)
    test_start_us = ORDER_ONLY + 1 if t0_us is None else t0_us + round(config.gap_hours * _HOUR_US)
    if test_start_us > max_timestamp_us:
        raise ConfigError(
            f"split: test labels would start at {iso_time(test_start_us)} but the log ends at "
            f"{iso_time(max_timestamp_us)}; set an earlier t0, more test_days or a shorter gap_hours"
        )
    return Split(
        validation_start_us,
        labels_start_us,
        end_us,
        test_start_us,
        config.test_user_share,
        config.seed,
        config.refit,
        config.utc_offset_s,
        config.validation_user_share,
    )


def _t0_us(config: SplitConfig, max_timestamp_us: int) -> int | None:
    if config.t0 is not None:
        t0 = config.t0 if config.t0.tzinfo else config.t0.replace(tzinfo=UTC)
        return (t0 - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    if config.test_days is None:
        return None
    offset_us = round(config.utc_offset_hours * _HOUR_US)
    last_local_day = (max_timestamp_us + offset_us) // _DAY_US
    return (last_local_day - config.test_days + 1) * _DAY_US - offset_us


def iso_time(time_us: int) -> str:
    """A moment for messages, UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()
