"""Configuration mistakes are one line that names the place and the nearest valid name."""

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from features.errors import ConfigError
from features.settings import Settings
from models.co_watch_embeddings import CoWatchConfig
from models.transition_embeddings import TransitionStartConfig
from models.two_tower import TwoTowerConfig
from pipeline.config import PRESETS, GeneratorConfig, RunConfig
from pipeline.config_file import read, read_run, write_run
from pipeline.protocols import PROTOCOLS
from pipeline.training import TrainingConfig


class Files(Settings):
    kind: Literal["files"] = "files"
    path: str = "."


class Simulator(Settings):
    kind: Literal["simulator"] = "simulator"
    users: int = 10


class Layer(Settings):
    units: int = 4


class Range(Settings):
    low: float = 0.0
    high: float = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self


class Config(Settings):
    source: Annotated[Files | Simulator, Field(discriminator="kind")] = Simulator()
    layers: list[Layer] = []
    rate: float | None = None
    range: Range = Range()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text("source: {kind: files, path: logs}\nlayers: [{units: 8}]\n")
    return file


def test_a_file_and_dotted_overrides_are_read(path: Path) -> None:
    config = read(Config, str(path), ["source.path=a b", "rate=0.5"])
    assert config == Config(source=Files(path="a b"), layers=[Layer(units=8)], rate=0.5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rte=1", "rte: no such setting; did you mean 'rate'?"),
        ("source.pth=1", "source.pth: no such setting; did you mean 'path'?"),
        ("layers=[{unit: 1}]", "layers.0.unit: no such setting; did you mean 'units'?"),
        ("rate=fast", "rate: Input should be a valid number.*found 'fast'"),
        ("source.kind=file", "source.kind: no kind 'file'; there are .*files, simulator"),
        ("rate", "expected key=value"),
        ("range={low: 3}", r"range: low 3 is above high 1$"),
        ("source.path.deep=1", "source.path is a value, not a group"),
        ("rate=[", "not valid YAML"),
        ("range={low: 3, low: 4}", "not valid YAML: key 'low' in line 1 and again in line 1"),
    ],
)
def test_mistakes_are_explained_in_one_line(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read(Config, str(path), [override])
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(ConfigError, match=r"'no-such': no such file, and not one of"):
        read(Config, "no-such")


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not valid YAML"), ("- 1", "expected a mapping"), ("", "found nothing")]
)
def test_files_that_hold_no_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(Config, str(file))


def test_a_key_that_is_there_twice_is_refused_with_both_lines_and_merged_keys_are_not(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("rate: 1\nrange:\n  low: 0\n  high: 2\n  'low': 1\n")
    told = f"{file}: not valid YAML: key 'low' in line 3 and again in line 5, one of which would be dropped; remove it"
    with pytest.raises(ConfigError, match=re.escape(told)):
        read(Config, str(file))
    file.write_text("source: {kind: files}\nlayers:\n- &first {units: 8}\n- {<<: *first, units: 9}\n- {<<: *first}\n")
    assert [layer.units for layer in read(Config, str(file)).layers] == [8, 9, 8]


@pytest.mark.parametrize("text", ["name: logs\n", "generators: {two_tower: {model: {}}}\n"])
def test_a_part_of_a_generator_that_is_not_there_is_refused_unless_its_model_is_given(path: Path, text: str) -> None:
    path.write_text(text)
    epochs = "generators.two_towr.training.epochs=7"
    told = f"--set '{epochs}': no generator 'two_towr'; did you mean 'two_tower'? to add one give its model, as --set "
    for overrides in ([epochs], ["generators.two_tower.training.epochs=1", epochs], [epochs, epochs]):
        with pytest.raises(ConfigError, match=re.escape(told)):
            read(RunConfig, str(path), overrides)
    with pytest.raises(ConfigError, match="no generator 'm3'; there are: two_tower; to add one"):
        read(RunConfig, str(path), ["generators.m3.model.dimension=8"])
    for given in ("model={kind: m3}", "model.kind=m3"):
        for overrides in ([epochs, f"generators.two_towr.{given}"], [f"generators.two_towr.{given}", epochs]):
            assert read(RunConfig, str(path), overrides).generators["two_towr"].training.epochs == 7
    assert read(RunConfig, str(path), ["generators.two_towr={}", epochs]).generators["two_towr"].training.epochs == 7
    alone = read(RunConfig, str(path), ["generators={two_towr: {}}", epochs])
    assert list(alone.generators) == ["two_towr"]


def test_a_run_s_configuration_is_read_back_only_as_it_was_written(tmp_path: Path) -> None:
    written = Config(layers=[Layer(units=8)], rate=0.5)
    write_run(tmp_path, written)
    assert read_run(Config, tmp_path) == written
    whole = (tmp_path / "config.yaml").read_text()
    for damaged in (whole.replace("8", "9", 1), whole.partition("rate")[0], whole[:-2], ""):
        (tmp_path / "config.yaml").write_text(damaged)
        with pytest.raises(ConfigError, match=f"{tmp_path}/config.yaml: expected the configuration as the run wrote"):
            read_run(Config, tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"expected a run's folder with config\.yaml"):
        read_run(Config, tmp_path)


def test_a_preset_is_the_papers_model_and_settings_beside_it_replace_its_own() -> None:
    config = GeneratorConfig.model_validate({"model": {"kind": "m3", "preset": "movielens_m3c", "dimension": 16}})
    expected = PRESETS["m3"]["movielens_m3c"].model_copy(update={"dimension": 16})
    assert config.model == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"model": {"kind": "m3", "preset": "large"}}, "no preset 'large' of kind 'm3'; there are movielens_m3r, "),
        ({"model": {"kind": "two_tower", "preset": "large"}}, "there are none of this kind"),
        ({"model": {"kind": "m3"}, "training": {"jit_compile": True}}, "jit_compile: a sequence model's loss gathers"),
    ],
)
def test_a_generator_that_cannot_be_is_refused(value: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GeneratorConfig.model_validate(value)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_a_valid_configuration(name: str) -> None:
    config = RunConfig.model_validate({"protocol": name})
    assert config.features.sequence_length == config.features.watch_window >= 20
    assert config.split.test_user_share == 0.1


def test_settings_of_a_configuration_win_over_those_of_its_protocol() -> None:
    value = {"protocol": "m3_movielens_s", "sequence_examples": {"stride": 5}, "split": {"seed": 4}}
    config = RunConfig.model_validate(value)
    assert (config.sequence_examples.stride, config.sequence_examples.max_watches) == (5, 50)
    assert (config.split.seed, config.split.validation_user_share, config.split.test_days) == (4, 0.1, None)
    assert config.analysis.of_space("video").min_count == 20


def test_an_unknown_protocol_tells_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"no protocol 'm3_movilens'; did you mean 'm3_movielens'\?"):
        RunConfig.model_validate({"protocol": "m3_movilens"})


@pytest.mark.parametrize(
    ("model", "scores"),
    [
        ({"kind": "latent_cross", "loss": "hierarchical"}, "hierarchical softmax"),
        ({"kind": "bag_of_watches", "preset": "bag_of_words_time"}, "softmax over co-watched videos"),
    ],
)
def test_a_run_whose_generator_could_not_be_exported_is_refused_before_training(model: dict, scores: str) -> None:
    with pytest.raises(ValidationError, match=f"the scores of a {scores} are no dot products"):
        RunConfig.model_validate({"generators": {"rnn": {"model": model}}})


def test_a_generator_without_a_model_starts_from_transitions_and_a_given_model_is_taken_as_it_is(path: Path) -> None:
    path.write_text("name: logs\n")
    for overrides, epochs in (([], 30), (["generators.two_tower.training.epochs=3"], 3)):
        generator = read(RunConfig, str(path), overrides).generators["two_tower"]
        assert (generator.transition_start, generator.co_watch_start) == (TransitionStartConfig(), None)
        assert generator.model == TwoTowerConfig(dimension=128, depth=1, projection=True, transitions=True, dropout=0.2)
        assert generator.training == TrainingConfig(batch_size=512, epochs=epochs, patience=3)
    given = GeneratorConfig.model_validate({"model": {"dimension": 32}})
    assert given.model == TwoTowerConfig(dimension=32)
    assert (given.transition_start, given.co_watch_start) == (None, None)
    assert given.training == TrainingConfig()


def test_a_start_that_is_given_takes_the_place_of_the_default_one_and_two_are_refused() -> None:
    given = GeneratorConfig.model_validate({"co_watch_start": {"scale": 0.1}})
    assert (given.transition_start, given.co_watch_start) == (None, CoWatchConfig(scale=0.1))
    with pytest.raises(ValidationError, match="co_watch_start and transition_start exclude each other"):
        GeneratorConfig.model_validate({"co_watch_start": {}, "transition_start": {}})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "generators.two_tower.model.large_id_spaces=[video, search_tokens]",
            "generators.two_tower.model.large_id_spaces: no id space of the model's inputs is called 'search_tokens', "
            "did you mean 'search_token'? there are: device, plan, region, search_token, video",
        ),
        (
            "generators.two_tower.model.power_features=[example_ages]",
            "generators.two_tower.model.power_features: no continuous input of the model is called 'example_ages', did "
            "you mean 'example_age'? there are: age, example_age, gender, logged_in, wealth",
        ),
        ("generators.two_tower.model.power_features=[region]", "is called 'region'"),  # categorical
        ("generators.two_tower.model.large_id_spaces=[uploader]", "is called 'uploader'"),  # of the video vectors
        (
            "ranker.model.embedding_dimensions={clicked_videos: 8}",
            "ranker.model.embedding_dimensions: no id space of the ranker is called 'clicked_videos', did you mean "
            "'clicked_video'?",
        ),
        ("ranker.model.embedding_dimensions={plan: 8}", "is called 'plan'"),  # added to the generator alone
        (
            "analysis.vocabularies.search_tokens.top_n=7",
            "analysis.vocabularies: no id space that is counted is called 'search_tokens', did you mean "
            "'search_token'? there are: clicked_video, device, interest, language, page, plan, region, search_token, "
            "source, topic, uploader, video",
        ),
        ("analysis.vocabularies={hour: {top_n: 3}}", "is called 'hour'"),  # known beforehand
    ],
)
def test_settings_that_name_no_feature_of_any_log_are_refused_with_the_nearest(
    tmp_path: Path, override: str, message: str
) -> None:
    file = _with_features(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(RunConfig, file, [override])


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["evaluation.retrieval_baselines.selected_by=[MPA@20]"], "'MPA@20'"),
        (
            ["evaluation.retrieval.map_at=[10]", "evaluation.retrieval_baselines.selected_by=[MAP@20]"],
            "'MAP@20'",
        ),
        (["evaluation.retrieval_baselines.selected_by=[]"], "none"),
    ],
)
def test_peers_cannot_be_chosen_by_a_metric_that_is_not_reported(overrides: list[str], found: str) -> None:
    map_at = "MAP@10" if len(overrides) > 1 else "MAP@20"
    message = (
        "evaluation: retrieval_baselines.selected_by: expected metrics that evaluation.retrieval reports, found "
        f"{found}; there are {map_at}, precision@1, recall@20, recall@100, NDCG@20, {map_at} unwatched, "
    )
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        read(RunConfig, "demo", overrides)
    assert "\n" not in str(error.value)


def test_settings_may_name_added_features_and_defaults_that_a_log_lacks_or_a_run_leaves_out(tmp_path: Path) -> None:
    config = read(
        RunConfig,
        _with_features(tmp_path),
        [
            "features.without=[example_age, search_tokens]",
            "generators.two_tower.model.large_id_spaces=[video, search_token, plan]",
            "generators.two_tower.model.power_features=[example_age, wealth]",
            "ranker.model.embedding_dimensions={clicked_video: 8, search_token: 4, interest: 2}",
            "analysis.vocabularies={video: {top_n: 9}, topic: {top_n: 9}, page: {}, plan: {}, interest: {}}",
        ],
    )
    assert config.generators["two_tower"].model.power_features == ("example_age", "wealth")
    assert read(RunConfig, _with_features(tmp_path), ["ranker=null"]).ranker is None


def _with_features(folder: Path) -> str:
    file = folder / "run.yaml"
    file.write_text(
        """
source: {kind: files, tables: {watches: {path: w.csv}}}
features:
  extra:
    - {name: plan, source: users.plan, kind: categorical, models: [candidate_generator]}
    - name: wealth
      source: users.wealth
      kind: continuous
      models: [candidate_generator]
      normaliser: scale
      low: 0
      high: 9
    - {name: interest, source: videos.interest, kind: categorical, side: impression}
generators: {two_tower: {model: {kind: two_tower}}}
"""
    )
    return str(file)
