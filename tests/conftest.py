"""Shared fixtures. `models` comes first: it selects Keras 2 before TensorFlow is imported."""

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

import models  # noqa: F401

if TYPE_CHECKING:
    from tests.end_to_end.conftest import Funnel

# Property tests see the same examples in every run, however loaded the machine is.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def funnel(tmp_path_factory: pytest.TempPathFactory) -> "Funnel":
    """One small run of the whole funnel. Read-only for the tests; one that changes something copies the folder."""
    from tests.end_to_end.conftest import TINY, Funnel

    root = tmp_path_factory.mktemp("funnel")
    config = root / "tiny.yaml"
    config.write_text(TINY)
    made = Funnel(config, root / "run")
    assert made.said.code == 0, made.said
    return made
