"""Train original and reduced ResNets on CIFAR-10: the paper's Table 1 and its Figures 4 and 5.

    python benchmarks/cifar10.py --data DIR --method mbs --k 1.0 --init fresh --seed 0 --schedule paper
    python benchmarks/cifar10.py --data DIR --table fig5 --schedule short --jobs 2

One row is one network trained once; it appends one JSON line to ``--log``.  A row that is already in the log is not
run again, and a run that was killed goes on from its checkpoint.  ``results.py`` makes docs/results.md of the log.

Densities, inherited weights and the teacher come from trained originals (``--originals``; the shipped ResNet-20
without).  ``--method original --weights FILE`` trains one and writes it in half precision, as
``mbs_fx/sample/resnet20.safetensors`` was made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cifar_networks as networks
import torch
from cifar import Batches, load, normalise
from cifar_rows import SCHEDULES, TABLES, Row
from safetensors.torch import save_file
from torch import nn

import mbs_fx
from mbs_fx.runtime.ranks import Ranks
from mbs_fx.training.losses import hits
from mbs_fx.training.result import append_line

METHODS = ("original", "mbs", "uniform", "uniform-flops", "torch-pruning")
"""``uniform-flops`` has MBS's multiply-adds, the others its parameters."""

RECONSTRUCTED_ON = 500
"""Training images, without their labels."""


@dataclass(frozen=True)
class Place:
    """Where a run reads and writes, and on what it runs."""

    data: Path
    originals: Path | None
    log: Path
    checkpoints: Path
    weights: Path | None
    threads: int


def machine() -> str:
    """The hardware that a row ran on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "")
    return f"{model or platform.processor()} ({platform.machine()}), {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "mbs-fx", "torch-pruning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def subject(row: Row, place: Place) -> networks.Subject:
    """The network of a row, before training."""
    _, analysis = networks.traced(row.depth, place.originals)
    if row.method == "original":
        return networks.planned(networks.whole_plan(analysis), row.depth, place.originals, row.init, row.seed)
    plan = networks.mbs_plan(row.depth, place.originals, place.data, row.k)
    if row.method == "uniform":
        plan = networks.uniform_plan(analysis, plan.params[1])
    if row.method == "uniform-flops":
        plan = networks.uniform_plan(analysis, flops=plan.flops[1])
    if row.method == "torch-pruning":
        images = normalise(load(place.data, train=True)[0][:2])
        return networks.pruned(plan.params[1], row.depth, place.originals, images)
    images = None
    if row.init == "reconstructed":
        train = load(place.data, train=True)[0]
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(row.seed))
        images = normalise(train[order[:RECONSTRUCTED_ON]])
    return networks.planned(plan, row.depth, place.originals, row.init, row.seed, images)


def run(row: Row, place: Place) -> dict:
    """Train one row and append its line."""
    torch.set_num_threads(place.threads)
    torch.set_flush_denormal(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = SCHEDULES[row.schedule]
    recipe = replace(chosen.recipe, seed=row.seed, distill=0.7 if row.distill else 0.0)
    small = subject(row, place)
    train, test = ([t.to(device) for t in load(place.data, train)] for train in (True, False))
    train, test = Batches(*train, recipe.batch, chosen.small), Batches(*test, 500, train=False)
    line = {
        **asdict(row),
        "before": accuracy(small.net.to(device), test) if row.init != "fresh" else None,
        "params": small.params,
        "flops": small.flops,
        "widths": small.widths,
        "recipe": recipe.plain(),
        "small": chosen.small,
        "originals": str(place.originals.name) if place.originals else "mbs_fx.sample",
        "machine": machine(),
        "threads": place.threads,
        "versions": versions(),
    }
    if row.untrained:
        line |= {"accuracy": line["before"], "seconds": 0.0}
    else:
        line |= trained(row, place, small.net, train, test, recipe)
    append_line(place.log, line)
    if place.weights:
        keep(small.net, place.weights)
    (place.checkpoints / f"{row}.ckpt").unlink(missing_ok=True)
    return line


def trained(row: Row, place: Place, net: nn.Module, train: Batches, test: Batches, recipe: mbs_fx.Recipe) -> dict:
    """Train; what the log says about it."""
    result = mbs_fx.retrain(
        net,
        train,
        test,
        recipe,
        teacher=networks.original(row.depth, place.originals) if row.distill else None,
        checkpoint=place.checkpoints / f"{row}.ckpt",
    )
    return {
        "accuracy": result.accuracy,
        "loss": round(result.epochs[-1].loss, 4),
        "seconds": round(sum(e.seconds for e in result.epochs), 1),
        "images_per_second": round(result.images_per_second, 1),
        "curve": [e.accuracy for e in result.epochs],
    }


def accuracy(net: nn.Module, test: Batches) -> float:
    """Share of test images whose largest logit is the label's, as the network is."""
    net.eval()
    right, seen = hits(net, test, lambda images, labels: (images, labels), Ranks())
    return right / seen


def keep(net: nn.Module, out: Path) -> None:
    """Write the weights in half precision."""
    state = net.state_dict()
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}, out)


def missing(rows: list[Row], log: Path) -> list[Row]:
    """The rows that the log does not hold."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    names = asdict(rows[0]).keys() if rows else ()
    done = {Row(**{name: line[name] for name in names}) for line in lines}
    return [row for row in rows if row not in done]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 (cifar.py says from where)")
    parser.add_argument("--originals", type=Path, help="folder of cifar10_resnet<depth>.safetensors")
    parser.add_argument("--table", choices=sorted(TABLES), help="all rows of a table, in place of one row")
    parser.add_argument("--depth", type=int, nargs="+", default=[20], help="6n + 2")
    parser.add_argument(
        "--method", choices=("original", "mbs", "uniform", "uniform-flops", "torch-pruning"), default="mbs"
    )
    parser.add_argument(
        "--k",
        type=float,
        default=1.0,
        help="z = k L; the other methods take MBS's size at this k\n(uniform-flops its multiply-adds)",
    )
    parser.add_argument("--init", choices=("fresh", "inherited", "reconstructed"), default="fresh")
    parser.add_argument("--distill", action="store_true", help="imitate the original, too")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="paper")
    parser.add_argument("--jobs", type=int, default=1, help="rows at once; on a GPU several fit beside each other")
    parser.add_argument("--log", type=Path, default=Path(__file__).parent / "logs/cifar10.jsonl")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--weights", type=Path, help="where the trained weights of a single row go (safetensors)")
    args = parser.parse_args()

    single = Row(args.depth[0], args.method, args.k, args.init, args.distill, args.schedule, args.seed[0])
    rows = TABLES[args.table](args.depth, args.seed, args.schedule) if args.table else [single]
    args.checkpoints.mkdir(exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    place = Place(args.data, args.originals, args.log, args.checkpoints, args.weights, threads)
    open_rows = missing(rows, args.log)
    print(f"{len(rows) - len(open_rows)} of {len(rows)} rows are in {args.log} and not run again", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, context) as pool:
        for line in pool.map(partial(run, place=place), open_rows):
            print(
                json.dumps({k: line[k] for k in ("depth", "method", "k", "seed", "params", "accuracy", "seconds")}),
                flush=True,
            )


if __name__ == "__main__":
    main()
