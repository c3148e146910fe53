"""Embedding tables: shared by an id space, averaged in bags, row 0 zero for good."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from features.spec import Feature, Kind, Side
from models.embeddings import EmbeddingTable, SharedEmbeddings, ZeroFirstRowNormal, embedding_dimension
from models.lazy_adam import LazyAdam


def table_with(rows: list[list[float]]) -> EmbeddingTable:
    table = EmbeddingTable(len(rows), len(rows[0]))
    table.embeddings.assign([[0.0] * len(rows[0]), *rows])
    return table


def test_a_row_is_looked_up_and_row_zero_gives_zeros():
    table = table_with([[1, 2], [3, 4]])
    np.testing.assert_array_equal(table(tf.constant([2, 0, 1])), [[3, 4], [0, 0], [1, 2]])


def test_a_bag_is_divided_by_its_items_in_the_vocabulary_and_not_by_its_length():
    table = table_with([[1, 2], [3, 4]])
    bags = tf.constant([[1, 2, 0, 0], [2, 0, 2, 1], [0, 0, 0, 0]])
    np.testing.assert_allclose(table.bag(bags), [[2, 3], [7 / 3, 10 / 3], [0, 0]], rtol=1e-6)


def test_bags_may_have_further_leading_axes():
    table = table_with([[1, 2], [3, 4]])
    bags = np.array([[[1, 0], [2, 1]], [[0, 0], [2, 2]]])
    np.testing.assert_allclose(table.bag(tf.constant(bags)), [[[1, 2], [2, 3]], [[0, 0], [3, 4]]], rtol=1e-6)


def test_no_known_item_in_the_whole_batch_gives_zeros():
    np.testing.assert_array_equal(table_with([[1, 2]]).bag(tf.zeros([3, 5], tf.int32)), np.zeros((3, 2)))


OPTIMIZERS = {
    "lazy_adam": lambda: LazyAdam(0.1),
    "adagrad": lambda: tf_keras.optimizers.Adagrad(0.1),
    "adam": lambda: tf_keras.optimizers.Adam(0.1),
    "momentum": lambda: tf_keras.optimizers.SGD(0.1, momentum=0.9),
}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_row_zero_stays_zero_whatever_the_optimizer(optimizer: str, jit_compile: bool):
    table = EmbeddingTable(5, 3)
    before = table.embeddings.numpy()
    assert not before[0].any()
    assert before[1:].all()
    step_optimizer = OPTIMIZERS[optimizer]()
    step_optimizer.build([table.embeddings])

    @tf.function(jit_compile=jit_compile)
    def step(rows: tf.Tensor, bags: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(table(rows) + table.bag(bags)) + 3.0 * tf.reduce_sum(table(rows) ** 2)
        step_optimizer.apply_gradients([(tape.gradient(loss, table.embeddings), table.embeddings)])

    for _ in range(3):
        step(tf.constant([0, 1, 0]), tf.constant([[0, 2], [0, 0], [3, 1]]))
    after = table.embeddings.numpy()
    np.testing.assert_array_equal(after[0], np.zeros(3))
    assert (after[1:4] != before[1:4]).all()
    np.testing.assert_array_equal(after[4:], before[4:])


def test_the_gradient_is_sparse_and_zero_for_padding():
    table = EmbeddingTable(1000, 3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(table.bag(tf.constant([[7, 0, 0], [9, 7, 0]])))
    gradient = tape.gradient(loss, table.embeddings)
    assert isinstance(gradient, tf.IndexedSlices)
    dense = tf.convert_to_tensor(gradient).numpy()
    np.testing.assert_allclose(dense[[0, 7, 9], 0], [0, 1.5, 0.5])
    assert np.count_nonzero(dense) == 6


def test_features_of_one_space_share_a_table_and_are_fed_separately():
    shared = SharedEmbeddings({"video": 3, "region": 2}, {"video": 2, "region": 1})
    shared.tables["video"].embeddings.assign([[0, 0], [1, 2], [3, 4], [5, 6]])
    last = Feature("last", Kind.CATEGORICAL, Side.QUERY, "history.last_watched_video_id", "video")
    watched = Feature("watched", Kind.CATEGORICAL, Side.QUERY, "history.watched_video_ids", "video", 2)
    np.testing.assert_array_equal(shared(last, tf.constant([3])), [[5, 6]])
    np.testing.assert_array_equal(shared(watched, tf.constant([[1, 2]])), [[2, 3]])
    assert len(shared.trainable_variables) == 2
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(shared(last, tf.constant([3]))) + tf.reduce_sum(shared(watched, tf.constant([[3, 0]])))
    gradient = tf.convert_to_tensor(tape.gradient(loss, shared.tables["video"].embeddings))
    np.testing.assert_array_equal(gradient[3], [2, 2])  # 1 from each feature


def test_mixed_precision_keeps_the_table_in_float32_and_casts_what_is_gathered():
    table = EmbeddingTable(4, 2, dtype=tf_keras.mixed_precision.Policy("mixed_bfloat16"))
    assert table.embeddings.dtype == tf.float32
    assert table(tf.constant([1])).dtype == tf.bfloat16
    # 50 items of which one differs: a bfloat16 sum would lose it.
    table.embeddings.assign(np.full((5, 2), 1.0) + np.array([0, 0, 0, 0, 0.5])[:, None])
    bag = table.bag(tf.constant([[1] * 49 + [4]]))
    assert bag.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(bag, tf.float32), np.full((1, 2), 1.01), atol=0.004)


def test_partitions_of_a_table_are_zero_only_in_the_first_row_of_the_first():
    initializer = ZeroFirstRowNormal(1.0, seed=3)
    first = initializer((6, 2), tf.float32, partition_shape=(3, 2), partition_offset=(0, 0)).numpy()
    second = initializer((6, 2), tf.float32, partition_shape=(3, 2), partition_offset=(3, 0)).numpy()
    assert not first[0].any()
    assert first[1:].all()
    assert second.all()
    assert not np.array_equal(first[1:], second[1:])


@pytest.mark.parametrize(("size", "dimension"), [(1, 2), (4, 4), (1_000, 16), (1_000_000, 32)])
def test_the_dimension_grows_with_the_logarithm_of_the_vocabulary(size: int, dimension: int):
    # 1.6 dimensions per doubling, rounded up: log2(4) = 2, log2(1000) = 9.97, log2(1e6) = 19.93.
    assert embedding_dimension(size) == dimension
