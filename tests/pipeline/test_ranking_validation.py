"""What a ranker answers for examples, as they were logged and as at serving."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorflow as tf

from features.spec import Feature, FeatureSpec, Kind, Normaliser, Side
from features.splits import Part
from models.ranker import Ranker, RankerConfig
from models.weighted_logistic_regression import LabelStatistics
from pipeline.input_pipeline import ExampleColumns
from pipeline.ranking_validation import predictions
from tests.pipeline.synthetic_examples import publish_examples

SPEC = FeatureSpec(
    (
        Feature("device", Kind.CATEGORICAL, Side.QUERY, "request.device", "device", serving_value="tv"),
        Feature(
            "position",
            Kind.CONTINUOUS,
            Side.IMPRESSION,
            "request.position",
            normaliser=Normaliser.SCALE,
            high=10.0,
            serving_value=2.0,
        ),
    )
)


def test_at_serving_numbers_and_rows_of_ids_are_fixed(tmp_path: Path) -> None:
    device, position = [1, 2, 0, 2], [0.0, 9.0, 4.0, 2.0]
    rows = pa.table({"device": pa.array(device, pa.int32()), "position": pa.array(position, pa.float32())})
    examples = publish_examples(tmp_path / "ranking", {Part.TRAIN: rows}, SPEC, "ranker", 1, {"device": 2})
    tf.keras.utils.set_random_seed(0)
    config = RankerConfig(hidden_units=(4,), embedding_stddev=1.0)
    model = Ranker(config, SPEC, {"device": 2}, {}, LabelStatistics(100, 20, 1000))

    def expected(devices: list[int], positions: list[float]) -> np.ndarray:
        batch = {"device": np.array(devices, np.int32), "position": np.array(positions, np.float32)}
        return model.predictions(model.infer(batch)).click_probability.numpy()

    columns = ExampleColumns(examples, (Part.TRAIN,), ())
    np.testing.assert_allclose(predictions(model, columns)["click_probability"], expected(device, position), rtol=1e-6)
    served = predictions(model, columns, at_serving=True)["click_probability"]
    np.testing.assert_allclose(served, expected([2] * 4, [2.0] * 4), rtol=1e-6)
