"""What the training stages read off the examples, and what they show."""

from pathlib import Path

import pyarrow as pa
import pytest
import tf_keras
from rich.console import Console

from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from features.splits import Part
from models.candidate_generator import LABEL
from models.ranker import RankerConfig
from models.two_tower import TwoTower, TwoTowerConfig
from models.weighted_logistic_regression import LabelStatistics, Objective
from pipeline import model_stages
from pipeline.input_pipeline import ExampleColumns
from pipeline.model_stages import _retrieval_map, history_table, label_statistics
from pipeline.retrieval_validation import ranked_by, ranks
from pipeline.training import Trained
from tests.pipeline.synthetic_examples import CANDIDATE_SPEC, publish_examples, taste_examples

POSITION = Feature(
    "position", Kind.CONTINUOUS, Side.IMPRESSION, "request.position", normaliser=Normaliser.SCALE, high=10.0
)


@pytest.mark.parametrize(
    ("cap", "objective", "watch_time_s"),
    [
        (None, Objective.WEIGHTED, 1110.0),
        (50.0, Objective.WEIGHTED, 110.0),
        (50.0, Objective.EXACT_ODDS, 110.0),
        (50.0, Objective.UNWEIGHTED, 1110.0),  # whose loss has no watch times: they are the mean seconds of a click
    ],
)
def test_the_scale_of_the_loss_counts_watch_times_as_the_loss_does(
    tmp_path: Path, cap: float | None, objective: Objective, watch_time_s: float
) -> None:
    columns = {"clicked": [1, 1, 0, 1], "watch_time_s": [1000, 10, 0, 100], "weight": [1] * 4, "position": [0] * 4}
    rows = pa.table({name: pa.array(values, pa.float32()) for name, values in columns.items()})
    examples = publish_examples(tmp_path / "ranking", {Part.TRAIN: rows}, FeatureSpec((POSITION,)), "ranker", files=1)
    config = RankerConfig(watch_time_cap_s=cap, objective=objective)
    assert label_statistics(examples, config) == LabelStatistics(4, 3, watch_time_s)


@pytest.mark.parametrize("most", [100, 300])
def test_of_many_validation_examples_those_of_some_users_are_scored_after_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    examples = publish_examples(tmp_path / "candidates", {Part.VALIDATION: taste_examples(300, 0)})
    columns = ExampleColumns(examples, (Part.VALIDATION,), (LABEL,))
    model = TwoTower(TwoTowerConfig(dimension=4, depth=0, loss="full"), CANDIDATE_SPEC, {"video": 120, "region": 4})
    rows = examples.rows_of_some_users(Part.VALIDATION, most)
    monkeypatch.setattr(model_stages, "MOST_EXAMPLES", most)
    chosen = ranks(model, columns)[slice(None) if rows is None else rows]
    assert len(chosen) == most
    assert _retrieval_map(columns)(model) == pytest.approx(ranked_by(chosen, 20, 100))


def test_a_training_shows_its_metrics_by_pass_and_not_the_loss_of_its_last_batch() -> None:
    history = {"cross_entropy": [8.5, 7.25], "loss": [4.1, 3.9], "total_loss": [4.1, 3.9], "MAP@20": [0.1, 0.25]}
    console = Console(record=True, width=80)
    console.print(history_table("two_tower", Trained(tf_keras.Model(), history, 2, 1000.0, 1.0)))
    shown = console.export_text()
    assert "loss" not in shown and "3.9" not in shown
    assert "2 *" in shown and "7.2500" in shown and "0.2500" in shown
