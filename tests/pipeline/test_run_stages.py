"""Runs with several candidate generators: which stages there are, which of them run, and names of exports."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from features.artifacts import publish
from features.errors import ArtifactError, ConfigError
from features.feature_lists import FeatureList
from features.spec import Feature, FeatureSpec, Kind, Side
from models.context_features import ContextFeature, Use
from models.latent_cross import LatentCrossConfig
from pipeline import funnel
from pipeline.config import RunConfig
from pipeline.export_stage import REPORT, exported_names, models_to_recommend
from pipeline.funnel import model_part
from pipeline.named_features import refuse_absent_context
from pipeline.run import Run
from pipeline.stages import Stage, execute
from tests.features.example_logs import platform, write_tables

SEQUENCES = {"kind": "latent_cross"}


def config_of(**models: dict) -> RunConfig:
    generators = {name: {"model": model} for name, model in models.items()}
    return RunConfig.model_validate({"generators": generators, "ranker": None})


def test_a_first_sequence_model_needs_the_vocabularies_of_its_features(tmp_path: Path) -> None:
    """The page of each watch is seen by sequence models alone, so the analysis depends on whether there are any."""
    write_tables(tmp_path / "tables", platform(users=3))
    analyses = []
    for models in ({"bags": {}}, {"bags": {}, "sequences": SEQUENCES}, {"sequences": SEQUENCES}):
        stages = model_part(Run(tmp_path, config_of(**models), (), Console(quiet=True)))
        analyses.append(next(stage.settings for stage in stages if stage.name == "analyze"))
    assert analyses[0] != analyses[1] == analyses[2]


@pytest.mark.parametrize(
    ("context", "needed"),
    [
        ({"name": "device", "pre": "cross"}, r"'device' needs .* \(table 'watches' has no column 'device'\); "),
        ({"name": "mood", "post": "cross"}, "'mood' needs the feature 'watched_mood', which .* features.extra"),
    ],
)
def test_context_that_the_log_does_not_have_is_refused_when_features_are_listed(
    tmp_path: Path, context: dict, needed: str
) -> None:
    tables = platform(users=3)
    write_tables(tmp_path / "tables", {"watches": tables["watches"].drop_columns(["device"])})
    model = {**SEQUENCES, "context": [{"name": "time_delta", "pre": "cross"}, context]}
    with pytest.raises(ConfigError, match=rf"generators\.gru\.model\.context: {needed}") as error:
        model_part(Run(tmp_path, config_of(gru=model), (), Console(quiet=True)))
    assert "\n" not in str(error.value)
    skipping = config_of(gru={**model, "skip_absent": True})
    assert model_part(Run(tmp_path, skipping, (), Console(quiet=True)))


def test_an_attribute_of_videos_is_no_context_of_its_name() -> None:
    length, query, video = 3, Side.QUERY, Side.IMPRESSION
    features = (
        Feature("watched_device", Kind.CATEGORICAL, query, "watches.device", "device", length),
        Feature("device", Kind.CATEGORICAL, video, "videos.device", "device"),
    )
    config = LatentCrossConfig(context=[ContextFeature(name="device", post=Use.CROSS)])
    with pytest.raises(ConfigError, match=r"needs the feature 'device', .* \(an attribute of videos has this name\)"):
        refuse_absent_context(config, FeatureList(FeatureSpec(features), []), "generators.gru.model")


def test_the_first_generator_is_exported_as_retrieval_and_further_ones_by_name() -> None:
    config = config_of(bags={}, m3={"kind": "m3"}, gru=SEQUENCES)
    assert exported_names(config) == {"bags": "retrieval", "m3": "retrieval_m3", "gru": "retrieval_gru"}


def test_recommended_from_are_the_versions_of_the_last_finished_export_alone(tmp_path: Path) -> None:
    """Beside them: the ranker of a configuration that had one, and an index of an export that was stopped."""
    for version in ("retrieval/1", "retrieval_brute_force/1", "retrieval_m3/1", "ranking/1", "retrieval/2"):
        with publish(tmp_path / "export" / version, {}):
            pass
    with pytest.raises(ArtifactError, match=f"{tmp_path}/{REPORT}: expected the record of a finished export"):
        models_to_recommend(tmp_path)
    together = ["export/retrieval/1", "export/retrieval_brute_force/1", "export/retrieval_m3/1"]
    with publish(tmp_path / REPORT, {"exported": together}):
        pass
    assert models_to_recommend(tmp_path) == [tmp_path / "export/retrieval/1", tmp_path / "export/retrieval_m3/1"]


def test_another_order_of_the_generators_trains_none_again_but_names_their_exports_anew(tmp_path: Path) -> None:
    """What a stage is known by: its record's name, its settings, what it reads and what it publishes."""
    write_tables(tmp_path / "tables", platform(users=3))
    known = []
    for models in ({"bags": {}, "gru": SEQUENCES}, {"gru": SEQUENCES, "bags": {}}):
        stages = model_part(Run(tmp_path, config_of(**models), (), Console(quiet=True)))
        known.append({stage.name: (stage.settings, set(stage.inputs), stage.outputs) for stage in stages})
    assert {name for name in known[0] if known[0][name] != known[1].get(name)} == {"export", "evaluate"}
    assert {"train-generator:bags", "train-generator:gru"} <= known[0].keys() == known[1].keys()


@pytest.mark.parametrize("name", ["ranker", "brute_force", "m3_brute_force"])
def test_a_generator_cannot_have_the_folder_of_another_model(name: str) -> None:
    with pytest.raises(ValidationError, match=f"generators.{name}: the name is taken"):
        config_of(bags={}, **{name: SEQUENCES})


def test_a_generator_cannot_have_the_name_of_a_peer_in_the_reports() -> None:
    with pytest.raises(ValidationError, match=r"generators\.popularity: a peer has this name in the reports"):
        config_of(popularity={})
    assert list(config_of(recent_popularity={}).generators) == ["recent_popularity"]  # reported as recent-popularity


def test_a_further_process_takes_part_in_what_the_publishing_one_trains_and_in_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop between two generators the first is skipped there; to train it here would wait for it forever."""
    trained = []

    def stage(name: str, folder: str) -> Stage:
        def action() -> None:
            trained.append(folder)
            with publish(tmp_path / folder, {}):
                pass

        return Stage(name, "", 0, (), (folder,), action)

    names = {"train-generator:a": "models/a", "train-generator:b": "models/b", "train-ranker": "models/ranker"}
    stages = [stage(name, folder) for name, folder in names.items()]
    execute(stages[:1], tmp_path, Console(quiet=True), funnel.package_version())
    monkeypatch.setattr(funnel, "model_part", lambda run: stages)
    trained.clear()
    funnel._take_part(Run(tmp_path, config_of(a={}, b={}), (), Console(quiet=True)), "train-generator")
    assert trained == ["models/b"]
