"""Dropout in sequence models: of the watches' inputs, of f_o's, and of what the short range alone reads."""

import numpy as np
import pytest

from models.m3 import Encoder, Gate, M3Config
from models.range_encoders import Short
from tests.models.sequence_batches import batch, tensors
from tests.models.small_m3 import small

FEATURES = tensors(batch())
UNITS = 3  # of each encoder


@pytest.mark.parametrize("short", [Short.GRU, Short.CONVOLUTION])
def test_dropout_of_the_short_range_leaves_the_tiny_and_the_long_range_whole(short: Short):
    model = small(short=short, short_dropout=0.5, gate=Gate.FIXED)
    served, trained = (model.states(FEATURES, training=training).numpy() for training in (False, True))

    def part(encoder: Encoder) -> slice:
        first = list(Encoder).index(encoder) * UNITS
        return slice(first, first + UNITS)

    for encoder in (Encoder.TINY, Encoder.LONG):
        np.testing.assert_array_equal(trained[..., part(encoder)], served[..., part(encoder)])
    assert (trained[..., part(Encoder.SHORT)] != served[..., part(Encoder.SHORT)]).any()


def test_what_comes_after_the_encoder_has_the_share_of_its_inputs_unless_told_another():
    def dropped(**shares: float) -> tuple[bool, bool]:
        """Whether training drops something of the watches' inputs, and of f_o's."""
        model = small(**shares)
        events = [model.events(FEATURES, training=training).inputs.numpy() for training in (False, True)]
        states, context = model.states(FEATURES), model.step_context(FEATURES)
        fused = [model.fuse(states, context, training=training).numpy() for training in (False, True)]
        return (events[0] != events[1]).any(), (fused[0] != fused[1]).any()

    assert dropped() == (False, False)
    assert dropped(dropout=0.5) == (True, True)
    assert dropped(dropout=0.5, output_dropout=0.0) == (True, False)
    assert dropped(output_dropout=0.5) == (False, True)


def test_all_that_is_read_can_not_be_dropped():
    for share in ("dropout", "output_dropout", "short_dropout"):
        with pytest.raises(ValueError, match=f"{share}\n.*less than 1"):
            M3Config(**{share: 1.0})
