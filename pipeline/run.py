"""A run: its folder, its configuration, and what its stages share."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console

from features.artifacts import read_manifest
from features.encoding import Encoder, load_encoder
from features.errors import ArtifactError, DataError
from features.feature_lists import (
    FeatureList,
    Model,
    columns_of,
    default_candidate_features,
    default_ranking_features,
    default_sequence_features,
)
from features.spec import FeatureSpec
from features.splits import Split, resolve
from models.sequence_generator import SequenceConfig, SequenceGenerator
from pipeline.config import RunConfig
from pipeline.model_folder import CANDIDATE_GENERATORS
from pipeline.named_features import refuse_absent_context
from pipeline.sources.simulator_config import SimulatorConfig

GENERATOR: Model = "candidate_generator"
SEQUENCES: Model = "sequence_generator"
RANKER: Model = "ranker"

EXAMPLES = {GENERATOR: "candidate_generation", SEQUENCES: "sequences", RANKER: "ranking"}
"""Model -> name of its example set."""


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
      folder: where everything is published.
      config: of the run.
      beam_args: Beam's own options.
      console: where the run speaks.
    """

    folder: Path
    config: RunConfig
    beam_args: tuple[str, ...]
    console: Console

    @property
    def tables(self) -> Path:
        return self.folder / "tables"

    @property
    def features(self) -> Path:
        return self.folder / "features"

    def examples(self, model: Model) -> Path:
        return self.folder / "examples" / EXAMPLES[model]

    def features_of_generator(self, name: str) -> Model:
        """Whose features and examples a candidate generator of the configuration has: of bags or of sequences."""
        kind = self.config.generators[name].model.kind
        return SEQUENCES if issubclass(CANDIDATE_GENERATORS[kind], SequenceGenerator) else GENERATOR

    @property
    def models(self) -> tuple[Model, ...]:
        """The models with features and examples in this run; those of bags always, the peers are given them."""
        return tuple(self.feature_lists)

    @cached_property
    def split(self) -> Split:
        """The split, resolved at the end of the log."""
        tables = read_manifest(self.tables)["tables"]
        moments = [datetime.fromisoformat(table["last"]) for table in tables.values() if table["last"]]
        if not moments:
            raise DataError(f"{self.tables}: expected events with a time, found none; labels need times")
        return resolve(self.config.split, int(np.datetime64(max(moments).replace(tzinfo=None), "us").astype(np.int64)))

    @cached_property
    def feature_lists(self) -> dict[Model, FeatureList]:
        """Model -> its features and those left out; the ranker is absent where it cannot be trained.

        Raises:
          ConfigError: a configured feature, or the context of a sequence model, needs a column that the log lacks.
        """
        columns = columns_of(self.tables)
        lists = {GENERATOR: default_candidate_features(columns, self.config.features)}
        if any(self.features_of_generator(name) == SEQUENCES for name in self.config.generators):
            lists[SEQUENCES] = default_sequence_features(columns, self.config.features)
        for name, generator in self.config.generators.items():
            if isinstance(generator.model, SequenceConfig):
                refuse_absent_context(generator.model, lists[SEQUENCES], f"generators.{name}.model")
        if self.config.ranker is not None and "impressions" in columns:
            lists[RANKER] = default_ranking_features(columns, self.config.features)
        return lists

    @property
    def specs(self) -> dict[Model, FeatureSpec]:
        return {model: features.spec for model, features in self.feature_lists.items()}

    @property
    def has_ranker(self) -> bool:
        return RANKER in self.feature_lists

    @property
    def has_truth(self) -> bool:
        """Whether the source is the simulator, which knows the truth; a run with real logs may lie where one had it."""
        return isinstance(self.config.source, SimulatorConfig)

    @property
    def encoder(self) -> Encoder:
        """The published vocabularies and catalogue."""
        for name in ("vocabularies", "catalogue"):
            read_manifest(self.features / name)
        return load_encoder(self.features)

    def require(self, *names: str) -> None:
        """Raises ArtifactError where one of these folders of the run is not published whole."""
        for name in names:
            if not (self.folder / name).is_dir():
                raise ArtifactError(
                    f"{self.folder / name}: not published; run the stage that writes it first, or `upnext run` for all"
                )
            read_manifest(self.folder / name)
