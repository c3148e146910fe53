"""Which event, label and weight belongs to which step."""

import numpy as np
import tensorflow as tf

from models.candidate_generator import STEP_LABELS, STEP_WEIGHTS
from models.sequence_generator import attach_step_labels
from models.sequence_steps import at_request, history_lengths, of_last_event, of_next_event
from tests.models.sequence_batches import NAN, batch, tensors, training_batch


def test_lengths_are_those_of_the_window_and_out_of_vocabulary_watches_count():
    np.testing.assert_array_equal(history_lengths(tensors(batch())), [3, 0, 1, 5])
    arrays = batch() | {"watch_count": np.array([NAN, -1, 5, 6], np.float32)}
    np.testing.assert_array_equal(history_lengths(tensors(arrays)), [0, 0, 5, 5])


def test_a_step_belongs_to_the_next_event_and_the_last_to_the_request():
    events, request, lengths = tf.constant([[1, 2, 0], [0, 0, 0], [3, 4, 5]]), tf.constant([7, 8, 9]), [2, 0, 3]
    steps = of_next_event(events, request, tf.constant(lengths)).numpy()
    assert [row[: n + 1].tolist() for row, n in zip(steps, lengths, strict=True)] == [[1, 2, 7], [8], [3, 4, 5, 9]]
    np.testing.assert_array_equal(at_request(tf.constant(steps), tf.constant(lengths)), [7, 8, 9])


def test_a_step_has_last_seen_the_event_before_it():
    np.testing.assert_array_equal(of_last_event(tf.constant([[1, 2], [3, 0]]), -5), [[-5, 1, 2], [-5, 3, 0]])
    vectors = tf.constant([[[1.0, 2.0], [3.0, 4.0]]])
    np.testing.assert_array_equal(of_last_event(vectors), [[[0, 0], [1, 2], [3, 4]]])


def test_labels_and_weights_by_step():
    steps = training_batch()
    # The second label of the first history and the label of the third are out of the vocabulary.
    np.testing.assert_array_equal(
        steps[STEP_LABELS], [[1, 0, 3, 5, 0, 0], [6, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0], [4, 5, 6, 7, 1, 2]]
    )
    np.testing.assert_array_equal(
        steps[STEP_WEIGHTS], [[0, 0, 0.25, 1, 0, 0], [2, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 3, 0.5]]
    )


def test_without_weights_the_request_alone_is_a_label_and_weighs_one():
    plain = {name: value for name, value in batch().items() if name not in ("weight", "label_weights")}
    steps = attach_step_labels(tensors(plain))
    np.testing.assert_array_equal(
        steps[STEP_WEIGHTS], [[0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    )


def test_step_labels_are_made_in_the_input_pipeline_with_static_shapes():
    dataset = tf.data.Dataset.from_tensors(tensors(batch())).map(attach_step_labels)
    assert dataset.element_spec[STEP_LABELS].shape == [4, 6]
    assert dataset.element_spec[STEP_WEIGHTS].shape == [4, 6]
