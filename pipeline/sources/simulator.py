"""The embedded data source: a generated video platform with known truth.

`simulate` draws users, uploaders, series and videos, lets everybody watch, search and click through the window, and
returns canonical tables together with the truth behind them. Same configuration, same logs. Each effect has a switch in
`SimulatorConfig`; the formulas are in `simulator_behaviour.py`.
"""

from dataclasses import dataclass

import pyarrow as pa

from pipeline.sources.simulator_config import SimulatorConfig
from pipeline.sources.simulator_platform import generate_platform
from pipeline.sources.simulator_sessions import run_sessions
from pipeline.sources.simulator_tables import canonical_tables
from pipeline.sources.truth import Truth

__all__ = ["SimulatedLogs", "SimulatorConfig", "simulate"]


@dataclass(frozen=True)
class SimulatedLogs:
    """Canonical tables by name (events sorted by time) and the truth behind them."""

    tables: dict[str, pa.Table]
    truth: Truth


def simulate(config: SimulatorConfig | None = None) -> SimulatedLogs:
    """Generates the logs of a platform.

    Args:
      config: scale, seed and switches; default `SimulatorConfig()`.
    """
    platform = generate_platform(config or SimulatorConfig())
    tables, truth = canonical_tables(platform, run_sessions(platform))
    return SimulatedLogs(tables, truth)
