"""Raw features: strings, times and numbers of a request become what a model is fed, inside the graph.

An exported model applies the run's vocabularies, catalogue and history derivations itself, so that a client sends what
it knows (`models/raw_inputs.py`) and nothing of ours is needed where the model is served. Every value equals what the
Beam jobs write into examples.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import pyarrow as pa
import tensorflow as tf

from features.encoding import Encoder, padded_rows
from features.errors import ConfigError
from features.event_windows import ORDER_ONLY
from features.feature_lists import FeatureListConfig
from features.history import REQUIREMENTS, Derivation, derivation_of
from features.spec import OF_THE_MOMENT, Feature, FeatureSpec, Kind, Side
from features.vocabulary import serving_row
from models import raw_inputs as inputs
from models.raw_history import (
    CONTINUOUS,
    UNKNOWN_VIDEO,
    RawRequests,
    RawWindow,
    VideoColumns,
    gather_videos,
    microseconds,
    raw_window,
    seconds_to_next_watch,
    watched_time_s,
)
from models.raw_search_tokens import search_tokens

Tensors = dict[str, tf.Tensor]

_HOUR_US = 3_600_000_000


class RawFeatures(tf.Module):
    """Raw inputs to the features of one model: `raw_features(raw)` is feature name -> tensor.

    Query features are `[B]`, bags `[B, n]`; impression features `[B, C]`, bags `[B, C, n]`. Rows are int32, continuous
    values raw float32 with NaN for missing. A feature with a serving value has that value everywhere. For a candidate
    generator pass its query features alone, `FeatureSpec(spec.side(Side.QUERY))`.

    Args:
      spec: the features to make.
      encoder: the run's vocabularies and catalogue.
      lists: lengths of the history windows.
      utc_offset_s: local time, for the hour.

    Raises:
      ConfigError: a feature cannot be made of raw inputs, or none needs any; a serving value is in no vocabulary.
    """

    def __init__(
        self, spec: FeatureSpec, encoder: Encoder, lists: FeatureListConfig, utc_offset_s: float = 0.0
    ) -> None:
        super().__init__(name="raw_features")
        self.spec = spec
        self.lists = lists
        self.utc_offset_us = round(utc_offset_s * 1e6)
        needed: dict[str, tf.TensorSpec] = {}
        for feature in spec.features:
            needed |= inputs.raw_inputs(feature)
        self._input_specs = needed
        if not needed:
            raise ConfigError("a model to be served needs at least one feature that is made of raw inputs")
        # Columns of the catalogue are variables, which a SavedModel keeps outside its graph. Tables of strings are
        # resources, whose ids and rows are constants in it: the graph grows with the vocabularies.
        self.positions = _hash_table(encoder.catalogue["video_id"], first_row=0, default=UNKNOWN_VIDEO)
        spaces = {str(f.id_space) for f in spec.kind(Kind.CATEGORICAL) if _space_is_looked_up(f)}
        self.rows = {s: _hash_table(encoder.vocabularies[s].ids, first_row=1, default=0) for s in sorted(spaces)}
        spaces = {str(f.id_space) for f in spec.features if f.source in _VIDEOS_OF_EVENTS}
        self.video_rows = {space: _variable(encoder.videos.rows[space]) for space in sorted(spaces)}
        self.video_columns = {
            f.name: _variable(_dense(encoder.video_column(f))) for f in spec.features if f.source.startswith("videos.")
        }
        self.videos = _history_columns(spec, encoder)
        self.fixed_rows = {f.name: _fixed_rows(f, encoder) for f in spec.kind(Kind.CATEGORICAL)}

    @property
    def input_specs(self) -> dict[str, tf.TensorSpec]:
        """Dtype and shape of every raw input that the features need."""
        return dict(self._input_specs)

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> Tensors:
        """Feature name -> tensor; `raw` has an entry for each of `input_specs` and may have more."""
        request = _Request(self, {name: raw[name] for name in self._input_specs})
        return {feature.name: request.value(feature) for feature in self.spec.features}


class _Request:
    """One traced call: what several features share is computed once."""

    def __init__(self, tables: RawFeatures, raw: Mapping[str, tf.Tensor]) -> None:
        self._tables = tables
        self._raw = raw
        self._size = tf.shape(next(iter(raw.values())))[0]
        self._windows: dict[tuple[str, int], RawWindow] = {}

    def value(self, feature: Feature) -> tf.Tensor:
        """The feature's tensor."""
        room = feature.source.split(".", 1)[0]
        if feature.serving_value is not None:
            return self._serving_value(feature)
        if room == "videos":
            return gather_videos(self._tables.video_columns[feature.name], self._candidate)
        if room == "history":
            return self._history(feature)
        if room == "watches":
            return self._of_watches(feature)
        value = self._of_the_moment(feature) if feature.source in OF_THE_MOMENT else self._column(feature)
        if feature.side == Side.IMPRESSION and (room == "users" or feature.source in OF_THE_MOMENT):
            value = tf.repeat(value[:, tf.newaxis], self._shape(feature)[1], axis=1)
        return value

    def _shape(self, feature: Feature) -> list[tf.Tensor]:
        if feature.side == Side.QUERY:
            return [self._size]
        return [self._size, tf.shape(self._raw[inputs.CANDIDATES])[1]]

    def _serving_value(self, feature: Feature) -> tf.Tensor:
        if feature.kind == Kind.CONTINUOUS:
            return tf.fill(self._shape(feature), tf.cast(feature.serving_value, tf.float32))
        row = tf.constant(self._tables.fixed_rows[feature.name][0])
        return tf.fill([*self._shape(feature), *([1] if feature.multivalent else [])], row)

    def _of_the_moment(self, feature: Feature) -> tf.Tensor:
        known = self._now_us != ORDER_ONLY
        local_us = tf.where(known, self._now_us, 0) + self._tables.utc_offset_us
        if feature.source == "request.hour":
            rows = tf.gather(self._tables.fixed_rows[feature.name], local_us // _HOUR_US % 24)
            return tf.where(known, rows, 0)
        # The epoch was a Thursday, three days into its week.
        seconds = tf.cast((local_us + 72 * _HOUR_US) % (168 * _HOUR_US), tf.float64) / 1e6
        return tf.cast(tf.where(known, seconds, np.nan), tf.float32)

    def _column(self, feature: Feature) -> tf.Tensor:
        values = self._raw[str(feature.column_input)]
        if feature.kind == Kind.CONTINUOUS:
            return values
        if feature.multivalent:
            values = values[..., : feature.max_length]
        return self._tables.rows[str(feature.id_space)].lookup(values)

    def _history(self, feature: Feature) -> tf.Tensor:
        derivation = derivation_of(feature.source)
        if derivation == Derivation.WATCHED_VIDEO_IDS:
            return gather_videos(self._tables.video_rows[str(feature.id_space)], self._sequence(feature).video)
        if derivation == Derivation.SHOWN_VIDEO_IDS:
            size = min(int(feature.max_length or 0), self._tables.lists.impression_window)
            return self._video_rows(feature, inputs.SHOWN, size)
        if derivation == Derivation.WATCHED_UPLOADER_IDS:
            return gather_videos(self._tables.videos.uploader, self._sequence(feature).video)
        if derivation == Derivation.SECONDS_TO_NEXT_WATCH:
            return seconds_to_next_watch(self._sequence(feature), self._now_us)
        if derivation == Derivation.WATCHED_TIME_S:
            return watched_time_s(self._sequence(feature), self._now_us)
        if derivation == Derivation.LAST_WATCHED_VIDEO_ID:
            return self._video_rows(feature, inputs.WATCHED, 1)[:, 0]
        if derivation == Derivation.SEARCH_TOKENS:
            return self._token_rows(feature, self._tables.lists.search_window)
        if derivation == Derivation.LAST_SEARCH_TOKENS:
            return self._token_rows(feature, 1)
        return CONTINUOUS[derivation](self._requests)

    def _sequence(self, feature: Feature) -> RawWindow:
        """The watches that a list feature has an entry for."""
        return self._window(inputs.WATCHED, min(int(feature.max_length or 0), self._tables.lists.watch_window))

    def _of_watches(self, feature: Feature) -> tf.Tensor:
        values = self._raw[str(feature.column_input)]
        if feature.kind == Kind.CONTINUOUS:
            return self._sequence(feature).of(values, np.nan)
        return self._tables.rows[str(feature.id_space)].lookup(self._sequence(feature).of(values, ""))

    def _video_rows(self, feature: Feature, ids_input: str, size: int) -> tf.Tensor:
        window = self._window(ids_input, size)
        return gather_videos(self._tables.video_rows[str(feature.id_space)], window.video)

    def _token_rows(self, feature: Feature, searches: int) -> tf.Tensor:
        """Rows `[B, max_length]` of the last tokens of the last searches, ascending, then padding."""
        queries = self._raw[inputs.QUERIES]
        given = queries != ""
        # Dense arithmetic on row splits: ragged slices and concatenations cost a fifth of the time of a request.
        from_last = tf.cumsum(tf.cast(given, tf.int32), axis=1, reverse=True)
        chosen = given & (from_last <= searches)
        counts = tf.reduce_sum(tf.cast(chosen, tf.int64), axis=1)
        tokens = search_tokens(tf.gather_nd(queries, tf.where(chosen)))
        last_query = tf.cumsum(counts)
        ends = tf.gather(tokens.row_splits, last_query)
        starts = tf.gather(tokens.row_splits, last_query - counts)
        length = int(feature.max_length or 0)
        index = tf.maximum(starts, ends - length)[:, tf.newaxis] + tf.range(length, dtype=tf.int64)
        padding = tf.int32.max
        rows = self._tables.rows[str(feature.id_space)].lookup(tokens.flat_values)
        rows = tf.concat([rows, [padding]], axis=0)
        inside = index < ends[:, tf.newaxis]
        last_rows = tf.gather(rows, tf.where(inside, index, tf.size(rows, tf.int64) - 1))
        ascending = -tf.math.top_k(-last_rows, length).values
        return tf.where(ascending == padding, 0, ascending)

    @cached_property
    def _now_us(self) -> tf.Tensor:
        if inputs.NOW in self._raw:
            return microseconds(self._raw[inputs.NOW])
        return tf.fill([self._size], tf.constant(ORDER_ONLY, tf.int64))

    @cached_property
    def _candidate(self) -> tf.Tensor:
        return self._tables.positions.lookup(self._raw[inputs.CANDIDATES])

    @cached_property
    def _requests(self) -> RawRequests:
        lists = self._tables.lists
        return RawRequests(
            self._now_us,
            self._window(inputs.WATCHED, lists.watch_window),
            self._window(inputs.SHOWN, lists.impression_window),
            self._tables.videos,
            self._candidate if inputs.CANDIDATES in self._raw else tf.zeros([self._size, 0], tf.int32),
        )

    def _window(self, ids_input: str, size: int) -> RawWindow:
        if (ids_input, size) not in self._windows:
            ids = self._raw.get(ids_input, tf.zeros([self._size, 0], tf.string))
            times, values = {
                inputs.WATCHED: (inputs.WATCHED_AT, inputs.WATCHED_S),
                inputs.SHOWN: (inputs.SHOWN_AT, inputs.SHOWN_CLICKED),
            }[ids_input]
            self._windows[ids_input, size] = raw_window(
                ids,
                self._tables.positions.lookup(ids),
                size,
                self._now_us,
                self._raw.get(times),
                self._raw.get(values),
            )
        return self._windows[ids_input, size]


_VIDEOS_OF_EVENTS = tuple(
    f"history.{derivation}"
    for derivation in (Derivation.WATCHED_VIDEO_IDS, Derivation.SHOWN_VIDEO_IDS, Derivation.LAST_WATCHED_VIDEO_ID)
)


def _space_is_looked_up(feature: Feature) -> bool:
    """Whether strings are looked up in the feature's id space when serving: not for videos, which have positions."""
    room = feature.source.split(".", 1)[0]
    return (
        feature.serving_value is None
        and room != "videos"
        and feature.source not in _VIDEOS_OF_EVENTS
        and feature.source not in OF_THE_MOMENT
    )


def _fixed_rows(feature: Feature, encoder: Encoder) -> np.ndarray:
    """Rows known when the model is exported: of the serving value, or of the 24 hours; int32 `[n]`."""
    if feature.serving_value is not None:
        return np.array([serving_row(feature, encoder.vocabularies)], np.int32)
    hours = [str(hour) for hour in range(24)] if feature.source == "request.hour" else []
    return encoder.vocabularies[str(feature.id_space)].lookup(pa.array(hours, pa.string()))


def _history_columns(spec: FeatureSpec, encoder: Encoder) -> VideoColumns:
    """The catalogue's columns that the spec's history derivations match on; of one row where none does."""
    sources = {column for f in spec.features if f.source.startswith("history.") for column in _columns_of(f)}
    videos = encoder.videos
    columns: dict[str, tuple[np.ndarray | None, np.ndarray]] = {
        "uploader_id": (videos.uploader, np.zeros(1, np.int32)),
        "topics": (videos.topics, np.zeros((1, 1), np.int32)),
        "upload_time": (videos.upload_us, np.full(1, ORDER_ONLY, np.int64)),
    }
    chosen: list[tf.Variable] = []
    for column, (values, absent) in columns.items():
        if values is None and column in sources:
            raise ConfigError(f"a history feature needs the catalogue's column {column!r}; run the analysis again")
        chosen.append(_variable(absent if values is None or column not in sources else values))
    return VideoColumns(*chosen)


def _columns_of(feature: Feature) -> set[str]:
    return {column for table, column in REQUIREMENTS[derivation_of(feature.source)].columns if table == "videos"}


def _hash_table(ids: pa.Array | pa.ChunkedArray, first_row: int, default: int) -> tf.lookup.StaticHashTable:
    """A table from string ids to consecutive int32 rows."""
    keys = np.array(ids.to_pylist(), object) if len(ids) else np.array([""], object)
    rows = np.arange(first_row, first_row + len(ids), dtype=np.int32) if len(ids) else np.array([default], np.int32)
    initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(keys, tf.string), tf.constant(rows))
    return tf.lookup.StaticHashTable(initializer, default)


def _variable(values: np.ndarray) -> tf.Variable:
    return tf.Variable(values, trainable=False)


def _dense(values: pa.Array) -> np.ndarray:
    """A column of rows, numbers, or lists of rows, the last padded with 0: `[n]` or `[n, longest]`."""
    return values.to_numpy(zero_copy_only=False) if pa.types.is_floating(values.type) else padded_rows(values)
