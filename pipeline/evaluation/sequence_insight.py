"""What a trained generator has learned: dependence over distance; of sequences, gates and what each context is worth.

- Temporal dependence (Tang et al. 2019, section 3.1, figure 1): Dep_L = tr Cov(Q_{e_N}, Q_{e_{N - L}}), with Q the
  input embeddings (equation 1; not the output embeddings Q' of equation 7) of the last watch of a history and of the
  one L watches before it. Any trained generator has them; a two-tower model averages them.
- Gates of M3 (section 5.5, figure 5), averaged by page, by device and by length of the history.
- The worth of a context feature: the metric of the model as it was trained, without what the feature gives it. A value
  that is missing would not do: it has a vector of its own, which is random where the training examples miss none.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from rich.table import Table

from features.encoding import padded_rows
from features.example_reader import ExampleSet
from features.splits import Part
from models.context_features import ContextColumn
from models.m3 import M3
from models.sequence_generator import SequenceGenerator
from models.sequence_steps import WATCH_COUNT, WATCHED_VIDEOS
from models.two_tower import TwoTower
from pipeline.evaluation.figures import Difference
from pipeline.evaluation.plots import new_plot
from pipeline.input_pipeline import ExampleColumns
from pipeline.retrieval_validation import tower_inputs

LENGTHS = (1, 10, 30, 100)
"""Histories are told apart by these least lengths."""


@dataclass(frozen=True)
class Dependence:
    """Dep_L.

    Args:
      lags: int64 `[n]`, L.
      traces: float64 `[n]`.
      pairs: int64 `[n]`, histories with two watches L apart, both in the vocabulary.
    """

    lags: np.ndarray
    traces: np.ndarray
    pairs: np.ndarray


def temporal_dependence(histories: np.ndarray, lengths: np.ndarray, vectors: np.ndarray) -> Dependence:
    """Trace of the covariance between the vectors of the last watch and of the one L before it.

    Args:
      histories: int32 `[n, longest]` rows of the watches, oldest first, padded on the right.
      lengths: int64 `[n]`.
      vectors: float32 `[classes + 1, d]` by row, as of `vectors_by_row`; row 0 is not looked at.

    Returns:
      L from 1 to the longest distance that at least two histories have.
    """
    last = histories[np.arange(len(histories)), np.maximum(lengths - 1, 0)]
    lags, traces, pairs = [], [], []
    for lag in range(1, histories.shape[1]):
        reaching = np.flatnonzero(lengths > lag)
        earlier = histories[reaching, lengths[reaching] - 1 - lag]
        known = (earlier > 0) & (last[reaching] > 0)
        if np.count_nonzero(known) < 2:
            break
        newer, older = vectors[last[reaching][known]].astype(np.float64), vectors[earlier[known]].astype(np.float64)
        centred = (newer - newer.mean(axis=0)) * (older - older.mean(axis=0))
        lags.append(lag)
        traces.append(float(centred.sum() / len(newer)))
        pairs.append(len(newer))
    return Dependence(np.array(lags, np.int64), np.array(traces), np.array(pairs, np.int64))


@dataclass(frozen=True)
class GateMeans:
    """Mean gates of one group of requests: encoder -> value, over `requests` of them."""

    grouped_by: str
    group: str
    requests: int
    gates: Mapping[str, float]


def gate_means(model: M3, columns: ExampleColumns, names: Mapping[str, Sequence[str]]) -> list[GateMeans]:
    """M3's gates by context and by length of the history.

    Args:
      model: a trained mixture.
      columns: examples of a part.
      names: request feature, such as `page` -> its ids in the order of their rows from 1.
    """
    gates: list[np.ndarray] = []
    groups: dict[str, list[np.ndarray]] = {name: [] for name in (*names, WATCH_COUNT)}
    for batch in columns.ordered(4096):
        gates.append(model.gate_values(tower_inputs(model, columns.at_serving(batch))).numpy())
        for name, values in groups.items():
            values.append(batch[name])
    stacked = np.concatenate(gates)
    found = [_mean(model, stacked, "all", "all", np.ones(len(stacked), bool))]
    for name, ids in names.items():
        rows = np.concatenate(groups[name])
        for row, value in enumerate(["(other)", *ids]):
            if np.any(rows == row):
                found.append(_mean(model, stacked, name, value, rows == row))
    counts = np.concatenate(groups[WATCH_COUNT])
    for low, high in zip(LENGTHS, (*LENGTHS[1:], np.inf), strict=True):
        inside = (counts >= low) & (counts < high)
        if inside.any():
            told = f"{low} or more" if high == np.inf else f"{low} to {high - 1}"
            found.append(_mean(model, stacked, "watches before", told, inside))
    return found


def _mean(model: M3, gates: np.ndarray, grouped_by: str, group: str, chosen: np.ndarray) -> GateMeans:
    means = gates[chosen].mean(axis=0)
    told = {str(encoder): float(mean) for encoder, mean in zip(model.config.encoders, means, strict=True)}
    return GateMeans(grouped_by, group, int(np.count_nonzero(chosen)), told)


@contextmanager
def silenced(model: SequenceGenerator, name: str) -> Iterator[None]:
    """The model without what a context feature gives it, while the context lasts.

    Its rows are 0 at every step: zeros are concatenated, and nothing is added to the crosses (without their identity,
    what its factors started from).

    Args:
      model: whose weights stay as they are.
      name: of the context feature.
    """
    before, after = model.columns_before, model.columns_after
    model.columns_before, model.columns_after = _without(before, name), _without(after, name)
    try:
        yield
    finally:
        model.columns_before, model.columns_after = before, after


def _without(columns: Sequence[ContextColumn], name: str) -> tuple[ContextColumn, ...]:
    return tuple(_silent(column) if column.feature.name == name else column for column in columns)


def _silent(column: ContextColumn) -> ContextColumn:
    return replace(
        column,
        events=lambda features: tf.zeros_like(column.events(features)),
        steps=lambda features: tf.zeros_like(column.steps(features)),
    )


def queries_without(model: SequenceGenerator, name: str, columns: ExampleColumns) -> np.ndarray:
    """float32 `[rows, d]` query vectors of examples by the model without a context feature."""
    with silenced(model, name):
        # Not `embed_queries`, whose graph may have been traced with the feature.
        parts = [
            model.query_embeddings(tower_inputs(model, columns.at_serving(batch))).numpy()
            for batch in columns.ordered(4096)
        ]
    return np.concatenate(parts)


def last_histories(examples: ExampleSet, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """The watches before a part's last example of each user: rows `[users, longest]` and lengths `[users]`."""
    table = examples.read(part, ["user_id", WATCHED_VIDEOS])
    users = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    last = len(users) - 1 - np.unique(users[::-1], return_index=True)[1]
    histories = table[WATCHED_VIDEOS].combine_chunks().take(pa.array(last))
    return padded_rows(histories), pc.list_value_length(histories).to_numpy().astype(np.int64)


def vectors_by_row(model: SequenceGenerator | TwoTower) -> np.ndarray:
    """float32 `[classes + 1, d]`: Q, the generator's embeddings of watched videos, row 0 zero."""
    of_bags = isinstance(model, TwoTower)
    table = model.embeddings.table(model.spec[WATCHED_VIDEOS]) if of_bags else model.watch_table
    return table.embeddings.numpy()


def gates_table(means: Sequence[GateMeans], title: str) -> Table:
    """One row per group of requests."""
    encoders = list(means[0].gates)
    view = Table(title=title, title_justify="left")
    for column in ("by", "group"):
        view.add_column(column)
    for column in ("requests", *encoders):
        view.add_column(column, justify="right")
    for mean in means:
        gates = (f"{mean.gates[encoder]:.3f}" for encoder in encoders)
        view.add_row(mean.grouped_by, mean.group, f"{mean.requests:,}", *gates)
    return view


def worth_table(worth: Mapping[str, Sequence[Difference]], names: Sequence[str], title: str) -> Table:
    """What each metric loses without a context feature: one row per feature."""
    view = Table(title=title, title_justify="left")
    view.add_column("context")
    for name in names:
        view.add_column(name, justify="right")
    for feature, differences in worth.items():
        by_name = {difference.name: difference for difference in differences}
        cells = [f"{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]" for d in (by_name[name] for name in names)]
        view.add_row(feature, *cells)
    return view


def plot_dependence(dependences: Mapping[str, Dependence], path: Path) -> None:
    """Dep_L over L for each generator, relative to L = 1; format by suffix."""
    plot = new_plot(7.0, 4.5)
    axes = plot.subplots()
    for name, found in dependences.items():
        if len(found.lags):
            axes.plot(found.lags, found.traces / abs(found.traces[0] or 1.0), label=name)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set_xlabel("L, watches before the last")
    axes.set_ylabel("tr Cov(Q(last), Q(L before)), relative to L = 1")
    axes.set_title("Q: embeddings of watched videos (input)")
    if axes.get_legend_handles_labels()[0]:  # histories may be too few for any distance
        axes.legend()
    plot.savefig(path)


def plot_gates(means: Sequence[GateMeans], path: Path) -> None:
    """Mean gates of every group as bars; format by suffix."""
    plot = new_plot(7.0, 4.5)
    axes = plot.subplots()
    groups = [f"{mean.grouped_by}: {mean.group}" for mean in means]
    encoders = list(means[0].gates)
    for place, encoder in enumerate(encoders):
        x = np.arange(len(groups)) + 0.8 * (place + 0.5) / len(encoders) - 0.4
        axes.bar(x, [mean.gates[encoder] for mean in means], 0.8 / len(encoders), label=encoder)
    axes.set_xticks(range(len(groups)), groups, rotation=60, ha="right")
    axes.set_ylabel("mean gate")
    axes.legend()
    plot.savefig(path)
