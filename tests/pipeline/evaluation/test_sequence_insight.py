"""Dependence over distance, gates by group and missing context, by hand."""

from collections.abc import Iterator

import numpy as np
import pytest

from models.context_features import ContextFeature, Use
from models.latent_cross import LatentCross, LatentCrossConfig
from models.m3 import M3, M3Config
from pipeline.evaluation.sequence_insight import gate_means, temporal_dependence, without_context
from tests.models.sequence_batches import SIZES, SPEC, batch, tensors


class Batches:
    """Examples as `ExampleColumns` gives them."""

    def ordered(self, rows: int) -> Iterator[dict[str, np.ndarray]]:
        yield batch()

    def at_serving(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return columns


def test_dependence_is_the_trace_of_the_covariance_at_each_distance() -> None:
    """Vectors 1: (1, 0), 2: (0, 1), 3: (-1, 0). Last and previous watches: (1, 1), (3, 3), (2, 1).

    Products of the centred coordinates: first (1, -1, 0) with (2/3, -4/3, 2/3): 2 in all; second (-1/3, -1/3, 2/3)
    with zeros. So the trace at distance 1 is 2/3. At distance 2 only two histories reach, (1, 2) and (3, 2): none.
    """
    vectors = np.array([[9, 9], [1, 0], [0, 1], [-1, 0]], np.float32)
    histories = np.array([[2, 1, 1, 0], [2, 3, 3, 0], [1, 2, 0, 0], [3, 0, 0, 0]], np.int32)
    found = temporal_dependence(histories, np.array([3, 3, 2, 1]), vectors)
    assert found.lags.tolist() == [1, 2] and found.pairs.tolist() == [3, 2]
    np.testing.assert_allclose(found.traces, [2 / 3, 0], atol=1e-12)


def test_watches_out_of_vocabulary_are_no_pairs() -> None:
    vectors = np.eye(4, dtype=np.float32)
    histories = np.array([[0, 1], [1, 0], [2, 3], [3, 2]], np.int32)
    assert temporal_dependence(histories, np.full(4, 2), vectors).pairs.tolist() == [2]


def test_gates_are_averaged_by_context_and_by_length_of_the_history() -> None:
    """Four requests: pages 2, 1, 0 and 1, after 3, 0, 1 and 90 watches."""
    context = (ContextFeature(name="page", pre=Use.CONCATENATE, post=Use.CONCATENATE),)
    model = M3(M3Config(dimension=4, encoder_dimension=4, gate="contextual", context=context), SPEC, SIZES)
    found = {(mean.grouped_by, mean.group): mean for mean in gate_means(model, Batches(), {"page": ["home", "next"]})}
    gates = model.gate_values(tensors({k: v for k, v in batch().items() if k in SPEC})).numpy()
    assert {key: mean.requests for key, mean in found.items()} == {
        ("all", "all"): 4,
        ("page", "(other)"): 1,
        ("page", "home"): 2,
        ("page", "next"): 1,
        ("watches before", "1 to 9"): 2,
        ("watches before", "30 to 99"): 1,
    }
    assert list(found["page", "home"].gates) == ["tiny", "short", "long"]
    np.testing.assert_allclose(list(found["page", "home"].gates.values()), gates[[1, 3]].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("page", {"watched_page", "page"}),
        ("time_delta", {"seconds_to_next_watch"}),
        ("watch_age", {"example_age"}),  # the gaps tell of time_delta too
        ("share", {"watched_share", "share"}),
    ],
)
def test_a_missing_context_feature_is_missing_with_every_watch_and_in_the_request(name: str, gone: set[str]) -> None:
    context = tuple(ContextFeature(name=n, pre=Use.CONCATENATE) for n in ("page", "time_delta", "watch_age", "share"))
    model = LatentCross(LatentCrossConfig(dimension=4, units=4, context=context), SPEC, SIZES)
    before = tensors({k: v for k, v in batch().items() if k in SPEC})
    after = without_context(model, name, before)
    for feature in SPEC.features:
        same = np.array_equal(after[feature.name].numpy(), before[feature.name].numpy(), equal_nan=True)
        assert same == (feature.name not in gone), feature.name
    for feature in gone:
        values = after[feature].numpy()
        assert np.isnan(values).all() if values.dtype == np.float32 else not values.any()
    assert not np.allclose(model.query_embeddings(after), model.query_embeddings(before))
