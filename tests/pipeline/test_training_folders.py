"""What a training leaves in its folder until the model is published, who removes it, and against whom it is held."""

from pathlib import Path

import numpy as np
import pytest

from features.errors import ArtifactError
from features.splits import Part
from models.samplers import NegativeSamplerConfig, attach_negatives, make_sampler
from models.two_tower import TwoTower, TwoTowerConfig
from pipeline.input_pipeline import ExampleColumns, Transform
from pipeline.stages import locked
from pipeline.training import TrainingConfig, remove_abandoned, train
from tests.pipeline.synthetic_examples import CANDIDATE_SPEC, publish_examples, taste_examples

VIDEOS = 120
MODEL = TwoTowerConfig(dimension=8, depth=1, sampler=NegativeSamplerConfig(num_sampled=30))
ONE_EPOCH = TrainingConfig(epochs=1, batch_size=128)


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> ExampleColumns:
    folder = tmp_path_factory.mktemp("examples") / "candidate_generation"
    examples = publish_examples(folder, {Part.TRAIN: taste_examples(400, 0)})
    return ExampleColumns(examples, (Part.TRAIN,), ("label", "weight"))


@pytest.fixture(scope="module")
def negatives(columns: ExampleColumns) -> Transform:
    counts = np.bincount(columns.read()["label"], minlength=VIDEOS + 1)[1:]
    return attach_negatives(make_sampler(MODEL.sampler, counts, seed=1))


def build() -> TwoTower:
    return TwoTower(MODEL, CANDIDATE_SPEC, {"video": VIDEOS, "region": 4})


def test_checkpoints_stay_until_the_model_is_published_and_only_the_same_training_goes_on_from_them(
    columns: ExampleColumns, negatives: Transform, tmp_path: Path
):
    config = ONE_EPOCH.model_copy(update={"steps_per_epoch": 2})

    def run(identity: str):
        return train(build, columns, config, tmp_path, negatives, identity=identity, keep=True)

    first = run("one")
    again = run("one")
    assert again.examples_per_second == 0  # no step was made
    for one, other in zip(first.model.trainable_variables, again.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert run("another").examples_per_second > 0
    again.forget()
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_training_with_other_settings_left_is_removed(
    columns: ExampleColumns, negatives: Transform, tmp_path: Path
):
    killed, used = (tmp_path / (letter * 16) for letter in "ab")
    for folder in (killed, used, tmp_path / "tensorboard"):
        (folder / "fit" / "checkpoints").mkdir(parents=True)
    config = ONE_EPOCH.model_copy(update={"steps_per_epoch": 1})
    with locked(used):  # as another process that trains there
        train(build, columns, config, tmp_path, negatives)
        assert killed.exists()  # one that publishes nothing may be beside others
        train(build, columns, config, tmp_path, negatives, keep=True).forget()
    assert sorted(path.name for path in tmp_path.iterdir()) == [used.name, "tensorboard"]


def test_the_same_training_twice_at_once_is_refused(columns: ExampleColumns, negatives: Transform, tmp_path: Path):
    config = ONE_EPOCH.model_copy(update={"steps_per_epoch": 1, "refit": False})

    def meanwhile(model: TwoTower) -> None:
        with pytest.raises(ArtifactError, match="in use by process"):
            train(build, columns, config, tmp_path, negatives)
        assert train(build, columns, config, tmp_path, negatives, identity="another").epochs == 1

    train(build, columns, config, tmp_path, negatives, on_validated=meanwhile)


def test_a_training_says_which_folder_it_uses(columns: ExampleColumns, negatives: Transform, tmp_path: Path):
    config = ONE_EPOCH.model_copy(update={"steps_per_epoch": 1, "refit": False})

    def meanwhile(model: TwoTower) -> None:
        remove_abandoned(tmp_path, own="")
        assert len(list(tmp_path.iterdir())) == 1

    train(build, columns, config, tmp_path, negatives, on_validated=meanwhile, keep=True)
    assert len(list(tmp_path.iterdir())) == 1
    remove_abandoned(tmp_path, own="")
    assert not list(tmp_path.iterdir())
