"""The models that `temporal_range` compares, with the paper's figures for them."""

from dataclasses import replace
from typing import Any

from benchmarks.sequences import Variant, sizes
from models.context_features import ContextFeature, Use
from models.m3 import PRESETS, Encoder, Gate
from models.range_encoders import Short

MIXTURES = ("M3R-TSL", "M3C-TSL")
RECURRENT = "Context-GRU"
PAPERS_LOGS = ("MovieLens 20M", "YouTube")  # of Tables 2 and 4
TABLE_5 = {letters: f"M3R-{letters}" for letters in ("T", "S", "L", "TS", "TL", "SL", "TSL")}
"""Encoders -> the variant of table 5; M3R-TSL is M3R itself."""

_LETTERS = {"T": Encoder.TINY, "S": Encoder.SHORT, "L": Encoder.LONG}
_PAPER_5 = {
    "T": (0.0269, 0.1406),
    "S": (0.0363, 0.1673),
    "L": (0.0266, 0.1359),
    "TS": (0.0412, 0.1700),
    "TL": (0.0293, 0.1485),
    "SL": (0.0403, 0.1702),
    "TSL": (0.0421, 0.1743),
}
_CONTEXT = (
    ContextFeature(name="page", pre=Use.CONCATENATE, post=Use.CONCATENATE),
    ContextFeature(name="device", pre=Use.CONCATENATE, post=Use.CONCATENATE),
    ContextFeature(name="time_delta", pre=Use.CONCATENATE),
    ContextFeature(name="uploader", pre=Use.CONCATENATE, dimension=16),
)


def mixture(full: bool, **changes: Any) -> dict[str, Any]:
    """M3R with the experiment's widths and context; without F_in, which decided little in trials."""
    width = sizes(full)["dimension"]
    config = PRESETS["youtube_m3r"].model_copy(update={"context": _CONTEXT, **changes})
    widths = {
        "input_widths": [],
        "encoder_dimension": width,
        "output_widths": [width],
        "embedding_dimension": width,
    }
    return {**config.model_dump(mode="json"), **sizes(full), **widths}


def search_space(model: Variant, full: bool) -> dict[str, dict[str, Any]]:
    """The settings that a model of Tables 2, 4 and 5 chooses from; at smoke scale there is no choice.

    As many for each, with the same shares: nothing dropped, all that dropout can, and only what is read before f_o, of
    which a mixture's other ranges are spared where there is a short one.
    """
    has_short = Encoder.SHORT in model.model.get("encoders", ())

    def before(share: float) -> dict[str, Any]:
        return {"short_dropout": share} if has_short else {"dropout": share, "output_dropout": 0.0}

    space: dict[str, dict[str, Any]] = {"no dropout": {}}
    if full:
        space["dropout 0.2"] = {"dropout": 0.2}
        space |= {f"dropout {share} before f_o": before(share) for share in (0.4, 0.6)}
    return space


def _told(movielens: float, youtube: float) -> dict[str, float]:
    return dict(zip(PAPERS_LOGS, (movielens, youtube), strict=True))


def subsets(whole: Variant) -> list[Variant]:
    """Table 5: subsets of the encoders of M3R, which is `whole`."""
    return [
        replace(whole, name=name, paper=_told(*_PAPER_5[letters])).with_settings(
            {"encoders": [_LETTERS[letter].value for letter in letters]}
        )
        for letters, name in TABLE_5.items()
    ]


def gates(whole: Variant) -> list[Variant]:
    """Table 6: what the gates of M3R depend on; the paper's MovieLens has no context."""
    figures = {Gate.FIXED: ("M3R, gates fixed", 0.0413, 0.1715), Gate.BOTTOM: ("M3R, bottom-switch", 0.0421, 0.1734)}
    others = [
        replace(whole, name=name, paper=_told(*paper)).with_settings({"gate": gate.value})
        for gate, (name, *paper) in figures.items()
    ]
    return [*others, replace(whole, paper=_told(0.0421, 0.1743))]


def baselines(full: bool) -> list[Variant]:
    """Tables 2 and 4: the mixtures beside models of one range, all with the same context."""
    width = sizes(full)["dimension"]
    context = [feature.model_dump(mode="json") for feature in _CONTEXT]
    bag = {"kind": "bag_of_watches", **sizes(full), "context": context, "output_widths": [width]}
    caser = {**bag, "kind": "caser", "horizontal_filters": width // 2, "vertical_filters": 4}
    recurrent = {"kind": "latent_cross", **sizes(full), "units": width, "context": context}
    return [
        Variant("DeepYouTube", {**bag, "last_watches": 1}, {"YouTube": 0.1455}),
        Variant("DeepBoW, with context", bag, {"MovieLens 20M": 0.0093}),
        Variant("Caser, with context", caser, {"MovieLens 20M": 0.0304}),
        Variant("Context-FMC", mixture(full, encoders=(Encoder.TINY,), gate=Gate.FIXED), _told(0.0317, 0.1240)),
        Variant(RECURRENT, {**recurrent, "output_widths": [width]}, _told(0.0343, 0.1503)),
        Variant("M3C-TSL", mixture(full, short=Short.CONVOLUTION), _told(0.0379, 0.1654)),
        Variant("M3R-TSL", mixture(full), _told(0.0421, 0.1743)),
    ]
