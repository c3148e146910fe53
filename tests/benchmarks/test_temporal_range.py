"""Mixtures of temporal ranges: which models are claimed above which."""

import numpy as np

from benchmarks.sequences import Judged
from benchmarks.tang2019.range_models import MIXTURES, RECURRENT, TABLE_5, baselines
from benchmarks.tang2019.temporal_range import OFF, ON, claims_of
from pipeline.evaluation.bootstrap import Measurement

PAPERS = {variant.name: variant.paper for variant in baselines(True)}


def judged(**values: float) -> dict[str, Judged]:
    """All variants at MAP 0.1, validation and test, but those that are named."""
    found = {}
    for name in {*PAPERS, *TABLE_5.values()}:
        value = values.get(name.split(",")[0].replace("-", "_"), 0.1)
        samples = value + 0.001 * np.array([-1.0, 0.0, 1.0])
        found[name] = Judged({"MAP@20": [Measurement("MAP@20", value, samples, 10, "one")]}, 1, [1], [value])
    return found


def test_mixtures_are_claimed_above_the_best_baseline_of_each_table_of_the_paper() -> None:
    """Caser is in the first table alone, DeepYouTube in the second alone, the recurrent model in both."""
    found = judged(Caser=0.12, DeepYouTube=0.11, M3R_TSL=0.15)
    told = [made.sentence() for made in claims_of(ON, found, [*PAPERS], PAPERS)]
    assert told[0].startswith("ranges: M3R-TSL over Caser, with context, MAP@20 +25.0%: +0.0300")
    assert told[1].startswith("ranges: M3R-TSL over DeepYouTube, MAP@20 +36.4%: +0.0400")
    assert told[2].startswith("ranges: M3C-TSL over Caser, with context, MAP@20 -16.7%: -0.0200")
    both = [made.sentence() for made in claims_of(ON, judged(Context_GRU=0.2), [*PAPERS], PAPERS)]
    assert [sentence.count("over Context-GRU") for sentence in both].count(1) == len(MIXTURES)


def test_every_pair_of_ranges_is_claimed_above_its_members_and_all_three_above_every_pair() -> None:
    told = " ".join(made.sentence() for made in claims_of(ON, judged(), [*PAPERS], PAPERS))
    for pair in ("TS", "TL", "SL"):
        assert f"M3R-TSL over M3R-{pair}," in told
        assert all(f"M3R-{pair} over M3R-{letter}," in told for letter in pair)
    assert "M3R-S over M3R-T," in told
    assert "M3R-S over M3R-L," in told


def test_without_its_cause_only_the_mixtures_advantage_is_looked_at() -> None:
    told = [made.sentence() for made in claims_of(OFF, judged(), [RECURRENT, *MIXTURES], PAPERS)]
    assert [sentence.split(",")[0] for sentence in told] == [f"{OFF}: {m} over {RECURRENT}" for m in MIXTURES]
    assert all("vanishes" in sentence for sentence in told)
