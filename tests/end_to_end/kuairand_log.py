"""A small log in KuaiRand's reduced layout whose clicks follow from two columns that the configuration does not use."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_USERS, NUM_VIDEOS, SHOWN = 150, 60, 40
TWINS = {"twin_normal": 9001, "twin_normal_too": 9002, "twin_ad": 9003}
"""Videos that nobody was shown; they differ in nothing but their type."""

_DAYS, _DAY_MS = 6, 86_400_000
_START_MS = 1_650_816_000_000  # 2022-04-25 at UTC+8


def write_log(folder: Path) -> Path:
    """Writes the four files. Clicks: AD videos 10%, NORMAL 40%; 40 points more of users with 1,000 fans or more."""
    random = np.random.default_rng(5)
    users = np.repeat(np.arange(NUM_USERS), SHOWN)
    videos = random.integers(NUM_VIDEOS, size=len(users))
    time_ms = _START_MS + np.sort(random.integers(_DAYS * _DAY_MS, size=(NUM_USERS, SHOWN)), axis=1).reshape(-1)
    fans = np.where(np.arange(NUM_USERS) % 2, random.integers(1_000, 5_000, NUM_USERS), random.integers(50, NUM_USERS))
    is_ad = np.arange(NUM_VIDEOS) % 2 == 1
    chance = np.where(is_ad[videos], 0.1, 0.4) + np.where(fans[users] >= 1_000, 0.4, 0.0)
    clicked = random.random(len(users)) < chance
    log = {
        "user_id": users,
        "video_id": videos,
        "time_ms": time_ms,
        "is_click": clicked.astype(int),
        "long_view": (clicked & (random.random(len(users)) < 0.5)).astype(int),
        "play_time_ms": np.where(clicked, random.integers(5_000, 30_000, len(users)), 0),
        "duration_ms": np.full(len(users), 20_000),
        "tab": random.integers(2, size=len(users)),
    }
    order = np.argsort(time_ms, kind="stable")
    earlier = [list(map(int, row)) for row in random.integers(NUM_VIDEOS, size=(NUM_USERS, 5))]
    ids = [*range(NUM_VIDEOS), *TWINS.values()]
    twins = len(TWINS)
    tables = {
        "impressions": pa.table({name: values[order] for name, values in log.items()}),
        "earlier_impressions": pa.table(
            {"user_id": np.arange(NUM_USERS), "watch_seq": earlier, "long_watch_seq": [row[:2] for row in earlier]}
        ),
        "users": pa.table(
            {
                "user_id": np.arange(NUM_USERS),
                "user_active_degree": np.where(np.arange(NUM_USERS) % 3, "full_active", "high_active"),
                "follow_user_num": random.integers(0, 300, NUM_USERS),
                "fans_user_num": fans,
                "register_days": random.integers(1, 900, NUM_USERS),
            }
        ),
        "videos": pa.table(
            {
                "video_id": ids,
                "author_id": [*(np.arange(NUM_VIDEOS) // 4).tolist(), *[0] * twins],
                "video_type": [*np.where(is_ad, "AD", "NORMAL").tolist(), "NORMAL", "NORMAL", "AD"],
                "upload_dt": ["2022-04-10"] * len(ids),
                "video_duration": [20_000.0] * len(ids),
                "music_id": [*(np.arange(NUM_VIDEOS) % 7).tolist(), *[0] * twins],
                "tag": [*map(str, np.arange(NUM_VIDEOS) % 5), *["0"] * twins],
            }
        ),
    }
    folder.mkdir(parents=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder
