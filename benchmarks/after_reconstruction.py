"""How to go on from reconstructed weights: one epoch, by labels or by the original alone, at several first rates.

    python benchmarks/after_reconstruction.py --data ../shared/data

``--data`` holds ``cifar10_resnet20.safetensors`` and ``cifar10_subset.npz``.  ResNet-20 is reduced at z = L on 500 of
the 5,000 training images, reconstructed on them, trained for one epoch on all 5,000 (augmented, batch 128) and tested
on 2,000 test images.  A row is appended to ``--log``, and not run again when it is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from cifar import Batches, normalise
from cifar_networks import traced
from torch import Tensor
from torch.utils.data import TensorDataset

import mbs_fx
from mbs_fx.training.result import append_line


@dataclass(frozen=True)
class Row:
    """One run: what it starts from, whether labels or the original teach, and the first learning rate."""

    start: str
    teacher: str
    lr: float


ROWS = (
    Row("reconstructed", "labels", 0.01),
    Row("reconstructed", "labels", 0.1),
    Row("reconstructed", "original", 0.01),
    Row("inherited", "labels", 0.1),
    Row("reconstructed", "labels", 0.003),
    Row("reconstructed", "original", 0.003),
    Row("inherited", "labels", 0.01),
)


class Unlabelled(Batches):
    """The same batches without their labels."""

    def __iter__(self) -> Iterator[Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for images, _ in super().__iter__():
            yield images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--log", type=Path, default=Path(__file__).parent / "logs" / "after_reconstruction.jsonl")
    args = parser.parse_args()
    lines = args.log.read_text().splitlines() if args.log.exists() else []
    done = [json.loads(line)["row"] for line in lines]
    held = np.load(args.data / "cifar10_subset.npz")
    train, test = (torch.from_numpy(held[name]).permute(0, 3, 1, 2).contiguous() for name in ("x_train", "x_test"))
    labels, known = (torch.from_numpy(held[name]).long() for name in ("y_train", "y_test"))
    tested = TensorDataset(normalise(test), known)
    gm = traced(20, args.data)[0]
    chosen = normalise(train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:500]])
    plan = mbs_fx.choose_channels(gm, mbs_fx.plan(mbs_fx.analyze(gm, chosen[:1]), mbs_fx.measure(gm, chosen)), chosen)
    starts = {"inherited": mbs_fx.rewrite(gm, plan)}
    starts["reconstructed"] = mbs_fx.reconstruct(starts["inherited"], gm, chosen)
    for row in ROWS:
        if asdict(row) in done:
            continue
        small = deepcopy(starts[row.start])
        before = mbs_fx.accuracy(small, tested)
        taught = row.teacher == "original"
        batches = (Unlabelled if taught else Batches)(train, labels, 128)
        recipe = mbs_fx.Recipe(epochs=1, lr=row.lr)
        result = mbs_fx.retrain(small, batches, tested, recipe, teacher=gm if taught else None)
        append_line(
            args.log, {"row": asdict(row), "before": before, "after": result.accuracy, "torch": torch.__version__}
        )


if __name__ == "__main__":
    main()
