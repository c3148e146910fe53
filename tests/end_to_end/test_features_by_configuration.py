"""A ranker feature is added to the KuaiRand configuration by a line of configuration, without a line of code."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import scann  # noqa: F401  (registers the operations of an exported index)
import tensorflow as tf

from features.spec import Kind, Side, read_specs
from tests.end_to_end.command_line import stages_run, upnext
from tests.end_to_end.kuairand_log import TWINS, write_log

pytestmark = pytest.mark.slow

ADDED = """\
    - {name: fans_user_num, source: users.fans_user_num, kind: continuous}
    - {name: video_type, source: videos.video_type, kind: categorical, side: impression}
"""
SMALL = [
    "shards={num_shards: 2}",
    "leakage={examples_per_part: 20}",
    "generators.two_tower.training={epochs: 1, batch_size: 256}",
    "generators.two_tower.model.dimension=8",
    "ranker.model={hidden_units: [16]}",
    "ranker.training={epochs: 6, batch_size: 64, learning_rate: 0.01}",
    "export.parity.examples=10",
    "export.retrieval.k=20",
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ranking SavedModel of the KuaiRand configuration with two more lines."""
    root = tmp_path_factory.mktemp("kuairand")
    built_in = (resources.files("pipeline") / "configs/kuairand.yaml").read_text()
    assert "  extra:\n" in built_in
    config = root / "kuairand_and_more.yaml"
    config.write_text(built_in.replace("  extra:\n", f"  extra:\n{ADDED}", 1))
    settings = [f"source.path={write_log(root / 'log')}", *SMALL]
    options = [argument for setting in settings for argument in ("--set", setting)]
    for stage in ("ingest", "analyze", "examples", "quantiles", "train-generator", "train-ranker", "export"):
        done = upnext(stage, config, "--workdir", root / "run", *options)
        assert [name.partition(":")[0] for name in stages_run(done)] == [stage]
    return root / "run/export/ranking/1"


def test_the_features_are_in_the_exported_specification(exported: Path) -> None:
    spec = read_specs(exported / "assets.extra/feature_spec.json")["ranker"]
    fans, kind = spec["fans_user_num"], spec["video_type"]
    assert (fans.kind, fans.side, fans.source) == (Kind.CONTINUOUS, Side.QUERY, "users.fans_user_num")
    assert (kind.kind, kind.side, kind.id_space) == (Kind.CATEGORICAL, Side.IMPRESSION, "video_type")
    described = json.loads((exported / "manifest.json").read_text())["signatures"]["ranking"]
    assert described["inputs"]["fans_user_num"] == {"dtype": "float32", "shape": [None]}


def test_the_answer_depends_on_both(exported: Path) -> None:
    few, many = _click_probabilities(exported, [100.0, 3_000.0])
    # Twins of one type are told apart by nothing; the other type was clicked 30 points less.
    assert few["twin_normal"] == pytest.approx(few["twin_normal_too"], abs=1e-6)
    assert few["twin_normal"] > few["twin_ad"] + 0.05
    assert many["twin_normal"] > many["twin_ad"] + 0.05
    # Users with many fans clicked 40 points more.
    for twin in TWINS:
        assert many[twin] > few[twin] + 0.1


def _click_probabilities(exported: Path, fans: list[float]) -> list[dict[str, float]]:
    """The twins' click probabilities for a user without history, by number of fans."""
    function = tf.saved_model.load(str(exported)).signatures["ranking"]
    given = {
        "fans_user_num": np.array(fans, np.float32),
        "candidate_ids": np.array([list(map(str, TWINS.values()))] * len(fans)),
        "request_timestamp": np.full(len(fans), 1_651_300_000.0),
        "page": np.full(len(fans), "1"),
    }
    raw = {}
    for name, spec in function.structured_input_signature[1].items():
        missing = np.full([len(fans), *[0] * (len(spec.shape) - 1)], "" if spec.dtype == tf.string else np.nan)
        raw[name] = tf.constant(given.get(name, missing), spec.dtype)
    told = function(**raw)["click_probability"].numpy()
    return [dict(zip(TWINS, map(float, row), strict=True)) for row in told]
