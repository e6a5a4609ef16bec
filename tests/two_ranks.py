"""Two processes started as torchrun would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

needs_gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def run(worker: Path, folder: Path) -> list[int]:
    """The exit codes of two ranks of ``worker`` that write into ``folder``, where their errors go to ``log``."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(worker.parent), str(worker.parents[1]), os.environ.get("PYTHONPATH", "")])
    common = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    with (folder / "log").open("w") as log:
        processes = [
            subprocess.Popen([sys.executable, str(worker), str(folder)], env=common | {"RANK": rank}, stderr=log)
            for rank in "01"
        ]
        try:
            return [process.wait(timeout=240) for process in processes]
        finally:
            for process in processes:
                process.kill()
