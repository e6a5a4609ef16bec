"""One rank of several, started by tests/test_training_ranks.py as torchrun would start it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from test_training import images, net, recipe
from torch import nn

import mbs_fx
from mbs_fx.training.result import Training


def train(out: Path | None = None) -> tuple[nn.Module, Training]:
    """Every step sees all images, so that the order in which ranks share them does not matter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    files = {} if out is None else {"log": out / "log.jsonl", "checkpoint": out / "run.ckpt"}
    result = mbs_fx.retrain(model, images(), images(seed=1), recipe(batch=64), device="cpu", **files)
    return model, result


def normalised() -> nn.Module:
    """A network whose statistics every rank gathers on other images."""
    model = net()
    mbs_fx.retrain(model, images(), images(seed=1), recipe(average=0.9), device="cpu")
    return model


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.save(normalised().state_dict(), folder / f"normalised{os.environ['RANK']}.pt")
    model, result = train(folder)
    losses = [epoch.loss for epoch in result.epochs]
    torch.save((model.state_dict(), result.accuracy, losses), folder / f"rank{os.environ['RANK']}.pt")
