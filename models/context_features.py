"""Context of a watch in sequence models: what each named feature is, before and after the sequence is encoded.

Beutel et al. 2018, section 5.3 and 6. A feature enters in two places:

- pre-fusion, with the watch it belongs to: c(τ - 1) reaches the encoder together with the watch of that event;
- post-fusion, with what is to be predicted: c(τ) of the next watch, or of the request, acts on the encoder's output.

In each place it may be concatenated, crossed, or both. A latent cross (equations 5 to 7) multiplies the hidden state
by (1 + Σ w), summed over the crossed features; the w are linear embeddings that start from a zero-mean Gaussian.

| name | with a watch (pre) | with a prediction (post) |
| --- | --- | --- |
| `time_delta` | time to the next watch or the request, Δt of equation 4 | time since the last watch |
| `watch_time` | how long it was watched, where that is known | of the last watch |
| `watch_age` | how long before the present it was | age of what is predicted |
| `uploader` | its uploader | of the last watch |
| `time_of_week` | local hour of the week when it was watched | of the next watch or the request |
| any column of the watches (`page`, `device`, ...) | its own | of the next watch or the request (see below) |

Where a request does not tell the value of such a column, or one that is in no vocabulary, that of the last watch stands
for it: no training example may be without.

What is only known once a video was chosen (its uploader, its length) thus never tells of the video to be predicted.

Every feature becomes rows of an embedding table. Seconds fall into buckets of half octaves: [1, √2), [√2, 2), ... up
to 2^30 seconds (34 years). A gap below a second, zero and negative ones among them, counts as one second, so that the
Δt = log(t(τ+1) - t(τ)) of equal times is log 1 = 0. A missing value (NaN) has a bucket of its own. Other continuous
columns are scaled to [0, 1] by their feature and cut into 32 equal buckets. The vector of a missing value says nothing
until examples train it: most logs miss none, and a client may.

Ages below a day count as a day: a request is served at age 0, and that bucket must be one that labels train.

`time_of_week` has 168 rows, hours from Monday 0:00. Those of watches are the request's less the gaps between; the
request's is no default feature: `features.extra` adds it, `time_of_week` from `request.time_of_week`, continuous.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import tensorflow as tf
import tf_keras
from pydantic import Field

from features.errors import ConfigError
from features.settings import Settings
from features.spec import FeatureSpec, Kind
from models.embeddings import EmbeddingTable, embedding_dimension
from models.scaling import scale
from models.sequence_steps import WATCHED_VIDEOS, at_request, history_lengths, of_last_event, of_next_event

SECONDS_TO_NEXT = "seconds_to_next_watch"
WATCHED_TIME = "watched_time_s"
WATCHED_UPLOADERS = "watched_uploader_ids"
EXAMPLE_AGE = "example_age"
REQUEST_TIME_OF_WEEK = "time_of_week"

TIME_DELTA = "time_delta"
WATCH_TIME = "watch_time"
WATCH_AGE = "watch_age"
UPLOADER = "uploader"
TIME_OF_WEEK = "time_of_week"

HALF_OCTAVES = 60
NUM_SECOND_ROWS = HALF_OCTAVES + 2  # one bucket more than boundaries, and the missing value's
NUM_SCALE_BUCKETS = 32
HOURS_OF_WEEK = 168
YOUNGEST_S = 86_400.0  # of the buckets of ages

Features = Mapping[str, tf.Tensor]


class Use(StrEnum):
    """How a context feature enters at one of the two places."""

    NONE = "none"
    CONCATENATE = "concatenate"
    CROSS = "cross"
    BOTH = "both"

    @property
    def concatenated(self) -> bool:
        return self in (Use.CONCATENATE, Use.BOTH)

    @property
    def crossed(self) -> bool:
        return self in (Use.CROSS, Use.BOTH)


class ContextFeature(Settings):
    """One context feature and where it enters."""

    name: str = Field(
        description="time_delta, watch_time, watch_age, uploader, time_of_week, or a column of the watches"
    )
    pre: Use = Field(default=Use.NONE, description="with each watch, before the sequence is encoded")
    post: Use = Field(default=Use.NONE, description="with what is predicted, after it")
    dimension: int | None = Field(
        default=None, ge=1, description="of the concatenated embedding; default: by the logarithm of its vocabulary"
    )


def second_rows(seconds: tf.Tensor) -> tf.Tensor:
    """Rows 1.. of half octaves of seconds, the last one for NaN: float32 `[...]` -> int32 `[...]`."""
    boundaries = [2 ** (half / 2) for half in range(1, HALF_OCTAVES + 1)]
    missing = tf.math.is_nan(seconds)
    buckets = tf.raw_ops.Bucketize(input=tf.where(missing, 1.0, seconds), boundaries=boundaries)
    return tf.where(missing, NUM_SECOND_ROWS, buckets + 1)


def age_rows(ages: tf.Tensor) -> tf.Tensor:
    """As `second_rows`; all ages below a day, the served one among them, have one row."""
    return second_rows(tf.maximum(ages, YOUNGEST_S))


def scale_rows(scaled: tf.Tensor, missing: tf.Tensor) -> tf.Tensor:
    """Rows 1..32 of equal parts of [0, 1], row 33 where missing: float32 and bool `[...]` -> int32 `[...]`."""
    buckets = tf.cast(tf.clip_by_value(scaled * NUM_SCALE_BUCKETS, 0.0, NUM_SCALE_BUCKETS - 1.0), tf.int32)
    return tf.where(missing, NUM_SCALE_BUCKETS + 1, buckets + 1)


def watch_ages(features: Features) -> tf.Tensor:
    """How long before the present each step's watch is, in seconds: `[batch, L + 1]` float32.

    The request's is the example age; before it, that plus the gaps between. Before an unknown gap (NaN) it is unknown.
    """
    return _until_request(features) + features[EXAMPLE_AGE][:, tf.newaxis]


def hour_of_week_rows(features: Features) -> tf.Tensor:
    """Rows 1..168 of the hour of the week of each step, the last one, 169, where it is unknown: `[batch, L + 1]` int32.

    Of step s it is that of watch s, at the request's step the request's; see the module's text.
    """
    seconds = features[REQUEST_TIME_OF_WEEK][:, tf.newaxis] - _until_request(features)
    missing = tf.math.is_nan(seconds)
    hours = tf.cast(tf.math.floormod(tf.where(missing, 0.0, seconds) / 3600.0, float(HOURS_OF_WEEK)), tf.int32)
    return tf.where(missing, HOURS_OF_WEEK + 1, tf.minimum(hours, HOURS_OF_WEEK - 1) + 1)


def _until_request(features: Features) -> tf.Tensor:
    """Seconds from each step to the request, 0 at its step: `[batch, L + 1]` float32, NaN before an unknown gap."""
    gaps, lengths = features[SECONDS_TO_NEXT], history_lengths(features)
    inside = tf.range(tf.shape(gaps)[1])[tf.newaxis] < lengths[:, tf.newaxis]
    return tf.pad(tf.cumsum(tf.where(inside, gaps, 0.0), axis=1, reverse=True), [[0, 0], [0, 1]])


@dataclass(frozen=True)
class ContextColumn:
    """A context feature as rows of an embedding table.

    Args:
      feature: name and uses.
      size: number of rows besides row 0.
      last_is_missing: the last row is that of a missing value.
      events: a batch of features -> rows of each event `[batch, L]`.
      steps: the same -> rows of each step `[batch, L + 1]`.
    """

    feature: ContextFeature
    size: int
    events: Callable[[Features], tf.Tensor]
    steps: Callable[[Features], tf.Tensor]
    last_is_missing: bool = True


def context_columns(
    wanted: Sequence[ContextFeature], spec: FeatureSpec, vocabulary_sizes: Mapping[str, int], skip_absent: bool
) -> tuple[tuple[ContextColumn, ...], tuple[str, ...]]:
    """The context features that a model has, and the names of those that were left out.

    Args:
      wanted: as configured.
      spec: the model's features.
      vocabulary_sizes: id space -> number of ids.
      skip_absent: leave out what the specification has no feature for, in place of an error.

    Raises:
      ConfigError: a feature is absent, named twice, or no list as long as `watched_video_ids`, its id space has no
        vocabulary, or the watches' and the request's values are not of one id space.
    """
    names = [feature.name for feature in wanted]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"context features named more than once: {', '.join(repeated)}; give each one entry")
    found, left_out = [], []
    for feature in wanted:
        absent = [source for source in features_needed(feature) if source not in spec]
        if not absent:
            _refuse_other_lengths(feature, spec)
            found.append(_column(feature, spec, vocabulary_sizes))
        elif skip_absent:
            left_out.append(feature.name)
        else:
            raise ConfigError(
                f"context feature {feature.name!r}: expected features {', '.join(absent)} in the specification, found "
                f"{', '.join(f.name for f in spec.features)}; leave {feature.name!r} out or set skip_absent"
            )
    return tuple(found), tuple(left_out)


_SOURCES = {
    TIME_DELTA: (SECONDS_TO_NEXT,),
    WATCH_TIME: (WATCHED_TIME,),
    WATCH_AGE: (SECONDS_TO_NEXT, EXAMPLE_AGE),
    UPLOADER: (WATCHED_UPLOADERS,),
    TIME_OF_WEEK: (SECONDS_TO_NEXT, REQUEST_TIME_OF_WEEK),
}


def features_needed(feature: ContextFeature) -> tuple[str, ...]:
    """The features of the specification that a context feature cannot do without."""
    with_watch = f"watched_{feature.name}"
    return _SOURCES.get(feature.name, (with_watch, feature.name) if feature.post != Use.NONE else (with_watch,))


def _refuse_other_lengths(feature: ContextFeature, spec: FeatureSpec) -> None:
    """Raises ConfigError where a list does not stand beside the watches, or the request's own value is a list."""
    for source in map(spec.__getitem__, features_needed(feature)):
        of_watches = source.source.startswith(("history.", "watches."))
        length = spec[WATCHED_VIDEOS].max_length if of_watches else None
        if source.max_length != length:
            wanted = f"max_length {length}, that of {WATCHED_VIDEOS!r}" if of_watches else "one value, no max_length"
            raise ConfigError(
                f"context feature {feature.name!r}: expected {source.name!r} of {wanted}; found {source.max_length}"
            )


def _column(feature: ContextFeature, spec: FeatureSpec, vocabulary_sizes: Mapping[str, int]) -> ContextColumn:
    if feature.name in (TIME_DELTA, WATCH_TIME):
        source = SECONDS_TO_NEXT if feature.name == TIME_DELTA else WATCHED_TIME
        return ContextColumn(
            feature,
            NUM_SECOND_ROWS,
            lambda features: second_rows(features[source]),
            lambda features: of_last_event(second_rows(features[source]), NUM_SECOND_ROWS),
        )
    if feature.name == WATCH_AGE:
        return ContextColumn(
            feature,
            NUM_SECOND_ROWS,
            lambda features: age_rows(watch_ages(features)[:, :-1]),
            lambda features: age_rows(watch_ages(features)),
        )
    if feature.name == UPLOADER:
        return ContextColumn(
            feature,
            _size(feature, spec, vocabulary_sizes, WATCHED_UPLOADERS),
            lambda features: features[WATCHED_UPLOADERS],
            lambda features: of_last_event(features[WATCHED_UPLOADERS]),
            last_is_missing=False,
        )
    if feature.name == TIME_OF_WEEK:
        return ContextColumn(
            feature, HOURS_OF_WEEK + 1, lambda features: hour_of_week_rows(features)[:, :-1], hour_of_week_rows
        )
    return _watch_column(feature, spec, vocabulary_sizes)


def _watch_column(feature: ContextFeature, spec: FeatureSpec, vocabulary_sizes: Mapping[str, int]) -> ContextColumn:
    """A column of the watches that the request has too."""
    name, watched = feature.name, spec[f"watched_{feature.name}"]
    if feature.post != Use.NONE and watched.id_space != spec[name].id_space:
        raise ConfigError(
            f"context feature {name!r}: expected {watched.name!r} and {name!r} in one id space, or both continuous, "
            f"found {watched.id_space!r} and {spec[name].id_space!r}; give them the same id_space"
        )
    if watched.kind == Kind.CONTINUOUS:

        def rows(values: tf.Tensor) -> tf.Tensor:
            return scale_rows(scale(watched, values), tf.math.is_nan(values))

        size = NUM_SCALE_BUCKETS + 1
    else:
        rows, size = tf.identity, _size(feature, spec, vocabulary_sizes, watched.name)

    continuous = watched.kind == Kind.CONTINUOUS
    missing = size if continuous else 0

    def steps(features: Features) -> tf.Tensor:
        events, request, lengths = rows(features[watched.name]), rows(features[name]), history_lengths(features)
        request = tf.where(request == missing, at_request(of_last_event(events, missing), lengths), request)
        return of_next_event(events, request, lengths)

    return ContextColumn(feature, size, lambda features: rows(features[watched.name]), steps, continuous)


def _size(feature: ContextFeature, spec: FeatureSpec, vocabulary_sizes: Mapping[str, int], source: str) -> int:
    space = str(spec[source].id_space)
    if space not in vocabulary_sizes:
        raise ConfigError(
            f"context feature {feature.name!r}: expected a vocabulary of id space {space!r}, found "
            f"{', '.join(sorted(vocabulary_sizes))}; run the analysis stage with this space"
        )
    return vocabulary_sizes[space]


class ConcatenatedContext(tf_keras.layers.Layer):
    """The embeddings of context features, one behind the other.

    Args:
      columns: at least one.
    """

    def __init__(self, columns: Sequence[ContextColumn], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tables = {
            column.feature.name: EmbeddingTable(
                column.size,
                column.feature.dimension or embedding_dimension(column.size),
                last_at_mean=column.last_is_missing,
                name=f"{column.feature.name}_embeddings",
            )
            for column in columns
        }
        self.width = sum(table.dimension for table in self.tables.values())
        self.built = True

    def call(self, rows: Features) -> tf.Tensor:
        """Rows by name, `[...]` int32 each -> `[..., width]`."""
        return tf.concat([table(rows[name]) for name, table in self.tables.items()], axis=-1)


class CrossedContext(tf_keras.layers.Layer):
    """The latent cross of Beutel et al. 2018: h -> (1 + Σ w) ∗ h, over the crossed features (equations 5 to 7).

    An out-of-vocabulary value leaves h as it is. Without `identity` it is h -> Σ w ∗ h, the form of section 7.1
    (v_j ∗ w_Δt); each w then starts around 1 / (number of features), so that their sum starts around 1 there too, and
    an out-of-vocabulary value counts as that start. Both forms hold the same functions; they differ in what w is.

    Args:
      columns: at least one.
      width: of h.
      stddev: of the Gaussian that the w start from.
      identity: whether 1 is added.
    """

    def __init__(
        self, columns: Sequence[ContextColumn], width: int, stddev: float, identity: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.start = 0.0 if identity else 1 / len(columns)
        self.identity = identity
        self.tables = {
            column.feature.name: EmbeddingTable(
                column.size,
                width,
                stddev,
                mean=self.start,
                last_at_mean=column.last_is_missing,
                name=f"{column.feature.name}_factors",
            )
            for column in columns
        }
        self.built = True

    def call(self, hidden: tf.Tensor, rows: Features) -> tf.Tensor:
        """`[..., width]` and rows by name, `[...]` int32 each -> `[..., width]`."""
        factors = [self._factor(table, rows[name]) for name, table in self.tables.items()]
        return (tf.add_n(factors) + float(self.identity)) * hidden

    def _factor(self, table: EmbeddingTable, rows: tf.Tensor) -> tf.Tensor:
        if self.identity:
            return table(rows)  # row 0 is zero
        return table(rows) + self.start * tf.cast(rows == 0, self.compute_dtype)[..., tf.newaxis]
