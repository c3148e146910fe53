"""What the training stages read off the examples."""

from pathlib import Path

import pyarrow as pa
import pytest

from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from features.splits import Part
from models.ranker import RankerConfig
from models.weighted_logistic_regression import LabelStatistics, Objective
from pipeline.model_stages import label_statistics
from tests.pipeline.synthetic_examples import publish_examples

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
