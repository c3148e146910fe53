"""The Latent Cross paper's experiments: what is fitted, that many models train as one would, and that they publish."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from rich.console import Console

from benchmarks.beutel2018 import OWN_DATA, kept_fits, low_rank_crosses
from benchmarks.beutel2018.discrete_crosses import best_approximations
from benchmarks.beutel2018.fit_tables import spread
from benchmarks.beutel2018.many_models import (
    ConcatenatedNetworks,
    Factorizations,
    Fit,
    LatentCrosses,
    ManyModels,
    Training,
    correlations,
    train,
    training_steps,
)
from benchmarks.beutel2018.synthetic_tensors import (
    SyntheticTensors,
    balanced_batches,
    discrete_cross_tensors,
    low_rank_tensors,
    pearson,
)
from benchmarks.experiments import Request, Scale
from benchmarks.report import is_whole
from benchmarks.reproduce import reproduce
from features.errors import ConfigError

SIZE = 6


def as_array(tensors: SyntheticTensors, seed: int) -> np.ndarray:
    """With one dimension per axis, the first axis last."""
    return tensors.values[seed].reshape((tensors.size,) * tensors.axes)


@pytest.mark.parametrize(("rank", "axes"), [(1, 2), (3, 2), (1, 3), (2, 3)])
def test_tensors_have_the_stated_rank_and_a_variance_of_one(rank: int, axes: int) -> None:
    tensors = low_rank_tensors(range(60), 12, axes, rank)
    for seed in range(3):
        array = as_array(tensors, seed).astype(np.float64)
        for axis in range(axes):
            unfolded = np.moveaxis(array, axis, 0).reshape(12, -1)
            assert np.linalg.matrix_rank(unfolded, tol=1e-4) == rank
    assert np.mean(tensors.values**2) == pytest.approx(1, abs=0.2)
    assert not np.array_equal(tensors.values[0], tensors.values[1])


def test_a_discrete_cross_has_rank_one_over_pairs_and_full_rank_over_three_axes() -> None:
    tensors = discrete_cross_tensors(range(2), SIZE)
    pairs = tensors.values[1].astype(np.float64)
    assert np.linalg.matrix_rank(pairs, tol=1e-5) == 1
    first = as_array(tensors, 1).transpose(0, 2, 1).reshape(SIZE, -1)
    assert np.linalg.matrix_rank(first, tol=1e-5) == SIZE


def test_columns_lie_where_their_entries_do() -> None:
    tensors = low_rank_tensors([0], SIZE, 3, 2)
    columns = np.array([0, 7, 35])
    np.testing.assert_array_equal(tensors.indices(columns), [[0, 0], [1, 1], [5, 5]])
    for column, (i, j) in zip(columns, tensors.indices(columns), strict=True):
        np.testing.assert_array_equal(tensors.values[0, column], as_array(tensors, 0)[i, j])


@pytest.mark.parametrize("axes", [2, 3])
def test_an_epoch_meets_every_column_once_and_a_batch_no_index_twice(axes: int) -> None:
    tensors = SyntheticTensors(np.zeros((1, SIZE ** (axes - 1), SIZE), np.float32), SIZE, axes)
    batches = list(islice(balanced_batches(tensors, 3, 4, 0), SIZE ** (axes - 1) // 3))
    met = np.concatenate([columns for columns, _ in batches])
    assert sorted(met.tolist()) == list(range(SIZE ** (axes - 1)))
    for columns, rows in batches:
        assert len(set(rows.tolist())) == 4
        assert all(len(set(axis.tolist())) == 3 for axis in tensors.indices(columns).T)


def test_pearson_is_numpys_and_zero_of_a_constant() -> None:
    random = np.random.default_rng(0)
    a = random.normal(3, 1, (4, 5)).astype(np.float32)
    b = 2 * a + random.normal(size=(4, 5))
    assert pearson(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-12)
    assert pearson(a, np.ones_like(a)) == 0


def keras_network(models: ConcatenatedNetworks, place: int) -> tf_keras.Model:
    """One of the models in Keras's own layers, fed the indices of every axis."""
    indices = tf_keras.Input([len(models.embeddings)], dtype=tf.int32)
    tables = [tf_keras.layers.Embedding(*table.shape[1:]) for table in models.embeddings]
    hidden = tf_keras.layers.Concatenate()([table(indices[:, i]) for i, table in enumerate(tables)])
    layers = [tf_keras.layers.Dense(len(models.first_bias[place]), "relu")]
    layers += [tf_keras.layers.Dense(bias.shape[1], "relu") for bias in models.biases]
    layers += [tf_keras.layers.Dense(1)]
    for layer in layers:
        hidden = layer(hidden)
    for table, values in zip(tables, models.embeddings, strict=True):
        table.set_weights([values[place].numpy()])
    kernels = [tf.concat([part[place] for part in models.first], axis=0), *(kernel[place] for kernel in models.kernels)]
    biases = [models.first_bias[place], *(bias[place] for bias in models.biases)]
    for layer, kernel, bias in zip(layers, kernels, biases, strict=False):
        layer.set_weights([kernel.numpy(), bias.numpy()])
    layers[-1].set_weights([models.output[place].numpy()[:, np.newaxis], models.output_bias[place].numpy()[np.newaxis]])
    return tf_keras.Model(indices, hidden)


@pytest.mark.parametrize("widths", [(5,), (4, 3)])
def test_each_of_many_networks_steps_as_it_would_alone_in_keras(widths: tuple[int, ...]) -> None:
    tensors = low_rank_tensors(range(3), SIZE, 3, 2)
    models = ConcatenatedNetworks(range(3), 3, SIZE, 4, widths)
    alone = keras_network(models, 1)
    assert models.parameters == alone.count_params()
    alone.compile(tf_keras.optimizers.Adagrad(0.1, 0.01, jit_compile=False), "mse")
    how = Training(0.1, 0.01, columns=4, rows=5, first_check=3, doublings=0)
    batches = list(islice(balanced_batches(tensors, 4, 5, 0), 3))
    training_steps(models, tensors, how)(*(tf.stack(part) for part in zip(*batches, strict=True)))
    for columns, rows in batches:
        cells = np.array([[row, *index] for index in tensors.indices(columns) for row in rows])
        alone.train_on_batch(cells, tensors.values[1][np.ix_(columns, rows)].ravel())
    everything = np.arange(SIZE * SIZE), np.arange(SIZE)
    ours = models(tf.constant(tensors.indices(everything[0])), tf.constant(everything[1]))[1].numpy()
    cells = np.array([[row, *index] for index in tensors.indices(everything[0]) for row in everything[1]])
    theirs = alone.predict_on_batch(cells).reshape(ours.shape)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert correlations(models, tensors)[1] == pytest.approx(
        np.corrcoef(theirs.ravel(), tensors.values[1].ravel())[0, 1], abs=1e-6
    )


def by_cell(models: ManyModels, place: int, indices: list[int]) -> float:
    return float(models(tf.constant([indices[1:]]), tf.constant(indices[:1]))[place, 0, 0])


def test_crosses_and_factorizations_are_their_formulas() -> None:
    tables = [[2.0, 3.0], [0.5, -1.0], [1.0, 4.0]]  # of one index on each axis, two dimensions
    for stacked, expected in (
        (False, 2 * (1 + 0.5 + 1) * 10 + 3 * (1 - 1 + 4) * 100 + 7),
        (True, 2 * (1.5 * 2) * 10 + 3 * (0 * 5) * 100 + 7),
    ):
        crosses = LatentCrosses([0, 1], 3, 1, 2, stacked)
        for variable, row in zip(crosses.embeddings, tables, strict=True):
            variable[1].assign([row])
        crosses.output[1].assign([10.0, 100.0])
        crosses.output_bias[1].assign(7.0)
        assert by_cell(crosses, 1, [0, 0, 0]) == expected
        assert crosses.parameters == 3 * 2 + 2 + 1
    product = Factorizations([0, 1], 3, 1, 2)
    for variable, row in zip(product.factors, tables, strict=True):
        variable[1].assign([row])
    assert by_cell(product, 1, [0, 0, 0]) == 2 * 0.5 * 1 + 3 * -1 * 4


def test_training_ends_when_doubling_the_steps_gains_nothing() -> None:
    tensors = low_rank_tensors(range(2), SIZE, 2, 1)
    shape = (range(2), 2, SIZE, 4)
    how = Training(0.1, 0.1, SIZE, SIZE, first_check=50, doublings=4, tolerance=0.05)
    found = train(LatentCrosses(*shape, stacked=False), tensors, how)
    assert found.converged.all() and found.steps[-1] < 800
    assert (found.correlations[-1] > 0.9).all()
    short = train(
        LatentCrosses(*shape, stacked=False), tensors, Training(0.1, 0.1, SIZE, SIZE, 2, 1, -1.0, steps_per_call=1)
    )
    assert short.steps == (2, 4) and not short.converged.any()


def test_a_training_is_kept_for_its_models_data_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def counted(*arguments: Any) -> Fit:
        trained.append(arguments)
        return train(*arguments)

    monkeypatch.setattr(kept_fits, "train", counted)
    console = Console(quiet=True)
    request = Request("low_rank_crosses", Scale.SMOKE, None, (), tmp_path, tmp_path / "work", console)
    how = Training(0.1, 0.1, SIZE, SIZE, 2, 1, steps_per_call=1, compiled=False)

    def fit(name: str = "a", seed: int = 0, data: int = 0, how: Training = how) -> Fit:
        tensors = low_rank_tensors([data], SIZE, 2, 1)
        return kept_fits.kept_fit(request, name, LatentCrosses([seed], 2, SIZE, 4, stacked=False), tensors, how)

    first, again = fit(), fit()
    assert len(trained) == 1
    assert first.steps == again.steps == (2, 4) and first.parameters == again.parameters == 4 * 2 * SIZE + 4 + 1
    np.testing.assert_array_equal(first.correlations, again.correlations)
    np.testing.assert_array_equal(first.converged, again.converged)
    for other in (fit("b"), fit(seed=1), fit(data=1), fit(how=replace(how, learning_rate=0.2))):
        assert other.steps == (2, 4)
    assert len(trained) == 5


def test_the_best_approximation_of_a_rank_is_what_training_approaches_from_below() -> None:
    tensors = discrete_cross_tensors(range(4), SIZE)
    assert best_approximations(tensors, (SIZE,))[SIZE] == pytest.approx(np.ones(4), abs=1e-6)
    best = best_approximations(tensors, (2,))[2]
    how = Training(0.1, 0.1, SIZE, SIZE, first_check=400, doublings=0)
    reached = train(Factorizations(range(4), 3, SIZE, 2), tensors, how).correlations[-1]
    assert (reached < best + 0.005).all()
    assert (best - reached).min() < 0.01


def test_verdicts_compare_with_the_paper_cell_by_cell() -> None:
    def fit(low: float, middle: float, high: float) -> Fit:
        return Fit((1,), np.array([[middle, high, low]]), np.ones(3, bool), 10)

    widths = (1, 5)
    fits = {
        (1, 2): {"width 1": fit(0.3, 0.4, 0.43), "width 5": fit(0.9, 0.98, 0.999)},  # 0.42601 inside, 0.9974 close
        (1, 3): {"width 1": fit(0.28, 0.3, 0.4), "width 5": fit(0.8, 0.9, 0.95)},  # 0.27952 outside, 0.8547 inside
        (2, 3): {"width 1": fit(0.2, 0.3, 0.4), "width 5": fit(0.8, 0.9, 0.95)},  # inside, 0.717233 outside
    }
    assert spread(fits[1, 2]["width 1"]).value == 0.4
    near, within = low_rank_crosses.network_verdicts(fits, widths)
    assert near.endswith("1 of 1 cells")
    assert within.endswith("3 of 5 cells (outside: r=1, m=3, width 1; r=2, m=3, width 5)")
    fits[1, 2]["width 5"] = fit(0.9, 0.97, 0.999)
    assert low_rank_crosses.network_verdicts(fits, widths)[0].endswith("0 of 1 cells")


@pytest.mark.parametrize("name", OWN_DATA)
def test_each_experiment_runs_and_publishes(name: str, tmp_path: Path) -> None:
    reproduce(name, "smoke", "simulator", [], tmp_path / "results", tmp_path / "work", Console(quiet=True))
    assert is_whole(tmp_path / "results", f"{name}_smoke")
    text = (tmp_path / "results" / f"{name}_smoke.md").read_text()
    assert f"    upnext reproduce {name} --scale smoke\n" in text and "nan" not in text


@pytest.mark.parametrize(("source", "overrides"), [("kuairand", []), ("simulator", ["source.users=5"])])
def test_settings_of_logs_are_refused(source: str, overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"low_rank_crosses: makes its own data .* leave that out"):
        reproduce("low_rank_crosses", "smoke", source, overrides, tmp_path, tmp_path, Console(quiet=True))
