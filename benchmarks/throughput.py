"""Training images per second: `mbs_fx.retrain` beside the loop that everybody writes.

    python benchmarks/throughput.py --data DIR

The plain loop reads single images as PIL through torchvision's transforms in a `DataLoader` with two workers and trains
in float32, in the default memory order.  Both train the same reduced ResNet-20 on the same images with the same crops
and flips, in turn, several times; printed are the medians and the median of the ratios.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from cifar import Batches, load
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import mbs_fx
from mbs_fx import sample

BATCH = 128


class Pictures(Dataset):
    """CIFAR-10 as torchvision hands it out."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels
        self.view = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(sample.MEAN, sample.STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.view(self.images[index]), int(self.labels[index])


def plain(net: nn.Module, loader: DataLoader, device: torch.device) -> float:
    """Images per second of one epoch."""
    net.to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    seen, start = 0, time.perf_counter()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        seen += len(labels)
        loss.item()
    return seen / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--images", type=int, default=3840)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = (t[: args.images] for t in load(args.data, train=True))
    loader = DataLoader(Pictures(images, labels), BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    batches = Batches(images.to(device), labels.to(device), BATCH)
    gm = mbs_fx.trace(sample.trained(), sample.images()[:2])
    plan = mbs_fx.plan(mbs_fx.analyze(gm, (1, 3, 32, 32)), mbs_fx.measure(gm, sample.images()))
    usual, ours = mbs_fx.rewrite(gm, plan), mbs_fx.rewrite(gm, plan)
    for _ in loader:
        pass
    pairs = []
    for repetition in range(args.repetitions + 1):
        slow = plain(usual, loader, device)
        fast = mbs_fx.retrain(ours, batches, recipe=mbs_fx.Recipe(epochs=1), device=device).images_per_second
        if repetition:
            pairs.append((slow, fast))
            print(f"plain {slow:.0f}, retrain {fast:.0f} images/s, ratio {fast / slow:.2f}", flush=True)
    slow, fast = (median(side) for side in zip(*pairs, strict=True))
    ratio = median(fast / slow for slow, fast in pairs)
    print(
        f"median: plain {slow:.0f}, retrain {fast:.0f} images/s, ratio {ratio:.2f}, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
