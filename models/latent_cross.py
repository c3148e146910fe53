"""The recurrent candidate generator of Beutel et al. 2018, with its context as latent crosses or concatenated.

    h0(τ) = f_i(x(τ)),   h1(τ), z(τ) = f_r(h0(τ), z(τ - 1)),   y(τ) from f_o(h1(τ - 1), c(τ))       (section 5.2)

f_r is a GRU or an LSTM. Everything around it, the latent cross (1 + Σ w) ∗ h among it (section 6), is what sequence
models share: `models/sequence_generator.py` and `models/context_features.py`. The context c(τ - 1) of a watch enters
with it, the context c(τ) of what is predicted acts after the recurrent cell, so that no state knows of it.

`PRESETS` are the models of the paper's section 7. It gives the production model's layers (256 wide) and its context;
where it says nothing (the comparative models' sizes, the dimensions of embeddings) the production model's 256 stands.
The comparative ones have a hierarchical softmax, which no index answers for: a run that exports them gives `loss`
another value. They are trained by Adam in the paper, the production model by Adagrad; presets leave the optimizer to
the training's settings, whose default is Adam.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
import tensorflow as tf
from pydantic import Field

from features.spec import FeatureSpec
from models.context_features import ContextFeature, Use
from models.recurrent import Cell, recurrent_layer
from models.sampled_softmax import Loss
from models.samplers import NegativeSamplerConfig
from models.sequence_generator import SequenceConfig, SequenceGenerator
from models.sequence_steps import of_last_event


class LatentCrossConfig(SequenceConfig):
    """Sizes, context and loss of the recurrent model."""

    kind: Literal["latent_cross"] = "latent_cross"
    cell: Cell = Cell.GRU
    units: int = Field(default=64, ge=1, description="of the recurrent cell; 256 in the paper")

    def state_width(self, input_width: int) -> int:
        return self.units


class LatentCross(SequenceGenerator):
    """See the module's text.

    Args:
      config: sizes, context and loss.
      spec, vocabulary_sizes, class_attributes: as in `SequenceGenerator`.
    """

    config: LatentCrossConfig
    config_type = LatentCrossConfig

    def __init__(
        self,
        config: LatentCrossConfig,
        spec: FeatureSpec,
        vocabulary_sizes: Mapping[str, int],
        class_attributes: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(config, spec, vocabulary_sizes, class_attributes)
        self.recurrent = recurrent_layer(config.cell, config.units, self.input_width, "recurrent")
        self.built = True

    def states(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        return of_last_event(self.recurrent(self.events(features, training).inputs, training=training))


_UPLOADER = ContextFeature(name="uploader", pre=Use.CONCATENATE)
_PRODUCTION = LatentCrossConfig(
    dimension=256,
    input_widths=(256,),
    units=256,
    output_widths=(256,),
    sampler=NegativeSamplerConfig(num_sampled=20_000),
)
_COMPARATIVE = LatentCrossConfig(dimension=256, cell=Cell.LSTM, units=256, loss=Loss.HIERARCHICAL)


def _production(time_delta: Use, page_before: Use, page_after: Use, device_after: Use) -> LatentCrossConfig:
    context = (
        _UPLOADER,
        ContextFeature(name="page", pre=page_before, post=page_after),
        ContextFeature(name="device", pre=Use.CONCATENATE, post=device_after),
        ContextFeature(name="watch_time", pre=Use.CONCATENATE),
        ContextFeature(name="time_delta", pre=time_delta),
        ContextFeature(name="watch_age", post=Use.CONCATENATE),
    )
    return _PRODUCTION.model_copy(update={"context": context})


def _page(pre: Use, post: Use) -> LatentCrossConfig:
    page = (ContextFeature(name="page", pre=pre, post=post),) if post != Use.NONE else ()
    return _PRODUCTION.model_copy(update={"context": (_UPLOADER, *page)})


def _comparative(time_delta: Use) -> LatentCrossConfig:
    context = (ContextFeature(name="time_delta", pre=time_delta),) if time_delta != Use.NONE else ()
    return _COMPARATIVE.model_copy(update={"context": context, "cross_identity": False})


PRESETS: Mapping[str, LatentCrossConfig] = MappingProxyType(
    {
        # Section 7.2.3, Figure 4: all features concatenated; with crosses on top.
        "production_baseline": _production(*[Use.CONCATENATE] * 4),
        "production_crosses": _production(*[Use.BOTH] * 4),
        # Section 7.2.2, Figure 3: the concatenation is on both sides, the cross after the recurrent cell.
        "page_none": _page(Use.NONE, Use.NONE),
        "page_concatenated": _page(Use.CONCATENATE, Use.CONCATENATE),
        "page_cross": _page(Use.NONE, Use.CROSS),
        "page_both": _page(Use.CONCATENATE, Use.BOTH),
        # Section 7.1, Table 4: RNN with Δt latent cross (v_j ∗ w_Δt), RRN ([v_j; w_Δt]), plain RNN.
        "rnn_latent_cross": _comparative(Use.CROSS),
        "rrn": _comparative(Use.CONCATENATE),
        "rnn": _comparative(Use.NONE),
    }
)
"""Name -> the paper's model."""
