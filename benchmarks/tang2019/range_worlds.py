"""The simulated worlds of the experiments with ranges.

`ranges` is the platform of the sequence experiments whose users come to watch (none searches), with few uploaders of
many videos each. The last watch tells of the next one (related videos), recent watches of what a user is into just now
and which episode is next, and the whole history of stable tastes and of the videos that users return to, most often
after another one of the same uploader. In `no_replays` nobody returns.
"""

from typing import Any

from benchmarks.sequences import NAME, platform_settings

ON, OFF = "ranges", "no_replays"
_NO_SEARCHES = {"searches": 0.0}
WORLDS: dict[str, dict[str, Any]] = {ON: {**_NO_SEARCHES, "replays": 1.0}, OFF: _NO_SEARCHES}
"""Name -> settings of the simulator, as `configuration` takes them."""

_SCALE = {"uploaders": 24, "videos": 1600}
_PASSES = {"epochs": 20, "patience": 3}  # of 15 with patience 2, models with dropout needed all


def range_settings(full: bool) -> dict[str, Any]:
    """A run's settings for each of the worlds."""
    settings = platform_settings(full)
    if full:
        settings["source"] |= _SCALE
        settings["generators"][NAME]["training"] |= _PASSES
    return settings
