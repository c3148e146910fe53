"""Figure 6 of Covington et al. 2016: MAP of the candidate generator by features and by depth 0 to 4.

Feature sets: watches only; + searches; + searches and example age; all (region, device, gender, logged-in and age too).
Depth 0 is one linear layer; each layer is half as wide as the one below.

World `nothing_to_add`, where the causes are switched off: no searches, no uploads within the window (from which on a
video can be watched is what example age tells even where nobody prefers fresh ones), demographics and language tell
nothing of taste, and page and device do not multiply it. There further features and depth have nothing to bring.

World `more_users`: the same platform with four times the users, where deep towers have more to learn from.
"""

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

from matplotlib.figure import Figure as Plot

from benchmarks.experiments import (
    Claim,
    Request,
    Scale,
    claim,
    configuration,
    mean_of_seeds,
    prepare,
    published_settings,
)
from benchmarks.generators import HeldOutWatches, generator_answers, simulator_settings
from benchmarks.report import Cell, ResultTable, publish_result
from pipeline.evaluation.bootstrap import Measurement, paired_difference
from pipeline.evaluation.plots import new_plot
from pipeline.run import Run

DEMOGRAPHICS = ("region", "device", "gender", "logged_in", "age")
FEATURE_SETS: dict[str, tuple[str, ...]] = {
    "watches only": ("search_tokens", "example_age", *DEMOGRAPHICS),
    "+ searches": ("example_age", *DEMOGRAPHICS),
    "+ example age": DEMOGRAPHICS,
    "all features": (),
}
"""Name -> the features that are left out."""
FIRST, LAST = "watches only", "all features"
DEPTHS: tuple[int, ...] = (0, 1, 2, 3, 4)
OFF = "nothing_to_add"
SWITCHED_OFF = {
    **dict.fromkeys(("searches", "freshness", "demographics", "language", "context", "duration_fit"), 0.0),
    "back_catalogue": 1.0,
}
MORE = "more_users"
MORE_USERS = {"users": 16_000}
MORE_DEPTHS = (0, 2, 4)
PAPER = (
    "Covington et al. 2016, Figure 6 (read off the text, which gives no values): features beyond watches improve MAP, "
    "and depth helps where there are features to combine"
)

Maps = dict[tuple[str, int], list[Measurement]]
"""(feature set, depth) -> MAP, one measurement per seed."""


def reproduce(request: Request) -> None:
    """Publishes `features_and_depth`."""
    full = request.scale == Scale.FULL
    base = simulator_settings(full)
    depths = DEPTHS if full else (0, 2)
    sets = tuple(FEATURE_SETS) if full else (FIRST, LAST)
    run = prepare(request, "plausible", configuration(request, base))
    maps = measure(request, run, list(product(sets, depths)))
    deepest = depths[2] if full else depths[-1]
    off_run = prepare(request, OFF, configuration(request, base, SWITCHED_OFF))
    off = measure(request, off_run, list(product((FIRST, LAST), (0, deepest))) if full else [(FIRST, 0), (LAST, 0)])
    claims = claims_of(maps, depths) + switched_off_claims(off)
    made = tables(maps, off, HeldOutWatches(run))
    if full:
        more_run = prepare(request, MORE, configuration(request, base, MORE_USERS))
        more = measure(request, more_run, [(LAST, depth) for depth in MORE_DEPTHS])
        claims += [
            replace(found, text=f"{MORE_USERS['users']:,} users: {found.text}")
            for found in depth_claims(more, MORE_DEPTHS)
        ]
        made.append(grid(f"{size_of(HeldOutWatches(more_run))} in the world '{MORE}'", more, ""))
    publish_result(
        request.output,
        request.result_name,
        made,
        plot(maps),
        {
            "command": request.command,
            "summary": [claim.sentence() for claim in claims],
            "trainings of each variant": len(request.seeds),
            "settings": published_settings(run, {"source", "split", "generators"}),
            "switched_off": {OFF: SWITCHED_OFF},
        },
        request.console,
    )


def measure(request: Request, run: Run, variants: list[tuple[str, int]]) -> Maps:
    """MAP of some variants in a world."""
    held_out = HeldOutWatches(run)
    maps: Maps = {}
    for features, depth in variants:
        for seed in request.seeds:
            name = f"{features.replace('+ ', 'with ').replace(' ', '_')}-depth{depth}"
            answers = generator_answers(request, run, name, {"depth": depth}, seed, FEATURE_SETS[features])
            maps.setdefault((features, depth), []).append(held_out.map(answers))
    return maps


def claims_of(maps: Maps, depths: tuple[int, ...]) -> list[Claim]:
    """Features help at every depth, step by step; depth helps, most where there are most features."""
    sets = list(dict.fromkeys(features for features, _ in maps))
    middle = depths[len(depths) // 2]
    claims = [
        claim(f"at depth {middle}, {b!r} is above {a!r}", maps[b, middle], maps[a, middle], sign=1)
        for a, b in pairwise(sets)
    ]
    claims += [
        claim(f"all features are above watches only at depth {d}", maps[LAST, d], maps[FIRST, d], 1) for d in depths
    ]
    return claims + depth_claims(maps, depths)


def depth_claims(maps: Maps, depths: tuple[int, ...]) -> list[Claim]:
    """Depth helps, and most where there are most features (where those with the fewest were measured too)."""
    claims = [
        claim(f"with all features, depth {b} is above depth {a}", maps[LAST, b], maps[LAST, a], 1)
        for a, b in pairwise(depths)
    ]
    deepest = depths[-1]
    claims.append(claim(f"with all features, depth {deepest} is above depth 0", maps[LAST, deepest], maps[LAST, 0], 1))
    if (FIRST, deepest) in maps:
        claims.append(
            claim(
                f"depth {deepest} brings more with all features than with watches only",
                gains(maps[LAST, deepest], maps[LAST, 0]),
                gains(maps[FIRST, deepest], maps[FIRST, 0]),
                1,
            )
        )
    return claims


def gains(deep: list[Measurement], linear: list[Measurement]) -> list[Measurement]:
    """What depth brings, as a measurement per seed over the same draws."""
    return [
        Measurement(a.name, a.value - b.value, a.samples - b.samples, a.n, a.population, a.confidence)
        for a, b in zip(deep, linear, strict=True)
    ]


def switched_off_claims(maps: Maps) -> list[Claim]:
    """What features and depth are not to bring in a world without their causes."""
    depths = sorted({depth for _, depth in maps})
    claims = [
        claim(f"switched off ({OFF}): advantage of all features at depth {d}", maps[LAST, d], maps[FIRST, d], 1, True)
        for d in depths
        if (LAST, d) in maps and (FIRST, d) in maps
    ]
    if len(depths) > 1:
        deepest = depths[-1]
        text = f"switched off ({OFF}): advantage of depth {deepest} over 0 with all features"
        claims.append(claim(text, maps[LAST, deepest], maps[LAST, 0], 1, True))
    return claims


def tables(maps: Maps, off: Maps, held_out: HeldOutWatches) -> list[ResultTable]:
    """MAP by feature set and depth, in both worlds."""
    return [grid(size_of(held_out), maps, PAPER), grid(f"MAP@20 in the world '{OFF}'", off, "")]


def size_of(held_out: HeldOutWatches) -> str:
    """What MAP is measured on."""
    targets = held_out.targets
    users = len(set(targets.users.tolist()))
    return f"MAP@20 ({users:,} users, {len(targets):,} next watches, {targets.num_videos:,} videos)"


def grid(title: str, maps: Maps, reference: str) -> ResultTable:
    """One row per feature set, one column per depth."""
    depths = sorted({depth for _, depth in maps})
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(features for features, _ in maps):
        cells: list[Cell] = [mean_of_seeds(maps[name, d]).figure if (name, d) in maps else None for d in depths]
        rows.append([name, *cells])
    notes = ["Intervals: 95%, over users; differences are paired and much narrower."]
    if all((FIRST, d) in maps and (LAST, d) in maps for d in depths):
        differences = [paired_difference(mean_of_seeds(maps[LAST, d]), mean_of_seeds(maps[FIRST, d])) for d in depths]
        rows.append(["all features minus watches only", *differences])
    return ResultTable(title, ["features", *(f"depth {depth}" for depth in depths)], rows, notes, reference, 4)


def plot(maps: Maps) -> Plot:
    """Figure 6: MAP over depth, a line per feature set."""
    canvas = new_plot()
    axes = canvas.subplots()
    names = list(dict.fromkeys(features for features, _ in maps))
    for index, name in enumerate(names):
        depths: list[Any] = sorted(depth for features, depth in maps if features == name)
        figures = [mean_of_seeds(maps[name, depth]).figure for depth in depths]
        errors = [[f.value - f.low for f in figures], [f.high - f.value for f in figures]]
        x = [depth + 0.05 * (index - (len(names) - 1) / 2) for depth in depths]
        axes.errorbar(x, [f.value for f in figures], yerr=errors, marker="o", capsize=3, label=name)
    axes.set_xticks(sorted({depth for _, depth in maps}))
    axes.set_xlabel("depth (hidden ReLU layers)")
    axes.set_ylabel("hold-out MAP@20")
    axes.legend()
    return canvas
