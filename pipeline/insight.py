"""What is reported of a trained generator beside its metrics.

See `pipeline/evaluation/sequence_insight.py` for what the figures are.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import RenderableType

from features.example_reader import ExampleSet
from features.spec import Kind, Side
from features.splits import Part
from features.vocabulary import Vocabulary
from models.m3 import M3
from models.sequence_generator import SequenceGenerator
from models.two_tower import TwoTower
from pipeline.evaluation.bootstrap import paired_differences
from pipeline.evaluation.figures import Difference, write_json
from pipeline.evaluation.retrieval_metrics import UNWATCHED, RetrievalTargets, evaluate_retrieval
from pipeline.evaluation.sequence_insight import (
    Dependence,
    GateMeans,
    gate_means,
    gates_table,
    last_histories,
    plot_dependence,
    plot_gates,
    queries_without,
    temporal_dependence,
    vectors_by_row,
    worth_table,
)
from pipeline.input_pipeline import ExampleColumns
from pipeline.run import Run
from pipeline.vectors import catalogue_vectors, query_vectors, scorer


@dataclass(frozen=True)
class Insight:
    """What was found about one generator.

    Args:
      name: of the generator.
      dependence: over distance in the histories, of its embeddings of watched videos.
      worth: context feature -> metrics without it minus those with it; empty without context.
      gates: of a mixture of ranges; empty for others.
    """

    name: str
    dependence: Dependence
    worth: dict[str, list[Difference]]
    gates: list[GateMeans]

    def write(self, folder: Path) -> None:
        """Writes figures and plots."""
        write_json(folder / f"{self.name}_insight.json", self)
        plot_dependence({self.name: self.dependence}, folder / f"{self.name}_dependence.png")
        if self.gates:
            plot_gates(self.gates, folder / f"{self.name}_gates.png")

    def views(self) -> list[RenderableType]:
        """What is printed."""
        views: list[RenderableType] = []
        if self.worth:
            names = [d.name for d in next(iter(self.worth.values())) if not d.name.endswith(UNWATCHED)]
            views.append(
                worth_table(self.worth, names, f"{self.name}: metrics without a context feature, less those with it")
            )
        if self.gates:
            views.append(gates_table(self.gates, f"{self.name}: mean gates"))
        return views


def insight_of(run: Run, name: str, generator: SequenceGenerator | TwoTower, targets: RetrievalTargets) -> Insight:
    """Looks into a trained generator with the test examples.

    Args:
      run: whose generator it is.
      name: of the generator in the configuration.
      generator: the trained model; of a two-tower model the dependence alone is found.
      targets: of the test examples that are scored, over the catalogue.
    """
    examples = ExampleSet(run.examples(run.features_of_generator(name)))
    histories, lengths = last_histories(examples, Part.TEST)
    dependence = temporal_dependence(histories, lengths, vectors_by_row(generator))
    scored = run.config.evaluation.retrieval.max_examples
    columns = ExampleColumns(examples, (Part.TEST,), (), at_most=scored)
    worth = _worth(run, generator, columns, targets) if isinstance(generator, SequenceGenerator) else {}
    gates = gate_means(generator, columns, context_ids(run, generator)) if isinstance(generator, M3) else []
    return Insight(name, dependence, worth, gates)


def _worth(
    run: Run, generator: SequenceGenerator, columns: ExampleColumns, targets: RetrievalTargets
) -> dict[str, list[Difference]]:
    """Context feature -> metrics without it minus those with it."""
    names = [feature.name for feature in generator.config.context if feature.name not in generator.left_out]
    if not names:
        return {}
    vectors = catalogue_vectors(generator, run.encoder, run.split, columns.examples)
    config = run.config.evaluation.retrieval
    with_all = evaluate_retrieval(scorer(query_vectors(generator, columns), vectors), targets, config)
    worth = {}
    for name in names:
        without = evaluate_retrieval(scorer(queries_without(generator, name, columns), vectors), targets, config)
        worth[name] = paired_differences(without, with_all)
    return worth


def context_ids(run: Run, generator: SequenceGenerator) -> dict[str, list[str]]:
    """Categorical context of the request -> its ids in the order of their rows."""
    names = {feature.name for feature in generator.config.context}
    found = {}
    for feature in generator.spec.side(Side.QUERY):
        name = feature.name
        if name in names and feature.kind == Kind.CATEGORICAL:
            file = run.features / "vocabularies" / f"{feature.id_space}.parquet"
            found[name] = np.asarray(Vocabulary.read(file).ids.to_pylist(), object).tolist()
    return found
