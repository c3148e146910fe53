"""Training on several processes through the command line."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from features.artifacts import read_manifest
from tests.end_to_end.command_line import start
from tests.end_to_end.conftest import Funnel

pytestmark = pytest.mark.slow


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_two_workers_train_one_ranker_and_one_of_them_publishes_it(funnel: Funnel, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(funnel.folder, folder)
    shutil.rmtree(folder / "models" / "ranker")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    settings = ["--set", "ranker.training.strategy=multi_worker", "--set", "ranker.training.checkpoints=false"]
    workers = [
        start(
            "train-ranker",
            funnel.config,
            "--workdir",
            folder,
            *settings,
            environment={
                "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}),
                "CUDA_VISIBLE_DEVICES": "",
            },
        )
        for index in range(2)
    ]
    said = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert "train-ranker: done in" in said[0][0]
    assert "train-ranker: done in" not in said[1][0]
    assert read_manifest(folder / "models" / "ranker", verify=True)["model"] == "ranker"
