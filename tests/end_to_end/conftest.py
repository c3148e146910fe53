"""One small run of the whole funnel on the simulator; the fixture `funnel` of all tests holds what it left."""

from pathlib import Path

from tests.end_to_end.command_line import Answer, upnext

TINY = """
name: tiny
source: {kind: simulator, users: 200, videos: 150, uploaders: 30, topics: 8, days: 8}
split: {test_days: 2}
features: {without: [candidate_sources, candidate_score]}
shards: {num_shards: 2}
leakage: {examples_per_part: 40}
generators:
  two_tower:
    transition_start: {}
    model: {dimension: 8, depth: 1, loss: full}
    training: {epochs: 2, batch_size: 256}
  latent_cross:
    model:
      kind: latent_cross
      dimension: 8
      units: 8
      context: [{name: time_delta, pre: cross}, {name: page, pre: concatenate, post: cross}]
      loss: sampled
      sampler: {num_sampled: 40}
    training: {epochs: 1, batch_size: 64}
ranker:
  model: {hidden_units: [16]}
  training: {epochs: 1, batch_size: 256}
export:
  retrieval: {k: 50}
  parity: {examples: 20}
evaluation:
  retrieval: {bootstrap: {resamples: 50}}
  retrieval_baselines: {methods: [popularity, last-watch co-watch]}
  bootstrap: {resamples: 50}
  trees: {trials: 1, max_rounds: 20}
  show_users: 1
"""


class Funnel:
    """A finished run: its configuration file, its folder and what the command said."""

    def __init__(self, config: Path, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.said = self.run()

    def run(self, *changes: str, folder: Path | None = None) -> Answer:
        """The same command again, with settings changed."""
        settings = [argument for change in changes for argument in ("--set", change)]
        return upnext("run", self.config, "--workdir", folder or self.folder, *settings)
