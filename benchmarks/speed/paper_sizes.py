"""The two-tower model at the sizes of Covington et al. 2016 in a process of its own: steps per second, parameters.

    python -m benchmarks.speed.paper_sizes smoke|full

Sizes are those of `pipeline/configs/covington2016.yaml`; vocabularies are full: a million videos and search tokens.
"""

import json
import statistics
import sys

import tf_keras

from benchmarks.speed.measuring import in_turn
from benchmarks.speed.training_models import TowerSizes, bare_step, tower_batch, tower_spec
from models.two_tower import TwoTower
from pipeline.config import RunConfig
from pipeline.config_file import read
from pipeline.training import make_optimizer


def main(scale: str) -> None:
    smoke = scale == "smoke"
    config = read(RunConfig, "covington2016")
    ids = 1_000 if smoke else config.analysis.vocabulary.top_n or 0
    generator = config.generators["two_tower"]
    training = generator.training
    sizes = TowerSizes(
        videos=ids,
        tokens=ids,
        dimension=generator.model.dimension,
        length=config.features.bag_length,
        batch=training.batch_size,
        sampled=min(generator.model.sampler.num_sampled, ids // 2),
    )
    model = TwoTower(generator.model, tower_spec(sizes.length), {"video": ids, "search_token": ids})
    optimizer: tf_keras.optimizers.Optimizer = make_optimizer(training, 1000)
    model.compile(optimizer)
    step = bare_step(model, tower_batch(sizes, model.spec))
    seconds = in_turn({"step": step}, 2 if smoke else 12, warm_up=2)["step"]
    widths = "-".join(map(str, generator.model.hidden_widths))
    about = (
        f"{ids:,} videos and {ids:,} search tokens in {sizes.dimension} dimensions, bags of {sizes.length}, layers "
        f"{widths}, batch {sizes.batch:,}, {sizes.sampled:,} negatives, {training.optimizer}; bags full. Memory is of "
        "the whole process: weights, the optimizer's state, gradients, TensorFlow."
    )
    answer = {
        "parameters": int(sum(weight.shape.num_elements() for weight in model.trainable_weights)),
        "steps_per_second": 1 / statistics.median(seconds),
        "batch": sizes.batch,
        "about": about,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
