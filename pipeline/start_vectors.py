"""Where the video vectors of a generator start: factorized from the histories and labels of the training examples."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.candidate_examples import SEQUENCE
from features.example_reader import ExampleSet
from features.spec import Kind
from features.splits import Part
from models.candidate_generator import LABEL
from models.co_watch_embeddings import CoWatchConfig, StartVectors, co_watch_embeddings, entries_of_bags
from models.sequence_generator import LABEL_WEIGHTS
from models.transition_embeddings import transition_counts, transition_embeddings
from pipeline.config import GeneratorConfig


def start_vectors(
    examples: ExampleSet,
    parts: Sequence[Part],
    num_videos: int,
    config: GeneratorConfig,
    say: Callable[[str], object],
) -> StartVectors | None:
    """The vectors that a generator's configuration asks for, None where it asks for none.

    Args:
      examples: of the generator; histories and labels are read.
      parts: that the generator is then trained on, else videos of the others would start far behind.
      num_videos: size of the vocabulary.
      config: of the generator.
      say: is told what is factorized, before the long part.
    """
    if config.transition_start is not None:
        weights = [LABEL_WEIGHTS] if LABEL_WEIGHTS in examples.schema(parts[0]).names else []
        wanted = ["user_id", "label_timestamp", SEQUENCE, LABEL, *weights]
        table = _read(examples, parts, wanted, config.transition_start.max_examples)
        transitions = transition_counts(*watched_sequences(table), num_videos, config.transition_start.decay)
        say(f"video vectors start from {transitions.nnz:,} transitions between {num_videos:,} videos")
        return transition_embeddings(transitions, config.model.dimension, config.transition_start)
    if config.co_watch_start is None:
        return None
    return co_watch_vectors(examples, parts, num_videos, config.model.dimension, config.co_watch_start, say)


def co_watch_vectors(
    examples: ExampleSet,
    parts: Sequence[Part],
    num_videos: int,
    dimension: int,
    config: CoWatchConfig,
    say: Callable[[str], object],
) -> StartVectors:
    """Vectors of videos that the same users watched.

    Args:
      examples, parts, num_videos, say: as of `start_vectors`.
      dimension: of the vectors.
      config: of their factorization.
    """
    bags = [f.name for f in examples.features if f.kind == Kind.CATEGORICAL and f.id_space == "video" and f.multivalent]
    table = _read(examples, parts, ["user_id", LABEL, *bags], config.max_examples)
    entries = [(table[LABEL].to_numpy(), np.ones(len(table), np.int64))]
    entries += [(pc.list_flatten(table[b]).to_numpy(), pc.list_value_length(table[b]).to_numpy()) for b in bags]
    users = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    entered = entries_of_bags(users, entries)
    say(f"co-watches of {num_videos:,} videos, from {len(entered[0]):,} watches")
    return co_watch_embeddings(*entered, num_videos, dimension, config)


def _read(examples: ExampleSet, parts: Sequence[Part], columns: Sequence[str], at_most: int | None) -> pa.Table:
    return pa.concat_tables([examples.read(part, columns, at_most) for part in parts])


def watched_sequences(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, lengths and `counted` as `transition_counts` wants them: each history and the label that follows it.

    Every transition counts once: those to labels, and within the history of a user's first example.
    """
    histories = table[SEQUENCE].combine_chunks()
    lengths = pc.list_value_length(histories).to_numpy(zero_copy_only=False)
    users = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((table["label_timestamp"].to_numpy(), users))
    first = np.zeros(len(users), bool)
    first[order[np.diff(users[order], prepend=-1) != 0]] = True
    counted = np.repeat(first, lengths)
    if LABEL_WEIGHTS in table.column_names:
        counted |= pc.list_flatten(table[LABEL_WEIGHTS]).to_numpy() > 0
    ends = np.cumsum(lengths)
    rows = np.insert(pc.list_flatten(histories).to_numpy(), ends, table[LABEL].to_numpy())
    return rows, lengths + 1, np.insert(counted, ends, True)
