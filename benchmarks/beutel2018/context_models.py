"""The models that `context_fusion` compares: the paper's presets at a width that suits the platform."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.sequences import Variant, sizes
from models.baseline_presets import BASELINES
from models.latent_cross import PRESETS, LatentCrossConfig
from models.sampled_softmax import Loss

TABLE_4, FIGURE_4 = "Table 4, time", "Figure 4, all context"
HIERARCHICAL = "{}, hierarchical softmax"


@dataclass(frozen=True)
class Comparison:
    """One table or figure of the paper.

    Args:
      name: of the table or figure.
      variants: its models, those of the paper's sentences best first by the paper, then its baselines.
      crossed, concatenated, without: names of the variants that the paper's sentences are about.
      reference: the paper's figures.
    """

    name: str
    variants: Sequence[Variant]
    crossed: str
    concatenated: str
    without: str
    reference: str


def _variant(name: str, config: LatentCrossConfig, full: bool, loss: Loss = Loss.FULL) -> Variant:
    """The preset with the experiment's widths and loss."""
    width = sizes(full)["dimension"]
    changed = {
        **config.model_dump(mode="json"),
        **sizes(full),
        "units": width,
        "input_widths": [width] if config.input_widths else [],
        "output_widths": [width] if config.output_widths else [],
        "loss": loss.value,
    }
    return Variant(name, changed)


def _bag(name: str, preset: str, full: bool) -> Variant:
    """A bag of words with the experiment's widths and, but for the one over co-watched videos, its softmax."""
    config = BASELINES["bag_of_watches"][preset]
    changed = {**config.model_dump(mode="json"), **sizes(full)}
    changed["output_widths"] = [changed["dimension"]] * len(config.output_widths)
    return Variant(name, changed | ({"loss": config.loss.value} if config.loss == Loss.CO_WATCHED else {}))


def table_4(full: bool) -> Comparison:
    """The time to the next watch alone; recurrent models by a full softmax, then by the paper's hierarchical one."""
    recurrent = {
        "RNN with Δt latent cross": PRESETS["rnn_latent_cross"],
        "RRN (concatenated Δt)": PRESETS["rrn"],
        "RNN (plain, no time)": PRESETS["rnn"],
    }
    return Comparison(
        TABLE_4,
        [
            *(_variant(name, preset, full) for name, preset in recurrent.items()),
            *(_variant(HIERARCHICAL.format(name), preset, full, preset.loss) for name, preset in recurrent.items()),
            _bag("Bag of words with time", "bag_of_words_time", full),
            _bag("Bag of words", "bag_of_words", full),
        ],
        "RNN with Δt latent cross",
        "RRN (concatenated Δt)",
        "RNN (plain, no time)",
        "Beutel et al. 2018, Table 4: MAP@20 0.0828, 0.0753, 0.0724, 0.0794, 0.0707; precision@1 0.1621, 0.1465, "
        "0.1345, 0.1550, 0.1250; paragraph vectors 0.0642 and 0.1123, co-watch 0.0621 and 0.1204",
    )


def figure_3(full: bool) -> Comparison:
    """The page alone."""
    return Comparison(
        "Figure 3, page",
        [
            _variant("page crossed and concatenated", PRESETS["page_both"], full),
            _variant("page crossed", PRESETS["page_cross"], full),
            _variant("page concatenated", PRESETS["page_concatenated"], full),
            _variant("uploader alone", PRESETS["page_none"], full),
        ],
        "page crossed",
        "page concatenated",
        "uploader alone",
        "Beutel et al. 2018, Figure 3: the cross is best, and concatenating too adds nothing (no values)",
    )


def figure_4(full: bool) -> Comparison:
    """All context of the production model."""
    return Comparison(
        FIGURE_4,
        [
            _variant("all context, crosses too", PRESETS["production_crosses"], full),
            _variant("all context concatenated", PRESETS["production_baseline"], full),
            _variant("uploader alone", PRESETS["page_none"], full),
        ],
        "all context, crosses too",
        "all context concatenated",
        "uploader alone",
        "Beutel et al. 2018, Figure 4: crosses improve on concatenation (no values)",
    )
