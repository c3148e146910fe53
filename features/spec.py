"""The feature specification: one file per run from which record schema, model inputs and serving inputs derive; and
one feature as a configuration adds it.

A feature is named by where its raw value comes from (`source`):

- `users.<column>`, `videos.<column>`: a column of the canonical table, joined by id;
- `request.<column>`: a column of the impression (or label watch) row that is known when the page is requested
  (`page`, `device`, `position`, `seed_video_id`, `candidate_sources`, `candidate_scores`, ...), or its local `hour`, or
  `time_of_week`, the seconds since the local week began on Monday;
- `history.<derivation>`: computed from the user's earlier events by a derivation named in `features/history.py`;
- `watches.<column>`: a column of each watch in the user's history, beside the bag of watched videos.
"""

import json
import keyword
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field, model_validator

from features.errors import ConfigError
from features.settings import Settings

Model = Literal["candidate_generator", "sequence_generator", "ranker"]
"""Who sees the features: generators of bags (two-tower), generators of sequences (latent cross, M3), the ranker."""


OF_THE_MOMENT = ("request.hour", "request.time_of_week")
"""Sources that are made of the request's moment alone."""

RESERVED_INPUTS = frozenset(
    {
        *("watched_video_ids", "watched_timestamps", "watched_watch_time_s", "search_queries", "request_timestamp"),
        *("shown_video_ids", "shown_timestamps", "shown_clicked", "candidate_ids", "excluded_video_ids"),
    }
)
"""Raw inputs that are not columns of a table (`models/raw_inputs.py`)."""


class Kind(StrEnum):
    """What a feature's values are."""

    CATEGORICAL = "categorical"
    CONTINUOUS = "continuous"


class Side(StrEnum):
    """Whether a feature describes the user and context (once per request) or the video scored."""

    QUERY = "query"
    IMPRESSION = "impression"


class Normaliser(StrEnum):
    """How a continuous feature reaches the network."""

    QUANTILE = "quantile"  # x̃, x̃², √x̃ of the cumulative distribution (Covington et al. 2016, section 4.1)
    SCALE = "scale"  # linear from [low, high] to [0, 1], clipped; missing becomes 0.5


@dataclass(frozen=True)
class Feature:
    """One input of a model.

    Args:
      name: unique within its model.
      kind: categorical (rows of an id space) or continuous (float32, NaN where missing).
      side: query or impression.
      source: where the raw value comes from; see the module's text.
      id_space: the vocabulary of a categorical feature; features of one space share its embedding table.
      max_length: None for one value; n for a list of at most n values.
      normaliser: of a continuous feature.
      low, high: the range of `Normaliser.SCALE`, low below high.
      serving_value: a fixed raw value used at serving in place of the logged one (position, example age).
    """

    name: str
    kind: Kind
    side: Side
    source: str
    id_space: str | None = None
    max_length: int | None = None
    normaliser: Normaliser | None = None
    low: float = 0.0
    high: float = 1.0
    serving_value: bool | int | float | str | None = None

    def __post_init__(self) -> None:
        if self.kind == Kind.CATEGORICAL and not self.id_space:
            raise ConfigError(f"feature {self.name!r}: a categorical feature needs an id_space")
        if self.kind == Kind.CONTINUOUS and (self.id_space or not self.normaliser):
            raise ConfigError(f"feature {self.name!r}: a continuous feature has a normaliser and no id_space")
        if self.kind == Kind.CONTINUOUS and isinstance(self.serving_value, str):
            raise ConfigError(
                f"feature {self.name!r}: expected a number as serving_value, found {self.serving_value!r}"
            )
        if self.normaliser == Normaliser.SCALE and not self.low < self.high:
            raise ConfigError(
                f"feature {self.name!r}: expected low below high, the values that become 0 and 1; found {self.low:g} "
                f"and {self.high:g}"
            )
        room, dot, _ = self.source.partition(".")
        if not dot or room not in {"users", "videos", "request", "history", "watches"}:
            raise ConfigError(
                f"feature {self.name!r}: source {self.source!r} is not users.X, videos.X, request.X, history.X or "
                "watches.X"
            )
        if self.kind == Kind.CONTINUOUS and self.multivalent and room not in {"history", "watches"}:
            raise ConfigError(
                f"feature {self.name!r}: {self.source} is one number; only columns of watches and of history are lists"
            )
        if room == "watches" and not (self.multivalent and self.side == Side.QUERY):
            raise ConfigError(
                f"feature {self.name!r}: {self.source} is a list on the query side, one value for each watch; "
                "set max_length"
            )

    @property
    def multivalent(self) -> bool:
        return self.max_length is not None

    def refuse_column(self, dtype: pa.DataType) -> None:
        """Raises ConfigError where a column of users, videos, watches or requests of this type cannot be the feature.

        A list of numbers stands for its largest, but in videos and watches; one value may stand for a list of it, but
        in videos.
        """
        where, room = f"feature {self.name!r}: {self.source} ", self.source.split(".", 1)[0]
        is_list = pa.types.is_list(dtype) or pa.types.is_large_list(dtype)
        value = dtype.value_type if is_list else dtype
        if pa.types.is_null(value):  # nothing is known of it
            return
        if pa.types.is_nested(value):
            raise ConfigError(f"{where}is of type {dtype}; expected one value or a list of values")
        if is_list and room == "watches":
            raise ConfigError(f"{where}is a list at each watch; expected one value")
        if self.kind == Kind.CATEGORICAL:
            if is_list and not self.multivalent:
                raise ConfigError(f"{where}is a list: set max_length")
            if self.multivalent and not is_list and room == "videos":
                raise ConfigError(f"{where}is one value: leave max_length out")
        elif pa.types.is_string(value) or pa.types.is_large_string(value):
            raise ConfigError(f"{where}is text: set kind: categorical, or make the source provide numbers")
        elif is_list and room == "videos":
            raise ConfigError(f"{where}is a list; expected one number")
        elif pa.types.is_temporal(value) or not (pa.types.is_primitive(value) or pa.types.is_decimal(value)):
            raise ConfigError(f"{where}is of type {dtype}; expected numbers")

    @property
    def column_input(self) -> str | None:
        """The raw input in which a client sends the feature's column, of users, of the request or of the watches.

        None where the feature is made of other inputs, or fixed at serving.
        """
        room, column = self.source.split(".", 1)
        if self.serving_value is not None or room in {"videos", "history"} or self.source in OF_THE_MOMENT:
            return None
        if room == "watches":
            return f"watched_{column}"
        return "user_language" if self.source == "users.language" else column

    @property
    def of_one_watch(self) -> "Feature":
        """What each value of a list `watches.<column>` is by itself."""
        return replace(self, source=self.source.replace("watches.", "request.", 1), max_length=None)

    @property
    def arrow_type(self) -> pa.DataType:
        """The column type in example sets: embedding rows or raw float32 values, or lists of them."""
        value = pa.float32() if self.kind == Kind.CONTINUOUS else pa.int32()
        return pa.list_(value) if self.multivalent else value


class FeatureConfig(Settings):
    """One feature added by configuration."""

    name: str
    """Unique within the model."""
    source: str
    """`users.<column>`, `videos.<column>`, `request.<column>`, `history.<derivation>` or `watches.<column>`; see the
    module's text."""
    kind: Kind
    """`categorical` or `continuous`."""
    side: Side = Side.QUERY
    """`query` (user, context) or `impression` (video scored)."""
    models: tuple[Model, ...] = ("ranker",)
    """The models that get it."""
    id_space: str | None = None
    """Vocabulary of a categorical feature; default: its name, of a column of watches the column's, which the request's
    own column has too. Features of one id space share their embeddings."""
    max_length: int | None = Field(default=None, ge=1)
    """None for one value, n for a list of at most n values."""
    normaliser: Normaliser | None = None
    """Of a continuous feature; default: `quantile`, which the ranker alone has; `scale` needs `low` and `high`."""
    low: float | None = None
    """The value that `scale` makes 0; it needs one."""
    high: float | None = None
    """The value that `scale` makes 1, more than `low`; it needs one."""
    serving_value: bool | int | float | str | None = None
    """A fixed raw value used at serving; of a categorical feature one that its vocabulary holds, or ""."""

    @model_validator(mode="after")
    def _has_its_range(self) -> "FeatureConfig":
        if self.normaliser == Normaliser.SCALE and (self.low is None or self.high is None):
            missing = " and ".join(name for name in ("low", "high") if getattr(self, name) is None)
            raise ValueError(
                f"feature {self.name!r}: normaliser scale needs low and high, the values that become 0 and "
                f"1; set {missing}"
            )
        return self

    def feature(self) -> Feature:
        """The feature it describes."""
        continuous = self.kind == Kind.CONTINUOUS
        room, _, column = self.source.partition(".")
        return Feature(
            name=self.name,
            kind=self.kind,
            side=self.side,
            source=self.source,
            id_space=None if continuous else self.id_space or (column if room == "watches" else self.name),
            max_length=self.max_length,
            normaliser=self.normaliser or (Normaliser.QUANTILE if continuous else None),
            low=0.0 if self.low is None else self.low,
            high=1.0 if self.high is None else self.high,
            serving_value=self.serving_value,
        )


@dataclass(frozen=True)
class FeatureSpec:
    """The features of one model, in a fixed order."""

    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(f"features named more than once: {', '.join(repeated)}")
        _refuse_clashing_inputs(self.features)

    def side(self, side: Side) -> tuple[Feature, ...]:
        return tuple(feature for feature in self.features if feature.side == side)

    def kind(self, kind: Kind) -> tuple[Feature, ...]:
        return tuple(feature for feature in self.features if feature.kind == kind)

    @property
    def id_spaces(self) -> tuple[str, ...]:
        return tuple(sorted({f.id_space for f in self.features if f.id_space}))

    @property
    def arrow_schema(self) -> pa.Schema:
        return pa.schema([(feature.name, feature.arrow_type) for feature in self.features])

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(feature.name == name for feature in self.features)


def _refuse_clashing_inputs(features: Iterable[Feature]) -> None:
    """Raises ConfigError where one raw input would have to be two things.

    TensorFlow takes names of one signature that differ in capitals alone for one.
    """
    given: dict[str, tuple[Feature, str]] = {}
    for feature in features:
        name = feature.column_input
        if name is None:
            continue
        _refuse_name(feature, name)
        if name.lower() in RESERVED_INPUTS:
            raise ConfigError(
                f"feature {feature.name!r}: {feature.source} would be the raw input {name!r}, which is taken; give the "
                "column another name in the source"
            )
        per_candidate = feature.source.startswith("request.") and feature.side == Side.IMPRESSION
        form = (
            f"{feature.source}, {'a list, ' if feature.multivalent else ''}{feature.kind}"
            f"{', of each candidate' if per_candidate else ''}"
        )
        other, other_form = given.setdefault(name.lower(), (feature, form))
        if form != other_form:
            raise ConfigError(
                f"features {other.name!r} ({other_form}) and {feature.name!r} ({form}) would be one raw input "
                f"{name!r}; leave one of them out, or give its column another name in the source"
            )


def _refuse_name(feature: Feature, name: str) -> None:
    """Raises ConfigError where an exported model could have no input of this name, long before it is exported."""
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name) or name == "self":
        raise ConfigError(
            f"feature {feature.name!r}: {feature.source} would be the raw input {name!r}; expected a name of letters "
            "A to Z, digits and _ that begins with a letter and is no word of Python; give the column another name by "
            "`columns` of the source"
        )


def write_specs(path: Path, specs: dict[str, FeatureSpec]) -> None:
    """Writes the run's specification file: model name → its features."""
    value = {name: [asdict(feature) for feature in spec.features] for name, spec in specs.items()}
    path.write_text(json.dumps({"version": 1, "models": value}, indent=2) + "\n")


def read_specs(path: Path) -> dict[str, FeatureSpec]:
    """Reads what `write_specs` wrote."""
    models = json.loads(path.read_text())["models"]
    return {name: FeatureSpec(tuple(_feature(entry) for entry in entries)) for name, entries in models.items()}


def _feature(entry: dict) -> Feature:
    normaliser = entry["normaliser"]
    return Feature(
        **{
            **entry,
            "kind": Kind(entry["kind"]),
            "side": Side(entry["side"]),
            "normaliser": Normaliser(normaliser) if normaliser else None,
        }
    )
