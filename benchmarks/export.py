"""Every network of docs/coverage.md written as a Python file, and run where mbs_fx is not.

    python benchmarks/export.py [--only REGEX] [--most 100] [--again]

Each network is built with fresh weights, reduced (uniform β = 0.75) and exported; another process, in which importing
mbs_fx, timm or torchvision.models fails, runs the file on the same images.  Outputs must be equal bit for bit.  A pair
of processes serves several networks.  A line per network is kept in the log, and a run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coverage import build, input_shape

ALONE = """
import importlib.util, sys, torch
from pathlib import Path
for name in ("mbs_fx", "timm", "torchvision.models"):
    sys.modules[name] = None  # an import of it fails
def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(equal, a, b))
for folder in map(Path, sys.argv[1:]):
    try:
        spec = importlib.util.spec_from_file_location("net", folder / "net.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        inputs, expected = torch.load(folder / "answer.pt", weights_only=True)
        with torch.no_grad():
            print("equal" if equal(expected, module.load()(*inputs)) else "different", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".splitlines()[0][:200], flush=True)
"""


def networks(coverage: Path, most: float) -> list[str]:
    """The names in the table of docs/coverage.md, the smallest first, up to so many million parameters."""
    rows = re.findall(r"^\| ((?:torchvision|timm)/\S+) *\| *([\d.]+)", coverage.read_text(), re.MULTILINE)
    return [name for name, size in sorted(rows, key=lambda row: float(row[1])) if float(size) <= most]


def export_one(name: str, folder: Path) -> dict[str, Any]:
    """Reduce and export a network into a folder, with images and what the small network gives for them."""
    import torch

    import mbs_fx

    net = build(name)
    shape = input_shape(name, net)
    gm = mbs_fx.trace(net, shape, verify=False)
    analysis = mbs_fx.analyze(gm, shape)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.75 for m in analysis.macroblocks})
    small = mbs_fx.rewrite(gm, plan)
    mbs_fx.export_python(small, folder / "net.py", folder / "net.safetensors")
    inputs = (torch.randn(shape),)
    with torch.no_grad():
        torch.save((inputs, small(*inputs)), folder / "answer.pt")
    return {"network": name, "bytes": (folder / "net.py").stat().st_size}


def export_all(names: Sequence[str], root: Path, limit: int) -> None:
    """A line of JSON for every network: its size, or why there is no file."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no result within {limit} s")

    signal.signal(signal.SIGALRM, late)
    for number, name in enumerate(names):
        folder = root / str(number)
        folder.mkdir()
        signal.alarm(limit)
        try:
            row = export_one(name, folder)
        except Exception as error:
            row = {"network": name, "result": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        signal.alarm(0)
        print(json.dumps(row), flush=True)


def run(names: Sequence[str], limit: int) -> list[dict[str, Any]]:
    """Some networks in a process, and their files in another."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-W", "ignore", __file__, "--into", root, "--limit", str(limit), *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        written = [(row, f"{root}/{number}") for number, row in enumerate(rows) if "result" not in row]
        command = [sys.executable, "-W", "ignore", "-c", ALONE, *(folder for _, folder in written)]
        alone = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    for number, (row, _) in enumerate(written):
        row["result"] = alone[number] if number < len(alone) else "the process that runs the file ended"
    lost = names[len(rows) : len(rows) + 1]
    return rows + [{"network": name, "result": f"the process ended with {done.returncode}"} for name in lost]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--coverage", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--log", type=Path, default=Path(__file__).parent / "logs" / "export.jsonl")
    parser.add_argument("--only", default="", help="regular expression on names")
    parser.add_argument("--most", type=float, default=1000, help="million parameters")
    parser.add_argument("--limit", type=int, default=300, help="seconds per network")
    parser.add_argument("--together", type=int, default=8, help="networks that share a process")
    parser.add_argument("--again", action="store_true", help="run those once more that failed")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.into:
        export_all(args.names, args.into, args.limit)
        return
    done: dict[str, dict[str, Any]] = {}
    if args.log.exists():
        done = {row["network"]: row for row in map(json.loads, args.log.read_text().splitlines())}
    names = args.names or networks(args.coverage, args.most)
    left = [n for n in names if n not in done or (args.again and done[n]["result"] != "equal")]
    left = [name for name in left if re.search(args.only, name)]
    while left:
        for row in run(left[: args.together], args.limit):
            left.remove(row["network"])
            done[row["network"]] = row
            with args.log.open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row["network"], row["result"], row.get("bytes", ""), flush=True)
    equal = [row for row in done.values() if row["result"] == "equal"]
    sizes = sorted(row["bytes"] for row in equal)
    print(f"{len(equal)} of {len(done)} files run without mbs_fx and give equal outputs, bit for bit")
    print(f"bytes of source: median {sizes[len(sizes) // 2]}, largest {sizes[-1]}" if sizes else "")


if __name__ == "__main__":
    main()
