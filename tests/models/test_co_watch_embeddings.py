"""Videos that the same users watched start close to each other."""

import numpy as np
import pytest

from models.co_watch_embeddings import CoWatchConfig, co_watch_embeddings, entries_of_bags


def blocks(num_users: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Users 0..19 watch videos 1..10, users 20..39 videos 11..20, each five of them."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(num_users), 5)
    rows = np.concatenate([rng.choice(10, 5, replace=False) + 1 + 10 * (u >= num_users // 2) for u in range(num_users)])
    return users, rows.astype(np.int32)


def vectors_of(users: np.ndarray, rows: np.ndarray, num_videos: int, dimension: int, config: CoWatchConfig):
    watched, following = co_watch_embeddings(users, rows, num_videos, dimension, config)
    np.testing.assert_array_equal(watched, following)
    return watched


def test_videos_of_the_same_users_are_closer_than_others() -> None:
    vectors = vectors_of(*blocks(), 20, 4, CoWatchConfig())[1:]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert cosines[:10, :10].mean() > cosines[:10, 10:].mean() + 0.1


def test_leading_vectors_equal_a_dense_factorization() -> None:
    users, rows = blocks()
    dense = np.zeros((40, 20))
    dense[users, rows - 1] = 1
    normalised = dense / np.sqrt(dense.sum(1, keepdims=True)) / np.sqrt(dense.sum(0) + 10)
    expected = np.linalg.svd(normalised)[2][:3].T * 0.3 * np.sqrt(20)
    found = vectors_of(users, rows, 20, 3, CoWatchConfig())[1:]
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


def test_scale_is_the_root_mean_square_of_the_values() -> None:
    vectors = vectors_of(*blocks(), 20, 4, CoWatchConfig(scale=0.2))[1:]
    assert np.sqrt(np.mean(vectors**2)) == pytest.approx(0.2, rel=1e-5)


def test_out_of_vocabulary_repeats_and_order_change_nothing() -> None:
    users, rows = blocks()
    expected = vectors_of(users, rows, 20, 4, CoWatchConfig())
    more_users, more_rows = np.concatenate([users, users[:7], users]), np.concatenate([rows, rows[:7], 0 * rows])
    order = np.random.default_rng(1).permutation(len(more_users))
    np.testing.assert_allclose(
        vectors_of(more_users[order], more_rows[order], 20, 4, CoWatchConfig()), expected, atol=1e-5
    )


def test_row_0_and_unseen_videos_are_zero() -> None:
    vectors = vectors_of(*blocks(), 25, 4, CoWatchConfig())
    assert not vectors[0].any()
    np.testing.assert_allclose(vectors[21:], 0, atol=1e-6)


def test_what_few_users_cannot_fill_is_zero() -> None:
    users, rows = np.repeat(np.arange(3), 2), np.array([1, 2, 2, 3, 3, 1], np.int32)
    vectors = vectors_of(users, rows, 20, 4, CoWatchConfig())
    np.testing.assert_allclose(vectors[:, :2], vectors_of(users, rows, 20, 2, CoWatchConfig()), atol=1e-6)
    assert vectors[1:4, :2].any(axis=1).all() and not vectors[:, 2:].any()


@pytest.mark.parametrize("users", [[], [0]])
def test_one_user_or_none_tells_nothing_of_co_watches(users: list[int]) -> None:
    rows = np.ones(len(users), np.int32)
    assert not vectors_of(np.array(users, int), rows, 20, 4, CoWatchConfig()).any()


def test_entries_name_the_user_of_every_item() -> None:
    bags = [(np.array([5, 6, 7], np.int32), np.array([2, 0, 1])), (np.array([1, 2, 3], np.int32), np.ones(3, int))]
    users, rows = entries_of_bags(np.array(["b", "a", "b"]), bags)
    assert users.tolist() == [1, 1, 1, 1, 0, 1]
    assert rows.tolist() == [5, 6, 7, 1, 2, 3]
