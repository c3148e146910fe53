"""What the experiments with temporal ranges share: trials, claims, tables and the plot."""

from collections.abc import Iterable, Mapping
from functools import partial

from matplotlib.figure import Figure as Plot

from benchmarks.experiments import Claim, Request, claim, mean_of_seeds, relative
from benchmarks.generators import MAP, HeldOutWatches
from benchmarks.report import Cell, ResultTable
from benchmarks.sequences import METRICS, Judged, Variant, best_on_validation, judge, tuned
from benchmarks.tang2019.range_models import MIXTURES, PAPERS_LOGS, TABLE_5, search_space
from benchmarks.tang2019.range_worlds import OFF
from pipeline.evaluation.bootstrap import paired_difference
from pipeline.evaluation.plots import new_plot
from pipeline.run import Run

Found = Mapping[str, Mapping[str, Judged]]
"""World -> variant -> what it came to."""


def tuned_models(
    request: Request, world: tuple[Run, HeldOutWatches], models: Iterable[Variant], full: bool
) -> dict[str, tuple[Variant, dict[str, Judged]]]:
    """Name -> the model with the best of its settings, trained once with each, and what each came to."""
    trial = partial(judge, request, *world, seeds=request.seeds[:1])
    return {model.name: tuned(model, search_space(model, full), trial) for model in models}


def told(held_out: HeldOutWatches) -> str:
    """How many next watches a world is judged on."""
    users = len(set(held_out.targets.users.tolist()))
    return f"{users:,} users, {len(held_out.targets):,} next watches"


def claims_of(
    world: str, judged: Mapping[str, Judged], compared: list[str], papers: Mapping[str, Mapping[str, float]]
) -> list[Claim]:
    """Mixtures are above the best of each table's baselines; each pair of encoders above its members; all three above
    the pairs.
    """
    off = world == OFF
    mixtures = [name for name in MIXTURES if name in judged]
    of_tables = [[name for name in compared if name not in MIXTURES and log in papers[name]] for log in PAPERS_LOGS]
    best = [best_on_validation(judged, names) for names in of_tables if names]
    pairs = [(mixture, name) for mixture in mixtures for name in best]
    if off:
        return [_claim(world, judged, above, below, off) for above, below in dict.fromkeys(pairs)]
    ranges = {letters: name for letters, name in TABLE_5.items() if len(letters) == 1}
    strongest = best_on_validation(judged, ranges.values())
    pairs += [(ranges["S"], other) for other in ranges.values() if other != ranges["S"]]
    for letters, name in TABLE_5.items():
        if len(letters) == 2:
            pairs += [(name, ranges[letter]) for letter in letters]
            pairs.append((TABLE_5["TSL"], name))
    pairs.append((TABLE_5["TSL"], strongest))
    return [_claim(world, judged, above, below, off) for above, below in dict.fromkeys(pairs)]


def _claim(world: str, judged: Mapping[str, Judged], above: str, below: str, off: bool) -> Claim:
    first, second = judged[above].measured[MAP], judged[below].measured[MAP]
    return claim(f"{world}: {above} over {below}, {MAP} {relative(first, second)}", first, second, 1, off)


def table(
    title: str,
    judged: Mapping[str, Judged],
    names: list[str],
    papers: Mapping[str, Mapping[str, float]],
    notes: list[str],
) -> ResultTable:
    """Every variant's metrics, and how far it is from the mixture of all three."""
    base = mean_of_seeds(judged[TABLE_5["TSL"]].measured[MAP])
    rows: list[list[Cell]] = []
    for name in names:
        figures: list[Cell] = [mean_of_seeds(judged[name].measured[metric]).figure for metric in METRICS]
        mean = mean_of_seeds(judged[name].measured[MAP])
        rows.append([name, *figures, paired_difference(mean, base), *_paper(papers[name]), judged[name].parameters])
    columns = ["model", *METRICS, f"{MAP} over M3R", "paper, MovieLens 20M", "paper, YouTube", "parameters"]
    below = [*notes, "Intervals: 95%, over users and trainings. The paper's columns are its MAP@20."]
    return ResultTable(title, columns, rows, below, "Tang et al. 2019", 4)


def _paper(figures: Mapping[str, float]) -> list[Cell]:
    return [figures.get(log) for log in PAPERS_LOGS]


def plot(found: Found) -> Plot:
    """MAP of every variant with its interval, a panel for each world."""
    canvas = new_plot(6.0 * len(found), 4.6)
    for axes, (world, judged) in zip(
        canvas.subplots(1, len(found), sharey=True, squeeze=False)[0], found.items(), strict=True
    ):
        figures = [mean_of_seeds(each.measured[MAP]).figure for each in judged.values()]
        errors = [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
        axes.errorbar(range(len(figures)), [f.value for f in figures], yerr=errors, fmt="o", capsize=3)
        axes.set_xticks(range(len(figures)), list(judged), rotation=60, ha="right")
        axes.set_title(world.replace("_", " "))
        axes.set_ylabel(MAP)
        axes.set_ylim(bottom=0)
    return canvas
