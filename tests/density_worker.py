"""One rank of several, started by tests/test_density_ranks.py as torchrun would start it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import machine
import pytest
import torch
import torch.distributed as dist
from density_helpers import SHAPE, chain_analysis, graph
from torch import Tensor
from torch.utils.data import Dataset

from mbs_fx.density.measure import measure
from mbs_fx.errors import MBSError
from mbs_fx.results.density import Density
from mbs_fx.runtime.ranks import join


class Images(Dataset[Tensor]):
    """Random images; ``trouble`` at one of them."""

    def __init__(self, trouble: str = "") -> None:
        self.images = torch.randn(60, *SHAPE[1:], generator=torch.Generator().manual_seed(3))
        self.trouble = trouble

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if index == 40 and self.trouble == "dies":
            os._exit(7)
        if index == 40 and self.trouble == "fails":
            raise OSError("disk on fire")
        return self.images[index]


def run(trouble: str = "", **settings: Any) -> Density:
    """The same measurement wherever it runs."""
    gm = graph()
    settings = {"confidence": None, "batch_size": 7, "timeout": 10} | settings
    return measure(gm, Images(trouble), analysis=chain_analysis(gm, SHAPE), **settings)


def main(folder: Path) -> None:
    """First as torchrun starts it, then within a process group of the caller's."""
    rank = int(os.environ["RANK"])
    (folder / f"whole.{rank}").write_text(run().to_json())
    for turn in range(20):
        with join(10) as ranks:
            assert ranks.exchange((rank, turn)) == [(0, turn), (1, turn)]
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    (folder / f"stops.{rank}").write_text(run(confidence=0.9).to_json())
    for trouble in ("fails", "dies"):
        try:
            run(trouble)
        except MBSError as error:
            (folder / f"{trouble}.{rank}").write_text(str(error))


if __name__ == "__main__":
    machine.pretend(pytest.MonkeyPatch())
    main(Path(sys.argv[1]))
