"""Bags of watches and Caser, by NumPy and by hand."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from models.context_features import ContextFeature, Use
from models.lazy_adam import LazyAdam
from models.sampled_softmax import Loss
from models.sequence_baselines import BagOfWatches, BagOfWatchesConfig, Caser, CaserConfig, shifted
from models.sequence_generator import SequenceGenerator
from pipeline.model_folder import weights_checkpoint
from tests.models.sequence_batches import SIZES, SPEC, batch, changed, cut, tensors, training_batch

SMALL = {"dimension": 4, "loss": Loss.FULL, "output_widths": (6,)}


def bag(**config: object) -> BagOfWatches:
    tf_keras.utils.set_random_seed(1)
    return BagOfWatches(BagOfWatchesConfig(**{**SMALL, **config}), SPEC, SIZES)


def caser(**config: object) -> Caser:
    tf_keras.utils.set_random_seed(1)
    sizes = {"horizontal_filters": 3, "vertical_filters": 2, "last_watches": 3, "heights": (2, 5)}
    return Caser(CaserConfig(**{**SMALL, **sizes, **config}), SPEC, SIZES)


MODELS = {
    "bag": bag,
    "bag and the last three": lambda: bag(
        last_watches=3, context=[ContextFeature(name="time_delta", pre=Use.CONCATENATE)]
    ),
    "caser": caser,
}


def test_a_bag_is_the_average_of_the_known_watches_so_far_and_the_last_ones_stand_beside_it() -> None:
    """The watch out of the vocabulary does not count: the second state is v1, the third (v1 + v3) / 2."""
    model = bag(last_watches=2)
    v = model.watch_table.embeddings.numpy()
    states = model.states(tensors(batch())).numpy()[0]
    zero = np.zeros(4)
    expected = [
        [zero, zero, zero],
        [v[1], v[1], zero],
        [v[1], zero, v[1]],
        [(v[1] + v[3]) / 2, v[3], zero],
    ]
    np.testing.assert_allclose(states[:4], [np.concatenate(rows) for rows in expected], atol=1e-6)


def test_the_context_of_a_watch_out_of_the_vocabulary_is_not_averaged() -> None:
    model = bag(last_watches=1, context=[ContextFeature(name="page", pre=Use.CONCATENATE)])
    pages = model.context_before.tables["page"].embeddings.numpy()
    states = model.states(tensors(batch())).numpy()[:, :, 4:]
    width = pages.shape[1]
    np.testing.assert_allclose(states[0, 2, :width], pages[1], atol=1e-6)  # the second watch is on page 2
    np.testing.assert_allclose(states[0, 2, -width:], pages[2], atol=1e-6)
    unknown = changed("watched_video_ids", 2, 0, 0)
    np.testing.assert_array_equal(model.states(tensors(unknown)).numpy()[2, 1, : 4 + width], np.zeros(4 + width))


def test_caser_is_the_largest_answer_of_each_horizontal_filter_and_weighted_sums() -> None:
    """The last request: watches 4, 5, 6, 7, 1, of which the filters see 6, 7, 1; a height of 5 is cut to 3."""
    model = caser()
    assert [layer.kernel_size for layer in model.horizontal] == [(2,), (3,)]
    x = model.watch_table.embeddings.numpy()[[4, 5, 6, 7, 1]]
    two, three = (layer.kernel.numpy() for layer in model.horizontal)
    # A causal filter's answer at an event covers it and the one before it; two of them lie in the window of three.
    at = [np.maximum(np.einsum("td,tdf->f", x[i - 1 : i + 1], two), 0) for i in (3, 4)]
    expected = [
        np.maximum(*at),
        np.maximum(np.einsum("td,tdf->f", x[2:5], three), 0),
        (x[2:5].T @ model.vertical.kernel.numpy()).reshape(-1),
    ]
    found = model.states(tensors(batch())).numpy()[3, 5]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-5)


def test_shifting_brings_what_was_earlier_and_zeros_before_the_first() -> None:
    events = tf.reshape(tf.range(1.0, 4.0), [1, 3, 1])
    assert shifted(events, 2).numpy().reshape(-1).tolist() == [0, 0, 1]
    assert shifted(events, 5).numpy().reshape(-1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", MODELS)
def test_what_comes_later_changes_no_earlier_state(name: str) -> None:
    model = MODELS[name]()
    before = model.states(tensors(batch())).numpy()
    after = model.states(tensors(changed("watched_video_ids", 3, 2, 1))).numpy()
    np.testing.assert_array_equal(after[3, :3], before[3, :3])
    assert not np.array_equal(after[3, 3:], before[3, 3:])


@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_no_query(name: str) -> None:
    model = MODELS[name]()
    whole = model.query_embeddings(tensors(batch())).numpy()
    for row, length in enumerate((3, 0, 1)):
        alone = model.query_embeddings(tensors(cut(batch(), row, max(length, 1)))).numpy()
        np.testing.assert_allclose(alone[0], whole[row], atol=1e-6)
    assert np.isfinite(whole).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_described_model_is_rebuilt_and_training_lowers_the_loss(name: str, tmp_path: object) -> None:
    model: SequenceGenerator = MODELS[name]()
    inputs = training_batch()
    first = float(model.compute_loss(inputs, training=True))
    model.compile(LazyAdam(0.05))
    for _ in range(10):
        model.train_step(inputs)
    assert float(model.compute_loss(inputs)) < 0.8 * first
    described = json.loads(json.dumps(model.description()))
    again = type(model).from_description(described, SPEC)
    path = weights_checkpoint(model).write(f"{tmp_path}/weights")
    weights_checkpoint(again).read(path).assert_consumed()
    features = tensors(batch())
    np.testing.assert_allclose(again.query_embeddings(features), model.query_embeddings(features), atol=1e-6)
