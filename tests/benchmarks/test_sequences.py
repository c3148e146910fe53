"""The models that the experiments of sequences compare, and what is made of them."""

import numpy as np
import pytest

from benchmarks.beutel2018.context_models import figure_3, figure_4, table_4
from benchmarks.sequences import Judged, Variant, trial_table, tuned
from benchmarks.tang2019.range_models import (
    MIXTURES,
    RECURRENT,
    TABLE_5,
    baselines,
    gates,
    mixture,
    search_space,
    subsets,
)
from benchmarks.tang2019.sparse_gates import summary, with_threshold
from models.context_features import Use
from models.m3 import M3, Encoder, M3Config
from models.sampled_softmax import Loss
from pipeline.config import GeneratorConfig
from pipeline.evaluation.figures import Figure
from tests.models.sequence_batches import SIZES, SPEC, batch, tensors


@pytest.mark.parametrize("full", [False, True])
def test_every_variant_is_a_model_and_a_name_means_one(full: bool) -> None:
    groups = [*(comparison.variants for comparison in (table_4(full), figure_3(full), figure_4(full)))]
    compared = baselines(full)
    m3r = next(variant for variant in compared if variant.name == TABLE_5["TSL"])
    for variants in ([v for group in groups for v in group], [*compared, *subsets(m3r), *gates(m3r)]):
        by_name: dict[str, Variant] = {}
        for variant in variants:
            config = GeneratorConfig.model_validate({"model": dict(variant.model)})
            assert config.model.dimension == (64 if full else 8)
            assert by_name.setdefault(variant.name, variant).model == variant.model
    assert {*MIXTURES, RECURRENT, *TABLE_5.values()} <= set(by_name)


def test_the_compared_models_differ_in_nothing_but_how_context_enters() -> None:
    for comparison, feature in ((table_4(True), "time_delta"), (figure_3(True), "page")):
        models = {
            variant.name: GeneratorConfig.model_validate({"model": dict(variant.model)}).model
            for variant in comparison.variants
            if variant.model["kind"] == "latent_cross"
        }
        uses = {name: {c.name: c for c in model.context}.get(feature) for name, model in models.items()}
        assert uses[comparison.without] is None
        assert {uses[comparison.crossed].pre, uses[comparison.crossed].post} == {Use.CROSS, Use.NONE}
        assert Use.CROSS not in {uses[comparison.concatenated].pre, uses[comparison.concatenated].post}
        rest = [model.model_copy(update={"context": ()}) for model in models.values()]
        assert all(model == rest[0].model_copy(update={"loss": model.loss}) for model in rest)
        assert {name for name, model in models.items() if model.loss != Loss.FULL} == {
            name for name in models if name.endswith("hierarchical softmax")
        }


def test_subsets_have_the_encoders_of_their_letters() -> None:
    for variant in subsets(Variant(TABLE_5["TSL"], mixture(True))):
        letters = "".join(Encoder(name).name[0] for name in variant.model["encoders"])
        assert variant.name == f"M3R-{letters}"


@pytest.mark.parametrize("full", [False, True])
def test_every_model_of_temporal_ranges_has_the_same_number_of_trials_each_a_model_of_its_own(full: bool) -> None:
    compared = baselines(full)
    trials = set()
    for model in (*compared, *subsets(compared[-1])):
        space = search_space(model, full)
        tried = [GeneratorConfig.model_validate({"model": {**model.model, **s}}).model for s in space.values()]
        assert all(first != second for i, first in enumerate(tried) for second in tried[:i])
        trials.add(tuple(space))
        if full and model.model["kind"] == "m3":
            last = tried[-1]
            assert (last.short_dropout > 0) == (Encoder.SHORT in last.encoders)
            assert (last.dropout > 0) == (Encoder.SHORT not in last.encoders)
    assert len(trials) == 1


def test_another_threshold_has_the_same_weights_and_leaves_out_what_is_below() -> None:
    config = {**mixture(False), "context": (), "gate": "bottom", "loss": "full"}
    trained = M3(M3Config.model_validate(config), SPEC, SIZES)
    features = tensors({name: values for name, values in batch().items() if name in SPEC})
    same, none = with_threshold(trained, None), with_threshold(trained, 0.999)
    expected = trained.query_embeddings(features).numpy()
    np.testing.assert_array_equal(same.query_embeddings(features), expected)
    np.testing.assert_array_equal(none.last_state(features), np.zeros_like(none.last_state(features)))


def test_of_its_trials_a_model_keeps_the_settings_that_validate_best() -> None:
    validation = {0: 0.2, 1: 0.4, 2: 0.3}
    space = {name: {"depth": depth} for depth, name in enumerate("abc")}
    best, trials = tuned(
        Variant("model", {"depth": 9, "width": 5}),
        space,
        lambda variant: Judged({}, 1, [1], [validation[variant.model["depth"]]]),
    )
    assert best.model == {"depth": 1, "width": 5}
    assert {name: each.validation for name, each in trials.items()} == {"a": [0.2], "b": [0.4], "c": [0.3]}


def test_trials_are_a_row_for_each_model_and_a_column_for_each_setting() -> None:
    def judged(*validation: float) -> Judged:
        return Judged({}, 1, [1], list(validation))

    table = trial_table(
        "Trials",
        {"a": {"none": judged(0.2, 0.9), "some": judged(0.3)}, "b": {"some": judged(0.5), "none": judged(0.4)}},
    )
    assert table.columns == ["model", "none", "some"]
    assert table.rows == [["a", 0.2, 0.3], ["b", 0.4, 0.5]]  # of the first seed


def test_the_price_of_accuracy_is_told_of_all_thresholds_together() -> None:
    def row(penalty: str, threshold: str, map_at_20: float, milliseconds: float) -> list:
        return [penalty, threshold, Figure("MAP@20", map_at_20, 0.0, 1.0, 10), milliseconds, 0.5, 1.0]

    told = summary(
        [
            row("0.0", "none", 0.2, 4.0),
            row("0.0", "0.3", 0.165, 1.0),
            row("0.1", "none", 0.199, 4.4),
            row("0.1", "0.1", 0.181, 2.0),
        ]
    )
    assert told == [
        "at least 98% of MAP@20: gate penalty 0.0, threshold none keeps 100.0% at +0% latency",
        "at least 90% of MAP@20: gate penalty 0.1, threshold 0.1 keeps 90.5% at -50% latency",
        "at least 80% of MAP@20: gate penalty 0.0, threshold 0.3 keeps 82.5% at -75% latency",
    ]
