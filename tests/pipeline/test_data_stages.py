"""What the stages from logs to examples tell people."""

from rich.console import Console

from pipeline.data_stages import statistics_markdown, statistics_table

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
