"""The same training under each distribution strategy, in processes of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from features.example_reader import ExampleSet
from features.splits import Part
from pipeline.input_pipeline import ExampleColumns
from pipeline.model_folder import load_candidate_generator
from pipeline.retrieval_validation import retrieval_map
from pipeline.strategies import StrategyName, table_partitioner
from tests.pipeline.synthetic_examples import publish_examples, taste_examples
from tests.pipeline.training_process import VIDEOS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 200


class Processes:
    """Processes that end with the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen] = []

    def start(self, *arguments: str, task: dict | None = None) -> subprocess.Popen:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "TF_CONFIG"},
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TF_USE_LEGACY_KERAS": "1",  # TensorFlow is imported first there
        }
        if task:
            environment["TF_CONFIG"] = json.dumps(task)
        with (self._folder / f"process-{len(self._running)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.pipeline.training_process", *arguments],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def finish(self, process: subprocess.Popen) -> None:
        """Waits for a process and says what it printed when it failed."""
        index = self._running.index(process)
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            text = (self._folder / f"process-{index}.log").read_text(errors="replace")
            pytest.fail(f"process {index} ended with {code}:\n{text[-4000:]}")

    def end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path)
    yield started
    started.end()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> ExampleSet:
    parts = {Part.TRAIN: taste_examples(4000, 0), Part.VALIDATION: taste_examples(400, 1)}
    return publish_examples(tmp_path_factory.mktemp("examples") / "candidate_generation", parts)


def free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return addresses


def check(results: Path, examples: ExampleSet) -> dict:
    """The model has learned, its zero rows are zero, and it can be loaded in this process, without the strategy."""
    summary = json.loads((results / "summary.json").read_text())
    history = summary["history"]
    assert history["cross_entropy"][-1] < history["cross_entropy"][0] - 0.2
    assert history["cross_entropy"][0] < 1.2 * np.log(VIDEOS)  # of all replicas, once
    assert summary["zero_rows"] == [True] * 4  # region and video of the query side, video and topic of the other
    validation = ExampleColumns(examples, (Part.VALIDATION,), ("label", "weight"))
    metrics = retrieval_map(load_candidate_generator(results / "model"), validation)
    assert metrics["MAP@20"] == pytest.approx(max(history["MAP@20"]), rel=1e-3)
    assert metrics["MAP@20"] > 0.2  # popularity: 0.12
    return summary


def test_mirrored_over_two_devices(examples: ExampleSet, processes: Processes, tmp_path: Path):
    processes.finish(processes.start(StrategyName.MIRRORED, str(examples.folder), str(tmp_path / "results")))
    history = check(tmp_path / "results", examples)["history"]
    # The replicas' losses add up to the mean over the whole batch, not to twice that.
    assert history["loss"][-1] == pytest.approx(history["cross_entropy"][-1], rel=0.25)


def test_two_multi_worker_processes(examples: ExampleSet, processes: Processes, tmp_path: Path):
    cluster = {"worker": free_addresses(2)}
    workers = [
        processes.start(
            StrategyName.MULTI_WORKER,
            str(examples.folder),
            str(tmp_path / "results"),
            task={"cluster": cluster, "task": {"type": "worker", "index": index}},
        )
        for index in range(2)
    ]
    for worker in workers:
        processes.finish(worker)
    check(tmp_path / "results", examples)


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((10_000, 64), [2, 1]),
        ((256, 768), [1, 1]),  # a recurrent layer's weights, of inputs and of states: in parts they do not train
        ((512, 768), [1, 1]),
        ((500_000,), [1]),
        ((1_000, 64), [1, 1]),  # 256,000 bytes
    ],
)
def test_large_tables_are_split_over_servers_and_weights_of_layers_are_not(shape: tuple, parts: list[int]):
    assert table_partitioner(256 << 10, servers=2)(tf.TensorShape(shape), tf.float32) == parts


def test_a_parameter_server_training_survives_a_killed_worker(
    examples: ExampleSet, processes: Processes, tmp_path: Path
):
    chief, *addresses = free_addresses(5)
    cluster = {"chief": [chief], "worker": addresses[:2], "ps": addresses[2:]}

    def start_server(role: str, index: int) -> subprocess.Popen:
        return processes.start("server", task={"cluster": cluster, "task": {"type": role, "index": index}})

    results = tmp_path / "results"
    workers = [start_server("worker", index) for index in range(2)]
    for index in range(2):
        start_server("ps", index)
    coordinator = processes.start(
        StrategyName.PARAMETER_SERVER,
        str(examples.folder),
        str(results),
        task={"cluster": cluster, "task": {"type": "chief", "index": 0}},
    )
    epochs = results / "epochs"
    deadline = time.monotonic() + TIMEOUT_S
    while not epochs.exists():
        assert coordinator.poll() is None, "the coordinator ended before its first epoch"
        assert time.monotonic() < deadline, "no epoch ended"
        time.sleep(0.1)
    os.kill(workers[1].pid, signal.SIGKILL)
    workers[1].wait()
    start_server("worker", 1)
    processes.finish(coordinator)
    assert check(results, examples)["shards"] == [1, 2, 2, 1]  # the two video tables lie on both servers
    assert len(epochs.read_text().splitlines()) == 8
    assert np.isfinite(json.loads((results / "summary.json").read_text())["history"]["loss"]).all()
