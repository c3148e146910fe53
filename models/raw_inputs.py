"""Raw inputs: what a client sends, and which of it a feature is made of.

Raw inputs are dense, padded on the right with "" and NaN; lists are oldest first. Only what the features need is an
input. Watches and impressions are sorted by their times: the sent order counts for searches, for equal times, for times
that are not known (these come first) and where the signature has no times.

| input | dtype and shape | meaning |
| --- | --- | --- |
| watched_video_ids | string `[B, W]` | watches |
| watched_timestamps | float64 `[B, W]` | their starts, seconds since the epoch; NaN: only the order is known |
| watched_watch_time_s | float32 `[B, W]` | seconds watched; NaN: not known, or not ended |
| watched_page, watched_device, ... | string or float32 `[B, W]` | columns `watches.*`, one entry for each watch |
| shown_video_ids | string `[B, I]` | impressions |
| shown_timestamps | float64 `[B, I]` | seconds since the epoch |
| shown_clicked | float32 `[B, I]` | 1 or 0, NaN: not known |
| search_queries | string `[B, S]` | searches, as typed |
| request_timestamp | float64 `[B]` | the request's moment, seconds since the epoch; NaN: not known |
| candidate_ids | string `[B, C]` | videos to score |
| candidate_sources, candidate_scores, ... | `[B, C]`, bags `[B, C, n]` | columns `request.*` of impression features |
| page, device, seed_video_id, ... | string or float32 `[B]`, bags `[B, n]` | columns `request.*` of query features |
| user_language, region, gender, age, ... | string or float32 `[B]`, bags `[B, n]` | columns `users.*` |

Lists of the same events stand beside each other; one that is shorter is taken as missing at its end. Lists may be
longer than a model's windows: the last events count. An event at or after the request's moment is left out where the
signature has its time; of a moment that is not known none is, and what is measured from it is missing. Times are
rounded to microseconds. Strings that no vocabulary holds, and "", are row 0; a candidate that the catalogue does not
hold has its features missing.
"""

from collections.abc import Mapping

import tensorflow as tf

from features.errors import ConfigError
from features.history import Derivation, derivation_of
from features.spec import OF_THE_MOMENT, Feature, Kind, Side

CANDIDATES = "candidate_ids"
NOW = "request_timestamp"
WATCHED, WATCHED_AT, WATCHED_S = "watched_video_ids", "watched_timestamps", "watched_watch_time_s"
SHOWN, SHOWN_AT, SHOWN_CLICKED = "shown_video_ids", "shown_timestamps", "shown_clicked"
QUERIES = "search_queries"

SPECS: Mapping[str, tf.TensorSpec] = {
    WATCHED: tf.TensorSpec([None, None], tf.string),
    WATCHED_AT: tf.TensorSpec([None, None], tf.float64),
    WATCHED_S: tf.TensorSpec([None, None], tf.float32),
    SHOWN: tf.TensorSpec([None, None], tf.string),
    SHOWN_AT: tf.TensorSpec([None, None], tf.float64),
    SHOWN_CLICKED: tf.TensorSpec([None, None], tf.float32),
    QUERIES: tf.TensorSpec([None, None], tf.string),
    NOW: tf.TensorSpec([None], tf.float64),
    CANDIDATES: tf.TensorSpec([None, None], tf.string),
}
"""Dtype and shape of the inputs that are not columns of a table."""

_HISTORY: Mapping[Derivation, tuple[str, ...]] = {
    Derivation.WATCHED_VIDEO_IDS: (WATCHED,),
    Derivation.WATCHED_UPLOADER_IDS: (WATCHED,),
    Derivation.SECONDS_TO_NEXT_WATCH: (WATCHED, WATCHED_AT, NOW),
    Derivation.WATCHED_TIME_S: (WATCHED, WATCHED_AT, WATCHED_S, NOW),
    Derivation.SHOWN_VIDEO_IDS: (SHOWN,),
    Derivation.LAST_WATCHED_VIDEO_ID: (WATCHED,),
    Derivation.SEARCH_TOKENS: (QUERIES,),
    Derivation.LAST_SEARCH_TOKENS: (QUERIES,),
    Derivation.WATCH_COUNT: (WATCHED,),
    Derivation.SECONDS_SINCE_LAST_WATCH: (WATCHED, WATCHED_AT, NOW),
    Derivation.MEAN_WATCH_TIME_S: (WATCHED, WATCHED_AT, WATCHED_S, NOW),
    Derivation.IMPRESSION_COUNT: (SHOWN,),
    Derivation.CLICK_RATE: (SHOWN, SHOWN_CLICKED),
    Derivation.UPLOADER_WATCH_COUNT: (WATCHED,),
    Derivation.SECONDS_SINCE_UPLOADER_WATCH: (WATCHED, WATCHED_AT, NOW),
    Derivation.TOPIC_WATCH_COUNT: (WATCHED,),
    Derivation.SECONDS_SINCE_TOPIC_WATCH: (WATCHED, WATCHED_AT, NOW),
    Derivation.VIDEO_WATCH_COUNT: (WATCHED,),
    Derivation.VIDEO_IMPRESSION_COUNT: (SHOWN,),
    Derivation.SECONDS_SINCE_VIDEO_IMPRESSION: (SHOWN, SHOWN_AT, NOW),
    Derivation.UPLOADER_IMPRESSION_COUNT: (SHOWN,),
    Derivation.UPLOADER_CLICK_COUNT: (SHOWN, SHOWN_CLICKED),
    Derivation.VIDEO_AGE_S: (NOW,),
}


def raw_inputs(feature: Feature) -> dict[str, tf.TensorSpec]:
    """The raw inputs that a feature is made of: name -> dtype and shape. None where it has a serving value.

    Raises:
      ConfigError: a column of the video scored is asked for on the query side.
    """
    if feature.serving_value is not None:
        return {}
    room = feature.source.split(".", 1)[0]
    if room == "history":
        names = _HISTORY[derivation_of(feature.source)]
        names += (CANDIDATES,) if feature.side == Side.IMPRESSION else ()
        return {name: SPECS[name] for name in names}
    if room == "videos":
        if feature.side == Side.QUERY:
            raise ConfigError(f"feature {feature.name!r}: {feature.source} describes the video scored; set its side")
        return {CANDIDATES: SPECS[CANDIDATES]}
    if feature.source in OF_THE_MOMENT:
        return {NOW: SPECS[NOW]}
    per_candidate = room == "request" and feature.side == Side.IMPRESSION
    dtype = tf.string if feature.kind == Kind.CATEGORICAL else tf.float32
    if room == "watches":
        return {WATCHED: SPECS[WATCHED], str(feature.column_input): tf.TensorSpec([None, None], dtype)}
    return {str(feature.column_input): tf.TensorSpec([None] * (1 + per_candidate + feature.multivalent), dtype)}
