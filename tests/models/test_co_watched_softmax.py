"""Softmax over the videos co-watched with the last watch: candidates, loss and order by hand and by NumPy."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from features.errors import ConfigError, ExportError
from models.co_watched_softmax import CO_WATCHED, CoWatchedVideos, co_watched_videos
from models.lazy_adam import LazyAdam
from models.sampled_softmax import Loss
from models.sequence_baselines import BagOfWatches, BagOfWatchesConfig
from tests.models.sequence_batches import SIZES, SPEC, batch, tensors, training_batch

# After 1: 2 and 3; after 3: 5; after 4: 5, 6, 7; after 6: 7; after none: 1, 2, 3; after 2, 5 and 7: nothing.
VIDEOS = np.array([[1, 2, 3], [2, 3, 0], [0, 0, 0], [5, 0, 0], [5, 6, 7], [0, 0, 0], [7, 0, 0], [0, 0, 0]], np.int32)


def model(videos: np.ndarray | None = VIDEOS) -> BagOfWatches:
    tf_keras.utils.set_random_seed(2)
    config = BagOfWatchesConfig(dimension=4, last_watches=1, projection=True, loss=Loss.CO_WATCHED)
    return BagOfWatches(config, SPEC, SIZES, {} if videos is None else {CO_WATCHED: videos})


def test_candidates_are_what_was_watched_next_by_how_often_then_by_frequency():
    last = np.array([1, 1, 1, 1, 2, 2, 3, 0, 4, 4], np.int32)
    following = np.array([3, 2, 3, 1, 5, 4, 0, 1, 1, 2], np.int32)
    found = co_watched_videos(last, following, num_videos=5, candidates=2)
    # The repeat of 1 and pairs with row 0 do not count; 4 is more frequent than 5, as 1 is than 2.
    np.testing.assert_array_equal(found, [[1, 2], [3, 2], [4, 5], [0, 0], [1, 2], [0, 0]])
    assert co_watched_videos(last, following, num_videos=5).shape == (6, 5)


def test_the_loss_is_the_softmax_among_the_candidates_of_each_step_and_nothing_without_the_label():
    """Labels that are candidates: 3 after row 0, 2 after no watch, 2 after 1, and alone 5 after 3 and 7 after 6."""
    generator = model()
    inputs = training_batch()
    v = np.concatenate([np.zeros((1, 4)), generator.class_embeddings(tf.range(1, 8)).numpy()])
    queries = generator.fuse(generator.states(inputs), generator.step_context(inputs)).numpy()

    def loss(row: int, step: int, label: int, candidates: list[int]) -> float:
        logits = v[candidates] @ queries[row, step]
        return float(np.log(np.exp(logits).sum()) - v[label] @ queries[row, step])

    total = 0.25 * loss(0, 2, 3, [1, 2, 3]) + 1 * loss(2, 0, 2, [1, 2, 3]) + 0.5 * loss(3, 5, 2, [2, 3])
    alone, none = {"5 after 3": 1, "7 after 6": 1}, {"6 after none": 2, "6 after 5": 1, "1 after 7": 3}
    weight = 0.25 + 1 + 0.5 + sum(alone.values()) + sum(none.values())
    assert float(generator.compute_loss(inputs, training=True)) == pytest.approx(total / weight, rel=1e-5)


def test_candidates_come_first_by_their_scores_and_the_others_by_frequency():
    generator, features = model(), tensors(batch())
    queries, vectors = generator.query_embeddings(features), generator.class_embeddings(tf.range(1, 8))
    scores = generator.class_scores(queries, vectors, features).numpy()
    dots = queries.numpy() @ vectors.numpy().T
    orders = (-scores).argsort(axis=1, kind="stable") + 1
    # Last watches: 3, none, 2 and 1.
    for row, candidates in enumerate(([5], [1, 2, 3], [], [2, 3])):
        best_first = sorted(candidates, key=lambda video: -dots[row, video - 1])
        others = [video for video in range(1, 8) if video not in candidates]
        assert orders[row].tolist() == best_first + others
    differences = dots[3, 1] - dots[3, 2]
    assert scores[3, 1] - scores[3, 2] == pytest.approx(differences, rel=1e-5)


def test_a_model_learns_with_it_and_is_rebuilt_with_its_candidates():
    generator, inputs, features = model(), training_batch(), tensors(batch())
    generator.compile(LazyAdam(0.05))
    first = float(generator.compute_loss(inputs, training=True))
    for _ in range(20):
        generator.train_step(inputs)
    assert float(generator.compute_loss(inputs)) < 0.8 * first
    np.testing.assert_array_equal(generator.softmax.videos.videos, VIDEOS)  # no optimizer moves them
    again = BagOfWatches.from_description(json.loads(json.dumps(generator.description())), SPEC)
    # A rebuilt model has room for all candidates that there can be.
    assert again.softmax.videos.videos.shape == [8, 7]
    whole = model(np.pad(VIDEOS, [(0, 0), (0, 4)]))
    again.set_weights(whole.get_weights())
    vectors = whole.class_embeddings(tf.range(1, 8))
    queries = whole.query_embeddings(features)
    found = again.class_scores(again.query_embeddings(features), vectors, features)
    np.testing.assert_array_equal(found, whole.class_scores(queries, vectors, features))


def test_labels_without_any_candidate_give_loss_zero_and_finite_gradients():
    generator = model(np.zeros_like(VIDEOS))
    with tf.GradientTape() as tape:
        loss = generator.compute_loss(training_batch(), training=True)
    assert float(loss) == 0
    for gradient in tape.gradient(loss, generator.trainable_variables, unconnected_gradients="zero"):
        assert np.isfinite(tf.convert_to_tensor(gradient)).all()


def test_mistakes_are_told():
    generator, features = model(), tensors(batch())
    with pytest.raises(ExportError, match="expected a loss whose scores are dot products, found CoWatchedSoftmax"):
        generator.video_embeddings({"video": tf.constant([1])})
    with pytest.raises(ConfigError, match="expected features with the last watch, found none"):
        generator.class_scores(generator.query_embeddings(features), generator.class_embeddings(tf.range(1, 8)))
    with pytest.raises(ConfigError, match="expected candidates of 9 videos, found 7 videos"):
        CoWatchedVideos(9, VIDEOS)
