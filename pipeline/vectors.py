"""Vectors as at serving: of a part's queries, and of all videos of the catalogue in the order of the index."""

from collections.abc import Mapping

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf
from scipy.sparse import csr_matrix

from features.candidate_examples import LABEL_WEIGHTS, SEQUENCE
from features.encoding import Encoder, padded_rows
from features.example_reader import ExampleSet
from features.spec import Feature
from features.splits import Part, Split
from models.candidate_generator import LABEL, CandidateGenerator
from models.new_videos import NEW_DAYS, attribute_design, expected_vectors
from pipeline.evaluation.baselines.interactions import US_PER_DAY
from pipeline.evaluation.retrieval_metrics import Scorer
from pipeline.input_pipeline import ExampleColumns
from pipeline.retrieval_validation import class_vectors, tower_inputs

_AT_ONCE = 65_536


def catalogue_vectors(
    generator: CandidateGenerator, encoder: Encoder, split: Split, examples: ExampleSet
) -> np.ndarray:
    """float32 `[videos, dimension]`: `trained_vectors`, and of new videos those that their attributes let expect.

    Args:
      generator: the trained model.
      encoder: of its run.
      split: of its run; tells which videos without a class are new (`models/new_videos.py`).
      examples: that it was trained on; their labels are counted where there are new videos.
    """
    columns = _columns(generator, encoder)
    vectors = _embedded(generator, columns)
    new = _new_videos(encoder, split)
    if not generator.video_attributes or not len(new):
        return vectors
    counts = np.append(0, label_counts(examples, split, generator.num_classes))[columns["video"]]
    trained = np.flatnonzero(counts)
    if len(trained):
        design = _design(generator, encoder, columns)
        vectors[new] = expected_vectors(vectors[trained], design[trained], counts[trained], design[new])
    return vectors


def label_counts(examples: ExampleSet, split: Split, classes: int) -> np.ndarray:
    """float64 `[classes]`: how often each video of the vocabulary was a label in training, also inside sequences."""
    parts = (Part.TRAIN, Part.VALIDATION) if split.refit else (Part.TRAIN,)
    found = np.zeros(classes + 1)
    for file in (file for part in parts for file in examples.files(part)):
        inside = [SEQUENCE, LABEL_WEIGHTS] if LABEL_WEIGHTS in pq.read_schema(file).names else []
        for batch in examples.batches([file], [LABEL, *inside], _AT_ONCE):
            found += np.bincount(batch[LABEL].to_numpy(), minlength=len(found))
            if inside:
                rows, weights = (batch[column].flatten().to_numpy() for column in inside)
                found += np.bincount(rows, weights, minlength=len(found))
    return found[1:]


def trained_vectors(generator: CandidateGenerator, encoder: Encoder) -> np.ndarray:
    """float32 `[videos, dimension]`: the model's own, as in the papers.

    A video without a class has the sum of its attributes' embeddings where the model has any, and zeros otherwise.
    """
    return _embedded(generator, _columns(generator, encoder))


def _embedded(generator: CandidateGenerator, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    parts = [
        # Not traced: a graph for each look at the vectors costs more than its few gathers, and TensorFlow warns of it.
        generator.video_embeddings(
            {name: tf.constant(rows[start : start + _AT_ONCE]) for name, rows in columns.items()}
        ).numpy()
        for start in range(0, len(columns["video"]), _AT_ONCE)
    ]
    return np.concatenate(parts)


def _columns(generator: CandidateGenerator, encoder: Encoder) -> dict[str, np.ndarray]:
    """What `video_embeddings` reads of all videos of the catalogue."""
    columns = {"video": padded_rows(encoder.catalogue["video"])}
    return columns | {name: attribute_rows(encoder, generator.spec[name]) for name in generator.video_attributes}


def _new_videos(encoder: Encoder, split: Split) -> np.ndarray:
    """int64 `[n]`: positions of those without a class that had no time to be watched in the training data."""
    if encoder.videos.upload_us is None:
        return np.array([], np.int64)
    late = encoder.videos.upload_us[:-1] >= split.fit_end_us - NEW_DAYS * US_PER_DAY
    return np.flatnonzero(late & (padded_rows(encoder.catalogue["video"]) == 0))


def _design(generator: CandidateGenerator, encoder: Encoder, columns: Mapping[str, np.ndarray]) -> csr_matrix:
    spaces = {name: str(generator.spec[name].id_space) for name in generator.video_attributes}
    sizes = {space: encoder.vocabularies[space].size for space in spaces.values()}
    return attribute_design({name: columns[name] for name in spaces}, spaces, sizes)


def attribute_rows(encoder: Encoder, feature: Feature) -> np.ndarray:
    """A feature of videos as generators read it: int32 `[videos]`, or `[videos, longest]` padded with 0."""
    return padded_rows(encoder.video_column(feature))[:-1]  # the last is of no video


def represented(vectors: np.ndarray) -> np.ndarray:
    """bool `[videos]`: videos about which a generator knows something; it gives any other a zero vector.

    A zero vector scores 0, which is more than the score of most videos: such a video is no candidate.
    """
    return np.any(vectors != 0, axis=1)


def scorer(queries: np.ndarray, vectors: np.ndarray) -> Scorer:
    """Scores of all videos for a slice of the queries; -inf of videos that are not `represented`."""
    unknown = ~represented(vectors)

    def scores(rows: slice) -> np.ndarray:
        found = queries[rows] @ vectors.T
        found[:, unknown] = -np.inf
        return found

    return scores


def class_scorer(generator: CandidateGenerator, columns: ExampleColumns, num_videos: int) -> Scorer:
    """As `scorer` for a slice of the examples, of a generator whose scores are no dot products with catalogue vectors.

    Args:
      generator: the trained model.
      columns: the examples.
      num_videos: of the catalogue, which begins with the videos of the vocabulary.
    """
    features, vectors = columns.at_serving(columns.read()), class_vectors(generator)

    def scores(rows: slice) -> np.ndarray:
        batch = tower_inputs(generator, {name: values[rows] for name, values in features.items()})
        found = generator.class_scores(generator.embed_queries(batch), vectors, batch).numpy()
        return np.pad(found, [(0, 0), (0, num_videos - generator.num_classes)], constant_values=-np.inf)

    return scores


def query_vectors(generator: CandidateGenerator, columns: ExampleColumns, batch_size: int = 4096) -> np.ndarray:
    """float32 `[rows, dimension]` in the order of the files; features with a serving value have it."""
    batches = (tower_inputs(generator, columns.at_serving(batch)) for batch in columns.ordered(batch_size))
    return np.concatenate([generator.embed_queries(batch).numpy() for batch in batches])
