"""Table 3 and Figure 2 of Beutel et al. 2018: how wide a ReLU layer must be to multiply, and a latent cross beside it.

Tensors of rank r with m axes of 100 indices each; a model sees the indices, embedded in 20 dimensions, and is trained
to predict the entries. Judged by Pearson's R on the training data, as in the paper: what is asked is what the models
can represent.

- Concatenation: the embeddings side by side, one ReLU layer, a linear output (the paper's Table 3).
- Latent cross: the first axis's embedding times (1 + w) of another, a linear output. With three axes there are two
  crosses: added, (1 + w1 + w2) ∗ h, as the paper has them, and stacked, (1 + w1) ∗ ((1 + w2) ∗ h).

The paper tells one run of each and leaves open the batch, the initial values, where Adagrad's accumulators begin and
when training has converged; ours are `training` and those of `many_models.py`, one choice for all, and a table shows
what other choices do. Seeds differ in data and in initial values. Where the paper's R is a draw like ours, it lies
between the lowest and the highest of n seeds with probability (n − 1) / (n + 1), which is why there are many.
"""

from dataclasses import replace
from itertools import islice

from matplotlib.figure import Figure as Plot

from benchmarks.beutel2018.fit_tables import convergence_table, plain_values, spread
from benchmarks.beutel2018.kept_fits import kept_fit
from benchmarks.beutel2018.many_models import ConcatenatedNetworks, Fit, LatentCrosses, ManyModels, Training
from benchmarks.beutel2018.synthetic_tensors import SyntheticTensors, low_rank_tensors
from benchmarks.experiments import Request, Scale
from benchmarks.report import Cell, ResultTable, publish_result
from pipeline.evaluation.plots import new_plot

DIMENSION = 20
SEEDS, WIDE, SEEDS_OF_WIDE = 20, 50, 8
"""Seeds, and fewer from this width on, where training is long and the paper's R is above `HIGH_R`."""
SHAPES = ((1, 2), (1, 3), (2, 3))
"""Rank and number of axes, the columns of Table 3."""
PAPER = {
    1: (0.42601, 0.27952, 0.287817),
    2: (0.601657, 0.57222, 0.472421),
    5: (0.997436, 0.854734, 0.717233),
    10: (0.999805, 0.973214, 0.805508),
    20: (0.999938, 0.996618, 0.980821),
    30: (0.999983, 0.99931, 0.975782),
    50: (0.999993, 0.999738, 0.997821),
    100: (0.999997, 0.999928, 0.99943),
}
"""Width of the hidden layer -> the paper's R for each of `SHAPES`."""
HIGH_R, CLOSE = 0.99, 0.02
"""From this R of the paper on ours is to be within `CLOSE` of it; below, the paper's is to lie within our range."""
CHOICE_WIDTH = 10
CROSS_R, CROSS_WIDTH = 0.999, 5
"""What a latent cross of two axes is to reach, with fewer parameters than the network of this width."""

Fits = dict[tuple[int, int], dict[str, Fit]]
"""(rank, axes) -> model -> what training it gave."""


def reproduce(request: Request) -> None:
    """Publishes `low_rank_crosses`."""
    full = request.scale == Scale.FULL
    size, seeds = (100, range(request.trainings or SEEDS)) if full else (8, range(request.trainings or 3))
    widths = tuple(PAPER) if full else (5,)
    how = training(size, full)
    fits: Fits = {}
    for rank, axes in SHAPES:
        tensors = low_rank_tensors(seeds, size, axes, rank)
        fits[rank, axes] = fit_all(request, title_of(rank, axes), tensors, widths, how)
    open_choices = choices(request, low_rank_tensors(seeds[:SEEDS_OF_WIDE], size, 3, 2), how, None if full else 2)
    named = {f"{title_of(*shape)}: {name}": fit for shape, found in fits.items() for name, fit in found.items()}
    publish_result(
        request.output,
        request.result_name,
        [
            network_table(fits, widths),
            cross_table(fits),
            choice_table(open_choices),
            convergence_table("Convergence", named, how),
        ],
        plot(fits, widths),
        {
            "command": request.command,
            "summary": [*network_verdicts(fits, widths), cross_verdict(fits)],
            "seeds": len(seeds),
            "correlations": plain_values(named),
        },
        request.console,
    )


def training(size: int, full: bool) -> Training:
    """All rows crossed with a fourth of the columns; Adagrad at 0.1, accumulators from 0.0001.

    TensorFlow's 0.1 is far above the squared gradients of a mean over cells; from there the steps are so small that
    models of three axes have not left the plateau around zero after 10,000 of them.
    """
    checks = {"first_check": 500, "doublings": 5} if full else {"first_check": 50, "doublings": 1}
    return Training(0.1, 1e-4, size // 4, size, **checks, compiled=full)


def fit_all(
    request: Request, title: str, tensors: SyntheticTensors, widths: tuple[int, ...], how: Training
) -> dict[str, Fit]:
    """Networks of all widths and the latent crosses, on the same tensors."""
    shape = (range(len(tensors.values)), tensors.axes, tensors.size, DIMENSION)
    models: dict[str, ManyModels] = {}
    for width in widths:
        few = range(min(len(tensors.values), SEEDS_OF_WIDE)) if width >= WIDE else shape[0]
        models[name_of(width)] = ConcatenatedNetworks(few, *shape[1:], [width])
    if tensors.axes == 2:
        models["latent cross"] = LatentCrosses(*shape, stacked=False)
    else:
        models["latent crosses, added"] = LatentCrosses(*shape, stacked=False)
        models["latent crosses, stacked"] = LatentCrosses(*shape, stacked=True)
    return {
        name: kept_fit(request, f"{title}: {name}", model, tensors.first(model.count), how)
        for name, model in models.items()
    }


def title_of(rank: int, axes: int) -> str:
    return f"r={rank}, m={axes}"


def name_of(width: int) -> str:
    return f"width {width}"


def network_table(fits: Fits, widths: tuple[int, ...]) -> ResultTable:
    """Table 3 beside ours."""
    columns = ["hidden layer"]
    for rank, axes in SHAPES:
        columns += [f"r={rank}, m={axes}: paper", "ours"]
    rows: list[list[Cell]] = []
    for width in widths:
        row: list[Cell] = [str(width)]
        for place, shape in enumerate(SHAPES):
            row += [PAPER[width][place], spread(fits[shape][name_of(width)])]
        rows.append(row)
    notes = [
        "Pearson's R on the training data: median [lowest, highest] of the seeds, of which there are "
        f"{len(fits[SHAPES[0]]['latent cross'].converged)}, and from width {WIDE} on at most {SEEDS_OF_WIDE}."
    ]
    return ResultTable("Concatenation and one ReLU layer", columns, rows, notes, "Beutel et al. 2018, Table 3", 5)


def choices(request: Request, tensors: SyntheticTensors, how: Training, most: int | None) -> dict[str, Fit]:
    """The network of `CHOICE_WIDTH` as trained here, and with what the paper leaves open chosen otherwise.

    Args:
      request: says what was found.
      tensors: of three axes and rank 2.
      how: the training of the tables.
      most: trainings; None: all.
    """
    settings: dict[str, tuple[Training, float | None]] = {
        "as in the table": (how, None),
        "accumulators from 0": (replace(how, initial_accumulator=0.0), None),
        "accumulators from 0.1": (replace(how, initial_accumulator=0.1), None),
        "a tenth of the columns in a batch": (replace(how, columns=max(tensors.size // 10, 1)), None),
        "all columns in a batch": (replace(how, columns=tensors.size), None),
        "embeddings from N(0, 0.05²)": (how, 0.05),
        "embeddings from N(0, 1)": (how, 1.0),
    }
    found = {}
    for name, (training, stddev) in islice(settings.items(), most):
        shape = (range(len(tensors.values)), tensors.axes, tensors.size, DIMENSION)
        network = ConcatenatedNetworks(*shape, [CHOICE_WIDTH], stddev)
        found[name] = kept_fit(request, name, network, tensors, training)
    return found


def choice_table(found: dict[str, Fit]) -> ResultTable:
    """R by what was chosen."""
    rows: list[list[Cell]] = [
        [name, spread(fit), fit.steps[-1], int(fit.converged.sum())] for name, fit in found.items()
    ]
    title = f"What the paper leaves open, r=2, m=3, width {CHOICE_WIDTH} (paper: {PAPER[CHOICE_WIDTH][2]})"
    note = f"The first {len(next(iter(found.values())).converged)} seeds."
    return ResultTable(title, ["training", "R", "steps", "seeds converged"], rows, [note], digits=4)


def cross_table(fits: Fits) -> ResultTable:
    """The latent crosses, with the network of `CROSS_WIDTH` on the same data."""
    rows: list[list[Cell]] = []
    for (rank, axes), found in fits.items():
        shown = [name for name in found if "cross" in name or name == name_of(CROSS_WIDTH)]
        rows += [[f"r={rank}, m={axes}: {name}", found[name].parameters, spread(found[name])] for name in shown]
    note = "Added crosses hold products of two axes only; the product of three lies outside what they can represent."
    return ResultTable("Latent cross", ["model", "parameters", "R"], rows, [note], digits=5)


def network_verdicts(fits: Fits, widths: tuple[int, ...]) -> list[str]:
    """Whether ours is close where the paper's R is high, and holds the paper's elsewhere."""
    high, close, low, outside = 0, 0, 0, []
    for place, shape in enumerate(SHAPES):
        for width in widths:
            paper, ours = PAPER[width][place], spread(fits[shape][name_of(width)])
            if paper >= HIGH_R:
                high += 1
                close += abs(ours.value - paper) <= CLOSE
            else:
                low += 1
                if not ours.low <= paper <= ours.high:
                    outside.append(f"r={shape[0]}, m={shape[1]}, width {width}")
    where = f" (outside: {'; '.join(outside)})" if outside else ""
    return [
        f"median within {CLOSE} of the paper where its R >= {HIGH_R}: {close} of {high} cells",
        f"the paper's R within our range elsewhere: {low - len(outside)} of {low} cells{where}",
    ]


def cross_verdict(fits: Fits) -> str:
    """What the latent cross of two axes reaches, and with how many parameters."""
    found = fits[1, 2]
    cross, network = found["latent cross"], found[name_of(CROSS_WIDTH)]
    reached = "holds" if spread(cross).low >= CROSS_R and cross.parameters < network.parameters else "does not hold"
    return (
        f"latent cross, m=2: lowest R {spread(cross).low:.6f} with {cross.parameters:,} parameters; the network of "
        f"width {CROSS_WIDTH} has {network.parameters:,} (R >= {CROSS_R} with fewer: {reached})"
    )


def plot(fits: Fits, widths: tuple[int, ...]) -> Plot:
    """Figure 2: R by width, ours with ranges and the paper's."""
    canvas = new_plot(10.5, 3.8)
    for place, (axes_of_plot, (shape, found)) in enumerate(
        zip(canvas.subplots(1, 3, sharey=True), fits.items(), strict=True)
    ):
        figures = [spread(found[name_of(width)]) for width in widths]
        errors = [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
        axes_of_plot.errorbar(
            widths, [f.value for f in figures], yerr=errors, fmt="o-", capsize=3, label="concatenation"
        )
        axes_of_plot.plot(widths, [PAPER[width][place] for width in widths], "x--", color="black", label="paper")
        for name, fit in found.items():
            if "cross" in name:
                style = ":" if "added" in name else "-."
                axes_of_plot.axhline(spread(fit).value, linestyle=style, color="C1", label=f"{name}, 20 dimensions")
        axes_of_plot.set_xscale("log")
        axes_of_plot.set_xticks(widths, [str(width) for width in widths])
        axes_of_plot.set_title(f"r = {shape[0]}, m = {shape[1]}")
        axes_of_plot.set_xlabel("width of the hidden layer")
        axes_of_plot.legend(fontsize=7)
    canvas.axes[0].set_ylabel("Pearson's R on the training data")
    return canvas
