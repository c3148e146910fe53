"""Figure 5 of Beutel et al. 2018: can deep networks find that two of three features belong together?

X_jia = u_(i,a) v_j: user and action (i, a) have one factor together, the item j another. A model sees i, j and a apart.

- Networks: embeddings of 20 dimensions concatenated, one to three ReLU layers, a linear output; Adagrad at 0.01, the
  paper's rate for them.
- Tensor factorization ⟨u_i, v_j, w_a⟩ by rank; Adagrad at 0.1, the rate of the paper's section 4. The best
  approximation of a rank is known: u as a matrix cut to that rank by its singular values (Eckart and Young), because a
  factorization of rank ρ, projected on v, is a matrix of rank ρ times v and no worse for it. So the table tells how
  much of what can be reached training reached.

The paper's figure has no values in its text; what the text says is compared.
"""

from itertools import pairwise, product

import numpy as np
from matplotlib.figure import Figure as Plot

from benchmarks.beutel2018.fit_tables import convergence_table, plain_values, spread
from benchmarks.beutel2018.kept_fits import kept_fit
from benchmarks.beutel2018.many_models import ConcatenatedNetworks, Factorizations, Fit, Training
from benchmarks.beutel2018.synthetic_tensors import SyntheticTensors, discrete_cross_tensors, pearson
from benchmarks.experiments import Request, Scale
from benchmarks.report import Cell, ResultTable, publish_result
from pipeline.evaluation.plots import new_plot

DIMENSION = 20
SEEDS = 2
DEPTHS = (1, 2, 3)
WIDTHS = (20, 50, 100, 200)
RANKS = (1, 2, 5, 10, 20, 50, 100)

PAPER = (
    "Beutel et al. 2018, section 8.1: deep networks in some cases attain a reasonably high R, which takes depth and "
    "wide layers; factorization needs a relatively high rank, yet fewer parameters (no values)"
)
RANGE = "Pearson's R on the training data: median [lowest, highest] of the seeds."

Networks = dict[tuple[int, int], Fit]
"""(depth, width) -> what training gave."""


def reproduce(request: Request) -> None:
    """Publishes `discrete_crosses`."""
    full = request.scale == Scale.FULL
    seeds = range(request.trainings or SEEDS)
    tensors = discrete_cross_tensors(seeds, 100 if full else 8)
    depths, widths, ranks = (DEPTHS, WIDTHS, RANKS) if full else ((1, 2), (4,), (1, 2))
    of_networks, of_factorizations = (training(tensors.size, full, rate) for rate in (0.01, 0.1))
    shape = (seeds, tensors.axes, tensors.size)
    networks: Networks = {}
    for key in product(depths, widths):
        network = ConcatenatedNetworks(*shape, DIMENSION, [key[1]] * key[0])
        networks[key] = kept_fit(request, network_name(*key), network, tensors, of_networks)
    factorizations = {}
    for rank in ranks:
        factorization = Factorizations(*shape, rank)
        factorizations[rank] = kept_fit(request, rank_name(rank), factorization, tensors, of_factorizations)
    named = {network_name(*key): fit for key, fit in networks.items()}
    ranked = {rank_name(rank): fit for rank, fit in factorizations.items()}
    best = best_approximations(tensors, ranks)
    publish_result(
        request.output,
        request.result_name,
        [
            network_table(networks),
            factorization_table(factorizations, best),
            convergence_table("Convergence of the networks", named, of_networks),
            convergence_table("Convergence of the factorizations", ranked, of_factorizations),
        ],
        plot(networks, factorizations, best),
        {
            "command": request.command,
            "summary": verdicts(networks, factorizations),
            "seeds": len(seeds),
            "correlations": plain_values(named | ranked),
        },
        request.console,
    )


def training(size: int, full: bool, learning_rate: float) -> Training:
    """Adagrad as in `low_rank_crosses`; batches of as many pairs as there are users, with a tenth of the items."""
    checks = {"first_check": 1000, "doublings": 5} if full else {"first_check": 50, "doublings": 1}
    return Training(learning_rate, 1e-4, size, max(size // 10, 2), **checks, compiled=full)


def network_name(depth: int, width: int) -> str:
    return f"{depth} layer{'s' * (depth > 1)} of {width}"


def rank_name(rank: int) -> str:
    return f"factorization of rank {rank}"


def best_approximations(tensors: SyntheticTensors, ranks: tuple[int, ...]) -> dict[int, np.ndarray]:
    """R of the best approximation, in squares, by a factorization of each rank; `[seeds]`."""
    found: dict[int, list[float]] = {rank: [] for rank in ranks}
    for values in tensors.values:
        pairs, scale, items = np.linalg.svd(values, full_matrices=False)
        left, singular, right = np.linalg.svd(pairs[:, 0].reshape(tensors.size, tensors.size))
        for rank in ranks:
            cut = (left[:, :rank] * singular[:rank]) @ right[:rank]
            found[rank].append(pearson(scale[0] * np.outer(cut, items[0]), values))
    return {rank: np.array(by_seed) for rank, by_seed in found.items()}


def network_table(networks: Networks) -> ResultTable:
    """R by depth and width."""
    rows: list[list[Cell]] = [[network_name(*key), fit.parameters, spread(fit)] for key, fit in networks.items()]
    return ResultTable("Networks on concatenated embeddings", ["model", "parameters", "R"], rows, [RANGE], PAPER, 4)


def factorization_table(factorizations: dict[int, Fit], best: dict[int, np.ndarray]) -> ResultTable:
    """R by rank, and the highest possible."""
    rows: list[list[Cell]] = [
        [str(rank), fit.parameters, spread(fit), float(np.median(best[rank]))] for rank, fit in factorizations.items()
    ]
    return ResultTable(
        "Tensor factorization", ["rank", "parameters", "R", "R of the best approximation"], rows, [RANGE], digits=4
    )


def verdicts(networks: Networks, factorizations: dict[int, Fit]) -> list[str]:
    """The paper's sentences, by ours."""
    deepest, widest = (max(sizes) for sizes in zip(*networks, strict=True))
    by_width = [median(fit) for (depth, _), fit in networks.items() if depth == deepest]
    by_depth = [median(fit) for (_, width), fit in networks.items() if width == widest]
    best = max(networks, key=lambda key: median(networks[key]))
    lines = [
        f"R by width, {deepest} layers: {ascent(by_width)}",
        f"R by depth, width {widest}: {ascent(by_depth)}",
        f"best: {network_name(*best)}, R {median(networks[best]):.3f}, {networks[best].parameters:,} parameters",
    ]
    as_good = [rank for rank, fit in factorizations.items() if median(fit) >= median(networks[best])]
    if not as_good:
        return [*lines, f"no factorization up to rank {max(factorizations)} is as good"]
    rank = min(as_good)
    fewer = "fewer" if factorizations[rank].parameters < networks[best].parameters else "not fewer"
    return [
        *lines,
        f"a factorization as good has rank {rank} and {factorizations[rank].parameters:,} parameters: {fewer}",
    ]


def ascent(values: list[float]) -> str:
    """The values, and whether each is above the one before."""
    rising = all(b > a for a, b in pairwise(values))
    return f"{', '.join(f'{value:.3f}' for value in values)}: {'rises' if rising else 'does not always rise'}"


def median(fit: Fit) -> float:
    return spread(fit).value


def plot(networks: Networks, factorizations: dict[int, Fit], best: dict[int, np.ndarray]) -> Plot:
    """R over the number of parameters."""
    canvas = new_plot(6.5, 4.5)
    axes = canvas.subplots()
    curves = {f"{depth} hidden": [f for (d, _), f in networks.items() if d == depth] for depth, _ in networks}
    for name, fits in {**curves, "factorization": list(factorizations.values())}.items():
        figures = [spread(fit) for fit in fits]
        errors = [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
        style = "s--" if name == "factorization" else "o-"
        parameters = [fit.parameters for fit in fits]
        axes.errorbar(parameters, [f.value for f in figures], yerr=errors, fmt=style, capsize=3, label=name)
    parameters = [fit.parameters for fit in factorizations.values()]
    axes.plot(parameters, [np.median(r) for r in best.values()], ":", color="grey", label="best approximation")
    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    axes.set_ylabel("Pearson's R on the training data")
    axes.legend()
    return canvas
