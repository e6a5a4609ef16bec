"""One rank of several, started by tests/test_training_ranks.py as torchrun would start it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import pytest
import torch
from test_training import images, net, recipe
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import mbs_fx
from mbs_fx.training.result import Training

RANK = int(os.environ.get("RANK", "0"))


def train(out: Path | None = None) -> tuple[nn.Module, Training]:
    """Every step sees all images, so that the order in which ranks share them does not matter."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    files = {} if out is None else {"log": out / "log.jsonl", "checkpoint": out / "run.ckpt"}
    result = mbs_fx.retrain(model, images(), images(seed=1), recipe(batch=64), device="cpu", **files)
    return model, result


def normalised(out: Path) -> nn.Module:
    """A network whose statistics every rank gathers on other images, from other weights at first."""
    model, options = net(seed=RANK), recipe(average=0.9)
    mbs_fx.retrain(model, images(), images(seed=1), options, device="cpu", checkpoint=out / "first.ckpt")
    return model


class Uneven:
    """Batches that count the processes themselves, one more of them for the second."""

    def __len__(self) -> int:
        return 2 + RANK

    def __iter__(self) -> Iterator[list[Tensor]]:
        return iter(list(DataLoader(images(48), 16))[: len(self)])


class Mislabelled(TensorDataset):
    """Rank 1 meets a label that is none."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = super().__getitem__(index)
        return image, label + 100 * RANK


def refusals(out: Path) -> dict[str, dict[str, Any]]:
    """Calls that all ranks refuse, also for what one of them alone sees."""
    (out / "1.ckpt").write_bytes(b"not a checkpoint")
    pixels, labels = images().tensors
    wrong = TensorDataset(pixels, torch.where(torch.arange(64) == 20, 99, labels))
    return {
        "checkpoint": {"checkpoint": out / f"{RANK}.ckpt"},
        "epochs": {"checkpoint": out / ("mine.ckpt" if RANK else "first.ckpt")},
        "test": {"test": wrong},
        "same": {"train": list(DataLoader(images(), 16))},
        "order": {"test": DataLoader(images(), 16, shuffle=True)},
        "uneven": {"train": Uneven()},
        "log": {"log": out / "no" / "log.jsonl"},
        "alone": {"train": Mislabelled(pixels, labels)},
    }


def refused(**arguments: Any) -> str:
    arguments = {"train": images(), "test": images(), "recipe": recipe(average=0.9), "device": "cpu"} | arguments
    try:
        mbs_fx.retrain(net(), **arguments)
    except (mbs_fx.MBSError, RuntimeError) as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    machine.pretend(pytest.MonkeyPatch())
    folder = Path(sys.argv[1])
    torch.save(normalised(folder).state_dict(), folder / f"normalised{RANK}.pt")
    model, result = train(folder)
    losses = [epoch.loss for epoch in result.epochs]
    torch.save((model.state_dict(), result.accuracy, losses), folder / f"rank{RANK}.pt")
    messages = {name: refused(**arguments) for name, arguments in refusals(folder).items()}
    (folder / f"refused{RANK}.json").write_text(json.dumps(messages))
