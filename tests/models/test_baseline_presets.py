"""The papers' baselines by name: what they read, and what the papers say of their sizes."""

import numpy as np
import pytest

from models.baseline_presets import BASELINES, CASER_GRID
from models.m3 import M3
from pipeline.config import PRESETS, GeneratorConfig
from pipeline.model_folder import CANDIDATE_GENERATORS
from tests.models.sequence_batches import SIZES, SPEC, batch, tensors

NAMES = [(kind, name) for kind, presets in BASELINES.items() for name in presets]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=lambda value: value)
def test_a_baseline_is_a_model_that_is_found_by_its_name(kind: str, name: str) -> None:
    config = GeneratorConfig.model_validate({"model": {"kind": kind, "preset": name}}).model
    assert config == BASELINES[kind][name]
    model = CANDIDATE_GENERATORS[kind](config, SPEC, SIZES)
    assert model.query_embeddings(tensors(batch())).shape == [4, config.dimension]


def test_no_baseline_takes_the_name_of_a_model_of_the_papers() -> None:
    assert {"rnn_latent_cross", "rrn", "rnn", "gru4rec", "context_gru"} <= PRESETS["latent_cross"].keys()
    assert {"movielens_m3r", "fmc", "context_fmc"} <= PRESETS["m3"].keys()


def test_a_factorizing_chain_is_the_product_of_the_last_videos_and_the_next_videos_factors() -> None:
    model = M3(BASELINES["m3"]["fmc"], SPEC, SIZES)
    last = model.watch_table.embeddings.numpy()[[3, 0, 2, 1]]  # the second request has no watch
    np.testing.assert_array_equal(model.query_embeddings(tensors(batch())), last)


def test_with_context_one_layer_over_that_of_the_last_event_is_all_there_is() -> None:
    model = M3(BASELINES["m3"]["context_fmc"], SPEC, SIZES)
    assert not model.columns_after and not model.output_layers and len(model.input_layers) == 1
    assert {c.feature.name for c in model.columns_before} == {"page", "device", "watch_time", "time_delta"}
    features = tensors(batch())
    inputs = model.events(features).inputs.numpy()
    expected = inputs[[0, 2, 3], [2, 0, 4]]
    np.testing.assert_array_equal(model.query_embeddings(features).numpy()[[0, 2, 3]], expected)


def test_baselines_of_movielens_have_the_papers_sizes() -> None:
    """Section 5.1: embeddings of 64 for all; DeepBoW one hidden layer of 32; the grid of Caser's filters."""
    movielens = [("m3", "fmc"), ("latent_cross", "gru4rec"), ("bag_of_watches", "deep_bow")]
    movielens += [("caser", name) for name in BASELINES["caser"]]
    for kind, name in movielens:
        config = BASELINES[kind][name]
        assert (config.dimension, config.watch_dimension, config.context) == (64, 64, ())
    assert BASELINES["latent_cross"]["gru4rec"].state_width(64) == 32
    assert BASELINES["bag_of_watches"]["deep_bow"].output_widths == (32,)
    assert len(CASER_GRID) == 9
    for vertical, horizontal in CASER_GRID:
        # Filters of three heights, and weighted sums of 64 values each.
        config = BASELINES["caser"][f"caser_{vertical}_{horizontal}"]
        assert config.state_width(64) == 3 * horizontal + 64 * vertical
        assert config.heights == (3, 5, 7)


def test_a_bag_of_words_with_time_reads_the_last_three_videos_the_gap_and_the_hour_of_the_week() -> None:
    config = BASELINES["bag_of_watches"]["bag_of_words_time"]
    assert config.state_width(256) == 256 * (1 + 3)
    assert len(config.output_widths) == 3
    assert {(c.name, c.pre.value, c.post.value) for c in config.context} == {
        ("time_delta", "none", "concatenate"),
        ("time_of_week", "none", "concatenate"),
    }
    youtube = BASELINES["bag_of_watches"]["deep_youtube"]
    assert youtube.state_width(256) == 256 * (1 + 1)
