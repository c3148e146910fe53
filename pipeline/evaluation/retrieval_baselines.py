"""The peers of the candidate generators, tuned on validation and measured on test like the models.

Popularity (all training; recent), co-watch (of the last watch; of the recent history), item-kNN, ALS, EASE and, where
configured, paragraph vectors; all but the popularities also weighted by recent popularity. Each is fitted on the
training watches, its hyper-parameters are chosen on validation, and it is fitted again, with these, on the watches
that a model may use before the test part.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Final, Literal

from pydantic import Field

from features.settings import Settings
from pipeline.evaluation.baselines.als import AlsConfig, fit_als
from pipeline.evaluation.baselines.co_watch import (
    CoWatchConfig,
    RecentCoWatchConfig,
    fit_co_watch,
    fit_recent_co_watch,
)
from pipeline.evaluation.baselines.ease import EaseConfig, fit_ease
from pipeline.evaluation.baselines.interactions import FittedBaseline, Interactions, RetrievalExamples
from pipeline.evaluation.baselines.item_knn import ItemKnnConfig, fit_item_knn
from pipeline.evaluation.baselines.paragraph_vectors import ParagraphVectorsConfig, fit_paragraph_vectors
from pipeline.evaluation.baselines.popularity import (
    Popularity,
    PopularityConfig,
    decayed_counts,
    recent_popularities,
    total_counts,
)
from pipeline.evaluation.baselines.recency_weighting import (
    RecencyWeighted,
    RecencyWeightingConfig,
    weigh_by_popularity,
)
from pipeline.evaluation.baselines.tuning import (
    PLAIN,
    Family,
    Parameters,
    Trial,
    Variant,
    scorer_of,
    tune_on_validation,
)
from pipeline.evaluation.bootstrap import Measurement
from pipeline.evaluation.figures import NO_VALIDATION, MethodFigures
from pipeline.evaluation.retrieval_metrics import (
    UNWATCHED,
    RetrievalMetricsConfig,
    all_metric_names,
    evaluate_retrieval,
)

POPULARITY: Final = "popularity"
RECENT_POPULARITY: Final = "recent popularity"
CO_WATCH: Final = "last-watch co-watch"
RECENT_CO_WATCH: Final = "recent co-watch"
ITEM_KNN: Final = "item-kNN"
ALS: Final = "ALS"
EASE: Final = "EASE"
PARAGRAPH_VECTORS: Final = "paragraph vectors"
Method = Literal[
    "popularity",
    "recent popularity",
    "last-watch co-watch",
    "recent co-watch",
    "item-kNN",
    "ALS",
    "EASE",
    "paragraph vectors",
]
WEIGHTED = "{} × recent popularity"
_UNWEIGHTED = (POPULARITY, RECENT_POPULARITY)


class RetrievalBaselinesConfig(Settings):
    """Which peers are run, their grids, and how their parameters are chosen."""

    methods: tuple[Method, ...] = Field(
        default=(POPULARITY, RECENT_POPULARITY, CO_WATCH, RECENT_CO_WATCH, ITEM_KNN, ALS, EASE),
        description="families to run, by name",
    )
    popularity: PopularityConfig = PopularityConfig()
    co_watch: CoWatchConfig = CoWatchConfig()
    recent_co_watch: RecentCoWatchConfig = RecentCoWatchConfig()
    item_knn: ItemKnnConfig = ItemKnnConfig()
    als: AlsConfig = AlsConfig()
    ease: EaseConfig = EaseConfig()
    paragraph_vectors: ParagraphVectorsConfig = ParagraphVectorsConfig()
    recency_weighting: RecencyWeightingConfig = RecencyWeightingConfig()
    selected_by: tuple[str, ...] | None = Field(
        default=None,
        description="validation metrics whose geometric mean chooses the parameters; null: MAP@20 unwatched and "
        "recall@100 unwatched, or where these are not reported those of the nearest k",
    )
    validation_examples: int = Field(default=3000, ge=1, description="validation examples used for choosing, at most")
    seed: int = Field(default=0, ge=0, description="seed of the choice of validation examples")

    def selection(self, metrics: RetrievalMetricsConfig) -> tuple[str, ...]:
        """Names of the metrics that choose the parameters.

        Raises:
          ValueError: `selected_by` names none, or what is not reported.
        """
        if self.selected_by is None:
            usual = (("MAP", metrics.map_at, 20), ("recall", metrics.recall_at, 100))
            names = tuple(f"{name}@{_nearest(at, k)} {UNWATCHED}" for name, at, k in usual if at)
            return names or (f"precision@1 {UNWATCHED}",)
        there = all_metric_names(metrics)
        wrong = [name for name in self.selected_by if name not in there]
        if wrong or not self.selected_by:
            found = repr(wrong[0]) if wrong else "none"
            raise ValueError(
                f"retrieval_baselines.selected_by: expected metrics that evaluation.retrieval reports, found {found}; "
                f"there are {', '.join(there)}"
            )
        return self.selected_by


def _nearest(numbers: Sequence[int], wanted: int) -> int:
    return min(numbers, key=lambda number: abs(number - wanted))


@dataclass(frozen=True)
class BaselineResult:
    """One peer on the test part.

    Args:
      method: its name in tables.
      measurements: as of `evaluate_retrieval`, for pairing with a model's.
      parameters: chosen on validation.
      trials: everything that was tried on validation, the best first.
      seconds: time for choosing, fitting and measuring.
      left_out: why it was not run, if it was not.
    """

    method: str
    measurements: tuple[Measurement, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    seconds: float = 0.0
    left_out: str | None = None

    @property
    def method_figures(self) -> MethodFigures:
        """The figures with their intervals."""
        settings = {"parameters": dict(self.parameters), "tried": len(self.trials), "seconds": round(self.seconds, 1)}
        return MethodFigures(self.method, tuple(m.figure for m in self.measurements), settings, self.left_out)


def families(config: RetrievalBaselinesConfig, watches: Interactions) -> list[Family]:
    """The configured peers with their grids."""
    recent = [{"popularity": name} for name in recent_popularities(watches, config.popularity)]
    all_families = [
        Family(POPULARITY, lambda w, _: Popularity(total_counts(w)), [{}]),
        Family(
            RECENT_POPULARITY,
            lambda w, p: Popularity(recent_popularities(w, config.popularity)[p["popularity"]]),
            recent,
        ),
        Family(CO_WATCH, lambda w, p: fit_co_watch(w, **p), _grid(backoff=config.co_watch.backoff)),
        Family(
            RECENT_CO_WATCH,
            lambda w, p: fit_recent_co_watch(w, **p),
            _grid(decay=config.recent_co_watch.decay, backoff=config.recent_co_watch.backoff),
        ),
        Family(
            ITEM_KNN,
            lambda w, p: fit_item_knn(w, **p),
            _grid(neighbours=config.item_knn.neighbours, shrinkage=config.item_knn.shrinkage),
            config.item_knn.max_videos,
        ),
        Family(
            ALS,
            lambda w, p: fit_als(w, **p, config=config.als),
            _grid(
                factors=config.als.factors,
                regularisation=config.als.regularisation,
                confidence=config.als.confidence,
            ),
        ),
        Family(
            EASE,
            lambda w, p: fit_ease(w, **p),
            _grid(regularisation=config.ease.regularisation),
            config.ease.max_videos,
        ),
        Family(
            PARAGRAPH_VECTORS,
            lambda w, p: fit_paragraph_vectors(w, **p, config=config.paragraph_vectors),
            _grid(dimension=config.paragraph_vectors.dimension, regularisation=config.paragraph_vectors.regularisation),
            config.paragraph_vectors.max_videos,
        ),
    ]
    return [family for family in all_families if family.name in config.methods]


def evaluate_baselines(
    train: Interactions,
    validation: RetrievalExamples,
    refit: Interactions,
    test: RetrievalExamples,
    config: RetrievalBaselinesConfig | None = None,
    metrics: RetrievalMetricsConfig | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> list[BaselineResult]:
    """Tunes, fits and measures every configured peer; one that cannot be is told with the reason.

    Args:
      train: watches before the validation part.
      validation: examples to choose parameters by; where there are none every peer is left out.
      refit: watches to fit the chosen ones on: what the models may use before the test part.
      test: examples to report.
      config: grids and choice.
      metrics: cut-offs and bootstrap, as for the models.
      progress: is told what is done at the moment.
    """
    config, metrics = config or RetrievalBaselinesConfig(), metrics or RetrievalMetricsConfig()
    validation = validation.take_first(config.validation_examples, config.seed)
    results: list[BaselineResult] = []
    for family in families(config, train):
        if not len(validation):
            results.extend(_left_out(family, NO_VALIDATION))
        elif family.max_videos is not None and train.num_videos > family.max_videos:
            reason = f"{train.num_videos} videos are more than the configured {family.max_videos}"
            results.extend(_left_out(family, reason))
        else:
            results.extend(_run_family(family, train, validation, refit, test, config, metrics, progress))
    return results


def _left_out(family: Family, reason: str) -> list[BaselineResult]:
    names = [family.name, *([] if family.name in _UNWEIGHTED else [WEIGHTED.format(family.name)])]
    return [BaselineResult(name, left_out=reason) for name in names]


def _run_family(
    family: Family,
    train: Interactions,
    validation: RetrievalExamples,
    refit: Interactions,
    test: RetrievalExamples,
    config: RetrievalBaselinesConfig,
    metrics: RetrievalMetricsConfig,
    progress: Callable[[str], None],
) -> list[BaselineResult]:
    started = time.monotonic()
    progress(f"{family.name}: {len(family.grid)} settings on validation")
    weightings = [] if family.name in _UNWEIGHTED else _weightings(train, config)
    trials = tune_on_validation(family, train, validation, [PLAIN, *weightings], config.selection(metrics), metrics)
    plain = [trial for trial in trials if not trial.variant]
    weighted = [trial for trial in trials if trial.variant]

    progress(f"{family.name}: test")
    fitted = family.fit(refit, plain[0].parameters)
    results = [_measure(family.name, fitted, plain, test, metrics, started)]
    if weighted:
        started = time.monotonic()
        parameters, variant = weighted[0].parameters, weighted[0].variant
        if parameters != plain[0].parameters:
            fitted = family.fit(refit, parameters)
        popularity = decayed_counts(refit, variant["half_life_days"])
        peer = RecencyWeighted(fitted, popularity, variant["exponent"])
        results.append(_measure(WEIGHTED.format(family.name), peer, weighted, test, metrics, started))
    return results


def _weightings(watches: Interactions, config: RetrievalBaselinesConfig) -> list[Variant]:
    """Every configured weighting by the recent popularity of these watches."""
    weighting = config.recency_weighting
    variants = []
    for days in weighting.half_life_days:
        popularity = decayed_counts(watches, days)
        for exponent in weighting.exponent:
            change = partial(weigh_by_popularity, popularity=popularity, exponent=exponent)
            variants.append(Variant({"half_life_days": days, "exponent": exponent}, change))
    return variants


def _measure(
    method: str,
    fitted: FittedBaseline,
    trials: Sequence[Trial],
    test: RetrievalExamples,
    metrics: RetrievalMetricsConfig,
    started: float,
) -> BaselineResult:
    measurements = evaluate_retrieval(scorer_of(fitted, test.histories), test.targets, metrics)
    parameters = {**trials[0].parameters, **trials[0].variant}
    return BaselineResult(method, tuple(measurements), parameters, tuple(trials), time.monotonic() - started)


def _grid(**values: Sequence[Any]) -> list[Parameters]:
    """Every combination of the named values."""
    return [dict(zip(values, entry, strict=True)) for entry in product(*values.values())]
