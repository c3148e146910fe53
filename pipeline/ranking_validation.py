"""The ranking metrics that early stopping watches: the objective and the weighted per-user loss."""

from typing import Any

import numpy as np
import tensorflow as tf

from features.example_reader import ExampleSet
from features.splits import Part
from models.ranker import CLICKED, WATCH_TIME_S, Ranker
from pipeline.evaluation.ranking_metrics import mispredicted_pairs
from pipeline.input_pipeline import Arrays, ExampleColumns


def predictions(model: Ranker, columns: ExampleColumns, at_serving: bool = False) -> dict[str, np.ndarray]:
    """What the ranker answers for every row, in the order of the files.

    Args:
      model: the ranker.
      columns: its features.
      at_serving: with the fixed serving value of the features that have one.

    Returns:
      `score`, `click_probability`, `expected_watch_time_s`: float32 `[rows]`.
    """
    parts: list[dict[str, Any]] = []
    for batch in columns.ordered(8192):
        answers = model.predictions(model.infer(columns.at_serving(batch) if at_serving else batch))._asdict()
        parts.append({name: value.numpy() for name, value in answers.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def validation_metrics(model: Ranker, examples: ExampleSet, columns: ExampleColumns) -> dict[str, float]:
    """What is watched after each epoch on the validation part.

    Returns:
      `validation_loss`: the training objective, watch time and click together; `log_likelihood`: its negative, which
      chooses the epoch, because the loss over pairs swings by more than epochs differ on a part of usual size;
      `weighted_per_user_loss`: of the paper, section 4.3, with features as at serving.
    """

    def total(batch: Arrays) -> tf.Tensor:
        watch, click = model.impression_losses(model.infer(batch), batch)
        return tf.reduce_sum(watch + model.config.click_loss_weight * click)

    objective = sum(float(total(batch)) for batch in columns.ordered(8192)) / columns.rows
    table = examples.read(Part.VALIDATION, ["group_id", CLICKED, WATCH_TIME_S])
    clicked = table[CLICKED].to_numpy() > 0
    seconds = np.where(clicked, table[WATCH_TIME_S].to_numpy(), 0.0)
    above, unclicked = mispredicted_pairs(
        table["group_id"].to_numpy(), predictions(model, columns, at_serving=True)["score"], clicked
    )
    pairs_s = float(np.sum(seconds * unclicked))
    loss = float(np.sum(seconds * above)) / pairs_s if pairs_s else 0.5
    return {"validation_loss": objective, "log_likelihood": -objective, "weighted_per_user_loss": loss}
