"""The experiments of sequences on one small world: what they publish of what they measured."""

import json
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks import sequences
from benchmarks.beutel2018 import context_fusion
from benchmarks.beutel2018.context_models import table_4
from benchmarks.experiments import Request, Scale, SourceName, configuration, prepare
from benchmarks.generators import HeldOutWatches
from benchmarks.report import is_whole
from benchmarks.sequences import NAME, Variant, platform_settings, variant_run
from benchmarks.tang2019 import movielens_ranges, sequence_lengths, sparse_gates, temporal_range
from features.errors import DataError
from features.example_reader import ExampleSet
from features.splits import Part
from models.m3 import M3
from pipeline.evaluation.retrieval_metrics import MISS
from pipeline.input_pipeline import ExampleColumns
from pipeline.model_stages import fit_generator, vocabulary_sizes
from pipeline.run import SEQUENCES, Run

pytestmark = pytest.mark.slow


def asked(name: str, folder: Path) -> Request:
    return Request(name, Scale.SMOKE, SourceName.SIMULATOR, (), folder / "out", folder / "work", Console(quiet=True))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The experiments' platform at smoke scale, its data made once."""
    request = asked("shared", tmp_path_factory.mktemp("world"))
    settings = context_fusion.with_time_of_week(platform_settings(full=False))
    return prepare(request, "shared", configuration(request, settings))


@pytest.fixture
def shared_world(world: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Every experiment finds this world, whatever it asks for."""
    for module in (context_fusion, temporal_range, movielens_ranges, sequence_lengths, sparse_gates):
        monkeypatch.setattr(module, "prepare", lambda request, name, config: world)
    return world


def ranks_of(name: str, examples: int) -> np.ndarray:
    """The ranks that stand for those of a trained model of this name."""
    return np.random.default_rng(list(name.encode())).integers(1, 40, examples)


@pytest.fixture
def untrained(shared_world: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], float]:
    """No variant is trained: its ranks are drawn. Gives the MAP@20 of a name, every user counting the same."""
    users = HeldOutWatches(shared_world).targets.users

    def answers(request: Request, run: Run, variant: Variant, seed: int) -> dict[str, np.ndarray]:
        ranks = ranks_of(variant.name, len(users))
        one = np.array([1])
        return {"among_all": ranks, "among_unwatched": ranks, "validation_map": one, "epoch": one, "parameters": one}

    def map_of(name: str) -> float:
        ranks = ranks_of(name, len(users))
        precision = np.where(ranks <= 20, 1 / ranks, 0)
        return float(np.mean([precision[users == user].mean() for user in np.unique(users)]))

    monkeypatch.setattr(sequences, "sequence_answers", answers)
    return map_of


def published(module: ModuleType, folder: Path) -> tuple[str, dict[str, Any]]:
    """Runs an experiment at smoke scale: its Markdown and its JSON."""
    name = module.__name__.rpartition(".")[2]
    module.reproduce(asked(name, folder))
    assert is_whole(folder / "out", f"{name}_smoke")
    text = (folder / "out" / f"{name}_smoke.md").read_text()
    assert f"upnext reproduce {name} --scale smoke" in text and "nan" not in text
    return text, json.loads((folder / "out" / f"{name}_smoke.json").read_text())


def rows_of(result: dict[str, Any], title: str) -> dict[str, list[Any]]:
    (table,) = [table for table in result["tables"] if table["title"] == title]
    return {row[0]: row[1:] for row in table["rows"]}


def test_temporal_range_tells_every_model_beside_m3r(untrained: Callable[[str], float], tmp_path: Path) -> None:
    text, result = published(temporal_range, tmp_path)
    rows = rows_of(result, "Table 5, world `ranges`")
    assert len(rows) == 7
    for name, (found, _, over, *_) in rows.items():
        assert found["value"] == pytest.approx(untrained(name))
        assert over["value"] == pytest.approx(untrained(name) - untrained("M3R-TSL"))
    assert "ranges: M3R-SL over M3R-L" in text and "no_replays: M3R-TSL over Context-GRU" in text


def of_movielens(folder: Path, console: Console, *overrides: str) -> Request:
    folders = (folder / "out", folder / "work")
    return Request("temporal_range", Scale.SMOKE, SourceName.MOVIELENS, overrides, *folders, console)


def test_temporal_range_on_movielens_has_the_papers_tables_without_context(
    untrained: Callable[[str], float], tmp_path: Path
) -> None:
    temporal_range.reproduce(of_movielens(tmp_path, Console(quiet=True)))
    result = json.loads((tmp_path / "out/temporal_range_movielens_smoke.json").read_text())
    rows = rows_of(result, "Table 2, MovieLens 20m")
    assert [*rows] == ["DeepBoW", "Caser", "FMC", "GRU4Rec", "M3C-TSL", "M3R-TSL"]
    assert rows["FMC"][0]["value"] == pytest.approx(untrained("FMC"))
    assert [*rows_of(result, "Table 6, MovieLens 20m")] == ["M3R, gates fixed", "M3R-TSL"]
    assert len(rows_of(result, "Table 5, MovieLens 20m")) == 7


def test_movielens_20m_that_cannot_be_had_is_not_run_and_a_wrong_archive_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*given: Any, **named: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    console = Console(record=True, width=300)
    temporal_range.reproduce(of_movielens(tmp_path, console, f"source.data_dir={tmp_path}"))
    assert "MovieLens 20M: not run (https://files.grouplens.org" in console.export_text()
    assert not (tmp_path / "out").exists()
    broken = tmp_path / "broken.zip"
    broken.write_text("no archive")
    with pytest.raises(DataError, match="not a readable zip archive"):
        temporal_range.reproduce(of_movielens(tmp_path, console, f"source.archive={broken}"))


def test_context_fusion_tells_every_use_of_context(untrained: Callable[[str], float], tmp_path: Path) -> None:
    text, result = published(context_fusion, tmp_path)
    rows = rows_of(result, "Table 4, time, world `decisive`")
    crossed, concatenated = (untrained(name) for name in ("RNN with Δt latent cross", "RRN (concatenated Δt)"))
    assert rows["RNN with Δt latent cross"][1]["value"] == pytest.approx(crossed - concatenated)
    assert {"Last-watch co-watch", "Paragraph vectors", "RNN (plain, no time), hierarchical softmax"} <= rows.keys()
    told = f"RNN with Δt latent cross over RRN (concatenated Δt), MAP@20 {crossed / concatenated - 1:+.1%}"
    assert told in text
    for world in ("turned", "no_context"):
        assert f"{world}, Figure 4, all context" in text and f"{world}, Table 4" not in text


def test_sequence_lengths_tells_uplifts_over_the_better_baseline(
    untrained: Callable[[str], float], tmp_path: Path
) -> None:
    text, result = published(sequence_lengths, tmp_path)
    rows = rows_of(result, "Figure 4, uplift by length of sequences")
    assert list(rows) == ["S", "M", "L", "XL"]
    best = max(("GRU", "Caser"), key=untrained)
    for told, *uplifts in rows.values():
        assert told == best
        expected = [untrained(name) / untrained(best) - 1 for name in ("GRU", "Caser", "M3C", "M3R")]
        assert [uplift["value"] for uplift in uplifts] == pytest.approx(expected)
    assert f"XL: M3R over {best}, MAP@20 {untrained('M3R') / untrained(best) - 1:+.1%}" in text


def test_sparse_gates_cuts_gates_at_every_threshold(
    shared_world: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mixture that is as it was built: its gates are around a half."""

    def built(run: Run, name: str) -> SimpleNamespace:
        config = run.config.generators[name].model
        return SimpleNamespace(model=M3(config, run.specs[SEQUENCES], vocabulary_sizes(run)))

    monkeypatch.setattr(sparse_gates, "fit_generator", built)
    monkeypatch.setattr(sparse_gates, "THRESHOLDS", (None, 0.999))
    _, result = published(sparse_gates, tmp_path)
    (table,) = result["tables"]
    whole, cut = table["rows"]
    assert (whole[1], cut[1]) == ("none", "0.999")
    assert whole[5:] == [1, 1, 1] and cut[5:] == [0, 0, 0]  # which encoders are executed
    assert min(*whole[3:5], *cut[3:5]) > 0


def test_a_bag_of_words_with_time_is_judged_though_no_index_answers_for_it(world: Run) -> None:
    """The candidates after each video are what followed it most often as a label of the training sequences."""
    variant = next(v for v in table_4(full=False).variants if v.name == "Bag of words with time")
    trained = fit_generator(variant_run(world, variant, seed=1), NAME).model
    assert {column.feature.name for column in trained.columns_after} == {"time_delta", "time_of_week"}

    followed: dict[int, Counter[int]] = defaultdict(Counter)
    for row in ExampleSet(world.examples(SEQUENCES)).read(Part.TRAIN).to_pylist():
        videos = [*row["watched_video_ids"], row["label"]]
        for before, after, weight in zip(videos, videos[1:], [*row["label_weights"], 1][1:], strict=False):
            if weight and before and after and before != after:
                followed[before][after] += 1
    candidates = trained.softmax.videos.videos.numpy()
    assert len(followed) > 20
    for video in range(1, trained.num_classes + 1):
        counts = followed[video]
        expected = sorted(counts, key=lambda after: (-counts[after], after))[:50]
        assert candidates[video][candidates[video] > 0].tolist() == expected

    held_out = HeldOutWatches(world)
    ranks = held_out.ranks(trained).among_all
    columns = ExampleColumns(ExampleSet(world.examples(SEQUENCES)), (Part.TEST,), ())
    last = [videos[-1] if videos else 0 for videos in columns.examples.read(Part.TEST)["watched_video_ids"].to_pylist()]
    labels = held_out.targets.targets + 1
    known = (candidates[last] > 0).sum(axis=1)
    among = (candidates[last] == labels[:, np.newaxis]).any(axis=1) & (labels > 0)
    assert 10 < among.sum() < len(among)
    assert (ranks[among] <= known[among]).all()
    new = labels > trained.num_classes  # uploaded since the training: nothing answers them
    assert (ranks[new] == MISS).all()
    others = ~among & (labels > 0) & ~new
    # Another label stands behind the candidates, and among the rest by frequency.
    before = (candidates[last] > labels[:, np.newaxis]).sum(axis=1)
    np.testing.assert_array_equal(ranks[others], (labels + before)[others])
