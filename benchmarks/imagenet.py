"""Reduce a network and retrain it on folders of images: the paper's ImageNet settings (section 4.2).

    python benchmarks/imagenet.py --data ILSVRC2012 --model torchvision/resnet18
    torchrun --nproc-per-node 8 benchmarks/imagenet.py --data ILSVRC2012 --model torchvision/resnet18 --workers 8

``--data`` holds ``train`` and ``val`` with a folder per class.  90 epochs, batch 256, learning rate 0.1 divided by 10
at epochs 30 and 60, weight decay 1e-4, or 4e-5 where the network has depthwise convolutions.  The plan is applied to
the network itself, not to its trace, so that dropout and stochastic depth work as they did.  Densities are measured
on training images, as many as it takes.  A run that was killed goes on from ``--checkpoint``; one JSON line an epoch
goes to ``--log``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import nn
from torchvision.datasets import ImageFolder

import mbs_fx
from mbs_fx.folder import Preparation
from mbs_fx.models import resolve
from mbs_fx.runtime.devices import usable


def weight_decay(model: nn.Module) -> float:
    """The paper's: less for networks of depthwise convolutions."""
    convs = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return 4e-5 if any(1 < c.groups == c.in_channels for c in convs) else 1e-4


def recipe_of(args: argparse.Namespace, model: nn.Module) -> mbs_fx.Recipe:
    """The paper's recipe with what was asked for."""
    decay = weight_decay(model) if args.weight_decay is None else args.weight_decay
    return mbs_fx.Recipe(
        epochs=args.epochs,
        batch=args.batch,
        lr=args.lr,
        weight_decay=decay,
        drops=(1 / 3, 2 / 3),
        distill=args.distill,
        compile=args.compile,
        seed=args.seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS and val/CLASS")
    parser.add_argument(
        "--model", default="torchvision/resnet18", help="torchvision/NAME, timm/NAME or FILE.py:FACTORY"
    )
    parser.add_argument("--weights", help="file of the trained weights; the publisher's when absent")
    parser.add_argument("--size", type=int, help="pixels; what the network was trained with when absent")
    parser.add_argument("--z", type=float, default=1.0, help="threshold in multiples of the input size")
    parser.add_argument("--init", choices=("fresh", "inherit"), default="inherit")
    parser.add_argument("--distill", type=float, default=0.0, help="weight of the original's answers, 0 to 1")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch", type=int, default=256, help="over all processes together")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4, help="processes that load images, for each that trains")
    parser.add_argument("--out", default="small", help="name of the plan (.json) and of the weights (.safetensors)")
    parser.add_argument("--checkpoint", type=Path, default=Path("small.ckpt"))
    parser.add_argument("--log", type=Path, default=Path("small.jsonl"))
    args = parser.parse_args()

    source = resolve(args.model, args.weights)
    preparation = source.preparation
    if args.size:
        preparation = Preparation(args.size, preparation.mean, preparation.std)
    train = ImageFolder(args.data / "train", preparation.augmentation())
    test = ImageFolder(args.data / "val", preparation.transform())
    measured = ImageFolder(args.data / "train", preparation.transform())

    gm = mbs_fx.trace(source.model, torch.zeros(2, 3, preparation.size, preparation.size))
    analysis = mbs_fx.analyze(gm, (1, 3, preparation.size, preparation.size))
    density = mbs_fx.measure(gm, measured, device=usable(None), workers=args.workers)
    plan = mbs_fx.plan(analysis, density, z=args.z)
    torch.manual_seed(args.seed)
    small = mbs_fx.rewrite(source.model, plan, init=args.init)
    first = os.environ.get("RANK", "0") == "0"
    if first:
        print(plan)
    result = mbs_fx.retrain(
        small,
        train,
        test,
        recipe_of(args, source.model),
        teacher=source.model if args.distill else None,
        checkpoint=args.checkpoint,
        log=args.log,
        workers=args.workers,
    )
    if first:
        mbs_fx.save(small, f"{args.out}.json", f"{args.out}.safetensors")
        print(result)


if __name__ == "__main__":
    main()
