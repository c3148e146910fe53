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


@pytest.mark.parametrize(
    ("command", "stages"),
    [
        ("train-generator", {"two_tower": "generators.two_tower", "latent_cross": "generators.latent_cross"}),
        ("train-ranker", {"ranker": "ranker"}),
    ],
)
def test_two_workers_train_each_model_together_and_one_of_them_publishes_it(
    command: str, stages: dict[str, str], funnel: Funnel, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(funnel.folder, folder)
    for model in stages:
        shutil.rmtree(folder / "models" / model)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    settings = [
        argument
        for setting in stages.values()
        for change in ("strategy=multi_worker", "checkpoints=false")
        for argument in ("--set", f"{setting}.training.{change}")
    ]
    workers = [
        start(
            command,
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
    for model in stages:
        done = f"{command}: done in" if command == "train-ranker" else f"{command}:{model}: done in"
        assert done in said[0][0]
        assert done not in said[1][0]
        assert read_manifest(folder / "models" / model, verify=True)["model"]
