"""RecBole's GRU4Rec, SASRec and Caser, trained by RecBole's own trainer. Runs in RecBole's environment, not in ours.

    python peer_recbole.py FOLDER

reads what `handover.py` wrote into the folder: RecBole's benchmark files of training and validation, histories to score
and `settings.json`. It writes `scores.npy`, float32 `[histories, videos]`, -inf of videos that RecBole was never given,
and prints a line of JSON.

RecBole trains on pairs of a history and the next item, so that a sequence of 50 is read 50 times in a pass. Where the
settings say `every_step`, GRU4Rec and SASRec predict at every step of a sequence at once, as in the papers of both: the
same model and the same labels, at a fraction of the time.
"""

import contextlib
import functools
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import get_model, get_trainer, init_seed

AT_ONCE = 1024
USER, ITEM, ITEMS, COUNTED, LENGTH = "user_id", "item_id", "item_id_list", "counted_list", "item_length"


def recbole_settings(folder: Path, settings: dict) -> dict:
    """RecBole's configuration: its own defaults but for what is said here and in the settings."""
    return {
        "data_path": str(folder.parent),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": [USER, ITEMS, COUNTED, ITEM]},
        "alias_of_item_id": [ITEMS],
        "benchmark_filename": ["train", "validation", "validation"],
        "USER_ID_FIELD": USER,
        "ITEM_ID_FIELD": ITEM,
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": LENGTH,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": None, "order": "TO", "mode": "full"},
        "metrics": ["MRR"],
        "topk": [20],
        "valid_metric": "MRR@20",
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        **settings,
    }


def every_step(model: type) -> type:
    """The model with its loss at every step that counts, not at the last alone."""

    class EveryStep(model):
        def gather_indexes(self, output, gather_index):
            return output if self.training else super().gather_indexes(output, gather_index)

        def calculate_loss(self, interaction):
            items, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
            following = torch.roll(items, -1, dims=1)
            following[torch.arange(len(items)), lengths - 1] = interaction[self.POS_ITEM_ID]
            counted = interaction[COUNTED] > 0
            logits = self.forward(items, lengths)[counted] @ self.item_embedding.weight.T
            return torch.nn.functional.cross_entropy(logits, following[counted])

    return EveryStep


def scores_of(model: torch.nn.Module, dataset, asked: dict, length: int, videos: int) -> np.ndarray:
    """Scores of every history, of RecBole's items put at our rows."""
    of_row = token_ids(dataset, ITEM, np.arange(videos + 1))
    user_ids = token_ids(dataset, USER, asked["users"])
    scores = np.full((len(user_ids), videos), -np.inf, np.float32)
    known = np.flatnonzero(of_row[1:])
    model.eval()
    for start in range(0, len(user_ids), AT_ONCE):
        stop = min(start + AT_ONCE, len(user_ids))
        items, lengths = np.zeros((stop - start, length), np.int64), np.ones(stop - start, np.int64)
        for place in range(start, stop):
            rows = asked["videos"][asked["offsets"][place] : asked["offsets"][place + 1]][-length:]
            items[place - start, : len(rows)] = of_row[rows]
            lengths[place - start] = max(len(rows), 1)  # RecBole has no empty history: it is one of padding
        question = {USER: user_ids[start:stop], ITEMS: items, LENGTH: lengths}
        with torch.no_grad():
            found = model.full_sort_predict(Interaction({name: torch.from_numpy(v) for name, v in question.items()}))
        scores[start:stop, known] = found.view(stop - start, -1).numpy()[:, of_row[1:][known]]
    return scores


def token_ids(dataset, field: str, tokens: np.ndarray) -> np.ndarray:
    """RecBole's numbers of our tokens, 0 of those it was never given."""
    numbers = dataset.field2token_id[field]
    return np.array([numbers.get(str(token), 0) for token in tokens], np.int64)


def main(folder: Path) -> dict:
    """Trains and scores."""
    request = json.loads((folder / "settings.json").read_text())
    os.chdir(folder)  # RecBole leaves logs where it runs
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.load = functools.partial(torch.load, weights_only=False)  # RecBole's checkpoints hold its configuration
    config = Config(request["model"], folder.name, config_dict=recbole_settings(folder, request["settings"]))
    logging.disable(logging.WARNING)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, validation, _ = data_preparation(config, dataset)
    kind = get_model(config["model"])
    torch.autograd.set_detect_anomaly(False)  # one of RecBole's modules turns it on for all of them, which is slow
    model = (every_step(kind) if request["every_step"] else kind)(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    history: list[float] = []
    started = time.perf_counter()
    trainer.fit(train, validation, verbose=False, callback_fn=lambda _, score: history.append(float(score)))
    seconds = time.perf_counter() - started
    model.load_state_dict(torch.load(trainer.saved_model_file)["state_dict"])
    with np.load(folder / "asked.npz") as asked:
        scores = scores_of(model, dataset, dict(asked), config["MAX_ITEM_LIST_LENGTH"], request["videos"])
    np.save(folder / "scores.npy", scores)
    return {
        "validation": history,
        "epoch": int(np.argmax(history)) + 1,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "versions": {"recbole": recbole.__version__, "torch": torch.__version__},
    }


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1)).resolve()
    with contextlib.redirect_stdout(sys.stderr):
        answer = main(folder)
    print(json.dumps(answer))
