"""Variants of a log by the length of sequences: what they keep, what is compared, and uplifts by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.sequences import Judged
from benchmarks.tang2019.sequence_lengths import (
    TABLE_3,
    Lengths,
    claims_of,
    kept_users,
    models,
    settings,
    uplift,
    variants_of_the_log,
)
from models.m3 import Encoder
from pipeline.config import GeneratorConfig, RunConfig
from pipeline.evaluation.bootstrap import Measurement
from pipeline.protocols import PROTOCOLS
from tests.features.example_logs import START_US, table, write_tables


def test_the_papers_lengths_are_those_of_its_protocols_and_are_halved() -> None:
    for lengths in TABLE_3:
        protocol = PROTOCOLS[f"m3_movielens_{lengths.name.lower()}"]
        for part, values in lengths.settings().items():
            assert values.items() <= protocol[part].items()
    halves = [(each.least, each.most, each.window) for each in variants_of_the_log(full=True)]
    assert halves == [(10, 25, 10), (25, 75, 25), (75, 150, 75), (150, None, 150)]
    assert Lengths("S", 20, 50, 20).scaled(1 / 15) == Lengths("S", 2, 4, 2)  # 1.3, 3.3, 1.3 rounded up


@pytest.mark.parametrize("full", [False, True])
def test_all_variants_are_of_one_log_and_their_models_of_one_input(full: bool) -> None:
    logs = set()
    for lengths in variants_of_the_log(full):
        config = RunConfig.model_validate(settings(lengths, full))
        logs.add((config.source.model_dump_json(), config.split.model_dump_json()))
        assert config.features.sequence_length == config.sequence_examples.stride == lengths.window
        assert config.candidate_examples.evaluation_min_watches == lengths.least
        by_name = {
            variant.name: GeneratorConfig.model_validate({"model": dict(variant.model)}).model
            for variant in models(lengths, full)
        }
        assert list(by_name) == ["GRU", "Caser", "M3C", "M3R"]
        assert len({model.dimension for model in by_name.values()}) == 1
        assert all(model.context == model.input_widths == () for model in by_name.values())
        assert by_name["M3R"].encoders == tuple(Encoder)
        assert by_name["Caser"].last_watches <= lengths.window
    assert len(logs) == 1


def test_users_with_too_few_watches_are_left_out_and_of_the_others_the_last_ones_count(tmp_path: Path) -> None:
    """Of users with 1, 3 and 6 watches two have two or more, of which at most four are kept: 3 and 4."""
    rows = [
        {"user_id": user, "video_id": "v", "time_us": START_US + number}
        for user, count in (("a", 1), ("b", 3), ("c", 6))
        for number in range(count)
    ]
    run = SimpleNamespace(tables=write_tables(tmp_path, {"watches": table("watches", rows)}))
    assert kept_users(run, Lengths("S", 2, 4, 2)) == (2, 3.5)
    assert kept_users(run, Lengths("XL", 2, None, 2)) == (2, 4.5)


def measured(value: float, *samples: float) -> list[Measurement]:
    return [Measurement("MAP@20", value, np.array(samples), 10, "population")]


def judged(validation: dict[str, float], **measurements: list[Measurement]) -> dict[str, Judged]:
    return {
        name: Judged({"MAP@20": found}, 1, [1], [validation.get(name, 0.0)]) for name, found in measurements.items()
    }


def test_an_uplift_is_a_share_draw_by_draw() -> None:
    found = uplift(measured(0.12, 0.1, 0.15, 0.2), measured(0.1, 0.1, 0.1, 0.0))
    assert found.value == pytest.approx(0.2)
    np.testing.assert_allclose(found.samples, [0.0, 0.5, np.nan])  # nothing is a share of nothing


def test_mixtures_are_claimed_above_the_baseline_that_validates_better() -> None:
    found = judged(
        {"GRU": 0.2, "Caser": 0.3},
        GRU=measured(0.12, 0.12, 0.12),
        Caser=measured(0.11, 0.11, 0.11),
        M3C=measured(0.10, 0.09, 0.12),
        M3R=measured(0.132, 0.13, 0.14),
    )
    m3c, m3r = claims_of("S", found)
    assert m3r.sentence().startswith("S: M3R over Caser, MAP@20 +20.0%: +0.0220 [+0.02")
    assert m3r.sentence().endswith("holds")
    assert m3c.sentence().endswith("lies within noise")
