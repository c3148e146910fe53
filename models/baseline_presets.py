"""The baselines of the sequence papers by name, as configurations of models that are here.

Sizes on MovieLens are those of Tang et al. 2019, section 5.1: embeddings of 64, and 32 for what is behind them. For
YouTube (section 5.2) the paper has no sizes; those of `youtube_m3r` stand, and its context. Bags of words are those of
Beutel et al. 2018, section 7.1, at the size of `rnn_latent_cross`; without its user demographics, which sequence
examples do not have. RRN and the plain RNN stand beside the paper's model, in `models/latent_cross.py`.
"""

from collections.abc import Mapping
from itertools import product
from types import MappingProxyType
from typing import Any

from models import m3
from models.context_features import TIME_DELTA, TIME_OF_WEEK, ContextFeature, Use
from models.latent_cross import LatentCrossConfig
from models.m3 import Encoder, Gate, M3Config
from models.sampled_softmax import Loss
from models.sequence_baselines import BagOfWatchesConfig, CaserConfig
from models.sequence_generator import SequenceConfig

_MOVIELENS, _YOUTUBE = m3.PRESETS["movielens_m3r"], m3.PRESETS["youtube_m3r"]
_LAST_EVENT: dict[str, Any] = {"encoders": (Encoder.TINY,), "gate": Gate.FIXED}
_YOUTUBE_SIZES: dict[str, Any] = {
    "dimension": _YOUTUBE.dimension,
    "sampler": _YOUTUBE.sampler,
    "context": _YOUTUBE.context,
}
_COMPARATIVE_SIZE = 256

CASER_GRID: tuple[tuple[int, int], ...] = tuple(product((2, 4, 8), (16, 32, 64)))
"""Vertical filters, and horizontal filters of each of the heights 3, 5 and 7, that Tang et al. 2019 try (5.1)."""

_LATENT_CROSS: Mapping[str, LatentCrossConfig] = MappingProxyType(
    {
        "gru4rec": LatentCrossConfig(dimension=_MOVIELENS.dimension, units=32),
        "context_gru": LatentCrossConfig(
            **_YOUTUBE_SIZES, units=_YOUTUBE.encoder_dimension, output_widths=_YOUTUBE.output_widths
        ),
    }
)

_M3: Mapping[str, M3Config] = MappingProxyType(
    {
        # The embedding of the last video meets the output embeddings: two factors of a Markov chain, nothing between.
        "fmc": M3Config(**_LAST_EVENT, dimension=_MOVIELENS.dimension, encoder_dimension=_MOVIELENS.dimension),
        # "Condition the last event's embedding on last event's context features by concatenating them and having a
        # feed-forward layer over them."
        "context_fmc": M3Config(
            **_LAST_EVENT,
            dimension=_YOUTUBE.dimension,
            sampler=_YOUTUBE.sampler,
            context=tuple(feature.model_copy(update={"post": Use.NONE}) for feature in _YOUTUBE.context),
            input_widths=_YOUTUBE.input_widths,
            encoder_dimension=_YOUTUBE.encoder_dimension,
        ),
    }
)

_BAG_OF_WATCHES: Mapping[str, BagOfWatchesConfig] = MappingProxyType(
    {
        # "A single hidden layer with size of 32 and ReLU".
        "deep_bow": BagOfWatchesConfig(dimension=_MOVIELENS.dimension, output_widths=(32,)),
        # Last event, average of all and context through "several ReLU layers": how many is not told, here three.
        "deep_youtube": BagOfWatchesConfig(**_YOUTUBE_SIZES, last_watches=1, output_widths=(1024, 512, 256)),
        "bag_of_words": BagOfWatchesConfig(dimension=_COMPARATIVE_SIZE, output_widths=(_COMPARATIVE_SIZE,)),
        # Three layers over the bag, the last three videos, Δt and the time of the week of the request.
        "bag_of_words_time": BagOfWatchesConfig(
            dimension=_COMPARATIVE_SIZE,
            last_watches=3,
            context=(
                ContextFeature(name=TIME_DELTA, post=Use.CONCATENATE),
                ContextFeature(name=TIME_OF_WEEK, post=Use.CONCATENATE),
            ),
            output_widths=(_COMPARATIVE_SIZE,) * 3,
            loss=Loss.CO_WATCHED,
        ),
    }
)

_CASER: Mapping[str, CaserConfig] = MappingProxyType(
    {
        f"caser_{vertical}_{horizontal}": CaserConfig(
            dimension=_MOVIELENS.dimension, vertical_filters=vertical, horizontal_filters=horizontal
        )
        for vertical, horizontal in CASER_GRID
    }
)

BASELINES: Mapping[str, Mapping[str, SequenceConfig]] = MappingProxyType(
    {"latent_cross": _LATENT_CROSS, "m3": _M3, "bag_of_watches": _BAG_OF_WATCHES, "caser": _CASER}
)
"""Kind of model -> name -> the paper's baseline."""
