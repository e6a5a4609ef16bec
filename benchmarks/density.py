"""Measuring beside plain inference: time, memory, images read, and how often the widths are wrong.

    python benchmarks/density.py [--repetitions 7] [--only NAME ...] [--json FILE]
    python benchmarks/density.py --validate [--orders 500] [--images 2000]

- ``/ plain``: a measuring pass (run, read, add up) over one batch, beside a forward pass of the same copy (BatchNorm
  folded, same memory order and precision) over the same batch.  ``/ parts``: beside that copy on the same parts of the
  batch, as measuring cuts a batch where its activations would not stay in recycled memory: what counting itself costs.
- ``usual /``: the float32 network with forward hooks that compute ``(out > 0).float().mean()``, beside measuring.
- All passes run in this process in turn; medians, and ratios of medians, of CPU seconds (seconds on a GPU).
- ``memory``: peak of a whole process that measures, beside one that runs the copy over the same images.
- ``images``: images that `measure` reads by default on trained CIFAR-10 networks; ``--validate``: the share of random
  orders in which it stops at other widths than those of the whole set.  Networks and images come from a folder
  ``shared/data`` beside the checkout where there is one; the shipped network and images always count.
- Rows for a GPU appear where there is one.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stopping
import torch
from tabulate import tabulate
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision import models

import mbs_fx
from mbs_fx.density.batches import Batch
from mbs_fx.density.columns import Columns
from mbs_fx.density.execution import executions
from mbs_fx.density.fast_copy import fast_copy
from mbs_fx.density.meter import Meter
from mbs_fx.density.statistics import Moments
from mbs_fx.sample import resnet

SHARED = Path(__file__).resolve().parents[2] / "shared"
Pass = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A network, its input size and batch, and what the ratio to a plain forward pass should be."""

    build: Callable[[], nn.Module]
    size: int
    batch: int
    target: float
    device: str = "cpu"
    compiled: bool = False


CASES = {
    "resnet50": Case(models.resnet50, 224, 16, 1.08),
    "mobilenet_v2": Case(models.mobilenet_v2, 224, 16, 1.15),
    "densenet121": Case(models.densenet121, 224, 16, 1.15),
    "shufflenet_v2": Case(models.shufflenet_v2_x1_0, 224, 16, 1.15),
    "resnet110_cifar": Case(lambda: resnet(110), 32, 64, 1.15),
}
CUDA_CASES = {
    "resnet50_cuda_compiled": Case(models.resnet50, 224, 256, 1.05, "cuda", True),
    "resnet50_cuda": Case(models.resnet50, 224, 256, 1.15, "cuda"),
    "resnet1202_cifar_cuda": Case(lambda: resnet(1202), 32, 256, 1.15, "cuda"),
}


@torch.no_grad()
def timing(name: str, case: Case, repetitions: int) -> dict[str, Any]:
    """Medians of the passes over one batch, in milliseconds, and their ratios."""
    torch.manual_seed(0)
    gm = fx.symbolic_trace(case.build().eval())
    images = torch.randn(case.batch, 3, case.size, case.size)
    passes = {"plain": plain(gm, case, images), "measuring": measuring(gm, case, images)}
    passes["parts"] = plain(gm, case, images, in_parts=True)
    passes["usual"] = usual(gm, case, images)
    seconds: dict[str, list[float]] = {key: [] for key in passes}
    clock = time.perf_counter if case.device == "cuda" else time.process_time
    for repetition in range(-2 if case.device == "cuda" else -1, repetitions):
        for key, run in passes.items():
            start = clock()
            run()
            if case.device == "cuda":
                torch.cuda.synchronize()
            if repetition >= 0:
                seconds[key].append(clock() - start)
    middle = {key: statistics.median(values) for key, values in seconds.items()}
    return {
        "network": name,
        "batch": case.batch,
        **{f"{key}, ms": round(1e3 * value, 1) for key, value in middle.items()},
        "/ plain": round(middle["measuring"] / middle["plain"], 3),
        "target": case.target,
        "/ parts": round(middle["measuring"] / middle["parts"], 3),
        "usual /": round(middle["usual"] / middle["measuring"], 2),
    }


def ways(gm: fx.GraphModule, case: Case) -> tuple[mbs_fx.Analysis, Columns, list[Any]]:
    analysis = mbs_fx.analyze(gm, (1, 3, case.size, case.size))
    columns = Columns.of(analysis)
    return analysis, columns, executions(gm, columns, analysis, case.device, True, None, case.compiled)


def measuring(gm: fx.GraphModule, case: Case, images: Tensor) -> Pass:
    """All that `measure` does for a batch."""
    analysis, columns, options = ways(gm, case)
    meter, totals = Meter(gm, options, columns, analysis), Moments.empty(columns)

    def run() -> None:
        meter.run(0, [Batch((images,), tuple(range(len(images))))])
        for block in meter.collect():
            totals.plus(columns, block)
        if meter.notes:
            raise RuntimeError(meter.notes)

    return run


def plain(gm: fx.GraphModule, case: Case, images: Tensor, in_parts: bool = False) -> Pass:
    """The same copy without counting, batch by batch or in the parts that measuring cuts batches into."""
    make = ways(gm, case)[2][0]
    net: Callable[..., Any] = fast_copy(gm, make.device, make.dtype, make.channels_last)
    if case.compiled:
        net = torch.compile(net, dynamic=False, mode="reduce-overhead" if case.device == "cuda" else None)
    size = -(-case.batch // -(-case.batch // make.images)) if in_parts and make.images else case.batch

    def run() -> None:
        with torch.inference_mode(not case.compiled):
            for part in images.split(size):
                net(make.prepared(part))

    return run


def usual(gm: fx.GraphModule, case: Case, images: Tensor) -> Pass:
    """Forward hooks on every ReLU; functional ones become modules first, as a person would do."""
    hooked = copy.deepcopy(gm)
    for node in hooked.graph.nodes:
        if node.target in (F.relu, torch.relu):
            hooked.add_submodule(f"{node.name}_module", nn.ReLU())
            node.op, node.target, node.args, node.kwargs = "call_module", f"{node.name}_module", node.args[:1], {}
    hooked.recompile()
    hooked.to(case.device).eval()
    shares: dict[str, list[Tensor]] = {}
    for name, module in hooked.named_modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            held = shares.setdefault(name, [])
            module.register_forward_hook(lambda _m, _i, out, held=held: held.append((out > 0).float().mean()))

    def run() -> None:
        hooked(images.to(case.device))

    return run


def memory(name: str, case: Case) -> dict[str, Any]:
    """Peaks of two processes, in MiB."""
    peaks = {
        kind: int(subprocess.check_output([sys.executable, __file__, "--peak", kind, name], text=True).split()[-1])
        for kind in ("plain", "measuring")
    }
    ratio = round(peaks["measuring"] / peaks["plain"], 3)
    return {"network": name, **{f"{k}, MiB": v for k, v in peaks.items()}, "/ plain": ratio, "target": 1.1}


@torch.no_grad()
def peak(kind: str, name: str) -> int:
    """MiB that this process needs to read four batches, one way or the other."""
    case = {**CASES, **CUDA_CASES}[name]
    gm = fx.symbolic_trace(case.build().eval())
    images = torch.randn(4 * case.batch, 3, case.size, case.size)
    if kind == "measuring":
        settings = {"device": case.device, "compile": case.compiled}
        mbs_fx.measure(gm, images, confidence=None, batch_size=case.batch, **settings)
    else:
        plain(gm, case, images)()
    if case.device == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    status = Path("/proc/self/status")  # ru_maxrss would count the parent process, too
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def sections(args: argparse.Namespace) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """Tables, each a title and its rows."""
    if args.validate:
        networks = stopping.trained(args.shared, args.images)
        yield "Random orders", stopping.validation(networks, stopping.QUESTIONS, args.orders)
        return
    cases = {**CASES, **(CUDA_CASES if torch.cuda.is_available() else {})}
    wanted = args.only or [*cases, "memory", "images"]
    chosen = {name: case for name, case in cases.items() if name in wanted}
    yield "Time", (timing(name, case, args.repetitions) for name, case in chosen.items())
    if "memory" in wanted:
        yield "Peak memory", (memory(name, case) for name, case in (chosen or cases).items())
    if "images" in wanted:
        yield "Images read, z = L", stopping.images_read(stopping.trained(args.shared, args.images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=[*CASES, *CUDA_CASES, "memory", "images"], metavar="NAME")
    parser.add_argument("--json", type=Path, help="append every row to this file, one JSON object a line")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--orders", type=int, default=500)
    parser.add_argument("--images", type=int, default=2000, help="size of the set of images")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "NAME"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak(*args.peak))
        return
    for title, rows in sections(args):
        table: list[dict[str, Any]] = []
        for row in rows:
            table.append(row)
            print(".", end="", file=sys.stderr, flush=True)
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps({"section": title, **row}) + "\n")
        if table:
            print(f"\n{title}\n\n{tabulate(table, headers='keys', tablefmt='github')}", flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"\n{platform.machine()}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
