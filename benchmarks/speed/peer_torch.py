"""Training steps in PyTorch, sparse embeddings and Adagrad: runs in the peers' environment, imports nothing of ours.

python peer_torch.py CASE JSON, where CASE is `softmax`, `two_tower` or `recurrent` and JSON its sizes. Prints a line of
JSON when it is ready and then, for every line read, makes so many steps and prints their mean seconds.
"""

import json
import math
import sys
import time

import torch
from torch import nn


def sampled_loss(queries, table, labels, negatives, label_count, negative_count):
    """Sampled softmax with importance correction and without accidental hits."""
    true_logits = (queries * table(labels)).sum(1) - label_count.log()
    logits = queries @ table(negatives).T - negative_count.log()
    logits = logits.masked_fill(labels[:, None] == negatives[None, :], -math.inf)
    logits = torch.cat([true_logits[:, None], logits], 1)
    return (torch.logsumexp(logits, 1) - true_logits).mean()


class Bag(nn.Module):
    """The average of the embeddings of a padded bag; row 0 is padding."""

    def __init__(self, rows, dimension):
        super().__init__()
        self.table = nn.EmbeddingBag(rows + 1, dimension, mode="mean", sparse=True, padding_idx=0)

    def forward(self, rows):
        return self.table(rows)


class TwoTower(nn.Module):
    def __init__(self, videos, tokens, dimension, widths):
        super().__init__()
        self.bags = nn.ModuleList([Bag(videos, dimension), Bag(tokens, dimension)])
        layers, width = [], 2 * dimension
        for units in widths:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        self.layers = nn.Sequential(*layers)
        self.videos = nn.Embedding(videos + 1, dimension, sparse=True, padding_idx=0)

    def forward(self, watched, searched):
        return self.layers(torch.cat([self.bags[0](watched), self.bags[1](searched)], 1))


class Recurrent(nn.Module):
    """A ReLU layer, a GRU, a ReLU layer: the query before each watch of a history and after the last."""

    def __init__(self, videos, embedding, units, dimension):
        super().__init__()
        self.watched = nn.Embedding(videos + 1, embedding, sparse=True, padding_idx=0)
        self.below = nn.Linear(embedding, units)
        self.gru = nn.GRU(units, units, batch_first=True)
        self.above = nn.Linear(units, dimension)
        self.videos = nn.Embedding(videos + 1, dimension, sparse=True, padding_idx=0)

    def forward(self, watched):
        states, _ = self.gru(torch.relu(self.below(self.watched(watched))))
        states = nn.functional.pad(states, (0, 0, 1, 0))
        return torch.relu(self.above(states)).flatten(0, 1)


def zipf_rows(rows, *shape):
    """Rows in 1 to `rows`, P(row) close to proportional to 1 / row: what our batches hold."""
    return (torch.rand(*shape) * math.log(rows + 1)).exp().long().clamp(1, rows)


def distinct_rows(rows, count):
    drawn = torch.zeros(0, dtype=torch.long)
    while len(drawn) < count:
        drawn = torch.unique(torch.cat([drawn, zipf_rows(rows, count)]))
    return drawn[torch.randperm(len(drawn))[:count]]


def make(case, size):
    batch, sampled, videos, dimension = (size[name] for name in ("batch", "sampled", "videos", "dimension"))
    labels = zipf_rows(videos, batch)
    if case == "recurrent":  # each watch is the label of those before it
        watched = zipf_rows(videos, batch, size["length"])
        labels = torch.cat([watched, labels[:, None]], 1).flatten()
    negatives = distinct_rows(videos, sampled)
    counts = torch.rand(len(labels)) * 0.5 + 0.1, torch.rand(sampled) * 0.5 + 0.1
    if case == "softmax":
        table = nn.Embedding(videos + 1, dimension, sparse=True)
        queries = torch.randn(batch, dimension)
        optimizer = torch.optim.Adagrad(table.parameters(), lr=0.1)

        def loss():
            return sampled_loss(queries, table, labels, negatives, *counts)

    elif case == "recurrent":
        model = Recurrent(videos, size["embedding"], size["units"], dimension)
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)

        def loss():
            return sampled_loss(model(watched), model.videos, labels, negatives, *counts)

    else:
        model = TwoTower(videos, size["tokens"], dimension, size["widths"])
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
        watched = zipf_rows(videos, batch, size["length"])
        searched = zipf_rows(size["tokens"], batch, size["length"])

        def loss():
            return sampled_loss(model(watched, searched), model.videos, labels, negatives, *counts)

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def main():
    torch.manual_seed(0)
    size = json.loads(sys.argv[2])
    torch.set_num_threads(size["threads"])
    step = make(sys.argv[1], size)
    for _ in range(2):
        step()
    print(json.dumps({"ready": torch.__version__}), flush=True)
    for line in sys.stdin:
        steps = int(line)
        started = time.perf_counter()
        for _ in range(steps):
            step()
        print(json.dumps((time.perf_counter() - started) / steps), flush=True)


main()
