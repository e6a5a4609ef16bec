"""Train a CIFAR ResNet: how the network shipped in ``mbs_fx/sample`` was made.

    python benchmarks/train_cifar10.py --data DIR --out resnet20.safetensors
    python benchmarks/train_cifar10.py --data DIR --start resnet20.safetensors --average --epochs 2 --small 0
        --lr 0.02 --seed 1 --out resnet20-averaged.safetensors

SGD with Nesterov momentum on a one-cycle schedule, batch 128, random crop and flip.  The first ``--small``
epochs see crops of 24 x 24 pixels at a little over half the cost (the network ends in a global pool).  Runs on a
GPU where there is one; on a CPU in bf16 where the hardware multiplies it, float32 otherwise.  The second command
goes on from the first one's weights; with ``--average`` those that a run started from and ended with are averaged
(89.94 % each, 90.0 % averaged).  Every epoch appends a line to the log (seed, schedule,
accuracy); the weights file holds the last epoch, in half precision.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from cifar import augment, load, normalise
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from mbs_fx.sample import resnet


def precision(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return torch.bfloat16 if "amx_bf16" in flags or "avx512_bf16" in flags else torch.float32


@torch.inference_mode()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's."""
    net.eval()
    hits = sum(
        int((net(normalise(x).to(memory_format=torch.channels_last)).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return hits / len(labels)


def epochs(net: nn.Module, images: Tensor, labels: Tensor, args: argparse.Namespace):
    """Train in place; yields the mean loss of every epoch."""
    device = images.device
    dtype = precision(device)
    generator = torch.Generator().manual_seed(args.seed)
    steps = len(images) // args.batch
    optimizer = torch.optim.SGD(
        net.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=args.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=steps * args.epochs, pct_start=0.25, cycle_momentum=False
    )
    for epoch in range(args.epochs):
        net.train()
        size = 24 if epoch < args.small else 32
        order = torch.randperm(len(images), generator=generator).to(device)
        total = torch.zeros((), device=device)
        for step in tqdm(range(steps), desc=f"epoch {epoch + 1}/{args.epochs}", disable=None):
            chosen = order[step * args.batch : (step + 1) * args.batch]
            x = normalise(augment(images[chosen], generator, size)).to(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = nn.functional.cross_entropy(net(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        yield float(total) / steps


def average(net: nn.Module, start: Path) -> None:
    """Average weights and BatchNorm statistics with those in a file."""
    other = load_file(start)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(other[name].to(tensor), 0.5)


def save(net: nn.Module, out: Path) -> None:
    """Write the weights in half precision."""
    state = net.state_dict()
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--small", type=int, default=10, help="epochs on 24 x 24 crops, first")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--start", type=Path, help="weights to go on from (safetensors)")
    parser.add_argument("--average", action="store_true", help="average the weights at start and end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("resnet20.safetensors"))
    parser.add_argument("--log", type=Path, default=Path("train.jsonl"))
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = (t.to(device) for t in load(args.data, train=True))
    test = tuple(t.to(device) for t in load(args.data, train=False))
    net = resnet(args.depth).to(device, memory_format=torch.channels_last)
    if args.start is not None:
        net.load_state_dict({k: v.to(device) for k, v in load_file(args.start).items()}, strict=False)
    start = time.time()
    for epoch, loss in enumerate(epochs(net, images, labels, args), 1):
        line = {
            "epoch": epoch,
            "loss": round(loss, 4),
            "test_accuracy": accuracy(net, *test),
            "seconds": round(time.time() - start, 1),
            **{k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "data"},
            "precision": str(precision(device)),
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
        with args.log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        save(net, args.out)
    if args.average:
        average(net, args.start)
        line = {"averaged": True, "test_accuracy": accuracy(net, *test)}
        with args.log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        save(net, args.out)


if __name__ == "__main__":
    main()
