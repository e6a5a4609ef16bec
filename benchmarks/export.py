"""Every network of docs/coverage.md written as a Python file, and run where mbs_fx is not.

    python benchmarks/export.py [--only REGEX] [--log export.jsonl] [--again]

Each network is built with fresh weights, reduced (uniform β = 0.75) and exported; a second process, in which importing
mbs_fx fails, runs the file on the same images.  Outputs must be equal bit for bit.  The log is resumable.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from coverage import build, input_shape

ALONE = """
import sys
sys.modules["mbs_fx"] = None  # an import of it fails
import importlib.util, torch
from pathlib import Path
folder = Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("net", folder / "net.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
inputs, expected = torch.load(folder / "answer.pt", weights_only=True)
with torch.no_grad():
    found = module.load()(*inputs)
def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(equal, a, b))
print("equal" if equal(expected, found) else "different")
"""


def networks(coverage: Path) -> list[str]:
    """The names in the table of docs/coverage.md."""
    return re.findall(r"^\| ((?:torchvision|timm)/\S+)", coverage.read_text(), re.MULTILINE)


def export_one(name: str) -> dict[str, Any]:
    """Reduce and export a network, run the file in another process."""
    import torch

    import mbs_fx

    row: dict[str, Any] = {"network": name}
    net = build(name)
    shape = input_shape(name, net)
    gm = mbs_fx.trace(net, shape)
    analysis = mbs_fx.analyze(gm, shape)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.75 for m in analysis.macroblocks})
    small = mbs_fx.rewrite(gm, plan)
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        mbs_fx.export_python(small, folder / "net.py", folder / "net.safetensors")
        row["bytes"] = (folder / "net.py").stat().st_size
        inputs = (torch.randn(shape),)
        with torch.no_grad():
            torch.save((inputs, small(*inputs)), folder / "answer.pt")
        command = [sys.executable, "-c", ALONE, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        row["result"] = done.stdout.strip() or done.stderr.strip().splitlines()[-1][:200]
    return row


def run(name: str, limit: int) -> dict[str, Any]:
    """One network in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"network": name, "result": f"no result within {limit} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"network": name, "result": done.stderr.strip().splitlines()[-1][:200]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--coverage", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--log", type=Path, default=Path("export.jsonl"))
    parser.add_argument("--only", default="", help="regular expression on names")
    parser.add_argument("--limit", type=int, default=300, help="seconds per network")
    parser.add_argument("--again", action="store_true", help="run those once more that failed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(export_one(args.one)))
        return
    done: dict[str, dict[str, Any]] = {}
    if args.log.exists():
        done = {row["network"]: row for row in map(json.loads, args.log.read_text().splitlines())}
    for name in networks(args.coverage):
        again = args.again and done.get(name, {}).get("result") != "equal"
        if re.search(args.only, name) and (name not in done or again):
            row = done[name] = run(name, args.limit)
            with args.log.open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(name, row["result"], row.get("bytes", ""), flush=True)
    equal = [row for row in done.values() if row["result"] == "equal"]
    sizes = sorted(row["bytes"] for row in equal)
    print(f"{len(equal)} of {len(done)} files run without mbs_fx and give equal outputs, bit for bit")
    print(f"bytes of source: median {sizes[len(sizes) // 2]}, largest {sizes[-1]}" if sizes else "")


if __name__ == "__main__":
    main()
