"""One small job in two shapes on Beam's local runner: the 10,000 most frequent videos and 101 quantiles.

    python -m benchmarks.speed.job_shapes columnar|rows TABLES

`columnar` elements are batches, as everywhere here; `rows` are one Python dict per event, as Beam's own Parquet source
gives them, with Beam's own combiners. Prints its seconds and what it found.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.beam import ReadTables, make_pipeline, run
from features.quantiles import QuantilesCombineFn, QuantilesConfig
from features.tables import table_files
from features.vocabulary import CountIds, Vocabulary, VocabularyConfig, count_values

TOP = 10_000
COLUMNS = ("video_id", "watch_time_s")
TABLES = ("watches", "impressions")


def columnar(pipeline: beam.Pipeline, tables: Path) -> tuple[beam.PCollection, beam.PCollection]:
    batches = pipeline | ReadTables({name: (table_files(tables, name), COLUMNS) for name in TABLES})
    top = (
        batches
        | "Count" >> beam.Map(lambda table: count_values(table[1]["video_id"]))
        | beam.CombineGlobally(CountIds())
        | "Top" >> beam.Map(_most_frequent)
    )
    quantiles = (
        batches
        | "Times" >> beam.Map(lambda table: pc.drop_null(table[1]["watch_time_s"]).to_numpy())
        | beam.CombineGlobally(QuantilesCombineFn(QuantilesConfig()))
        | "Boundaries" >> beam.Map(lambda found: found.boundaries.tolist())
    )
    return top, quantiles


def _most_frequent(counts: pa.Table) -> list[tuple[str, int]]:
    vocabulary = Vocabulary.from_counts(counts, VocabularyConfig(top_n=TOP))
    return list(zip(vocabulary.ids.to_pylist(), vocabulary.counts.tolist(), strict=True))


def rows(pipeline: beam.Pipeline, tables: Path) -> tuple[beam.PCollection, beam.PCollection]:
    events = [
        pipeline | name >> beam.io.ReadFromParquet(f"{tables}/{name}/*/part-*.parquet", columns=list(COLUMNS))
        for name in TABLES
    ] | beam.Flatten()
    top = (
        events
        | "Video" >> beam.Map(lambda row: row["video_id"])
        | beam.combiners.Count.PerElement()
        | beam.combiners.Top.Of(TOP, key=_by_count)
    )
    quantiles = events | "Known" >> beam.FlatMap(_known_times) | beam.ApproximateQuantiles.Globally(101)
    return top, quantiles


def _by_count(counted: tuple[str, int]) -> tuple[int, list[int]]:
    """Descending counts, ascending ids."""
    return counted[1], [-ord(letter) for letter in counted[0]]


def _known_times(row: dict[str, Any]) -> Iterator[float]:
    if row["watch_time_s"] is not None:
        yield row["watch_time_s"]


class _Keep:
    """Results of a job that runs in this process, by name."""

    found: dict[str, Any] = {}

    @classmethod
    def put(cls, value: Any, name: str) -> None:
        cls.found[name] = value


def main(shape: str, tables: Path) -> None:
    started = time.perf_counter()
    pipeline = make_pipeline()
    top, quantiles = {"columnar": columnar, "rows": rows}[shape](pipeline, tables)
    _ = top | "KeepTop" >> beam.Map(_Keep.put, "top")
    _ = quantiles | "KeepQuantiles" >> beam.Map(_Keep.put, "quantiles")
    run(pipeline, shape)
    seconds = time.perf_counter() - started
    first = list(_Keep.found["top"][0])
    median = float(np.asarray(_Keep.found["quantiles"])[50])
    print(json.dumps({"seconds": seconds, "top": first, "median": median}))


if __name__ == "__main__":
    from benchmarks.speed.job_shapes import main as imported  # workers unpickle what the module defines, not __main__

    imported(sys.argv[1], Path(sys.argv[2]))
