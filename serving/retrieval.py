"""The retrieval SavedModel: raw features in, the k nearest videos out.

Covington et al. 2016, section 3.1: query tower and nearest-neighbour index in one graph. Watched and excluded videos
are removed before the cut, so that k columns are k videos a user may be shown.
"""

from collections.abc import Mapping

import tensorflow as tf
from pydantic import Field

from features.settings import Settings
from models.candidate_generator import CandidateGenerator
from serving.index import Index
from serving.signatures import ConcreteFunction, RawFeatureTransform, Tensors, Untracked, signature, variables_read

EXCLUDED = "excluded_video_ids"
WATCHED = "watched_video_ids"


class RetrievalConfig(Settings):
    """What a retrieval request answers."""

    k: int = Field(default=200, ge=1, description="videos answered, fixed at export")
    exclude_watched: bool = Field(
        default=True, description="whether the watched videos sent are left out of the answer"
    )


class RetrievalModule(tf.Module):
    """Query tower and index with their signatures.

    Inputs: what the generator's features need, and `excluded_video_ids` string `[B, X]`, padded with "".
    Outputs: `video_ids` string `[B, k]` and `scores` float32 `[B, k]`, best first; where fewer than k videos remain
    the last columns hold "" and -inf. Ids that are not in the index are no error anywhere.

    Args:
      generator: the trained candidate generator.
      raw_features: raw inputs to the generator's features.
      index: over the generator's video vectors.
      config: number of videos answered, and what is left out.
    """

    def __init__(
        self, generator: CandidateGenerator, raw_features: RawFeatureTransform, index: Index, config: RetrievalConfig
    ) -> None:
        super().__init__(name="retrieval")
        self._model = Untracked(generator)
        self.raw_features = raw_features
        self.index = index
        self.config = config

    def retrieve(self, raw: Mapping[str, tf.Tensor]) -> Tensors:
        """The signature `retrieval`."""
        return self.answer(self.raw_features(raw), raw)

    def answer(self, features: Mapping[str, tf.Tensor], raw: Mapping[str, tf.Tensor]) -> Tensors:
        """The videos for given query features, without those that the raw request excludes."""
        excluded = [raw[EXCLUDED]]
        if self.config.exclude_watched and WATCHED in raw:
            excluded.append(raw[WATCHED])
        query = self._model.value.query_embeddings(features)
        rows = self.index.rows_of(tf.concat(excluded, axis=1))
        ids, scores = self.index.search(tf.cast(query, tf.float32), rows, self.config.k)
        return {"video_ids": ids, "scores": scores}

    def features(self, raw: Mapping[str, tf.Tensor]) -> Tensors:
        """The signature `features`: what the query tower is fed, by feature name."""
        return dict(self.raw_features(raw))

    @property
    def input_specs(self) -> dict[str, tf.TensorSpec]:
        """Inputs of the signature `retrieval`."""
        excluded = tf.TensorSpec([None, None], tf.string)
        watched = {WATCHED: excluded} if self.config.exclude_watched else {}
        return {**watched, **self.raw_features.input_specs, EXCLUDED: excluded}

    def signatures(self) -> dict[str, ConcreteFunction]:
        """Signature name -> traced function."""
        retrieval = signature(self.retrieve, self.input_specs)
        features = signature(self.features, self.raw_features.input_specs)
        self.weights = variables_read([retrieval, features])
        return {"retrieval": retrieval, "serving_default": retrieval, "features": features}
