"""Reads the watches that the peers are fitted on from the canonical tables."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import DataError
from features.event_windows import ORDER_ONLY
from features.shards import times_us
from features.splits import Split
from features.tables import has_table, table_batches, table_columns
from pipeline.evaluation.baselines.interactions import Interactions

_COLUMNS = ("user_id", "video_id", "timestamp", "time_known", "order", "completed")


def read_training_watches(
    tables: Path,
    split: Split,
    with_validation: bool,
    columns_of: Callable[[pa.ChunkedArray], np.ndarray],
    num_videos: int,
    with_impressions: bool = False,
) -> Interactions:
    """Watches of training users before a moment: all but those known not to be completed, order-only history included.

    Args:
      tables: the run's `tables` folder.
      split: says which users are held out.
      with_validation: False for tuning on the validation part, True to fit for the test part.
      columns_of: score columns of video ids, −1 for a video that has none.
      num_videos: number of score columns.
      with_impressions: also what was shown, as history of unknown time: it ties videos to users and is never recent.

    Raises:
      DataError: there is no such watch.
    """
    if not has_table(tables, "watches"):
        raise DataError(f"{tables}: no watches table; the retrieval peers are fitted on watches; run the ingest stage")
    parts = list(_kept(tables, "watches", split, with_validation))
    if with_impressions and has_table(tables, "impressions"):
        shown = _kept(tables, "impressions", split, with_validation)
        parts += [(rows, np.full(len(rows), ORDER_ONLY)) for rows, _ in shown]
    rows = pa.concat_tables([part for part, _ in parts], promote_options="default")
    time = np.concatenate([time for _, time in parts])
    order = np.concatenate([_order(part) for part, _ in parts])
    users = pc.dictionary_encode(rows["user_id"]).combine_chunks().indices.to_numpy(zero_copy_only=False)
    # Interactions.of keeps the order of rows of equal time, and order-only rows have none.
    first = np.argsort(order, kind="stable")
    videos = columns_of(rows["video_id"])
    known = time != ORDER_ONLY
    return Interactions.of(users[first], videos[first], time[first], num_videos, known[first])


def _kept(tables: Path, name: str, split: Split, with_validation: bool) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """The kept rows of a table and their times (`ORDER_ONLY` where unknown), a batch at a time."""
    before_us = split.t0_us if with_validation else split.validation_start_us
    columns = [column for column in _COLUMNS if column in table_columns(tables, name)]
    kept_columns = [column for column in ("user_id", "video_id", "order") if column in columns]
    for batch in table_batches(tables, name, columns):
        time = times_us(batch)
        kept = (time < before_us) & split.is_training_user(batch["user_id"].combine_chunks(), with_validation)
        if "completed" in columns:
            kept &= pc.fill_null(batch["completed"].combine_chunks(), True).to_numpy(zero_copy_only=False)
        yield batch.select(kept_columns).filter(pa.array(kept)), time[kept]


def _order(table: pa.Table) -> np.ndarray:
    if "order" not in table.column_names:
        return np.arange(len(table))
    return pc.fill_null(table["order"].combine_chunks(), 0).to_numpy(zero_copy_only=False)
