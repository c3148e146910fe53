"""One process of a distributed training, run by `test_strategies.py` as `python -m tests.pipeline.training_process`.

Arguments: the strategy (or `server` for a worker or parameter server), the example set, the folder of results.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from features.example_reader import ExampleSet
from features.spec import Feature, FeatureSpec, Kind, Side
from features.splits import Part
from models.samplers import NegativeSamplerConfig, attach_negatives, make_sampler
from models.two_tower import TwoTower, TwoTowerConfig
from pipeline.input_pipeline import ExampleColumns
from pipeline.model_folder import save_model
from pipeline.retrieval_validation import retrieval_map
from pipeline.strategies import StrategyName
from pipeline.training import TrainingConfig, train

VIDEOS = 120
MODEL = TwoTowerConfig(dimension=8, depth=1, sampler=NegativeSamplerConfig(num_sampled=30))
TOPIC = Feature("topic", Kind.CATEGORICAL, Side.IMPRESSION, "videos.topic", "topic")
SIZES = {"video": VIDEOS, "region": 4, "topic": 6}
TOPIC_OF_ROW = np.concatenate([[0], np.arange(VIDEOS) % 6 + 1])


def build() -> TwoTower:
    spec = FeatureSpec((*ExampleSet(Path(sys.argv[2])).spec.features, TOPIC))
    return TwoTower(MODEL, spec, SIZES, {"topic": TOPIC_OF_ROW})


def serve() -> None:
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    server = tf.distribute.Server(
        resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id, protocol="grpc"
    )
    server.join()


def run(strategy: StrategyName, examples: ExampleSet, results: Path) -> None:
    columns = ExampleColumns(examples, (Part.TRAIN,), ("label", "weight"))
    validation = ExampleColumns(examples, (Part.VALIDATION,), ("label", "weight"))
    counts = np.bincount(columns.read()["label"], minlength=VIDEOS + 1)[1:]
    epochs, steps = (8, 30) if strategy == StrategyName.PARAMETER_SERVER else (3, None)
    config = TrainingConfig(
        epochs=epochs,
        steps_per_epoch=steps,
        batch_size=128,
        learning_rate=0.01,
        strategy=strategy,
        patience=None,
        min_shard_kib=1,  # the video tables have 4 KiB
    )

    def evaluate(model: TwoTower) -> dict[str, float]:
        metrics = retrieval_map(model, validation)
        with (results / "epochs").open("a") as stream:
            stream.write(json.dumps(metrics) + "\n")
        return metrics

    result = train(
        build,
        columns,
        config,
        results / "work",
        attach_negatives(make_sampler(MODEL.sampler, counts, seed=1)),
        evaluate,
        "MAP@20",
    )
    model = result.model
    tables = [*model.embeddings.tables.values(), model.video_tower.video_table]
    tables += model.video_tower.attribute_tables.values()
    summary = {
        "history": result.history,
        "shards": [len(getattr(table.embeddings, "variables", [0])) for table in tables],
        "zero_rows": [not np.asarray(tf.convert_to_tensor(table.embeddings))[0].any() for table in tables],
    }
    if result.chief:
        save_model(results / "model", result.model, "two_tower", result.history, {})
        (results / "summary.json").write_text(json.dumps(summary))


if __name__ == "__main__":
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    if sys.argv[1] == "server":
        serve()
    name = StrategyName(sys.argv[1])
    if name == StrategyName.MIRRORED:
        cpus = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    Path(sys.argv[3]).mkdir(parents=True, exist_ok=True)
    run(name, ExampleSet(Path(sys.argv[2])), Path(sys.argv[3]))
