"""When simulated users come: their sessions and the steps of each, drawn ahead of the simulation."""

from dataclasses import dataclass

import numpy as np

from pipeline.sources.simulator_platform import DEVICE_SHARES, HOUR_US, Platform, draw_rows, of_models

SECOND_US = 1_000_000
STEPS_PER_SESSION = 4.0
FOCUS_CHANGE = 0.35  # probability that a new session begins with another current topic


@dataclass(frozen=True)
class Schedule:
    """Steps and sessions, flat and sorted by user."""

    begin: np.ndarray  # [users] first step row
    count: np.ndarray  # [users] steps
    session: np.ndarray  # [steps]
    first: np.ndarray  # [steps] bool, first of its session
    gap_us: np.ndarray  # [steps] pause before the step
    start_us: np.ndarray  # [sessions]
    device: np.ndarray  # [sessions]
    new_focus: np.ndarray  # [sessions] topic, -1 keep


def draw_schedule(rng: np.random.Generator, platform: Platform) -> Schedule:
    """Draws all sessions of all users; a session begins later where the one before it is still going on."""
    config = platform.config
    sessions_of = rng.poisson(platform.activity / STEPS_PER_SESSION)
    user = np.repeat(np.arange(config.users), sessions_of)
    n = len(user)
    hours = np.arange(config.days * 24)
    demand = 1 + 0.8 * min(config.time_of_day, 1.0) * np.cos(2 * np.pi * (hours % 24 - 20) / 24)
    cumulative = np.concatenate([[0.0], np.cumsum(demand)]) / demand.sum()
    start_us = platform.start_us + (np.interp(rng.random(n), cumulative, np.arange(len(hours) + 1)) * HOUR_US).astype(
        np.int64
    )
    start_us = start_us[np.lexsort((start_us, user))]
    hour = start_us // HOUR_US % 24
    evening = np.minimum(config.time_of_day, 1.0) * np.cos(2 * np.pi * (hour - 20) / 24)
    shares = DEVICE_SHARES * np.exp(evening[:, None] * np.array([-0.4, -0.4, 1.0, 0.3]))
    other = draw_rows(rng, np.cumsum(of_models(shares, config), 1))
    device = np.where(rng.random(n) < config.main_device, platform.user_device[user], other)
    topic = draw_rows(rng, np.cumsum(platform.long_term, 1)[user])
    new_focus = np.where(rng.random(n) < FOCUS_CHANGE, topic, -1)

    steps_of = rng.geometric(1 / STEPS_PER_SESSION, n)
    session = np.repeat(np.arange(n), steps_of)
    session_begin = np.cumsum(steps_of) - steps_of
    first = np.arange(len(session)) == session_begin[session]
    count = np.bincount(user, steps_of, minlength=config.users).astype(np.int64)
    gap_us = ((5 + rng.exponential(40.0, len(session))) * SECOND_US).astype(np.int64)
    return Schedule(np.cumsum(count) - count, count, session, first, gap_us, start_us, device, new_focus)
