"""One rank of several, started by tests/test_reconstruction_ranks.py as torchrun would start it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import machine
import pytest
import torch
from torch import Tensor, nn

import mbs_fx


def refitted() -> dict[str, Tensor]:
    """The weights of a small network after reconstruction; ranks share the batches."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).eval()
    gm = mbs_fx.trace(model, (1, 3, 8, 8))
    small = mbs_fx.rewrite(gm, mbs_fx.plan(mbs_fx.analyze(gm), betas={(8, 8): 0.75}))
    batches = list(torch.randn(60, 3, 8, 8).split(10))
    return mbs_fx.reconstruct(small, gm, batches, progress=False).state_dict()


if __name__ == "__main__":
    machine.pretend(pytest.MonkeyPatch())
    torch.save(refitted(), Path(sys.argv[1]) / f"rank{os.environ['RANK']}.pt")
