"""What counts as a difference between stored and recomputed values."""

import numpy as np
import pyarrow as pa

from serving.parity import _nested
from serving.parity_check import batches, dense, differing

CONFIG = {"rtol": 1e-3, "atol": 1e-6}


def test_numbers_within_the_tolerance_and_two_nans_are_equal():
    expected = np.array([1.0, np.nan, 1.0, 1.0, -np.inf], np.float32)
    found = np.array([1.0005, np.nan, np.nan, 1.1, -np.inf], np.float32)
    assert differing(expected, found, CONFIG, None).tolist() == [False, False, True, True, False]


def test_embedding_rows_must_be_equal_and_padding_means_nothing():
    expected = np.array([[3, 0, 7, 0], [1, 2, 0, 0]], np.int32)
    assert differing(expected, expected[:, :3], CONFIG, None).tolist() == [False, False]
    assert differing(expected, np.array([[3, 7, 0], [1, 2, 0]], np.int32), CONFIG, None).tolist() == [True, False]
    assert differing(expected, np.array([[3, 0, 7], [1, 2, 9]], np.int32), CONFIG, None).tolist() == [False, True]


def test_other_shapes_differ():
    assert differing(np.zeros((2, 3)), np.zeros((2, 4)), CONFIG, None).tolist() == [True, True]


def test_ids_may_swap_only_where_their_scores_are_equal():
    scores = np.array([[9.0, 5.0, 5.0, 1.0], [9.0, 5.0, 5.0, 1.0], [9.0, 5.0, 4.0, 1.0]])
    expected = np.array([["a", "b", "c", "d"]] * 3, object)
    found = np.array([[b"a", b"c", b"b", b"d"], [b"b", b"a", b"c", b"d"], [b"a", b"c", b"b", b"d"]], object)
    assert differing(expected, found, CONFIG, scores).tolist() == [False, True, True]


def test_fixture_columns_keep_dtype_shape_and_text():
    columns = {
        "ids": np.array([["a b", "é"], ["🎬", ""]], object),
        "rows": np.arange(12, dtype=np.int32).reshape(2, 3, 2),
        "numbers": np.array([np.nan, 1.5], np.float32),
        "nothing": np.empty((2, 0), object),
    }
    table = pa.table({name: _nested(values) for name, values in columns.items()})
    for name, values in columns.items():
        found = dense(table, name)
        assert found.shape == values.shape and found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


def test_every_row_is_sent_once_and_the_first_alone():
    rows = [list(range(*part.indices(70))) for part in batches(70)]
    assert rows[0] == [0]
    assert [row for part in rows for row in part] == list(range(70))
    assert batches(1) == [slice(0, 1)]
