"""Accuracy without labels: inherited weights, and the same layers refitted to the original.

    python benchmarks/reconstruction.py --data ../shared/data
    python benchmarks/reconstruction.py --data ../shared/data --mobilenet mobilenet_v2-b0353104.pth
    python benchmarks/reconstruction.py --data ../shared/data --lite efficientnet-lite0-57934424.pth
    python benchmarks/reconstruction.py --coverage 'torchvision/(resnet18|vgg11)$'
    python benchmarks/reconstruction.py --resnet50 256

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
import re
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from cifar import normalise
from cifar_networks import pruned, traced, uniform_plan, with_convolutions
from coverage import build, input_shape
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import TensorDataset

import mbs_fx
from mbs_fx.folder import folder
from mbs_fx.models import load_weights
from mbs_fx.training.result import append_line

FITTED = 500
COVERAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
MEAN_IMAGENET, STD_IMAGENET = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@dataclass(frozen=True)
class Row:
    """One reduction: ``part`` is the half or the draw of images.

    ``plan`` is "mbs", "mbs at half the flops", at equal parameters "uniform" or "torch-pruning", or "uniform at equal
    flops".  Torch-Pruning's is the channels that it keeps, with padding shortcuts as convolutions (`cifar_networks`),
    which are refitted like other layers and not counted.
    """

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
def on_photographs(network: str, weights: Path, half: int, data: Path) -> Case:
    images, labels = photographs(data)
    if network == "mobilenet_v2":
        from torchvision.models import mobilenet_v2

        model: nn.Module = mobilenet_v2()
        load_weights(model, weights)
    else:
        model, images = lite(weights), images * STD_IMAGENET + MEAN_IMAGENET
        images = (images * 255 - 127) / 128
    mine = torch.arange(len(images)) // (len(images) // 2) == half
    return Case(mbs_fx.trace(model.eval(), images[:2]), images[mine], labels[mine], images[~mine], labels[~mine])


def lite(weights: Path) -> nn.Module:
    """EfficientNet-Lite0 of timm with the tensors of another's, which come in the same order."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    given = [tensor for name, tensor in torch.load(weights, weights_only=True).items() if "num_batches" not in name]
    own = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    model.load_state_dict(dict(zip(own, given, strict=True)), strict=False)
    return model


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in images.split(50)])


def run(row: Row, case: Case, data: Path) -> dict[str, object]:
    analysis = mbs_fx.analyze(case.gm, case.fit[:1])
    begun = time.process_time()
    density = mbs_fx.measure(case.gm, case.fit, analysis=analysis, confidence=None)
    measured = time.process_time()
    plan = mbs_fx.plan(analysis, density, z=row.k)
    if row.plan == "uniform":
        plan = uniform_plan(analysis, plan.params[1])
    if row.plan == "uniform at equal flops":
        plan = uniform_plan(analysis, flops=plan.flops[1])
    if row.plan == "mbs at half the flops":
        plan = mbs_fx.plan(analysis, density, max_flops="50%")
    gm, counted = case.gm, None
    if row.plan == "torch-pruning":
        gm, plan, counted = peers(int(row.network.removeprefix("resnet")), plan.params[1], case.fit, data)
    started = time.process_time()
    if row.criterion in ("images", "activation", "taylor"):
        criterion = "readers" if row.criterion == "images" else row.criterion
        plan = mbs_fx.choose_channels(gm, plan, TensorDataset(case.fit, case.fit_labels), criterion=criterion)
    small = mbs_fx.rewrite(gm, plan, criterion=row.criterion if row.criterion == "l1" else "first")
    refitted = mbs_fx.reconstruct(small, gm, case.fit, progress=False)
    ended = time.process_time()
    wanted = answers(case.gm, case.test)
    found: dict[str, object] = {"params": plan.params, "flops": plan.flops, "counted": counted}
    for name, network in (("original", case.gm), ("inherited", small), ("reconstructed", refitted)):
        given = answers(network, case.test)
        found[name] = round(100 * float((given.argmax(1) == case.labels).double().mean()), 2)
        kl = (wanted.softmax(1) * (wanted.log_softmax(1) - given.log_softmax(1))).sum(1).mean()
        found[f"kl_{name}"] = round(float(kl), 4)
    report = refitted.meta["mbs_reconstruction"]
    seconds = {"seconds": round(ended - started, 2), "seconds_measure": round(measured - begun, 2)}
    return {**found, **seconds, "images": report.images, "output": report.output}


def peers(depth: int, params: int, images: Tensor, data: Path) -> tuple[GraphModule, mbs_fx.Plan, int]:
    """The original with convolutions for shortcuts, a plan that keeps what Torch-Pruning keeps, and its parameters."""
    base = with_convolutions(depth, data).eval()
    subject = pruned(params, depth, data, images)
    left = {name: held for name, held in subject.net.named_buffers() if name.endswith("running_mean")}
    channels: dict[str, tuple[int, ...]] = {}
    for name, held in base.named_buffers():
        if name in left:  # running means are all different, so that they tell which channels stayed
            path = name.removesuffix(".running_mean").replace("bn", "conv")
            channels[path] = tuple(torch.isin(held, left[name]).nonzero().flatten().tolist())
    gm = mbs_fx.trace(base, images[:2])
    plan = mbs_fx.plan(mbs_fx.analyze(gm, images[:1]), widths={path: len(kept) for path, kept in channels.items()})
    return gm, replace(plan, channels=channels), subject.params


def rows(photographed: Sequence[str]) -> list[Row]:
    cases = [(network, k) for network, k in (("resnet20", 1.0), ("resnet56", 1.0), ("resnet56", 1.4))]
    found = [Row(network, k, "mbs", criterion, 0) for network, k in cases for criterion in ("images", "l1")]
    found += [Row(network, k, "mbs", "images", part) for network, k in cases for part in (1, 2)]
    found += [Row(network, k, "mbs", criterion, 0) for network, k in cases for criterion in ("activation", "taylor")]
    alike = ("uniform", "uniform at equal flops")
    found += [
        Row(network, 1.0, plan, "images", part) for plan in alike for network, _ in cases[:2] for part in (0, 1, 2)
    ]
    found += [Row(network, 1.0, "torch-pruning", "l1", 0) for network in ("resnet20", "resnet56")]
    for network in photographed:
        found += [Row(network, 1.0, "mbs", criterion, half) for criterion in ("images", "l1") for half in (0, 1)]
        more = (*alike, "mbs at half the flops")
        found += [Row(network, 1.0, plan, "images", half) for plan in more for half in (0, 1)]
    return found


def covered(name: str) -> dict[str, object]:
    """One network of ``docs/coverage.md``: what is wrong with its reconstruction, if anything."""
    begun = time.process_time()
    try:
        net = build(name)
        images = torch.randn(10, *input_shape(name, net)[1:], generator=torch.Generator().manual_seed(0))
        gm = mbs_fx.trace(net, images[:2])
        analysis = mbs_fx.analyze(gm, images[:2])
        small = mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={b.index: 0.75 for b in analysis.macroblocks}))
        refitted = mbs_fx.reconstruct(small, gm, images, progress=False)
    except Exception as error:  # whatever a network meets is what there is to report
        return {"coverage": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}
    report = refitted.meta["mbs_reconstruction"]
    before, after = small.state_dict(), refitted.state_dict()
    changed = [key for key, value in before.items() if value.shape != after[key].shape]
    worse = [layer.path for layer in report.layers if layer.after > layer.before]
    counts = {"layers": len(report.layers), "left": len(report.left), "changed": changed, "worse": worse}
    return {"coverage": name, **counts, "output": report.output, "seconds": round(time.process_time() - begun, 1)}


def timed(count: int) -> dict[str, object]:
    """ResNet-50 at z = L: seconds of `reconstruct`, and memory above what the two networks and the images take."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    images = torch.randn(count, 3, 224, 224)
    gm = mbs_fx.trace(resnet50().eval(), images[:2])
    analysis = mbs_fx.analyze(gm, images[:2])
    small = mbs_fx.rewrite(gm, mbs_fx.plan(analysis, mbs_fx.measure(gm, images[:8], analysis=analysis)))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clocks = time.perf_counter(), time.process_time()
    mbs_fx.reconstruct(small, gm, images)
    wall, cpu = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 2**20
    return {"resnet50": count, "seconds_wall": round(wall, 1), "seconds": round(cpu, 1), "gib_above": round(above, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--mobilenet", type=Path, help="torchvision's weights of MobileNetV2 for ImageNet")
    parser.add_argument("--lite", type=Path, help="weights of EfficientNet-Lite0 for ImageNet")
    parser.add_argument("--log", type=Path, default=Path(__file__).parent / "logs" / "reconstruction.jsonl")
    parser.add_argument("--only", help="rows of networks whose name begins so")
    parser.add_argument("--coverage", help="networks of docs/coverage.md whose name holds this expression")
    parser.add_argument("--resnet50", type=int, help="time ResNet-50 on so many images")
    args = parser.parse_args()
    if args.resnet50:
        return write(args.log, timed(args.resnet50))
    if args.coverage:
        names = re.findall(r"^\| ((?:torchvision|timm)/\S+)", COVERAGE.read_text(), re.MULTILINE)
        for name in names:
            if re.search(args.coverage, name):
                write(args.log, covered(name))
        return None
    weights = {"mobilenet_v2": args.mobilenet, "efficientnet_lite0": args.lite}
    lines = args.log.read_text().splitlines() if args.log.exists() else []
    done = [json.loads(line).get("row") for line in lines]
    for row in rows([network for network, path in weights.items() if path is not None]):
        if asdict(row) in done or not row.network.startswith(args.only or ""):
            continue
        if row.network in weights:
            case = on_photographs(row.network, weights[row.network], row.part, args.data)
        else:
            case = cifar(int(row.network.removeprefix("resnet")), row.part, args.data)
        write(args.log, {"row": asdict(row), **run(row, case, args.data)})
    return None


def write(log: Path, found: dict[str, object]) -> None:
    """Append a line to the log, with what it was made with, and print it."""
    line = {**found, "threads": torch.get_num_threads(), "torch": torch.__version__}
    append_line(log, line)
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
