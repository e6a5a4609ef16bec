"""Analyze + plan + rewrite, beside torch.fx's own trace and Torch-Pruning's build + prune on the same network.

    python benchmarks/speed.py [--runs 3] [--no-peer] [--only REGEX] [--memory]

Seconds are CPU seconds.  Tracing is excluded on our side.  All sides run in this process, in turn; the median counts.
The first analysis of a process also imports torch's fake tensor machinery; it is done once before the clock starts.
The last line is how much more than its nodes the time grows from ResNet-110 to ResNet-1202.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from tabulate import tabulate

import mbs_fx
from mbs_fx.sample import resnet

NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "ResNet-18": (torchvision.models.resnet18, (1, 3, 224, 224)),
    "ResNet-50": (torchvision.models.resnet50, (1, 3, 224, 224)),
    "DenseNet-201": (torchvision.models.densenet201, (1, 3, 224, 224)),
    "CIFAR ResNet-110": (lambda: resnet(110), (1, 3, 32, 32)),
    "CIFAR ResNet-1202": (lambda: resnet(1202), (1, 3, 32, 32)),
}


def ours(net: torch.nn.Module, shape: tuple[int, ...]) -> tuple[float, float, int]:
    """Seconds of torch.fx's trace and of analyze + plan + rewrite, and nodes of the graph."""
    start = time.process_time()
    gm = torch.fx.symbolic_trace(net)
    traced = time.process_time()
    analysis = mbs_fx.analyze(gm, shape)
    mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={m.spatial_size: 0.75 for m in analysis.macroblocks}))
    return traced - start, time.process_time() - traced, len(gm.graph.nodes)


def peer(net: torch.nn.Module, shape: tuple[int, ...]) -> float | str:
    """Seconds of Torch-Pruning's build + prune, or how it fails."""
    import torch_pruning as tp

    heads = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    start = time.process_time()
    try:
        tp.pruner.MagnitudePruner(
            net,
            torch.randn(shape),
            tp.importance.MagnitudeImportance(),
            pruning_ratio=0.25,
            ignored_layers=heads,
        ).step()
    except Exception as error:
        return type(error).__name__
    return time.process_time() - start


def memory(net: torch.nn.Module, shape: tuple[int, ...]) -> float:
    """Peak of Python's own allocations during the analysis, as a share of the parameters' bytes."""
    gm = torch.fx.symbolic_trace(net)
    tracemalloc.start()
    mbs_fx.analyze(gm, shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / sum(p.numel() * p.element_size() for p in net.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--only", default="", help="regular expression on names")
    parser.add_argument("--memory", action="store_true", help="what an analysis of the largest network allocates")
    args = parser.parse_args()
    if args.memory:
        share = memory(torchvision.models.regnet_y_128gf().eval(), (1, 3, 224, 224))
        print(f"RegNetY-128GF: the analysis allocates {share:.1%} of the weights' bytes at its peak")
        return
    ours(torchvision.models.squeezenet1_1().eval(), (1, 3, 64, 64))
    medians: dict[str, tuple[float, int]] = {}
    rows: list[list[Any]] = []
    for name, (make, shape) in NETWORKS.items():
        if re.search(args.only, name):
            row, seconds, nodes = measured(make, shape, args.runs, not args.no_peer)
            rows.append([name, nodes, *row])
            medians[name] = seconds, nodes
    headers = ["network", "nodes", "torch.fx's trace, s", "mbs_fx, s", "ratio", "Torch-Pruning, s", "ratio"]
    print(tabulate(rows, headers, tablefmt="github"))
    if "CIFAR ResNet-110" in medians and "CIFAR ResNet-1202" in medians:
        (few, small), (many, large) = medians["CIFAR ResNet-110"], medians["CIFAR ResNet-1202"]
        print(f"growth from ResNet-110 to ResNet-1202, over that of the nodes: {many / few / (large / small):.2f}")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")


def measured(
    make: Callable[[], torch.nn.Module], shape: tuple[int, ...], runs: int, peers: bool
) -> tuple[list[Any], float, int]:
    """The row of one network, its median of seconds, and the nodes of its graph."""
    mine: list[tuple[float, float, int]] = []
    theirs: list[float | str] = []
    for _ in range(runs):
        mine.append(ours(make().eval(), shape))
        if peers:
            theirs.append(peer(make().eval(), shape))
    traced, median = (statistics.median(run[i] for run in mine) for i in (0, 1))
    nodes = mine[0][2]
    row = [f"{traced:.2f}", f"{median:.2f}", f"{median / traced:.1f}"]
    timed = [t for t in theirs if isinstance(t, float)]
    if timed:
        other = statistics.median(timed)
        return [*row, f"{other:.2f}", f"{other / median:.1f}"], median, nodes
    return [*row, *theirs[:1]], median, nodes


if __name__ == "__main__":
    main()
