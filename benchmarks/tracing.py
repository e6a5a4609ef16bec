"""`mbs_fx.trace` with all its checks, beside torch.fx's own trace and eight forward passes of the network.

    python benchmarks/tracing.py [--runs 3] [--only REGEX]
    python benchmarks/tracing.py --modules [--runs 3] [--only REGEX]

The second figure is that of torch.fx where it can trace the network at all; otherwise that of eight forward passes
alone.  Both sides run in this process, in turn; the smallest ratio of CPU time counts.  A network whose library is not
installed is left out.  ``--modules``: rewriting a module, which traces, analyzes and checks it, beside tracing it and
rewriting the graph that a plan was made for.
"""

from __future__ import annotations

import argparse
import platform
import re
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torchvision
from coverage import build
from tabulate import tabulate

import mbs_fx
from mbs_fx.sample import resnet

NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "ResNet-18": (torchvision.models.resnet18, (2, 3, 224, 224)),
    "ResNet-50": (torchvision.models.resnet50, (2, 3, 224, 224)),
    "DenseNet-201": (torchvision.models.densenet201, (2, 3, 224, 224)),
    "MobileNetV2": (torchvision.models.mobilenet_v2, (2, 3, 224, 224)),
    "ShuffleNetV2": (torchvision.models.shufflenet_v2_x1_0, (2, 3, 224, 224)),
    "GoogLeNet": (lambda: build("torchvision/googlenet"), (2, 3, 224, 224)),
    "CIFAR ResNet-110": (lambda: resnet(110), (1, 3, 32, 32)),
    "CIFAR ResNet-1202": (lambda: resnet(1202), (1, 3, 32, 32)),
    "YOLO11n": (lambda: build("ultralytics/yolo11n"), (1, 3, 128, 128)),
}

MODULES: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "CIFAR ResNet-1202": (lambda: resnet(1202), (1, 3, 32, 32)),
    "PNASNet-5-Large": (lambda: build("timm/pnasnet5large"), (2, 3, 128, 128)),
    "SSD-300": (lambda: build("torchvision/ssd300_vgg16"), (2, 3, 300, 300)),
}


def seconds(function: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def plain(net: torch.nn.Module, shape: tuple[int, ...]) -> float:
    """torch.fx's own trace, where it can, and eight forward passes."""

    def work() -> None:
        with suppress(Exception):
            torch.fx.symbolic_trace(net)
        x = torch.randn(shape)
        with torch.no_grad():
            for _ in range(8):
                net(x)

    return seconds(work)


def tracing(net: torch.nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    """Seconds of our trace, and of what it is compared with."""
    return seconds(partial(mbs_fx.trace, net, shape)), plain(net, shape)


def rewriting(net: torch.nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    """Seconds of rewriting a module, and of tracing it and rewriting its graph."""
    start = time.process_time()
    gm = mbs_fx.trace(net, shape)
    traced = time.process_time() - start
    analysis = mbs_fx.analyze(gm, shape)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.75 for m in analysis.macroblocks})
    rewritten = seconds(partial(mbs_fx.rewrite, gm, plan))
    return seconds(partial(mbs_fx.rewrite, net, plan)), traced + rewritten


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="regular expression on names")
    parser.add_argument("--modules", action="store_true", help="rewriting modules in place of tracing")
    args = parser.parse_args()
    measure = rewriting if args.modules else tracing
    sides = (
        ("mbs_fx.trace", "torch.fx + 8 passes") if measure is tracing else ("rewrite(module)", "trace, rewrite(graph)")
    )
    warnings.simplefilter("ignore")
    mbs_fx.trace(torchvision.models.squeezenet1_1().eval(), (1, 3, 64, 64))
    rows: list[list[Any]] = []
    for name, (make, shape) in (MODULES if args.modules else NETWORKS).items():
        if not re.search(args.only, name):
            continue
        try:
            net = make().eval()
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        pairs = [measure(net, shape) for _ in range(args.runs)]
        ours, theirs = min(pairs, key=lambda pair: pair[0] / pair[1])
        rows.append([name, f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}"])
    print(tabulate(rows, ["network", *(f"{side}, s" for side in sides), "ratio"], tablefmt="github"))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
