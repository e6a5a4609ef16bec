"""Measuring with two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

WORKER = Path(__file__).with_name("density_worker.py")


def start(trouble: str, folder: Path, world: int) -> list[int]:
    """Run the worker on ``world`` ranks to the end; their exit codes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(WORKER.parent), str(WORKER.parents[1]), os.environ.get("PYTHONPATH", "")])
    common = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(world):
        mine = {"RANK": str(rank), "WORLD_SIZE": str(world), "TORCHELASTIC_RUN_ID": "test"} if world > 1 else {}
        command = [sys.executable, str(WORKER), trouble, str(folder)]
        processes.append(subprocess.Popen(command, env=common | mine, stderr=subprocess.DEVNULL))
    return [process.wait(timeout=120) for process in processes]


def test_two_ranks_and_one_come_to_the_same_bits(tmp_path: Path) -> None:
    assert start("none", tmp_path, 1) == [0]
    assert start("none", tmp_path, 2) == [0, 0]
    alone = (tmp_path / "alone.json").read_text()
    assert (tmp_path / "0.json").read_text() == alone
    assert (tmp_path / "1.json").read_text() == alone


def test_ranks_stop_together(tmp_path: Path) -> None:
    assert start("stops", tmp_path, 2) == [0, 0]
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()


def test_an_error_on_one_rank_reaches_all(tmp_path: Path) -> None:
    assert start("fails", tmp_path, 2) == [1, 1]
    errors = {(tmp_path / f"{rank}.error").read_text() for rank in (0, 1)}
    assert len(errors) == 1
    assert "disk on fire" in errors.pop()


def test_a_rank_that_dies_makes_the_other_fail_in_time(tmp_path: Path) -> None:
    before = time.monotonic()
    codes = start("dies", tmp_path, 2)
    assert sorted(codes) == [1, 7]
    assert time.monotonic() - before < 90
    (message,) = (path.read_text() for path in tmp_path.glob("*.error"))
    assert "lost the others" in message
