"""Reads the watches that the peers are fitted on from the canonical tables."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import DataError
from features.event_windows import ORDER_ONLY
from features.shards import times_us
from features.splits import Split
from features.tables import table_files
from pipeline.evaluation.baselines.interactions import Interactions

_COLUMNS = ("user_id", "video_id", "timestamp", "time_known", "order", "completed")


def read_training_watches(
    tables: Path,
    split: Split,
    before_us: int,
    columns_of: Callable[[pa.ChunkedArray], np.ndarray],
    num_videos: int,
    with_impressions: bool = False,
) -> Interactions:
    """Watches of training users before a moment: all but those known not to be completed, order-only history included.

    Args:
      tables: the run's `tables` folder.
      split: says which users are held out.
      before_us: `split.validation_start_us` for tuning, `split.t0_us` to fit for the test part.
      columns_of: score columns of video ids, −1 for a video that has none.
      num_videos: number of score columns.
      with_impressions: also what was shown, as history of unknown time: it ties videos to users and is never recent.

    Raises:
      DataError: there is no such watch.
    """
    files = table_files(tables, "watches")
    if not files:
        raise DataError(f"{tables}: no watches table; the retrieval peers are fitted on watches; run the ingest stage")
    parts = [_read(file, split, before_us) for file in files]
    if with_impressions:
        shown = [_read(file, split, before_us)[0] for file in table_files(tables, "impressions")]
        parts += [(rows, np.full(len(rows), ORDER_ONLY)) for rows in shown]
    rows = pa.concat_tables([part for part, _ in parts], promote_options="default")
    time = np.concatenate([time for _, time in parts])
    order = np.concatenate([_order(part) for part, _ in parts])
    users = pc.dictionary_encode(rows["user_id"]).combine_chunks().indices.to_numpy(zero_copy_only=False)
    # Interactions.of keeps the order of rows of equal time, and order-only rows have none.
    first = np.argsort(order, kind="stable")
    videos = columns_of(rows["video_id"])
    known = time != ORDER_ONLY
    return Interactions.of(users[first], videos[first], time[first], num_videos, known[first])


def _read(file: Path, split: Split, before_us: int) -> tuple[pa.Table, np.ndarray]:
    """The kept rows of one part file and their times (`ORDER_ONLY` where unknown)."""
    columns = [name for name in _COLUMNS if name in pq.read_schema(file).names]
    table = pq.read_table(file, columns=columns, partitioning=None)
    time = times_us(table)
    kept = (time < before_us) & ~split.is_test_user(table["user_id"].combine_chunks())
    if "completed" in columns:
        kept &= pc.fill_null(table["completed"].combine_chunks(), True).to_numpy(zero_copy_only=False)
    kept_columns = [name for name in ("user_id", "video_id", "order") if name in columns]
    return table.select(kept_columns).filter(pa.array(kept)), time[kept]


def _order(table: pa.Table) -> np.ndarray:
    if "order" not in table.column_names:
        return np.arange(len(table))
    return pc.fill_null(table["order"].combine_chunks(), 0).to_numpy(zero_copy_only=False)
