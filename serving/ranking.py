"""The ranking SavedModel: raw features and candidate ids in, three numbers per candidate out.

Covington et al. 2016, section 4.2: `score` is the odds exp(logit) of weighted logistic regression and orders the
list. The query side is computed once per request, the impression side once per candidate.
"""

from collections.abc import Mapping

import tensorflow as tf

from features.spec import Side
from models.ranker import Ranker
from serving.index import NO_VIDEO
from serving.signatures import ConcreteFunction, RawFeatureTransform, Tensors, Untracked, signature, variables_read

CANDIDATES = "candidate_ids"


class RankingModule(tf.Module):
    """The ranker with its signatures.

    Inputs: what the ranker's features need, and `candidate_ids` string `[B, C]`, padded with "".
    Outputs, float32 `[B, C]`: `score` (odds, larger is better), `click_probability`, `expected_watch_time_s`. Padding
    gets 0 in all three, below every candidate's score. A candidate that the catalogue does not hold is scored with its
    features missing or out of vocabulary.

    Args:
      ranker: the trained ranker.
      raw_features: raw inputs to the ranker's features.
    """

    def __init__(self, ranker: Ranker, raw_features: RawFeatureTransform) -> None:
        super().__init__(name="ranking")
        self._model = Untracked(ranker)
        self.raw_features = raw_features

    def rank(self, raw: Mapping[str, tf.Tensor]) -> Tensors:
        """The signature `ranking`."""
        return self.answer(self.raw_features(raw), raw)

    def answer(self, features: Mapping[str, tf.Tensor], raw: Mapping[str, tf.Tensor]) -> Tensors:
        """The predictions for given features."""
        ranker = self._model.value
        query = ranker.query_activations({f.name: features[f.name] for f in ranker.spec.side(Side.QUERY)})
        output = ranker.score(query, {f.name: features[f.name] for f in ranker.spec.side(Side.IMPRESSION)})
        present = raw[CANDIDATES] != NO_VIDEO
        return {
            name: tf.where(present, tf.cast(value, tf.float32), 0.0)
            for name, value in ranker.predictions(output)._asdict().items()
        }

    def features(self, raw: Mapping[str, tf.Tensor]) -> Tensors:
        """The signature `features`: what the ranker is fed, by feature name."""
        return dict(self.raw_features(raw))

    @property
    def input_specs(self) -> dict[str, tf.TensorSpec]:
        """Inputs of the signatures."""
        return {**self.raw_features.input_specs, CANDIDATES: tf.TensorSpec([None, None], tf.string)}

    def signatures(self) -> dict[str, ConcreteFunction]:
        """Signature name -> traced function."""
        ranking = signature(self.rank, self.input_specs)
        features = signature(self.features, self.raw_features.input_specs)
        self.weights = variables_read([ranking, features])
        return {"ranking": ranking, "serving_default": ranking, "features": features}
