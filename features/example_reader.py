"""Reads example sets as columnar batches, without TensorFlow."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.artifacts import read_manifest
from features.errors import ArtifactError
from features.feature_columns import GENERATORS
from features.hashing import hash_strings
from features.spec import Feature, FeatureSpec, Kind, Model, Side, read_specs
from features.splits import Part, Split

SPEC = "features.json"
"""The file of an example set that holds its feature specification."""


class ExampleSet:
    """A published example set.

    Args:
      folder: published by `features.example_sets.build_examples`.

    Raises:
      ArtifactError: nothing is published there, or something else is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest: Mapping[str, Any] = read_manifest(folder)
        if self.manifest.get("kind") != "examples":
            raise ArtifactError(f"{folder}: expected an example set, found {self.manifest.get('kind')!r}")
        self.model: Model = self.manifest["model"]
        self.spec: FeatureSpec = read_specs(self.folder / SPEC)[self.model]
        self.split = Split.from_json(self.manifest["split"])

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features that the files hold; attributes of a generator's output videos are in the catalogue."""
        return self.spec.side(Side.QUERY) if self.model in GENERATORS else self.spec.features

    @property
    def serving_values(self) -> dict[str, float]:
        """Feature -> what stands in place of its logged values at serving; of a categorical one the row of that id."""
        rows = self.manifest.get("serving_rows", {})
        fixed = [feature for feature in self.features if feature.serving_value is not None]
        absent = [f.name for f in fixed if f.kind == Kind.CATEGORICAL and f.name not in rows]
        if absent:
            raise ArtifactError(
                f"{self.folder}: expected the row of {absent[0]!r} at serving in the manifest, found "
                f"{', '.join(rows) or 'none'}; build the examples again"
            )
        return {f.name: float(rows[f.name] if f.kind == Kind.CATEGORICAL else f.serving_value or 0) for f in fixed}

    def files(self, part: Part) -> list[Path]:
        """The files of a part, one per shard, in the order of the shards."""
        return sorted((self.folder / part.folder).glob("part-*.parquet"))

    def num_examples(self, part: Part) -> int:
        return int(self.manifest["counts"]["kept"][part.folder])

    def schema(self, part: Part) -> pa.Schema:
        return pq.read_schema(self.files(part)[0])

    def read(self, part: Part, columns: Sequence[str] | None = None, at_most: int | None = None) -> pa.Table:
        """A part in the order of its files: whole, or the first rows. Users are spread over the files by their hash."""
        wanted = None if columns is None else list(columns)
        tables: list[pa.Table] = []
        for file in self.files(part):
            tables.append(pq.read_table(file, columns=wanted))
            if at_most is not None and sum(map(len, tables)) >= at_most:
                break
        return pa.concat_tables(tables).slice(0, at_most)

    def rows_of_some_users(self, part: Part, most: int | None) -> np.ndarray | None:
        """int64 rows of a part, ascending: all examples of users drawn by a hash; at most `most`, or those of one user.

        None where they are all: of a part that has no more, or where `most` is None.
        """
        if most is None or self.num_examples(part) <= most:
            return None
        parts: list[pa.Table] = []
        for file in self.files(part):  # a user is in one file, and they are spread over the files by their hash
            parts.append(pq.read_table(file, columns=["user_id"]))
            if sum(map(len, parts)) >= most:
                break
        users = pc.dictionary_encode(pa.concat_tables(parts)["user_id"].combine_chunks())
        of_row = users.indices.to_numpy()
        drawn = np.argsort(hash_strings(users.dictionary, _DRAWN_SEED), kind="stable")
        examples = np.cumsum(np.bincount(of_row)[drawn])
        return np.flatnonzero(np.isin(of_row, drawn[: max(int(np.searchsorted(examples, most, side="right")), 1)]))

    def batches(
        self,
        files: Iterable[Path],
        columns: Sequence[str] | None = None,
        batch_rows: int = 1 << 14,
        refit: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """The rows of files in their order, a batch at a time.

        Args:
          files: of `files(...)`; of several parts when training and validation are put together.
          columns: to read; None for all.
          batch_rows: rows of a batch at most.
          refit: the files are trained on together: the example age of every row is counted from the latest training
            or validation watch, and rows whose label is out of vocabulary are left out.
        """
        refits = refit and self.model in GENERATORS
        wanted = None if columns is None else list(columns)
        needed = None if wanted is None else list(dict.fromkeys([*wanted, *(_REFIT_COLUMNS if refits else ())]))
        for file in files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(batch_rows, columns=needed, use_threads=False):
                    yield self._refit(batch, wanted) if refits else batch

    def _refit(self, batch: pa.RecordBatch, columns: list[str] | None) -> pa.RecordBatch:
        batch = batch.filter(pc.greater(batch["label"], 0))
        if "example_age" in batch.schema.names:
            times_us = batch["label_timestamp"].cast(pa.int64()).to_numpy()
            ages = ((self.manifest["refit_t_max_us"] - times_us) / 1e6).astype(np.float32)
            batch = batch.set_column(batch.schema.get_field_index("example_age"), "example_age", pa.array(ages))
        return batch if columns is None else batch.select(columns)


_DRAWN_SEED = 0xE7A1  # apart from the hashes that split users and pick shards
_REFIT_COLUMNS = ("label", "label_timestamp")
