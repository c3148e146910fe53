"""Which features the models see: the default lists, and features added by configuration.

A feature whose column is absent is left out with a reason; a configured one whose column is absent is an error.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pydantic import Field, model_validator

from features.catalogue import HISTORY_SPACES
from features.errors import ConfigError
from features.feature_columns import (
    GENERATORS,
    Columns,
    absent_columns,
    refuse_unfit,
    refuse_unfit_types,
    source_columns,
)
from features.history import REQUIREMENTS, Derivation, derivation_of
from features.settings import Settings
from features.spec import Feature, FeatureConfig, FeatureSpec, Kind, Model, Normaliser, Side
from features.tables import TABLES, has_table, table_types


class FeatureListConfig(Settings):
    """What the models see of a user, a request and a video."""

    watch_window: int = Field(default=50, ge=1)
    """Watches before the snapshot that features may use (section 3.5: 50)."""
    impression_window: int = Field(default=100, ge=1)
    """Impressions before the snapshot that features may use."""
    search_window: int = Field(default=50, ge=1)
    """Searches before the snapshot that features may use."""
    max_watched_videos: int | None = Field(default=None, ge=1)
    """Watched videos in the bag, at most `watch_window` (None: 50 as in section 3.5, or the window if it is less)."""
    max_recent_videos: int = Field(default=5, ge=1)
    """Last watched videos in a bag of their own beside the one of all (beyond the paper)."""
    max_sequence_length: int | None = Field(default=None, ge=1)
    """Watches in a sequence, at most `watch_window` (None: as many); of a longer history the last ones are kept."""
    max_search_tokens: int = Field(default=50, ge=1)
    """Search tokens in the bag (section 3.5: 50)."""
    max_topics: int = Field(default=16, ge=1)
    """Topics of a video in the bag."""
    max_candidate_sources: int = Field(default=8, ge=1)
    """Nominating sources of a candidate in the bag."""
    example_age_low_s: float = -86_400.0
    """Example age (seconds) that becomes 0; below zero so that a slightly negative serving value is not clipped."""
    example_age_high_s: float = 30 * 86_400.0
    """Example age (seconds) that becomes 1; labels from before that count as this old."""
    serving_example_age_s: float = 0.0
    """Example age (seconds) at serving: zero or slightly negative (section 3.3)."""
    serving_position: float = 0.0
    """Position at serving, the same for every candidate."""
    oldest_age_years: float = 100.0
    """Age (years) that becomes 1 in the candidate generator."""
    without: tuple[str, ...] = ()
    """Names of default features to leave out, of all models."""
    extra: tuple[FeatureConfig, ...] = ()
    """Features added to the default lists."""

    @property
    def bag_length(self) -> int:
        """Watched videos in the bag at most."""
        return min(50, self.watch_window) if self.max_watched_videos is None else self.max_watched_videos

    @property
    def sequence_length(self) -> int:
        """Watches in a sequence at most."""
        return self.watch_window if self.max_sequence_length is None else self.max_sequence_length

    @model_validator(mode="after")
    def _lists_fit(self) -> "FeatureListConfig":
        for name, length in (("max_sequence_length", self.sequence_length), ("max_watched_videos", self.bag_length)):
            if length > self.watch_window:
                raise ValueError(
                    f"{name} {length} is more than the watches that features may use; "
                    f"set watch_window to {length} or more (it is {self.watch_window})"
                )
        return self

    @model_validator(mode="after")
    def _leaves_out_what_there_is(self) -> "FeatureListConfig":
        known = default_feature_names() if self.without else []
        for name in self.without:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
                raise ValueError(f"without: no default feature {name!r}; {hint}")
        return self


DEFAULTS = FeatureListConfig()


class FeatureList(NamedTuple):
    """A model's features, and the names of those left out with the reason."""

    spec: FeatureSpec
    left_out: list[tuple[str, str]]


def columns_of(tables: Path) -> dict[str, dict[str, pa.DataType]]:
    """The tables of a run's `tables` folder, their columns and the columns' types."""
    return {name: table_types(tables, name) for name in TABLES if has_table(tables, name)}


def default_candidate_features(columns: Columns, config: FeatureListConfig = DEFAULTS) -> FeatureList:
    """The candidate generator's inputs (Covington et al. 2016, sections 3.2 and 3.3).

    Beyond the paper, the last few watches are a bag beside that of all watches.

    Query features are columns of the example set. Impression features are attributes of the output videos, read from
    the catalogue by the model and not written into examples.

    Raises:
      ConfigError: a configured feature needs a column that the tables do not have, or watches are left out.
    """
    if "watched_video_ids" in config.without:
        raise ConfigError(
            "features.without: watched_video_ids are also the histories that the generator is judged beside its peers "
            "with; leave other features out"
        )
    scale = Normaliser.SCALE
    defaults = [
        _bag("watched_video_ids", "history.watched_video_ids", "video", config.bag_length),
        _bag("search_tokens", "history.search_tokens", "search_token", config.max_search_tokens),
        _id("region", "users.region"),
        _id("device", "request.device"),
        _number("gender", "users.gender", scale),
        _number("logged_in", "users.logged_in", scale),
        _number("age", "users.age", scale, high=config.oldest_age_years),
        _example_age(config),
        _bag("recent_watched_video_ids", "history.watched_video_ids", "video", config.max_recent_videos),
        *_attributes(config),
    ]
    return _choose("candidate_generator", defaults, columns, config)


def default_sequence_features(columns: Columns, config: FeatureListConfig = DEFAULTS) -> FeatureList:
    """The inputs of generators of sequences (Beutel et al. 2018, section 5.3; Tang et al. 2019, equation 1).

    Lists are beside each other, one entry for each watch; `page` and `device` are also the request's own context. No
    model reads the impression features: of them new videos have their vectors (`models/new_videos.py`).

    Raises:
      ConfigError: a configured feature needs a column that the tables do not have.
    """
    if needed := {"watched_video_ids", "watch_count"} & set(config.without):
        raise ConfigError(f"features.without: generators of sequences cannot do without {', '.join(sorted(needed))}")
    scale, length = Normaliser.SCALE, config.sequence_length
    defaults = [
        _bag("watched_video_ids", "history.watched_video_ids", "video", length),
        _bag("watched_uploader_ids", "history.watched_uploader_ids", "uploader", length),
        *[_bag(f"watched_{column}", f"watches.{column}", column, length) for column in ("page", "device")],
        replace(_number("seconds_to_next_watch", "history.seconds_to_next_watch", scale), max_length=length),
        replace(_number("watched_time_s", "history.watched_time_s", scale), max_length=length),
        _number("watch_count", "history.watch_count", scale, high=float(length)),
        _id("page", "request.page"),
        _id("device", "request.device"),
        _example_age(config),
        *_attributes(config),
    ]
    return _choose("sequence_generator", defaults, columns, config)


def default_ranking_features(columns: Columns, config: FeatureListConfig = DEFAULTS) -> FeatureList:
    """The ranker's inputs (Covington et al. 2016, section 4.1).

    Raises:
      ConfigError: a configured feature needs a column that the tables do not have.
    """
    impression = Side.IMPRESSION
    defaults = [
        _bag("watched_video_ids", "history.watched_video_ids", "clicked_video", config.bag_length),
        _id("last_watched_video_id", "history.last_watched_video_id", "clicked_video"),
        _bag("search_tokens", "history.search_tokens", "search_token", config.max_search_tokens),
        _bag("last_search_tokens", "history.last_search_tokens", "search_token", config.max_search_tokens),
        _id("seed_video_id", "request.seed_video_id", "clicked_video"),
        _id("user_language", "users.language", "language"),
        _id("region", "users.region"),
        _id("page", "request.page"),
        _id("device", "request.device"),
        _id("hour", "request.hour"),
        *[_number(column, f"users.{column}") for column in ("gender", "age", "logged_in")],
        _id("impression_video_id", "videos.video_id", "clicked_video", impression),
        *_attributes(config),
        _id("video_language", "videos.language", "language", impression),
        _number("duration_s", "videos.duration_s", side=impression),
        *[
            _number(derivation.value, f"history.{derivation}", side=need.side)
            for derivation, need in REQUIREMENTS.items()
            if need.kind == Kind.CONTINUOUS and not need.bag
        ],
        _bag("candidate_sources", "request.candidate_sources", "source", config.max_candidate_sources, impression),
        _number("candidate_score", "request.candidate_scores", side=impression),
        Feature(
            "position",
            Kind.CONTINUOUS,
            impression,
            "request.position",
            normaliser=Normaliser.QUANTILE,
            serving_value=config.serving_position,
        ),
    ]
    return _choose("ranker", defaults, columns, config)


def default_feature_names() -> list[str]:
    """The names of all models' default features."""
    lists = (default_candidate_features({}), default_sequence_features({}), default_ranking_features({}))
    kept = {feature.name for found in lists for feature in found.spec.features}
    return sorted(kept | {name for found in lists for name, _ in found.left_out})


def _attributes(config: FeatureListConfig) -> tuple[Feature, Feature]:
    return (
        _id("uploader", "videos.uploader_id", "uploader", Side.IMPRESSION),
        _bag("topics", "videos.topics", "topic", config.max_topics, Side.IMPRESSION),
    )


def _example_age(config: FeatureListConfig) -> Feature:
    return Feature(
        "example_age",
        Kind.CONTINUOUS,
        Side.QUERY,
        "request.example_age",
        normaliser=Normaliser.SCALE,
        low=config.example_age_low_s,
        high=config.example_age_high_s,
        serving_value=config.serving_example_age_s,
    )


def _id(name: str, source: str, id_space: str | None = None, side: Side = Side.QUERY) -> Feature:
    return Feature(name, Kind.CATEGORICAL, side, source, id_space or name)


def _bag(name: str, source: str, id_space: str, max_length: int, side: Side = Side.QUERY) -> Feature:
    return Feature(name, Kind.CATEGORICAL, side, source, id_space, max_length)


def _number(
    name: str, source: str, normaliser: Normaliser = Normaliser.QUANTILE, side: Side = Side.QUERY, high: float = 1.0
) -> Feature:
    return Feature(name, Kind.CONTINUOUS, side, source, normaliser=normaliser, high=high)


def _choose(model: Model, defaults: list[Feature], columns: Columns, config: FeatureListConfig) -> FeatureList:
    kept: list[Feature] = []
    left_out: list[tuple[str, str]] = []
    for feature in defaults:
        if feature.name in config.without:
            left_out.append((feature.name, "left out by configuration"))
        elif absent := absent_columns(feature, columns, model):
            left_out.append((feature.name, absent))
        else:
            refuse_unfit_types(feature, columns, model)
            kept.append(feature)
    for added in config.extra:
        if model not in added.models:
            continue
        feature = added.feature()
        if feature.name in (other.name for other in kept):
            raise ConfigError(
                f"configured feature {feature.name!r}: {model} has a feature of this name already; give yours another, "
                f"or leave a default one out (features.without)"
            )
        refuse_unfit(feature, columns, model)
        refuse_unfit_types(feature, columns, model)
        kept.append(feature)
    return FeatureList(FeatureSpec(tuple(kept)), left_out)


class IdSource(NamedTuple):
    """Where the values of an id space are counted."""

    id_space: str
    table: str
    column: str


def id_sources(specs: Mapping[Model, FeatureSpec]) -> tuple[IdSource, ...]:
    """Every (id space, table, column) that the specs' features are made of, without repeats.

    Args:
      specs: model → its features.
    """
    shown = tuple(dict.fromkeys(_id_sources(specs)))
    counted = {(table, column) for _, table, column in shown}
    return shown + tuple(source for source in _compared(specs) if source[1:] not in counted)


def _compared(specs: Mapping[Model, FeatureSpec]) -> list[IdSource]:
    """The columns of videos that histories are matched by."""
    needed = {
        column
        for spec in specs.values()
        for feature in spec.features
        if feature.source.startswith("history.")
        for table, column in REQUIREMENTS[derivation_of(feature.source)].columns
        if table == "videos"
    }
    return [IdSource(space, "videos", column) for column, space in HISTORY_SPACES.items() if column in needed]


def _id_sources(specs: Mapping[Model, FeatureSpec]) -> Iterable[IdSource]:
    for model, spec in specs.items():
        if model in GENERATORS:
            yield IdSource("video", "watches", "video_id")
        for feature in spec.kind(Kind.CATEGORICAL):
            space = str(feature.id_space)
            if space == "video":
                yield IdSource(space, "watches", "video_id")
            elif space == "clicked_video":
                yield IdSource(space, "impressions", "video_id")
            elif feature.source == f"history.{Derivation.WATCHED_UPLOADER_IDS}":
                yield IdSource(space, "videos", "uploader_id")
            elif space != "hour":
                for table, column in source_columns(feature, model):
                    yield IdSource(space, table, column)
