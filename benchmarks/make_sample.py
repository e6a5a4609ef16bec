"""Draw the CIFAR-10 images shipped in ``mbs_fx/sample``: lossless, one row of 50 for each class.

    python benchmarks/make_sample.py --data DIR --out mbs_fx/sample/images.webp
    python benchmarks/make_sample.py --data DIR --test --out mbs_fx/sample/test_images.webp

WebP is the smallest of the lossless formats that Pillow reads (this sheet: WebP 0.82 MB, PNG 1.07, npz 1.42).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from cifar import load
from PIL import Image
from torch import Tensor

from mbs_fx.sample import CLASSES, PER_CLASS


def sheet(images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Pixels (320, 1600, 3) of a random sample, class by class."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[Tensor] = []
    for label in range(len(CLASSES)):
        candidates = (labels == label).nonzero().flatten()
        chosen = candidates[torch.randperm(len(candidates), generator=generator)[:PER_CLASS]]
        rows.append(images[chosen])
    return torch.stack(rows).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--test", action="store_true", help="draw from the test set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("images.webp"))
    args = parser.parse_args()
    pixels = sheet(*load(args.data, train=not args.test), args.seed)
    Image.fromarray(pixels.numpy()).save(args.out, lossless=True, quality=100, method=6)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
