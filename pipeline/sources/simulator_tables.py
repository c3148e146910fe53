"""From the simulation's flat arrays to canonical tables and the truth beside them."""

import numpy as np
import pyarrow as pa

from features.tables import IMPRESSIONS, SEARCHES, TIMESTAMP, USERS, VIDEOS, WATCHES
from pipeline.sources.simulator_behaviour import examination
from pipeline.sources.simulator_candidates import POPULAR, SOURCE_NAMES
from pipeline.sources.simulator_names import (
    series_names,
    topic_names,
    topic_queries,
    topic_words,
    uploader_names,
    video_titles,
)
from pipeline.sources.simulator_platform import LANGUAGES, PAGES, REGIONS, Platform
from pipeline.sources.simulator_sessions import SessionLogs
from pipeline.sources.truth import Truth, numbered_ids

ORIGINS = ("recommended", "recommended", "search", "external")  # by page
ALSO_POPULAR = 0.98  # videos above this quantile of popularity are nominated by `popular` as well


class Ids:
    """Ids of users, videos and uploaders, each string made once."""

    def __init__(self, platform: Platform) -> None:
        self.users = numbered_ids("u", np.arange(platform.config.users))
        self.videos = numbered_ids("v", np.arange(platform.config.videos))
        self.uploaders = numbered_ids("c", np.arange(platform.config.uploaders))


def _names(values: tuple[str, ...] | list[str], rows: np.ndarray) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(rows))


def _optional(ids: pa.Array, rows: np.ndarray) -> pa.Array:
    return ids.take(pa.array(rows, mask=rows < 0))


def _times(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.int64()).cast(TIMESTAMP)


def _by_time(columns: dict[str, np.ndarray]) -> np.ndarray:
    return np.argsort(columns["time_us"], kind="stable")


def canonical_tables(platform: Platform, logs: SessionLogs) -> tuple[dict[str, pa.Table], Truth]:
    """Tables sorted by time (users and videos by id), and the truth keyed by their ids."""
    ids = Ids(platform)
    shown, watched = logs.impressions, logs.watches
    shown_order, watched_order = _by_time(shown), _by_time(watched)
    shown_rank = np.empty(len(shown_order), np.int64)
    shown_rank[shown_order] = np.arange(len(shown_order))
    impression_ids = numbered_ids("i", np.arange(len(shown_order)), 9)
    # the impression's own copy of its watch's length; null where nothing was watched
    watch_time = np.full(len(shown_order), np.nan)
    linked = watched["impression"] >= 0
    watch_time[watched["impression"][linked]] = watched["watch_time_s"][linked]
    tables = {
        "watches": _watches(platform, ids, watched, watched_order, shown_rank, impression_ids),
        "impressions": _impressions(platform, ids, shown, shown_order, impression_ids, watch_time),
        "searches": _searches(platform, ids, logs.searches),
        "users": _users(platform, ids),
        "videos": _videos(platform, ids),
    }
    return tables, _truth(platform, logs, shown_order, impression_ids)


def _watches(
    platform: Platform,
    ids: Ids,
    watched: dict[str, np.ndarray],
    order: np.ndarray,
    shown_rank: np.ndarray,
    impression_ids: pa.Array,
) -> pa.Table:
    w = {name: column[order] for name, column in watched.items()}
    linked = w["impression"] >= 0
    impression = np.full(len(order), -1)
    impression[linked] = shown_rank[w["impression"][linked]]
    columns = {
        "user_id": ids.users.take(pa.array(w["user"])),
        "video_id": ids.videos.take(pa.array(w["video"])),
        "timestamp": _times(w["time_us"]),
        "watch_time_s": pa.array(w["watch_time_s"]),
        "completed": pa.array(w["completed"]),
        "page": _names(PAGES, w["page"]),
        "device": _names(platform.device_names, w["device"]),
        "origin": _names(ORIGINS, w["page"]),
        "impression_id": _optional(impression_ids, impression),
    }
    return _table(columns, WATCHES.schema)


def _impressions(
    platform: Platform,
    ids: Ids,
    shown: dict[str, np.ndarray],
    order: np.ndarray,
    impression_ids: pa.Array,
    watch_time: np.ndarray,
) -> pa.Table:
    s = {name: column[order] for name, column in shown.items()}
    watch_time = watch_time[order]
    new_request = np.diff(s["request"], prepend=-1) != 0
    request_ids = numbered_ids("r", np.arange(new_request.sum()), 8)
    sources, scores = _nominations(platform, s)
    columns = {
        "user_id": ids.users.take(pa.array(s["user"])),
        "video_id": ids.videos.take(pa.array(s["video"])),
        "timestamp": _times(s["time_us"]),
        "clicked": pa.array(s["clicked"]),
        "watch_time_s": pa.array(watch_time, mask=np.isnan(watch_time)),
        "page": _names(PAGES, s["page"]),
        "device": _names(platform.device_names, s["device"]),
        "position": pa.array(s["position"].astype(np.int64)),
        "request_id": request_ids.take(pa.array(np.cumsum(new_request) - 1)),
        "impression_id": impression_ids,
        "seed_video_id": _optional(ids.videos, s["seed"]),
        "candidate_sources": sources,
        "candidate_scores": scores,
    }
    return _table(columns, IMPRESSIONS.schema)


def _nominations(platform: Platform, shown: dict[str, np.ndarray]) -> tuple[pa.Array, pa.Array]:
    """Which sources nominated each impression and how they scored it: log popularity, plus the log of what the
    recommender knows of the user's liking of the first topic for every source but `popular`."""
    popularity = platform.popularity
    log_popularity = np.log(popularity[shown["bin"], shown["video"]])
    threshold = np.quantile(popularity, ALSO_POPULAR, axis=1)
    also = (popularity[shown["bin"], shown["video"]] >= threshold[shown["bin"]]) & (shown["source"] != POPULAR)
    liking = np.log(platform.long_term[shown["user"], platform.topic[shown["video"]]])
    score = np.where(shown["source"] == POPULAR, log_popularity, log_popularity + liking)
    first = np.cumsum(1 + also) - 1 - also
    offsets = pa.array(np.append(first, len(also) + also.sum()).astype(np.int32))
    sources = np.full(len(also) + also.sum(), POPULAR)
    sources[first] = shown["source"]
    scores = np.empty(len(sources))
    scores[first] = score
    scores[first[also] + 1] = log_popularity[also]
    return (
        pa.ListArray.from_arrays(offsets, _names(SOURCE_NAMES, sources)),
        pa.ListArray.from_arrays(offsets, pa.array(scores)),
    )


def _searches(platform: Platform, ids: Ids, searches: dict[str, np.ndarray]) -> pa.Table:
    s = {name: column[_by_time(searches)] for name, column in searches.items()}
    config = platform.config
    by_topic = [query for words in topic_words(config.topics) for query in topic_queries(words)]
    variants = len(by_topic) // config.topics
    by_uploader = [name.lower() for name in uploader_names(config.uploaders)]
    shows = series_names(int(platform.series.max(initial=-1)) + 1)
    of_episodes = [
        f"{shows[s].lower()} episode {e}" if s >= 0 else ""
        for s, e in zip(platform.series.tolist(), platform.episode.tolist(), strict=True)
    ]
    K = config.topics
    row = np.where(s["group"] < K, s["group"] * variants + s["variant"], s["group"] - K + len(by_topic))
    row = np.where(s["video"] >= 0, s["video"] + len(by_topic) + len(by_uploader), row)
    columns = {
        "user_id": ids.users.take(pa.array(s["user"])),
        "timestamp": _times(s["time_us"]),
        "query": _names([*by_topic, *by_uploader, *of_episodes], row),
    }
    return _table(columns, SEARCHES.schema)


def _users(platform: Platform, ids: Ids) -> pa.Table:
    unknown = ~platform.user_logged_in
    columns = {
        "user_id": ids.users,
        "region": _names(REGIONS, platform.user_region),
        "gender": pa.array(platform.user_gender.astype(np.float64), mask=unknown),
        "age": pa.array(platform.user_age, mask=unknown),
        "logged_in": pa.array(platform.user_logged_in),
        "language": _names(LANGUAGES, platform.user_language),
    }
    return _table(columns, USERS.schema)


def _videos(platform: Platform, ids: Ids) -> pa.Table:
    both = platform.second_topic >= 0
    first = np.cumsum(1 + both) - 1 - both
    topics = np.empty(len(both) + both.sum(), np.int64)
    topics[first] = platform.topic
    topics[first[both] + 1] = platform.second_topic[both]
    offsets = pa.array(np.append(first, len(topics)).astype(np.int32))
    series, episode = platform.series, platform.episode
    shows = series_names(int(series.max(initial=-1)) + 1)
    titles = video_titles(platform.topic, platform.uploader, series, episode, platform.config.topics)
    columns = {
        "video_id": ids.videos,
        "uploader_id": ids.uploaders.take(pa.array(platform.uploader)),
        "upload_time": _times(platform.upload_us),
        "duration_s": pa.array(platform.duration_s),
        "language": _names(LANGUAGES, platform.video_language),
        "topics": pa.ListArray.from_arrays(offsets, _names(topic_names(platform.config.topics), topics)),
    }
    facts = {
        "title": pa.array(titles, pa.string()),
        "uploader_name": _names(uploader_names(platform.config.uploaders), platform.uploader),
        "series": _optional(pa.array(shows, pa.string()), series),
        "episode": pa.array(episode, pa.int64(), mask=episode == 0),
    }
    table = _table(columns, VIDEOS.schema)
    for name, column in facts.items():
        table = table.append_column(name, column)
    return table


def _table(columns: dict[str, pa.Array], schema: pa.Schema) -> pa.Table:
    return pa.table(columns, schema=pa.schema([schema.field(name) for name in columns]))


def _truth(platform: Platform, logs: SessionLogs, shown_order: np.ndarray, impression_ids: pa.Array) -> Truth:
    shown = logs.impressions
    probability = shown["click_probability"][shown_order]
    expected = shown["expected_watch_time_s"][shown_order]
    impressions = pa.table(
        {
            "impression_id": impression_ids,
            "click_probability": probability,
            "expected_watch_time_given_click_s": expected,
            "expected_watch_time_s": probability * expected,
            "examination": examination(platform)[shown["position"][shown_order]],
        }
    )
    # steps are renumbered by user and time, so that what a user did before a step is one slice
    by_user = np.argsort(logs.steps["user"], kind="stable")
    renumbered = np.empty(len(by_user), np.int64)
    renumbered[by_user] = np.arange(len(by_user))
    steps = {name: column[by_user] for name, column in logs.steps.items()}
    for name in ("group", "video"):
        steps[f"asked_{name}"] = np.full(len(by_user), -1, np.int32)
        steps[f"asked_{name}"][renumbered[logs.searches["step"]]] = logs.searches[name]
    watch_step = renumbered[logs.watches["step"]]
    watch_order = np.lexsort((logs.watches["time_us"], watch_step))
    watches = {
        "user": logs.watches["user"][watch_order].astype(np.int64),
        "timestamp": logs.watches["time_us"][watch_order],
        "video": logs.watches["video"][watch_order],
        "step": watch_step[watch_order],
    }
    unclicked = np.flatnonzero(~shown["clicked"])
    ignored_step = renumbered[shown["step"][unclicked]]
    ignored_order = np.argsort(ignored_step, kind="stable")
    ignored = {
        "user": shown["user"][unclicked][ignored_order],
        "video": shown["video"][unclicked][ignored_order],
        "step": ignored_step[ignored_order],
    }
    return Truth(platform, impressions, watches, ignored, steps)
