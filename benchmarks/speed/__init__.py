"""How fast it is, beside its peers and its limits: `python -m benchmarks.speed NAME` (`make bench` runs all).

Every benchmark is one file with `run(Request)`; names are in `NAMES`. Peers live in an environment of their own
(`requirements-peers.txt`), and one that is not there is left out with a word.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.speed.peers import Peers

NAMES = {
    "analysis": "Beam analysis and example building: events per second, peak memory, same bytes from run to run",
    "training_step": "sampled softmax and training steps, beside TensorFlow's own and PyTorch",
    "sequence_step": "training steps of the sequence models, beside PyTorch and by number of videos",
    "retrieval": "recall against latency over a million videos, beside ScaNN's binding, TFRS, faiss and hnswlib",
    "ranking": "latency of scoring candidates, and its share of the machine's floating-point limit",
    "simulator": "events per second of the simulated platform",
}
"""Name of each benchmark, and of its module, with what it shows."""

Scale = Literal["smoke", "full"]


@dataclass(frozen=True)
class Request:
    """How a benchmark is run.

    Args:
      scale: `smoke` proves that it works, in seconds; its figures mean nothing. `full` is what is published.
      results: the folder of results.
      scratch: an empty folder for what is made on the way.
      peers: where the peers are.
    """

    scale: Scale
    results: Path
    scratch: Path
    peers: Peers

    @property
    def smoke(self) -> bool:
        return self.scale == "smoke"
