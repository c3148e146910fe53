"""Recommendations for people to read: the list beside what the user watched, with what the videos are about."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from features.tables import has_table, table_columns, table_files
from serving.recommend import RecommendationList

FACTS = ("title", "series_id", "series", "episode", "topics", "category", "uploader_id", "language")
"""Columns of the table of videos that are shown, where it has them."""


def recommendations_table(found: RecommendationList, tables: Path) -> RenderableType:
    """What to print for one list.

    Args:
      found: the list.
      tables: the run's `tables` folder, for the facts about videos.
    """
    facts = video_facts(tables, [row.video_id for row in found.rows] + found.watched)
    titles = [column for column in FACTS if any(column in known for known in facts.values())]

    def told(video_id: str) -> list[str]:
        return [facts.get(video_id, {}).get(column, "") for column in titles]

    watched = _table("watched, latest first", ["video"], titles)
    for video_id in found.watched:
        watched.add_row(Text(video_id), *map(_fact, told(video_id)))
    figures = _figures(found)
    listed = _table("up next", ["", "video"], titles, list(figures))
    for place, row in enumerate(found.rows, 1):
        of_row = [texts[place - 1] for texts in figures.values()]
        listed.add_row(Text(str(place)), Text(row.video_id), *map(_fact, told(row.video_id)), *map(Text, of_row))
    heading = Text.assemble(("user ", "dim"), (found.user_id, "bold"), (f" at {found.now:%Y-%m-%d %H:%M} UTC", "dim"))
    notes = [Text(note, style="yellow") for note in found.notes]
    return Group(heading, *notes, Columns([watched, listed]))


def _figures(found: RecommendationList) -> dict[str, list[str]]:
    """Column -> its text in every row; without those that tell nothing, which would take room from the titles."""
    rows = found.rows
    texts = {
        "source": [", ".join(row.sources) for row in rows],
        "retrieval": [", ".join(f"{score:.2f}" for score in row.retrieval_scores) for row in rows],
        "watch time": [_seconds(row.expected_watch_time_s) for row in rows],
        "click": [_percent(row.click_probability) for row in rows],
    }
    if len(set(texts["source"])) == 1:
        del texts["source"]
    return {column: of_rows for column, of_rows in texts.items() if any(of_rows)}


def video_facts(tables: Path, video_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Video id -> column -> text, of the columns `FACTS` that the table of videos has."""
    if not has_table(tables, "videos"):
        return {}
    columns = [column for column in FACTS if column in table_columns(tables, "videos")]
    files = [str(file) for file in table_files(tables, "videos")]
    wanted = pc.field("video_id").isin(list(video_ids))
    rows = ds.dataset(files, format="parquet").to_table(["video_id", *columns], filter=wanted).to_pylist()
    return {row["video_id"]: {c: _text(row[c]) for c in columns if row[c] is not None} for row in rows}


def _table(title: str, ids: Sequence[str], facts: Sequence[str], figures: Sequence[str] = ()) -> Table:
    """Ids and figures are shown whole; the facts give way where the terminal is narrow."""
    table = Table(title=title, title_justify="left", box=None, header_style="dim", padding=(0, 1))
    for column in ids:
        table.add_column(column, no_wrap=True)
    for column in facts:
        table.add_column(column)
    for column in figures:
        table.add_column(column, justify="left" if column == "source" else "right", no_wrap=True)
    return table


def _fact(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
