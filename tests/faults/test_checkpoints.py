"""A damaged checkpoint of a stopped training is named and not continued."""

import json
from pathlib import Path

import numpy as np
import pytest
import tf_keras

from benchmarks.fault_injection import Damage, damage
from features.errors import ArtifactError
from pipeline.callbacks import Resume


def trained(folder: Path) -> Resume:
    """A checkpoint of one epoch."""
    resume = Resume(folder, None)
    resume.set_model(model())
    resume.model.optimizer.build(resume.model.trainable_variables)
    resume.on_epoch_end(0, {"loss": 0.5})
    return resume


def model() -> tf_keras.Model:
    built = tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(2,))])
    built.compile(tf_keras.optimizers.Adagrad(), "mse")
    return built


def test_a_whole_checkpoint_is_continued(tmp_path: Path) -> None:
    before = trained(tmp_path).model
    after = model()
    resume = Resume(tmp_path, None)
    assert resume.restore(after) == 1
    assert resume.history == {"loss": [0.5]}
    for one, other in zip(before.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("how", list(Damage))
@pytest.mark.parametrize("file", ["state.json", "epoch-1.data-00000-of-00001", "epoch-1.index"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, file: str, how: Damage) -> None:
    trained(tmp_path)
    damage(tmp_path / file, how, seed=5)
    if (file, how) == ("state.json", Damage.REMOVE):
        assert Resume(tmp_path, None).restore(model()) == 0  # what makes a checkpoint whole is not there
        return
    with pytest.raises(ArtifactError, match=f"{tmp_path}: the checkpoint .* is damaged .*; delete .* and run again"):
        Resume(tmp_path, None).restore(model())


def test_a_changed_state_that_reads_well_is_found(tmp_path: Path) -> None:
    trained(tmp_path)
    file = tmp_path / "state.json"
    value = json.loads(file.read_text())
    value["state"]["best_value"] = 0.9
    file.write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match=r"state\.json differs from what was written"):
        Resume(tmp_path, None).stopped()
