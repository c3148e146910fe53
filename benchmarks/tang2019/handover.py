"""Hands a run's examples to RecBole's models, which are trained in an environment of their own (`peer_recbole.py`).

RecBole is given the same labels as our sequence models, each with the watches before it, and the validation part to
choose its pass by; it gives the scores of all videos for the histories of validation and test, which our evaluation
ranks. Watches out of the vocabulary are left out of what it reads, as RecBole's own filter of rare items does.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.speed.peers import Peers
from features.candidate_examples import LABEL_WEIGHTS, SEQUENCE
from features.example_reader import ExampleSet
from features.splits import Part
from models.candidate_generator import LABEL
from pipeline.evaluation.retrieval_metrics import Ranks, RetrievalTargets, Scorer, rank_examples
from pipeline.run import SEQUENCES, Run

SCRIPT = "peer_recbole.py"
SCRIPTS = Path(__file__).parent
PEERS_NEED = ("recbole", "torch")
EVERYBODY = "everybody"
"""The user of every example where held-out users are unknown to a model, so that it learns nothing about users."""
NAME = "handed"
HEADER = "user_id:token\titem_id_list:token_seq\tcounted_list:float_seq\titem_id:token\n"


@dataclass(frozen=True)
class Sequence:
    """One line of what is handed over.

    Args:
      user: their id, or `EVERYBODY`.
      rows: watches of the vocabulary, oldest first, at least one.
      counted: of each watch, whether the one after it is a label (of the last watch: `label`).
      label: the row of the next watch.
    """

    user: str
    rows: list[int]
    counted: list[int]
    label: int

    def line(self, length: int) -> str:
        """As RecBole's benchmark files have it, the last `length` watches."""
        rows = " ".join(map(str, self.rows[-length:]))
        counted = " ".join(map(str, self.counted[-length:]))
        return f"{self.user}\t{rows}\t{counted}\t{self.label}\n"

    def pairs(self) -> Iterator["Sequence"]:
        """The same labels, each as a sequence of its own."""
        following = [*self.rows[1:], self.label]
        for n, (counts, label) in enumerate(zip(self.counted, following, strict=True), start=1):
            if counts:
                yield Sequence(self.user, self.rows[:n], [0] * (n - 1) + [1], label)


def sequences(examples: pa.Table, told_apart: bool) -> Iterator[Sequence]:
    """What sequence examples say: those with a label and a watch of the vocabulary.

    Args:
      examples: columns `user_id`, `label`, `watched_video_ids` and, of training, `label_weights`.
      told_apart: whether users are.
    """
    lists = examples[SEQUENCE].to_pylist()
    weights = examples[LABEL_WEIGHTS].to_pylist() if LABEL_WEIGHTS in examples.column_names else [[]] * len(lists)
    of_users = examples["user_id"].to_pylist() if told_apart else [EVERYBODY] * len(lists)
    for user, label, watched, labels in zip(of_users, examples[LABEL].to_pylist(), lists, weights, strict=True):
        kept = [place for place, row in enumerate(watched) if row]
        if kept and label:
            following = [int(bool(labels) and labels[place] > 0) for place in kept[1:]]
            yield Sequence(user, [watched[place] for place in kept], [*following, 1], label)


@dataclass(frozen=True)
class RecBole:
    """RecBole's models beside a run's.

    Args:
      run: whose examples.
      peers: the environment RecBole is in.
      length: watches that a model reads.
    """

    run: Run
    peers: Peers
    length: int

    def answers(
        self,
        model: str,
        every_step: bool,
        settings: Mapping[str, Any],
        targets: Mapping[Part, RetrievalTargets],
    ) -> dict[str, np.ndarray]:
        """Trains a model and ranks the labels of the parts.

        Args:
          model: RecBole's name of it.
          every_step: as `peer_recbole.py` has it; False: RecBole's own pairs.
          settings: RecBole's, in place of its defaults.
          targets: of the parts to rank.

        Returns:
          `<part>_among_all`, `<part>_among_unwatched` `[examples]`; `validation_map` `[epochs]` as RecBole measured it,
          the chosen `epoch`, `parameters` and `seconds` `[1]`.
        """
        length = int(settings.get("MAX_ITEM_LIST_LENGTH", self.length))
        with TemporaryDirectory(prefix="recbole.") as temporary:
            folder = Path(temporary) / NAME
            folder.mkdir()
            self._hand_over(folder, every_step, length, list(targets))
            videos = int(np.count_nonzero(self.run.encoder.catalogue["video"].to_numpy()))
            request = {
                "model": model,
                "every_step": every_step,
                "videos": videos,
                "settings": {"MAX_ITEM_LIST_LENGTH": length, **settings},
            }
            (folder / "settings.json").write_text(json.dumps(request))
            answer = self.peers.run(SCRIPT, folder).answer
            scores = np.load(folder / "scores.npy", mmap_mode="r")
            found = {name: np.array([answer[name]]) for name in ("epoch", "parameters", "seconds")}
            found["validation_map"] = np.array(answer["validation"])
            start = 0
            for part, of_part in targets.items():
                ranks = ranks_of_scores(scores[start : start + len(of_part)], of_part)
                start += len(of_part)
                found[f"{part.folder}_among_all"] = ranks.among_all
                found[f"{part.folder}_among_unwatched"] = ranks.among_unwatched
        return found

    def _hand_over(self, folder: Path, every_step: bool, length: int, asked: list[Part]) -> None:
        examples = ExampleSet(self.run.examples(SEQUENCES))
        told_apart = examples.split.test_user_share == 0
        for part in (Part.TRAIN, Part.VALIDATION):
            with (folder / f"{NAME}.{part.folder}.inter").open("w", encoding="utf-8") as file:
                file.write(HEADER)
                for sequence in sequences(examples.read(part), told_apart):
                    of_one = [sequence] if every_step or part == Part.VALIDATION else sequence.pairs()
                    file.writelines(one.line(length) for one in of_one)
        tables = [examples.read(part, ["user_id", SEQUENCE]) for part in asked]
        lists = [[row for row in rows if row] for table in tables for rows in table[SEQUENCE].to_pylist()]
        users = [user for table in tables for user in table["user_id"].to_pylist()]
        np.savez(
            folder / "asked.npz",
            users=np.array(users if told_apart else [EVERYBODY] * len(users)),
            videos=np.array([row for rows in lists for row in rows], np.int32),
            offsets=np.cumsum([0, *map(len, lists)]),
        )


def ranks_of_scores(scores: np.ndarray, targets: RetrievalTargets) -> Ranks:
    """Ranks of the targets by scores `[examples, classes]`; videos of the catalogue without a class are misses."""
    return rank_examples(_over_catalogue(scores, targets.num_videos), targets)


def _over_catalogue(scores: np.ndarray, videos: int) -> Scorer:
    def of_rows(rows: slice) -> np.ndarray:
        found = np.full((rows.stop - rows.start, videos), -np.inf, np.float32)
        found[:, : scores.shape[1]] = scores[rows]
        return found

    return of_rows
