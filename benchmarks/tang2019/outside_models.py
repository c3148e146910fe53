"""The models that `outside_peers` compares and the settings tried for each of them, the same for all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

WIDTH = 64
"""Of embeddings and hidden states, as RecBole's defaults are."""


@dataclass(frozen=True)
class Tried:
    """One setting of the search space.

    Args:
      learning_rate: of Adam.
      dropout: of a watch's inputs and of the state, in RecBole wherever its model has dropout.
    """

    learning_rate: float
    dropout: float

    def __str__(self) -> str:
        return f"learning rate {self.learning_rate:g}, dropout {self.dropout:g}"


@dataclass(frozen=True)
class Ours:
    """A sequence model of this project.

    Args:
      name: in the table.
      model: its configuration, without dropout.
      start: what its vectors start from, as settings of a generator; random ones by default.
    """

    name: str
    model: Mapping[str, Any]
    start: Mapping[str, Any] = field(default_factory=dict)

    def generator(self, tried: Tried, training: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a candidate generator."""
        return {
            **self.start,
            "model": {**self.model, "dropout": tried.dropout},
            "training": {**training, "learning_rate": tried.learning_rate},
        }


@dataclass(frozen=True)
class Outside:
    """A model of RecBole.

    Args:
      model: RecBole's name.
      dropouts: its settings that are a dropout.
      every_step: see `peer_recbole.py`.
      settings: others in place of RecBole's defaults.
    """

    model: str
    dropouts: tuple[str, ...]
    every_step: bool
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """In the table."""
        return f"RecBole {self.model}"

    def recbole(self, tried: Tried, training: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """RecBole's settings for the same passes, batches and patience."""
        return {
            **self.settings,
            **dict.fromkeys(self.dropouts, tried.dropout),
            "learning_rate": tried.learning_rate,
            "epochs": training["epochs"],
            "stopping_step": training["patience"] - 1,  # RecBole stops after one more
            "train_batch_size": self.settings.get("train_batch_size", training["batch_size"]),
            "seed": seed,
        }


def ours(width: int) -> list[Ours]:
    """Watched videos and predicted ones share their vectors, as in all of RecBole's models.

    One model starts from vectors of what is watched together, which RecBole's have no counterpart of.
    """
    shared = {"dimension": width, "loss": "full", "projection": True, "shared_embeddings": True}
    mixture = {"kind": "m3", **shared, "encoder_dimension": width}
    recurrent = {"kind": "latent_cross", **shared, "units": width}
    return [
        Ours("M3R", {**mixture, "short": "gru"}),
        Ours("GRU", recurrent),
        Ours("GRU, from co-watches", recurrent, {"co_watch_start": {}}),
        Ours("M3C", {**mixture, "short": "convolution"}),
        Ours("Caser", {"kind": "caser", **shared, "horizontal_filters": 8}),
    ]


OUTSIDE = (
    Outside("GRU4Rec", ("dropout_prob",), True),
    Outside("SASRec", ("hidden_dropout_prob", "attn_dropout_prob"), True),
    # Caser reads a fixed number of watches, few of them ("please make sure MAX_ITEM_LIST_LENGTH small, such as 10").
    Outside("Caser", ("dropout_prob",), False, {"MAX_ITEM_LIST_LENGTH": 10, "train_batch_size": 512}),
)
"""RecBole's sizes are its defaults: 64, in GRU4Rec a state of 128, in SASRec two blocks of two heads."""


def search_space(full: bool) -> list[Tried]:
    """What is tried for every model."""
    if not full:
        return [Tried(0.003, 0.2)]
    return [Tried(rate, dropout) for rate, dropout in product((0.003, 0.001), (0.5, 0.2))]
