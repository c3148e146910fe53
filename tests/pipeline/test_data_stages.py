"""What the stages from logs to examples tell people, and refuse."""

from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from features.errors import DataError
from features.spec import Feature, FeatureSpec, Kind, Side
from features.splits import Part
from pipeline.data_stages import require_what_the_ranker_needs, statistics_markdown, statistics_table
from tests.pipeline.synthetic_examples import publish_examples

STATISTICS = {
    "users": {
        "rows": {"read": 1_200, "used": 1_000},
        "columns": {
            "region": {
                "type": "string",
                "count": 1_000,
                "missing": 250,
                "distinct": 2,
                "min": "A|B",
                "max": "[C]",
                "top": [{"value": "[C]", "count": 600}, {"value": "A|B", "count": 150}],
            },
            "age": {
                "type": "double",
                "count": 1_000,
                "missing": 0,
                "distinct": 3,
                "min": 18.0,
                "max": 60.5,
                "quantiles": [18.0, 33.0, 60.5],
            },
        },
    },
}


def printed(width: int) -> list[list[str]]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(statistics_table(STATISTICS))
    return [line.split() for line in capture.get().splitlines()]


def test_every_column_has_a_line_with_its_figures() -> None:
    _, header, region, age = printed(120)
    assert header == ["column", "count", "missing", "distinct", "min", "median", "max", "most", "frequent"]
    assert region == ["users.region", "1,000", "25.0%", "2", "A|B", "[C]", "[C]", "(600),", "A|B", "(150)"]
    assert age == ["users.age", "1,000", "0.0%", "3", "18", "33", "60.5"]


def test_names_and_counts_are_whole_where_the_terminal_is_narrow() -> None:
    assert printed(60)[2][:4] == ["users.region", "1,000", "25.0%", "2"]


def test_the_report_escapes_what_would_end_a_cell() -> None:
    lines = statistics_markdown(STATISTICS).splitlines()
    assert "1,000 of 1,200 rows are in the training part." in lines
    assert r"| region | string | 1,000 | 25.0% | 2 | A\|B |  | [C] | [C] (600), A\|B (150) |" in lines


PAGE = FeatureSpec((Feature("page", Kind.CATEGORICAL, Side.QUERY, "request.page", "page"),))


def shown(*clicked: float) -> pa.Table:
    return pa.table({"clicked": pa.array(clicked, pa.float32()), "page": pa.array([1] * len(clicked), pa.int32())})


@pytest.mark.parametrize(
    ("train", "test", "left_out", "message"),
    [
        ([0, 0], [1], {}, r"found 0 clicked and 2 unclicked, 1 in the test part; without a ranker .* ranker: null"),
        ([1, 1], [1], {}, r"found 2 clicked and 0 unclicked, 1 in the test part; without"),
        ([1, 0], [], {}, r"found 1 clicked and 1 unclicked, 0 in the test part; without"),
        (
            [0],
            [0],
            {"clicked_but_watch_time_not_known": 2_000},
            r"of 2,000 clicked ones the watch time is not known: set ranking_examples.missing_watch_time_s",
        ),
    ],
)
def test_impressions_that_cannot_train_a_ranker_are_refused_before_any_training(
    tmp_path: Path, train: list[float], test: list[float], left_out: dict[str, int], message: str
) -> None:
    parts = {Part.TRAIN: shown(*train), Part.TEST: shown(*test)}
    examples = publish_examples(tmp_path / "ranking", parts, PAGE, "ranker", left_out=left_out)
    with pytest.raises(DataError, match=message):
        require_what_the_ranker_needs(examples)


def test_impressions_that_can_train_a_ranker_are_taken(tmp_path: Path) -> None:
    parts = {Part.TRAIN: shown(1, 0), Part.TEST: shown(0)}
    require_what_the_ranker_needs(publish_examples(tmp_path / "ranking", parts, PAGE, "ranker"))
