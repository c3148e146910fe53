"""The configuration of a run: the parts' own configuration objects, put together.

Built-in configurations are `pipeline/configs/*.yaml`. Every setting and its default is described beside the part it
configures.
"""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from features.analysis import AnalysisConfig
from features.candidate_examples import CandidateExamplesConfig
from features.feature_lists import FeatureListConfig
from features.leakage import LeakageConfig
from features.ranking_examples import RankingExamplesConfig
from features.sequence_examples import SequenceExamplesConfig
from features.settings import Settings
from features.shards import ShardConfig
from features.splits import SplitConfig
from models import latent_cross, m3
from models.baseline_presets import BASELINES
from models.co_watch_embeddings import CoWatchConfig
from models.latent_cross import LatentCrossConfig
from models.m3 import M3Config
from models.ranker import RankerConfig
from models.sampled_softmax import Loss
from models.sequence_baselines import BagOfWatchesConfig, CaserConfig
from models.sequence_generator import SequenceConfig
from models.transition_embeddings import TransitionStartConfig
from models.two_tower import TwoTowerConfig
from pipeline.builtin_configurations import About
from pipeline.evaluation.bootstrap import BootstrapConfig
from pipeline.evaluation.gradient_boosted_trees import TreesConfig
from pipeline.evaluation.retrieval_baselines import Method, RetrievalBaselinesConfig
from pipeline.evaluation.retrieval_metrics import RetrievalMetricsConfig
from pipeline.named_features import refuse_unknown_names, refuse_unknown_spaces
from pipeline.protocols import with_protocol
from pipeline.sources.files import FilesConfig
from pipeline.sources.kuairand import KuaiRandConfig
from pipeline.sources.movielens import MovieLensConfig
from pipeline.sources.simulator_config import SimulatorConfig
from pipeline.sources.validation import ValidationConfig
from pipeline.training import TrainingConfig
from serving.export import BRUTE_FORCE_SUFFIX, ExportConfig

GeneratorName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
SourceConfig = Annotated[SimulatorConfig | FilesConfig | MovieLensConfig | KuaiRandConfig, Field(discriminator="kind")]


def _kind(value: Any) -> Any:
    return value.get("kind", "two_tower") if isinstance(value, Mapping) else getattr(value, "kind", None)


GeneratorModel = Annotated[
    Annotated[TwoTowerConfig, Tag("two_tower")]
    | Annotated[LatentCrossConfig, Tag("latent_cross")]
    | Annotated[M3Config, Tag("m3")]
    | Annotated[BagOfWatchesConfig, Tag("bag_of_watches")]
    | Annotated[CaserConfig, Tag("caser")],
    Discriminator(_kind),
]
"""The configuration of a candidate generator; `kind` says of which, by default the two-tower model."""

_MODELS: Mapping[str, Mapping[str, Settings]] = {"latent_cross": latent_cross.PRESETS, "m3": m3.PRESETS}
PRESETS: Mapping[str, Mapping[str, Settings]] = {
    kind: {**_MODELS.get(kind, {}), **baselines} for kind, baselines in BASELINES.items()
}
"""Kind of model -> preset -> the paper's configuration, those of its models first, then those of its baselines."""

_WITHOUT_INDEX = {Loss.HIERARCHICAL: "hierarchical softmax", Loss.CO_WATCHED: "softmax over co-watched videos"}


WITHOUT_A_MODEL: Mapping[str, Any] = {
    "model": {
        "kind": "two_tower",
        "dimension": 128,
        "depth": 1,
        "projection": True,
        "transitions": True,
        "dropout": 0.2,
    },
    "transition_start": {},
    "training": {"batch_size": 512, "epochs": 30, "patience": 3},
}
"""The generator where a configuration gives no model; settings of `training` that are given replace its own.

From watches alone, MAP@20 and recall@100 on validation, beside the same model of 64 dimensions that starts from
unordered co-watches and has no transitions: MovieLens latest-small 0.077 and 0.461 for 0.056 and 0.470, a simulated
log 0.070 and 0.417 for 0.057 and 0.384, KuaiRand 0.027 and 0.390 for 0.026 and 0.375. On a generated log of music,
where much is played again at once and popularity is steep, 0.334 and 0.749 for 0.321 and 0.696 from random values."""


def reported_name(name: str) -> str:
    """A generator of the configuration as reports call it."""
    return name.replace("_", "-")


class GeneratorConfig(Settings):
    """A candidate generator and its training.

    Without `model` it is `WITHOUT_A_MODEL`, where settings of `training` that are given replace its own. `model.preset`
    names one of the paper's configurations of the model's kind (`PRESETS`); settings beside it replace the preset's.
    """

    model: GeneratorModel = TwoTowerConfig()
    co_watch_start: CoWatchConfig | None = Field(
        default=None, description="start the video embeddings from co-watches; null: from random values"
    )
    transition_start: TransitionStartConfig | None = Field(
        default=None, description="start them from what is watched after what, in place of co-watches"
    )
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _with_a_model(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "model" in value:
            return value
        training = value.get("training", {})
        merged = {**WITHOUT_A_MODEL["training"], **training} if isinstance(training, Mapping) else training
        start = {} if value.get("co_watch_start") is None else {"transition_start": None}
        return {**WITHOUT_A_MODEL, **start, **value, "training": merged}

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, value: Any) -> Any:
        model = value.get("model") if isinstance(value, Mapping) else None
        if not isinstance(model, Mapping) or "preset" not in model:
            return value
        presets = PRESETS.get(str(model.get("kind")), {})
        if model["preset"] not in presets:
            there = ", ".join(presets) or "none of this kind"
            raise ValueError(
                f"model.preset: no preset {model['preset']!r} of kind {model.get('kind')!r}; there are {there}"
            )
        changes = {name: setting for name, setting in model.items() if name != "preset"}
        return {**value, "model": {**presets[model["preset"]].model_dump(), **changes}}

    @model_validator(mode="after")
    def _starts_once(self) -> "GeneratorConfig":
        if self.co_watch_start is not None and self.transition_start is not None:
            raise ValueError("co_watch_start and transition_start exclude each other: set one of them to null")
        return self

    @model_validator(mode="after")
    def _sequences_are_not_compiled(self) -> "GeneratorConfig":
        if self.training.jit_compile and isinstance(self.model, SequenceConfig):
            raise ValueError(
                "training.jit_compile: a sequence model's loss gathers the steps that have a label, whose number is "
                "another in each batch, and its recurrent cell is slower under XLA; set it to false"
            )
        return self


class RankingConfig(Settings):
    """The ranker and its training."""

    model: RankerConfig = RankerConfig()
    training: TrainingConfig = TrainingConfig()


class EvaluationConfig(Settings):
    """What is measured, and beside which peers."""

    retrieval: RetrievalMetricsConfig = RetrievalMetricsConfig()
    retrieval_baselines: RetrievalBaselinesConfig = RetrievalBaselinesConfig()
    bootstrap: BootstrapConfig = BootstrapConfig()
    trees: TreesConfig | None = Field(default=TreesConfig(), description="null: no gradient-boosted trees")
    show_users: int = Field(default=3, ge=0, description="users whose recommendations are printed at the end of a run")

    @model_validator(mode="after")
    def _peers_are_chosen_by_reported_metrics(self) -> "EvaluationConfig":
        self.retrieval_baselines.selection(self.retrieval)
        return self


class RunConfig(Settings):
    """Everything a run depends on."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_.-]+$", description="names the folder runs/<name>")
    about: About = About()
    protocol: str | None = Field(
        default=None, description="label protocol of a paper whose settings stand below these (pipeline/protocols.py)"
    )
    source: SourceConfig = SimulatorConfig()
    validation: ValidationConfig = ValidationConfig()
    split: SplitConfig = SplitConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    features: FeatureListConfig = FeatureListConfig()
    shards: ShardConfig = ShardConfig()
    candidate_examples: CandidateExamplesConfig = CandidateExamplesConfig()
    sequence_examples: SequenceExamplesConfig = SequenceExamplesConfig()
    ranking_examples: RankingExamplesConfig = RankingExamplesConfig()
    leakage: LeakageConfig = LeakageConfig()
    generators: dict[GeneratorName, GeneratorConfig] = Field(
        default={"two_tower": GeneratorConfig()},
        min_length=1,
        description="name -> candidate generator; the first is exported as `retrieval`, further ones as "
        "`retrieval_<name>`",
    )
    ranker: RankingConfig | None = Field(default=RankingConfig(), description="null: no ranker is trained")
    export: ExportConfig = ExportConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _on_protocol(cls, value: Any) -> Any:
        return with_protocol(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _generators_have_folders_and_names_of_their_own(self) -> "RunConfig":
        for name in self.generators:
            if name == "ranker" or name.endswith(BRUTE_FORCE_SUFFIX):
                raise ValueError(
                    f"generators.{name}: the name is taken by the folder of the ranker or of an exact index; "
                    "choose another"
                )
            if reported_name(name) in get_args(Method):
                raise ValueError(f"generators.{name}: a peer has this name in the reports; choose another")
        return self

    @model_validator(mode="after")
    def _generators_can_be_indexed(self) -> "RunConfig":
        for name, generator in self.generators.items():
            if generator.model.loss in _WITHOUT_INDEX:
                raise ValueError(
                    f"generators.{name}.model.loss: the scores of a {_WITHOUT_INDEX[generator.model.loss]} are no dot "
                    "products, so that nothing could be exported after training; set it to sampled or full"
                )
        return self

    @model_validator(mode="after")
    def _settings_name_what_there_is(self) -> "RunConfig":
        refuse_unknown_spaces(self.analysis.vocabularies, self.features)
        for name, generator in self.generators.items():
            if isinstance(generator.model, TwoTowerConfig):
                refuse_unknown_names(generator.model, self.features, f"generators.{name}.model")
        if self.ranker is not None:
            refuse_unknown_names(self.ranker.model, self.features, "ranker.model")
        return self

    @model_validator(mode="after")
    def _refit_together(self) -> "RunConfig":
        trainings = [generator.training for generator in self.generators.values()]
        trainings += [self.ranker.training] if self.ranker else []
        if any(training.refit != self.split.refit for training in trainings):
            raise ValueError(
                "split.refit and the refit of every training must be equal (vocabularies reach as far as the final "
                "training does); set all of them to true or all to false"
            )
        return self
