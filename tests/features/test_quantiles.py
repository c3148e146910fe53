import pickle

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that
from hypothesis import given
from hypothesis import strategies as st

from features.errors import ArtifactError
from features.quantiles import (
    LARGEST_BELOW_ONE,
    Quantiles,
    QuantilesCombineFn,
    QuantilesConfig,
    QuantileSketch,
    normalise,
    read_quantiles,
    write_quantiles,
)

VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_a_value_between_boundaries_is_interpolated_between_their_ranks():
    boundaries = np.array([0.0, 10.0, 30.0])
    x = np.array([0.0, 2.5, 10.0, 20.0, 29.0, 30.0])
    expected = [0.0, 0.125, 0.5, 0.75, 0.975, LARGEST_BELOW_ONE]
    np.testing.assert_allclose(normalise(x, boundaries), expected, rtol=0, atol=1e-15)


def test_a_repeated_value_gets_the_middle_of_its_ranks():
    boundaries = np.array([0.0, 0.0, 0.0, 1.0, 2.0])  # half of the data is zero
    np.testing.assert_array_equal(normalise(np.array([-1.0, 0.0, 0.5, 1.0]), boundaries), [0.0, 0.25, 0.625, 0.75])


def test_a_constant_feature_gives_one_half():
    assert normalise(np.array([7.0, 6.0, 8.0]), np.full(101, 7.0)).tolist() == [0.5, 0.0, LARGEST_BELOW_ONE]


def test_missing_and_infinite_values():
    x = np.array([np.nan, -np.inf, np.inf])
    assert normalise(x, np.array([0.0, 1.0])).tolist() == [0.0, 0.0, LARGEST_BELOW_ONE]


def test_the_largest_value_is_below_one_in_single_precision():
    assert np.float32(LARGEST_BELOW_ONE) < 1 == np.float32(np.nextafter(1.0, 0.0))


@given(st.lists(VALUES, min_size=1, max_size=40), st.lists(VALUES, min_size=1, max_size=40))
def test_normalised_values_lie_in_zero_one_and_never_fall(data, x):
    boundaries = np.quantile(np.array(data), np.linspace(0, 1, 11), method="inverted_cdf")
    x = np.sort(np.array(x + data))
    y = normalise(x, boundaries)
    assert (y >= 0).all() and (y < 1).all()
    assert (np.diff(y) >= 0).all()


def test_normalised_training_data_is_uniform():
    data = np.random.default_rng(0).lognormal(size=20_001)
    boundaries = np.quantile(data, np.linspace(0, 1, 101))
    share = np.histogram(normalise(data, boundaries), bins=10, range=(0, 1))[0] / len(data)
    np.testing.assert_allclose(share, 0.1, atol=2e-4)


@pytest.mark.parametrize("k", [100, 800])
def test_sketched_quantiles_are_within_the_rank_error(k):
    data = np.random.default_rng(1).exponential(size=200_000)
    parts = []
    for part in np.array_split(data, 7):
        parts.append(QuantileSketch(k))
        parts[-1].update(part)
    merged = QuantileSketch(k)
    for part in parts:
        merged.merge(pickle.loads(pickle.dumps(part)))
    quantiles = merged.quantiles(101)
    ranks = np.searchsorted(np.sort(data), quantiles.boundaries) / len(data)
    # Each of 99 ranks is within the error with probability 0.99; three times the error never fails in practice.
    assert np.abs(ranks - np.linspace(0, 1, 101)).max() < 3 * quantiles.rank_error
    assert quantiles.rank_error < {100: 0.03, 800: 0.004}[k]
    assert (quantiles.boundaries[0], quantiles.boundaries[-1]) == (data.min(), data.max())


@given(st.lists(st.floats(width=32), max_size=60), st.integers(2, 12))
def test_few_values_are_sketched_exactly(values, boundaries):
    sketch = QuantileSketch()
    array = np.array(values, np.float32)
    array.setflags(write=False)
    sketch.update(array)
    quantiles = sketch.quantiles(boundaries)
    finite = np.sort(array[np.isfinite(array)]).astype(np.float64)
    assert (quantiles.count, quantiles.missing, quantiles.infinite) == (
        len(finite),
        np.isnan(array).sum(),
        np.isinf(array).sum(),
    )
    assert quantiles.rank_error == 0.0
    assert quantiles.boundaries.shape == (boundaries,)
    if len(finite):
        assert np.isin(quantiles.boundaries, finite).all()
        assert (quantiles.boundaries[0], quantiles.boundaries[-1]) == (finite[0], finite[-1])
        assert (np.diff(quantiles.boundaries) >= 0).all()
    else:
        assert (quantiles.boundaries == 0).all()


def test_quantiles_of_a_percentile_grid():
    sketch = QuantileSketch()
    sketch.update(np.arange(101))
    np.testing.assert_allclose(sketch.quantiles(101).boundaries, np.arange(101), atol=1)
    assert sketch.quantiles(3).boundaries.tolist() == [0, 50, 100]


def test_combine_fn_in_a_pipeline():
    def check(actual):
        found = dict(actual)
        assert found["a"].boundaries.tolist() == [1.0, 2.0, 3.0] and found["a"].missing == 1
        assert found["b"].boundaries.tolist() == [5.0, 5.0, 5.0] and found["b"].infinite == 1

    with test_pipeline.TestPipeline(runner="apache_beam.runners.portability.fn_api_runner.FnApiRunner") as pipeline:
        batches = [
            ("a", np.array([3.0, np.nan])),
            ("a", np.array([1.0, 2.0], np.float32)),
            ("b", np.array([5.0, np.inf])),
        ]
        result = pipeline | beam.Create(batches) | beam.CombinePerKey(QuantilesCombineFn(QuantilesConfig(boundaries=3)))
        assert_that(result, check)


def test_files_keep_every_bit(tmp_path):
    written = Quantiles(np.array([-0.1, 1 / 3, 5e-324]), 3, 4, 0.0035, 1)
    write_quantiles(tmp_path / "quantiles.json", {"x": written})
    read = read_quantiles(tmp_path / "quantiles.json")["x"]
    np.testing.assert_array_equal(read.boundaries, written.boundaries)
    assert (read.count, read.missing, read.rank_error, read.infinite) == (3, 4, 0.0035, 1)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "quantiles.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"quantiles\.json: expected quantiles by feature"):
        read_quantiles(tmp_path / "quantiles.json")
