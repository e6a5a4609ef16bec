"""Accuracy without labels: inherited weights, and the same layers refitted to the original.

    python benchmarks/reconstruction.py --data ../shared/data
    python benchmarks/reconstruction.py --data ../shared/data --mobilenet mobilenet_v2-b0353104.pth

``--data`` holds ``cifar10_resnet<depth>.safetensors``, ``cifar10_subset.npz`` and ``photos``.  A row is one network,
one plan and one criterion ("images" is "readers"); it is appended to ``--log``, and not run again when it is there.
CIFAR-10: fitted to 500 training images (labels are read for "taylor" alone), tested on 2,000 test images.
Photographs: fitted to one half, tested on the other, and the other way round.  ``kl`` is the mean divergence of the
small network's classes from the original's on the test images.  Seconds are those of this process's CPU time,
``measure`` on the same images beside them.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from cifar import normalise
from cifar_networks import traced, uniform_plan
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import TensorDataset

import mbs_fx
from mbs_fx.folder import folder
from mbs_fx.models import load_weights
from mbs_fx.training.result import append_line

FITTED = 500


@dataclass(frozen=True)
class Row:
    """One reduction: ``plan`` is "mbs" or "uniform" (at equal parameters), ``part`` the half or the draw of images."""

    network: str
    k: float
    plan: str
    criterion: str
    part: int


@dataclass(frozen=True)
class Case:
    """A network with images to fit to, and images with labels to test on."""

    gm: GraphModule
    fit: Tensor
    fit_labels: Tensor
    test: Tensor
    labels: Tensor


@cache
def cifar(depth: int, part: int, data: Path) -> Case:
    held = np.load(data / "cifar10_subset.npz")
    train, test = (torch.from_numpy(held[name]).permute(0, 3, 1, 2).contiguous() for name in ("x_train", "x_test"))
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(part))[:FITTED]
    fit_labels, labels = (torch.from_numpy(held[name]).long() for name in ("y_train", "y_test"))
    return Case(traced(depth, data)[0], normalise(train[chosen]), fit_labels[chosen], normalise(test), labels)


@cache
def photographs(data: Path) -> tuple[Tensor, Tensor]:
    dataset = folder(data / "photos")
    with (data / "photos" / "labels_and_attribution.csv").open() as file:
        of = {row["id"]: int(row["imagenet_index"]) for row in csv.DictReader(file)}
    labels = torch.tensor([of[path.stem] for path in dataset.paths])
    return torch.stack([dataset[i] for i in range(len(dataset))]), labels


@cache
def mobilenet(weights: Path, half: int, data: Path) -> Case:
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2()
    load_weights(model, weights)
    images, labels = photographs(data)
    mine = torch.arange(len(images)) // (len(images) // 2) == half
    return Case(mbs_fx.trace(model.eval(), images[:2]), images[mine], labels[mine], images[~mine], labels[~mine])


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in images.split(50)])


def run(row: Row, case: Case) -> dict[str, object]:
    analysis = mbs_fx.analyze(case.gm, case.fit[:1])
    begun = time.process_time()
    density = mbs_fx.measure(case.gm, case.fit, analysis=analysis, confidence=None)
    measured = time.process_time()
    plan = mbs_fx.plan(analysis, density, z=row.k)
    if row.plan == "uniform":
        plan = uniform_plan(analysis, plan.params[1])
    started = time.process_time()
    if row.criterion in ("images", "activation", "taylor"):
        criterion = "readers" if row.criterion == "images" else row.criterion
        plan = mbs_fx.choose_channels(case.gm, plan, TensorDataset(case.fit, case.fit_labels), criterion=criterion)
    small = mbs_fx.rewrite(case.gm, plan, criterion=row.criterion if row.criterion == "l1" else "first")
    refitted = mbs_fx.reconstruct(small, case.gm, case.fit, progress=False)
    ended = time.process_time()
    wanted = answers(case.gm, case.test)
    found: dict[str, object] = {"params": plan.params, "flops": plan.flops}
    for name, network in (("original", case.gm), ("inherited", small), ("reconstructed", refitted)):
        given = answers(network, case.test)
        found[name] = round(100 * float((given.argmax(1) == case.labels).double().mean()), 2)
        kl = (wanted.softmax(1) * (wanted.log_softmax(1) - given.log_softmax(1))).sum(1).mean()
        found[f"kl_{name}"] = round(float(kl), 4)
    report = refitted.meta["mbs_reconstruction"]
    seconds = {"seconds": round(ended - started, 2), "seconds_measure": round(measured - begun, 2)}
    return {**found, **seconds, "images": report.images, "output": report.output}


def rows(mobile: bool) -> list[Row]:
    cases = [(network, k) for network, k in (("resnet20", 1.0), ("resnet56", 1.0), ("resnet56", 1.4))]
    found = [Row(network, k, "mbs", criterion, 0) for network, k in cases for criterion in ("images", "l1")]
    found += [Row(network, k, "mbs", "images", part) for network, k in cases for part in (1, 2)]
    found += [Row(network, k, "mbs", criterion, 0) for network, k in cases for criterion in ("activation", "taylor")]
    found += [Row(network, 1.0, "uniform", "images", 0) for network in ("resnet20", "resnet56")]
    halves = [Row("mobilenet_v2", 1.0, "mbs", criterion, half) for criterion in ("images", "l1") for half in (0, 1)]
    return found + (halves if mobile else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mobilenet", type=Path, help="torchvision's weights of MobileNetV2 for ImageNet")
    parser.add_argument("--log", type=Path, default=Path(__file__).parent / "logs" / "reconstruction.jsonl")
    parser.add_argument("--only", help="rows of networks whose name begins so")
    args = parser.parse_args()
    lines = args.log.read_text().splitlines() if args.log.exists() else []
    done = [json.loads(line)["row"] for line in lines]
    for row in rows(args.mobilenet is not None):
        if asdict(row) in done or not row.network.startswith(args.only or ""):
            continue
        if row.network == "mobilenet_v2":
            case = mobilenet(args.mobilenet, row.part, args.data)
        else:
            case = cifar(int(row.network.removeprefix("resnet")), row.part, args.data)
        line = {"row": asdict(row), **run(row, case), "threads": torch.get_num_threads(), "torch": torch.__version__}
        append_line(args.log, line)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
