"""Shared topics against sets, with a few lists much longer than the others."""

import time

import numpy as np
import pytest

from features.shared_topics import TopicLists

RANDOM = np.random.default_rng(0)


def catalogue(lists: list[list[int]]) -> np.ndarray:
    """Padded with 0, with an entry for no video."""
    topics = np.zeros((len(lists) + 1, max(map(len, lists))), np.int32)
    for row, values in zip(topics, lists, strict=False):
        row[: len(values)] = values
    return topics


def test_videos_share_a_topic_wherever_it_stands_in_a_long_or_a_short_list() -> None:
    """Among 58 videos of topic 5: two long lists, which end with 7 and with 8, and two short ones of 8 and of 9."""
    lists = [[5]] * 58 + [[0, 0, 0, 7], [6, 0, 0, 0, 8, 7], [8], [9]]
    seven, eight, short, nine = range(58, 62)
    watched = np.array([[0, seven, eight, short, -1], [nine, -1, -1, -1, -1]], np.int32)
    request, candidate = np.array([0, 0, 0, 0, 0, 0, 1]), np.array([1, seven, eight, short, nine, -1, nine], np.int32)
    found = TopicLists(catalogue(lists)).shared(watched, request, candidate)
    assert found.astype(int).tolist() == [
        [1, 0, 0, 0, 0],  # topic 5
        [0, 1, 1, 0, 0],  # 7
        [0, 1, 1, 1, 0],  # 7, 8
        [0, 0, 1, 1, 0],  # 8
        [0, 0, 0, 0, 0],  # nothing of the first request's is of 9
        [0, 0, 0, 0, 0],  # no video
        [1, 0, 0, 0, 0],  # 9
    ]


@pytest.mark.parametrize("most", [1, 3, 12])
@pytest.mark.parametrize("longest", [0, 40])
def test_shared_topics_are_those_of_sets(most: int, longest: int) -> None:
    lengths = RANDOM.integers(0, most + 1, 60)
    lengths[[3, 17]] += longest
    lists = [RANDOM.integers(0, 30, length).tolist() for length in lengths]
    watched = RANDOM.integers(-1, 60, (40, 7)).astype(np.int32)
    request, candidate = RANDOM.integers(0, 40, 100), RANDOM.integers(-1, 60, 100).astype(np.int32)
    sets = [set(values) - {0} for values in lists] + [set()]
    expected = [[bool(sets[v] & sets[c]) for v in watched[r]] for r, c in zip(request, candidate, strict=True)]
    np.testing.assert_array_equal(TopicLists(catalogue(lists)).shared(watched, request, candidate), expected)


def test_catalogues_without_any_topic_share_none() -> None:
    nothing = TopicLists(np.zeros((4, 1), np.int32))
    assert not nothing.shared(np.array([[0, 1]], np.int32), np.array([0]), np.array([1], np.int32)).any()


def test_one_very_long_list_does_not_slow_the_others_down() -> None:
    """Of 2,000 videos of two topics one has 200 instead: a comparison of each place with each were 10,000 times 4."""
    lists = [[i % 50 + 1, i % 7 + 60] for i in range(2_000)]
    watched = RANDOM.integers(0, 2_000, (1_000, 20)).astype(np.int32)
    request, candidate = np.arange(1_000), RANDOM.integers(0, 2_000, 1_000).astype(np.int32)
    seconds = []
    for topics in (lists, [list(range(1, 201)), *lists[1:]]):
        compared = TopicLists(catalogue(topics))
        started = time.process_time()
        for _ in range(20):
            compared.shared(watched, request, candidate)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 30 * seconds[0]
