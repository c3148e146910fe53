"""Id spaces and features that settings of models name: a name that no log could have is a mistake.

What a model sees depends on the log, as default features whose column is absent are left out. A setting may name any
default feature, so that one configuration serves many logs, and any feature that the configuration adds.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from features.analysis import FIXED_VOCABULARIES
from features.catalogue import HISTORY_SPACES
from features.errors import ConfigError
from features.feature_lists import (
    FeatureList,
    FeatureListConfig,
    default_candidate_features,
    default_ranking_features,
    default_sequence_features,
)
from features.spec import Feature, Kind, Model, Side
from features.tables import TABLES
from models.context_features import features_needed
from models.ranker import RankerConfig
from models.sequence_generator import SequenceConfig
from models.two_tower import TwoTowerConfig
from pipeline.sources.source import nearest

_LISTS: Mapping[Model, Callable[..., FeatureList]] = {
    "candidate_generator": default_candidate_features,
    "sequence_generator": default_sequence_features,
    "ranker": default_ranking_features,
}


def refuse_unknown_names(config: TwoTowerConfig | RankerConfig, features: FeatureListConfig, where: str) -> None:
    """Checks what a model's settings name.

    Args:
      config: the model's settings.
      features: the run's feature lists.
      where: the place of the settings in the configuration, such as `ranker.model`.

    Raises:
      ValueError: a setting names what is neither a default feature or its id space nor one of `features.extra`; the
        nearest name is told.
    """
    if isinstance(config, RankerConfig):
        spaces = {feature.id_space for feature in _possible("ranker", features)}
        _refuse(config.embedding_dimensions, spaces, f"{where}.embedding_dimensions: no id space of the ranker")
        return
    inputs = [feature for feature in _possible("candidate_generator", features) if feature.side == Side.QUERY]
    spaces = {feature.id_space for feature in inputs}
    _refuse(config.large_id_spaces, spaces, f"{where}.large_id_spaces: no id space of the model's inputs")
    numbers = {feature.name for feature in inputs if feature.kind == Kind.CONTINUOUS}
    _refuse(config.power_features, numbers, f"{where}.power_features: no continuous input of the model")


def refuse_unknown_spaces(vocabularies: Collection[str], features: FeatureListConfig) -> None:
    """Checks the id spaces that `analysis.vocabularies` names.

    Args:
      vocabularies: the names.
      features: the run's feature lists.

    Raises:
      ValueError: an id space is of no default feature of any model and of none of `features.extra`, or is known
        beforehand (`hour`); the nearest name is told.
    """
    spaces = {feature.id_space for model in _LISTS for feature in _possible(model, features)} if vocabularies else set()
    counted = {*spaces, *HISTORY_SPACES.values()} - FIXED_VOCABULARIES.keys()
    _refuse(vocabularies, counted, "analysis.vocabularies: no id space that is counted")


def refuse_absent_context(config: SequenceConfig, found: FeatureList, where: str) -> None:
    """Checks a sequence model's context against the features of the log, before examples are made of them.

    Args:
      config: the model's settings.
      found: the features of generators of sequences in this run.
      where: the place of the settings in the configuration, such as `generators.m3.model`.

    Raises:
      ConfigError: context needs a feature that the run does not have, and `skip_absent` is not set.
    """
    why = dict(found.left_out) | {
        f.name: "an attribute of videos has this name" for f in found.spec.side(Side.IMPRESSION)
    }
    there = {feature.name for feature in found.spec.side(Side.QUERY)}
    for context in () if config.skip_absent else config.context:
        for name in features_needed(context):
            if name not in there:
                raise ConfigError(
                    f"{where}.context: {context.name!r} needs the feature {name!r}, which this run does not have "
                    f"({why.get(name, 'no default one; features.extra could add it')}); leave {context.name!r} out or "
                    f"set {where}.skip_absent: true"
                )


def _possible(model: Model, features: FeatureListConfig) -> list[Feature]:
    """The default features of a log that has every column, and the configured ones."""
    columns = {name: table.schema.names for name, table in TABLES.items()}
    defaults = _LISTS[model](columns, features.model_copy(update={"without": (), "extra": ()}))
    return [*defaults.spec.features, *(added.feature() for added in features.extra if model in added.models)]


def _refuse(names: Iterable[str], known: Iterable[str | None], where: str) -> None:
    there = sorted(name for name in known if name)
    for name in names:
        if name not in there:
            raise ValueError(f"{where} is called {name!r}, {nearest(name, there)}")
