"""What is handed to RecBole's models and what is made of their scores; RecBole itself is not needed."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from benchmarks.speed.peers import Peers
from benchmarks.tang2019.handover import EVERYBODY, RecBole, Sequence, ranks_of_scores, sequences
from benchmarks.tang2019.outside_models import OUTSIDE, Tried, ours, search_space
from benchmarks.tang2019.outside_peers import Model, Trial, best, first_of_their_moment
from features.splits import Part
from pipeline.config import GeneratorConfig
from pipeline.evaluation.retrieval_metrics import MISS, RetrievalTargets


def examples(weights: bool = True) -> pa.Table:
    columns: dict[str, Any] = {
        "user_id": ["ann", "bob", "cem", "dora"],
        "label": [7, 3, 0, 5],
        "watched_video_ids": [[2, 0, 4, 6], [0, 0], [1], [8]],
    }
    if weights:
        columns["label_weights"] = [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0], [0.0], [0.0]]
    return pa.table(columns)


def test_sequences_keep_the_labels_of_watches_whose_neighbours_are_out_of_vocabulary() -> None:
    # Of ann 4 is a label, predicted from 2; 6 is none; 7 is the example's own. Bob has no watch and cem no label.
    ann, dora = sequences(examples(), told_apart=True)
    assert ann == Sequence("ann", [2, 4, 6], [1, 0, 1], 7)
    assert dora == Sequence("dora", [8], [1], 5)


def test_validation_has_one_label_and_users_are_one_where_they_are_held_out() -> None:
    ann, dora = sequences(examples(weights=False), told_apart=False)
    assert ann == Sequence(EVERYBODY, [2, 4, 6], [0, 0, 1], 7)
    assert dora.user == EVERYBODY


def test_pairs_have_the_labels_of_the_sequence_each_with_the_watches_before_it() -> None:
    pairs = list(Sequence("ann", [2, 4, 6], [1, 0, 1], 7).pairs())
    assert pairs == [Sequence("ann", [2], [1], 4), Sequence("ann", [2, 4, 6], [0, 0, 1], 7)]


def test_a_line_has_the_last_watches() -> None:
    assert Sequence("ann", [2, 4, 6], [1, 0, 1], 7).line(2) == "ann\t4 6\t0 1\t7\n"


def test_ranks_of_scores_put_videos_without_a_class_last_and_count_ties_against_the_target() -> None:
    targets = RetrievalTargets(
        np.array(["ann", "bob", "cem"]), np.array([1, 0, -1]), sp.csr_matrix([[0, 0, 1, 0], [0] * 4, [0] * 4])
    )
    scores = np.array([[0.1, 0.5, 0.9], [0.3, 0.3, 0.1], [0.0, 0.0, 0.0]], np.float32)
    ranks = ranks_of_scores(scores, targets)
    assert ranks.among_all.tolist() == [2, 2, MISS]
    assert ranks.among_unwatched.tolist() == [1, 2, MISS]


def test_a_video_recbole_was_never_given_is_a_miss() -> None:
    targets = RetrievalTargets(np.array(["ann"]), np.array([0]), sp.csr_matrix((1, 3)))
    assert ranks_of_scores(np.array([[-np.inf, 0.2, -5.0]], np.float32), targets).among_all.tolist() == [MISS]


SCORING = """
import json, sys, numpy as np
from pathlib import Path
folder = Path(sys.argv[1])
request = json.loads((folder / "settings.json").read_text())
asked = dict(np.load(folder / "asked.npz"))
scores = np.zeros((len(asked["users"]), request["videos"]), np.float32)
for place in range(len(scores)):
    last = asked["videos"][asked["offsets"][place] : asked["offsets"][place + 1]][-1:]
    scores[place, last % request["videos"]] = 1  # the video of the row after the last watch's
np.save(folder / "scores.npy", scores)
lines = {part: (folder / f"handed.{part}.inter").read_text().splitlines()[1:] for part in ("train", "validation")}
print(json.dumps({"validation": [0.1, 0.4], "epoch": 2, "parameters": len(lines["train"]), "seconds": 1.0}))
"""


def test_a_model_is_handed_training_and_asked_for_every_part_in_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "peer_recbole.py").write_text(SCORING)
    tables = {Part.TRAIN: examples(), Part.VALIDATION: examples(False).slice(0, 1), Part.TEST: examples(False).slice(3)}

    class Examples:
        split = SimpleNamespace(test_user_share=0.1)

        def __init__(self, folder: Path) -> None:
            pass

        def read(self, part: Part, columns: list[str] | None = None) -> pa.Table:
            return tables[part] if columns is None else tables[part].select(columns)

    monkeypatch.setattr("benchmarks.tang2019.handover.ExampleSet", Examples)
    catalogue = pa.table({"video": [1, 2, 3, 4, 5, 6, 7, 8, 0]})
    run: Any = SimpleNamespace(encoder=SimpleNamespace(catalogue=catalogue), examples=lambda model: tmp_path)
    recbole = RecBole(run, Peers(Path(sys.executable), tmp_path), length=50)
    # The peer says that after ann's 6 comes 7, at column 6, and after dora's 8 comes 1, at column 0.
    targets = {
        Part.VALIDATION: RetrievalTargets(np.array(["ann"]), np.array([6]), sp.csr_matrix((1, 9))),
        Part.TEST: RetrievalTargets(np.array(["dora"]), np.array([0]), sp.csr_matrix((1, 9))),
    }
    found = recbole.answers("SASRec", True, {}, targets)
    assert found["validation_among_all"].tolist() == [1]
    assert found["test_among_all"].tolist() == [1]
    assert (found["epoch"].tolist(), found["parameters"].tolist()) == ([2], [2])  # lines: ann, dora
    pairs = recbole.answers("Caser", False, {}, targets)
    assert pairs["parameters"].tolist() == [3]  # ann's two labels, dora's one


def test_the_first_watch_of_a_moment_is_told_by_the_order_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = pa.array([5, 5, 9, 5], pa.timestamp("us", tz="UTC"))
    watches = pa.table({"user_id": ["ann", "ann", "ann", "bob"], "video_id": ["x", "y", "z", "y"], "timestamp": at})
    labels = pa.table({"user_id": watches["user_id"], "label_timestamp": at, "label_video_id": watches["video_id"]})
    monkeypatch.setattr("benchmarks.tang2019.outside_peers.table_columns", lambda folder, name: watches.column_names)
    monkeypatch.setattr(
        "benchmarks.tang2019.outside_peers.table_batches", lambda folder, name, columns: [watches.select(columns)]
    )
    monkeypatch.setattr(
        "benchmarks.tang2019.outside_peers.ExampleSet",
        lambda folder: SimpleNamespace(read=lambda part, columns: labels.select(columns)),
    )
    run: Any = SimpleNamespace(tables=tmp_path, examples=lambda model: tmp_path)
    assert first_of_their_moment(run).tolist() == [True, False, True, True]


@pytest.mark.parametrize("full", [False, True])
def test_every_model_of_ours_is_a_configuration_for_every_setting(full: bool) -> None:
    for model in ours(64 if full else 8):
        for tried in search_space(full):
            config = GeneratorConfig.model_validate(model.generator(tried, {"epochs": 3}))
            assert config.model.dropout == tried.dropout
            assert (config.training.learning_rate, config.training.epochs) == (tried.learning_rate, 3)
            assert (config.co_watch_start is not None) == ("co-watches" in model.name)


def test_recbole_is_told_every_dropout_and_stops_after_the_same_patience() -> None:
    training = {"epochs": 30, "patience": 4, "batch_size": 32}
    told = {model.model: model.recbole(Tried(0.003, 0.4), training, seed=2) for model in OUTSIDE}
    assert told["SASRec"]["hidden_dropout_prob"] == told["SASRec"]["attn_dropout_prob"] == 0.4
    # RecBole stops once more than `stopping_step` passes were no better, we once `patience` were.
    assert {settings["stopping_step"] for settings in told.values()} == {3}
    assert told["GRU4Rec"]["train_batch_size"] == 32
    assert json.loads(json.dumps(told)) == told


def test_the_best_model_is_chosen_on_validation_not_on_test() -> None:
    def model(name: str, validation: float, rank: int) -> Model:
        trial = Trial(Tried(0.001, 0.2), validation, {"test_among_all": np.array([rank])})
        return Model(name, False, [trial], [trial])

    assert best([model("a", 0.2, 9), model("b", 0.1, 1)]).name == "a"
