from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import ArtifactError
from features.tables import has_table, table_batches, table_files


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    for day, videos in {"2024-01-02": "cd", "unknown": "a", "2024-01-01": "b", "2024-01-10": "efg"}.items():
        folder = tmp_path / "watches" / f"day={day}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"video_id": list(videos), "n": [1] * len(videos)}), folder / "part-00000.parquet")
    return tmp_path


def test_order_only_rows_come_first_then_the_days(tables: Path) -> None:
    days = [file.parent.name for file in table_files(tables, "watches")]
    assert days == ["day=unknown", "day=2024-01-01", "day=2024-01-02", "day=2024-01-10"]
    assert has_table(tables, "watches")
    assert not has_table(tables, "searches")


def test_small_files_are_read_together_in_order(tables: Path) -> None:
    batches = list(table_batches(tables, "watches", ["video_id"], rows=4))
    assert [batch.to_pydict() for batch in batches] == [{"video_id": list("abcd")}, {"video_id": list("efg")}]


def test_a_table_that_is_not_there_is_named(tables: Path) -> None:
    with pytest.raises(ArtifactError, match="expected table 'searches', found none"):
        list(table_batches(tables, "searches", ["query"]))
