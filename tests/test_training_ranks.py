"""Training with two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import training_worker

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

WORKER = Path(training_worker.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(WORKER.parent), str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
    common = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    processes = [
        subprocess.Popen([sys.executable, str(WORKER), str(folder)], env=common | {"RANK": rank}) for rank in "01"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return folder


def test_ranks_end_with_the_weights_of_a_single_process(folder: Path) -> None:
    alone, result = training_worker.train()
    for rank in "01":
        state, accuracy, losses = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(state[name], weight)
        assert accuracy == pytest.approx(result.accuracy)
        assert losses == pytest.approx([epoch.loss for epoch in result.epochs])


def test_only_one_rank_writes(folder: Path) -> None:
    assert len((folder / "log.jsonl").read_text().splitlines()) == 3
    assert (folder / "run.ckpt").exists()


def test_ranks_agree_on_statistics(folder: Path) -> None:
    first, second = (torch.load(folder / f"normalised{rank}.pt", weights_only=True) for rank in "01")
    assert all(torch.equal(first[name], second[name]) for name in first)
