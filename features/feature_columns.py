"""Which columns of the tables a feature is made of, and what a configured feature may not be."""

import difflib
from collections.abc import Collection, Mapping

from features.errors import ConfigError
from features.history import REQUIREMENTS, derivation_of
from features.spec import Feature, Kind, Model, Normaliser, Side

Columns = Mapping[str, Collection[str]]
"""Table name → its columns, or column → type; a table that the run does not have is absent."""

GENERATORS: tuple[Model, ...] = ("candidate_generator", "sequence_generator")
"""Models whose labels are next watches."""

RESERVED = frozenset(
    {
        *("user_id", "weight", "label", "label_video_id", "label_timestamp", "label_weights", "seen_video_ids"),
        *("video_id", "timestamp", "snapshot_timestamp", "group_id", "clicked", "watch_time_s", "impression_id"),
    }
)
"""Columns of example sets that are not features."""

OUTCOMES = ("clicked", "watch_time_s", "completed")
"""Columns of a request's own row that tell how it ended; no feature may use them."""

_OF_THE_MOMENT = {"hour": Kind.CATEGORICAL, "time_of_week": Kind.CONTINUOUS, "example_age": Kind.CONTINUOUS}
"""Columns of the request that are made of the snapshot alone, so that no table has them, and what they are."""


def refuse_unfit(feature: Feature, columns: Columns, model: Model) -> None:
    """Raises ConfigError where a configured feature cannot be, or tells what is not known at the request."""
    where, (room, column) = f"configured feature {feature.name!r}", feature.source.split(".", 1)
    if room == "request" and column in OUTCOMES:
        raise ConfigError(f"{where}: {feature.source} is the outcome that models predict")
    if model in GENERATORS and feature.source == "request.video_id":
        raise ConfigError(f"{where}: {feature.source} is the watch that {model} predicts")
    if room == "watches" and column in OUTCOMES:
        raise ConfigError(
            f"{where}: {feature.source} is known only after a watch ended; history.watched_time_s is the watch time "
            "where it ended before the next watch"
        )
    if room == "request" and column in _OF_THE_MOMENT:
        _refuse_unfit_moment(feature, _OF_THE_MOMENT[column], where, model)
    if feature.name in RESERVED:
        raise ConfigError(f"{where}: the name is taken by a column of examples; rename it")
    if absent := absent_columns(feature, columns, model):
        raise ConfigError(f"{where} ({feature.source}): {absent}")
    if feature.multivalent and feature.kind == Kind.CONTINUOUS and model != "sequence_generator":
        raise ConfigError(
            f"{where}: {feature.source} is a list of numbers, which sequence_generator alone can have, found {model}"
        )
    if model in GENERATORS and feature.side == Side.IMPRESSION:
        _refuse_unfit_attribute(feature, where)
    if model in GENERATORS and feature.normaliser == Normaliser.QUANTILE:
        raise ConfigError(f"{where}: a candidate generator has no quantiles; set normaliser: scale with low and high")


def _refuse_unfit_attribute(feature: Feature, where: str) -> None:
    """Raises ConfigError where a feature is no attribute that a generator's video vectors can be made of."""
    if feature.kind != Kind.CATEGORICAL or not feature.source.startswith("videos."):
        raise ConfigError(
            f"{where}: an attribute of a candidate generator's video vectors is a categorical column of videos, found "
            f"{feature.kind} {feature.source}; set kind: categorical, or side: query"
        )


def _refuse_unfit_moment(feature: Feature, kind: Kind, where: str, model: Model) -> None:
    """Raises ConfigError where a feature made of the request's moment is asked for as what it is not."""
    if feature.source == "request.example_age" and model not in GENERATORS:
        raise ConfigError(f"{where}: {feature.source} is of candidate generators alone, found {model}; leave it out")
    space = "hour" if kind == Kind.CATEGORICAL else None
    if (feature.kind, feature.id_space, feature.max_length) != (kind, space, None):
        raise ConfigError(
            f"{where}: {feature.source} is one {kind} value; set kind: {kind}"
            + (f" and id_space: {space}" if space else "")
            + (", leave max_length out" if feature.multivalent else "")
        )


def refuse_unfit_types(feature: Feature, columns: Columns, model: Model) -> None:
    """Raises ConfigError where the type of the feature's column, if known, is not what the feature needs."""
    if feature.source.startswith("history."):
        return
    for table, column in source_columns(feature, model):
        types = columns[table]
        if isinstance(types, Mapping):
            feature.refuse_column(types[column])


def absent_columns(feature: Feature, columns: Columns, model: Model) -> str | None:
    """Why the tables cannot give `feature` to `model`; None if they can."""
    for table, column in source_columns(feature, model):
        if table not in columns:
            return f"there is no table {table!r}"
        if column not in columns[table]:
            near = difflib.get_close_matches(column, columns[table], n=1)
            return f"table {table!r} has no column {column!r}" + (f"; the nearest is {near[0]!r}" if near else "")
    return None


def source_columns(feature: Feature, model: Model) -> tuple[tuple[str, str], ...]:
    """The (table, column) pairs that the feature is made of."""
    room, name = feature.source.split(".", 1)
    if room == "history":
        return REQUIREMENTS[derivation_of(feature.source)].columns
    if room == "request":
        if name in _OF_THE_MOMENT:
            return ()
        return ((request_table(model), name),)
    return () if feature.source == "videos.video_id" else ((room, name),)


def request_table(model: Model) -> str:
    """The table whose rows are a model's requests: label watches or impressions."""
    return "impressions" if model == "ranker" else "watches"
