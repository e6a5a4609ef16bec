"""Before, after and ratio for six networks, by a threshold and by a budget of multiply-adds with blocks of 8.

    python benchmarks/bench_table.py [--device cpu] [--threads 1] [--backend eager] [--batch 1] [--size 224]

Weights are fresh and densities equal: time depends on widths alone.  Every row is printed on standard error when it is
there; the table at the end has them all.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torchvision import models

import mbs_fx

NETWORKS = ("resnet18", "resnet50", "densenet121", "mobilenet_v2", "shufflenet_v2_x1_0", "efficientnet_b0")
PLANS: dict[str, dict[str, Any]] = {"z = 1": {"z": 1.0}, "flops 50 %, blocks of 8": {"max_flops": "50%", "round_to": 8}}


def rows(name: str, args: argparse.Namespace) -> list[tuple[Any, ...]]:
    net = models.get_model(name, weights=None).eval()
    found = []
    for title, asked in PLANS.items():
        try:
            small = mbs_fx.reduce(net, example=(1, 3, args.size, args.size), **asked)
        except mbs_fx.MBSError as error:
            found.append((name, title, str(error)[:60]))
            continue
        plan = mbs_fx.plan_of(small)
        result = mbs_fx.bench(
            net, small, batch_sizes=[args.batch], threads=args.threads, device=args.device, backends=[args.backend],
            repetitions=args.repetitions,
        )  # fmt: skip
        timing = result.timings[0]
        shares = [f"{after / before:.0%}" for before, after in (plan.params, plan.flops)]
        ratio = f"{timing.ratio.median:.2f} ± {timing.error:.1%}"
        found.append((name, title, *shares, str(timing.before), str(timing.after), ratio, str(timing.turns)))
        print(*found[-1], sep=" | ", file=sys.stderr, flush=True)
    return found


def machine() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    named = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return named[0].partition(": ")[2] if named else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", default="eager", choices=("eager", "compile", "onnxruntime"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--only", default="", help="part of a name")
    args = parser.parse_args()
    table = [row for name in NETWORKS if args.only in name for row in rows(name, args)]
    headers = ("network", "plan", "parameters", "multiply-adds", "before ms", "after ms", "times faster", "turns")
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True))
    where = machine() if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    print(f"\n{args.backend}, batch {args.batch}, {args.threads} threads, {where}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
