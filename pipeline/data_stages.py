"""The stages from raw logs to examples: ingest, analyze, examples, quantiles."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from rich.console import JustifyMethod
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from features.analysis import analyze_tables, fit_quantiles, read_statistics
from features.artifacts import discard, publish, read_manifest
from features.catalogue import build_catalogue
from features.errors import DataError, UpnextError
from features.example_reader import ExampleSet
from features.example_sets import (
    CandidateExamplesJob,
    ExamplesJob,
    RankingExamplesJob,
    SequenceExamplesJob,
    build_examples,
)
from features.feature_lists import id_sources
from features.leakage import check_leakage
from features.shards import write_shards
from features.spec import Side
from features.splits import Part, SplitConfig
from features.statistics import SUMMARY_HEADER, summary_rows
from features.vocabulary import Vocabulary
from features.vocabulary_requests import vocabulary_requests
from pipeline.run import GENERATOR, RANKER, SEQUENCES, Run
from pipeline.sources.files import FilesConfig, FilesSource
from pipeline.sources.ingest import ingest, summary_table
from pipeline.sources.kuairand import KuaiRandConfig, KuaiRandSource
from pipeline.sources.movielens import MovieLensConfig, MovieLensSource
from pipeline.sources.simulator import SimulatorConfig, simulate
from pipeline.sources.source import InMemorySource, Source, settings_of

FEW_LABELS = 100
"""Fewer validation or test labels are remarked upon: with 100 a 95% interval of a recall of one half is 0.2 wide."""

STATISTICS_REPORT = "reports/statistics"
_SHOWN_WHOLE = ("column", "count", "missing", "distinct")


def file_source(run: Run) -> Source | None:
    """The source that reads files; None for the simulator, which makes its rows."""
    config = run.config.source
    if isinstance(config, FilesConfig):
        return FilesSource(config)
    if isinstance(config, MovieLensConfig):
        return MovieLensSource(config)
    if isinstance(config, KuaiRandConfig):
        return KuaiRandSource(config)
    return None


def ingest_settings(run: Run, read: Any) -> Mapping[str, Any]:
    """What the canonical tables depend on; `read` stands for the content of the source's files."""
    return {
        "source": settings_of(run.config.source),
        "validation": run.config.validation.model_dump(mode="json"),
        "read": read,
    }


def files_read(run: Run) -> Any:
    """The source's files as they are now: reads all of them. None for the simulator."""
    source = file_source(run)
    return source.fingerprint() if source else None


def ingest_tables(run: Run) -> None:
    """Publishes `tables`, `rejected` and, of the simulator, `truth`."""
    source = file_source(run)
    if source is None:
        assert isinstance(run.config.source, SimulatorConfig)
        config = run.config.source
        with run.console.status("Simulating a platform ..."):
            logs = simulate(config)
        with publish(run.folder / "truth", {"kind": "truth"}) as folder:
            logs.truth.write(folder)
        source = InMemorySource(logs.tables, "simulator", config.model_dump(mode="json"))
    with run.console.status("Reading ...") as status:
        summary = ingest(
            source,
            run.tables,
            run.folder / "rejected",
            run.config.validation,
            progress=lambda table, rows: status.update(f"Reading {table}: {rows:,} rows ..."),
        )
    run.console.print(summary_table(summary))


def analyze(run: Run) -> None:
    """Publishes `features/vocabularies`, `features/statistics`, `features/catalogue` and `reports/statistics`."""
    requests = vocabulary_requests(id_sources(run.specs))
    analyze_tables(
        run.tables, run.features, requests, run.split, run.config.analysis, run.beam_args, console=run.console
    )
    sizes = read_manifest(run.features / "vocabularies")["sizes"]
    vocabularies = {space: Vocabulary.read(run.features / "vocabularies" / f"{space}.parquet") for space in sizes}
    build_catalogue(run.tables, run.features, vocabularies, run.specs.values())
    statistics = read_statistics(run.features / "statistics")
    with publish(run.folder / STATISTICS_REPORT, {"kind": "report"}) as folder:
        (folder / "statistics.md").write_text(statistics_markdown(statistics))
    run.console.print(statistics_table(statistics))
    run.console.print("Vocabularies: " + ", ".join(f"{space} {size:,}" for space, size in sizes.items()))
    run.console.print(features_table(run))


def statistics_table(statistics: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line for every column of every table: how many, how many missing, which values.

    Args:
      statistics: as of `read_statistics`.
    """
    rows = [
        (f"{name}.{column}", *cells)
        for name, table in statistics.items()
        for column, _, *cells in summary_rows(table["columns"])
    ]
    view = Table(title="Columns (training part)", title_justify="left", box=None)
    header = [column for column in SUMMARY_HEADER if column != "type"]
    for column, cells in zip(header, zip(*rows, strict=True), strict=True):
        # Names and numbers are shown whole; values give way where the terminal is narrow.
        whole = max(map(len, (column, *cells))) if column in _SHOWN_WHOLE else None
        justify: JustifyMethod = "right" if whole and column != "column" else "left"
        view.add_column(column, justify=justify, no_wrap=True, overflow="ellipsis", min_width=whole, max_width=40)
    for row in rows:
        view.add_row(*map(escape, row))
    return view


def statistics_markdown(statistics: Mapping[str, Mapping[str, Any]]) -> str:
    """The same as `statistics_table` for a file, one section per table."""
    lines = ["# Columns of the training part", ""]
    for name, table in statistics.items():
        used, read = (f"{table['rows'][kind]:,}" for kind in ("used", "read"))
        lines += [f"## {name}", "", f"{used} of {read} rows are in the training part.", ""]
        lines += [_markdown_row(SUMMARY_HEADER), _markdown_row(["---"] * len(SUMMARY_HEADER))]
        lines += [_markdown_row(row) for row in summary_rows(table["columns"])]
        lines.append("")
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def features_table(run: Run) -> Table:
    """Each model's features, and what was left out with the reason."""
    view = Table(title="Features")
    for column in ("model", "query", "impression", "left out"):
        view.add_column(column, overflow="fold")
    for model, features in run.feature_lists.items():
        sides = [", ".join(f.name for f in features.spec.side(side)) for side in (Side.QUERY, Side.IMPRESSION)]
        view.add_row(model, *sides, "; ".join(f"{name}: {why}" for name, why in features.left_out))
    return view


def make_examples(run: Run) -> None:
    """Publishes `shards` and the example sets of the run's models, checked for leaks."""
    config = run.config
    shards = run.folder / "shards"
    write_shards(run.tables, shards, config.shards, run.beam_args)
    specs = run.specs
    evaluation = config.candidate_examples
    jobs: list[ExamplesJob] = [CandidateExamplesJob(specs[GENERATOR], run.split, config.features, evaluation)]
    if SEQUENCES in specs:
        jobs.append(
            SequenceExamplesJob(specs[SEQUENCES], run.split, config.features, evaluation, config.sequence_examples)
        )
    if RANKER in specs:
        jobs.append(RankingExamplesJob(specs[RANKER], run.split, config.features, config.ranking_examples))
    view = Table(title="Examples")
    for column in ("set", "training", "validation", "test", "made again", "left out"):
        view.add_column(column, overflow="fold")
    remarks: list[str] = []
    for job in jobs:
        folder = run.examples(job.model)
        counts = build_examples(job, shards, run.features, folder, run.beam_args)["counts"]
        try:
            with run.console.status("Checking for leaks ..."):
                report = check_leakage(folder, shards, run.features, config.leakage)
        except UpnextError:
            discard(folder)  # a set that leaks is not published
            raise
        if job.model == RANKER:
            require_what_the_ranker_needs(ExampleSet(folder))
        kept = [f"{counts['kept'][part]:,}" for part in ("train", "validation", "test")]
        why = "; ".join(f"{reason} {count:,}" for reason, count in counts["left_out"].items())
        view.add_row(folder.name, *kept, f"{sum(report.examples.values()):,}, no leak", why)
        most = None if job.model == RANKER else evaluation.evaluation_labels_per_user
        remarks += few_labels(folder.name, counts["kept"], config.split, most)
    run.console.print(view)
    for remark in remarks:
        run.console.print(Text(remark, style="yellow"), soft_wrap=True)


def few_labels(name: str, kept: Mapping[str, int], split: SplitConfig, labels_per_user: int | None) -> list[str]:
    """A line for the validation and the test part of a set with fewer than `FEW_LABELS` examples.

    Args:
      name: of the set.
      kept: part -> examples.
      split: configured; where it has no validation nothing is said of it.
      labels_per_user: validation and test labels of a user at most, None where they are not limited.
    """
    limit = [] if labels_per_user is None else ["candidate_examples.evaluation_labels_per_user"]
    remarks = []
    if (split.validation_days or split.validation_user_share) and kept["validation"] < FEW_LABELS:
        settings = ["split.validation_user_share", *limit]
        if not split.validation_user_share:
            settings.insert(0, "split.validation_days")
        how = "rest on noise" if kept["validation"] else "have nothing to go by"
        remarks.append(_remark(name, kept, "validation", f"early stopping and the peers' settings {how}", settings))
    if kept["test"] < FEW_LABELS:
        settings = ["split.test_user_share", *limit] if split.test_user_share else limit
        if split.t0 or split.test_days:
            settings = ["split.test_days (or an earlier split.t0)", *settings]
        remarks.append(_remark(name, kept, "test", "differences between methods are noise", settings))
    return remarks


def _remark(name: str, kept: Mapping[str, int], part: str, why: str, settings: Sequence[str]) -> str:
    more = f"more come from a greater {' or '.join(settings)}"
    return f"{name}: {kept[part]} {part} labels, fewer than {FEW_LABELS}: {why}; {more}"


def require_what_the_ranker_needs(examples: ExampleSet) -> None:
    """Raises DataError where a ranker could not be trained or judged, before hours are spent on other models."""
    clicked = pc.sum(examples.read(Part.TRAIN, ["clicked"])["clicked"]).as_py() or 0
    unclicked, test = examples.num_examples(Part.TRAIN) - clicked, examples.num_examples(Part.TEST)
    if clicked and unclicked and test:
        return
    lost = examples.manifest["counts"]["left_out"].get("clicked_but_watch_time_not_known", 0)
    told = f"; of {lost:,} clicked ones the watch time is not known: set ranking_examples.missing_watch_time_s to the "
    raise DataError(
        "impressions: the ranker needs clicked and unclicked ones in the training part and some in the test part, "
        f"found {clicked:,.0f} clicked and {unclicked:,.0f} unclicked, {test:,} in the test part"
        + (f"{told}seconds they shall count" if lost else "")
        + "; without a ranker the run goes on with ranker: null"
    )


def quantiles(run: Run) -> None:
    """Publishes `features/quantiles` of the ranking features."""
    fit_quantiles(
        run.examples(RANKER),
        run.specs[RANKER],
        run.features,
        run.config.analysis.quantiles,
        run.beam_args,
        console=run.console,
    )
