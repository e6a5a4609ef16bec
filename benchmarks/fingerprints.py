"""Fingerprints of the plans and reduced networks of docs/coverage.md, to compare two states of the code.

    python benchmarks/fingerprints.py --log before.jsonl           # one line a network; goes on where it stopped
    python benchmarks/fingerprints.py --log after.jsonl --compare before.jsonl

A line holds the tracing mode, planned widths, parameters and flops at z = 1 and at β = 0.75 for every macroblock
(p = 1), and the hash of the reduced network's output in float64, rounded to 8 digits.  Only public calls are used,
so that the same file runs on an earlier state of the package.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from coverage import build, input_shape
from proof import random_inputs, tensors_in

import mbs_fx


def fingerprint(name: str) -> dict[str, Any]:
    """What `plan` and `rewrite` make of one network, as plain values."""
    net = build(name)
    shape = input_shape(name, net)
    gm = mbs_fx.trace(net, shape)
    analysis = mbs_fx.analyze(gm, shape)
    row: dict[str, Any] = {"network": name, "tracing": gm.meta.get("mbs_tracing", "")}
    plans = {"z": mbs_fx.plan(analysis), "beta": mbs_fx.plan(analysis, betas=dict.fromkeys(sizes(analysis), 0.75))}
    for key, plan in plans.items():
        row[key] = {"widths": digest(json.dumps(dict(plan.widths))), "params": plan.params, "flops": plan.flops}
    torch.manual_seed(0)
    small = mbs_fx.rewrite(gm, plans["beta"]).double().eval()
    with torch.no_grad():
        outputs = small(*random_inputs(small, plans["beta"], torch.float64))
    row["output"] = digest(" ".join(f"{float(t.double().sum()):.8e}" for t in tensors_in(outputs)))
    return row


def sizes(analysis: mbs_fx.Analysis) -> list[tuple[int, ...]]:
    return [m.spatial_size for m in analysis.macroblocks]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(log: Path) -> dict[str, dict[str, Any]]:
    rows = map(json.loads, log.read_text().splitlines()) if log.exists() else ()
    return {row["network"]: row for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--compare", type=Path, help="print what differs from this log, and stop")
    parser.add_argument("--only", default="", help="regular expression on names")
    args = parser.parse_args()
    if args.compare:
        before, after = read(args.compare), read(args.log)
        differing = {n: [k for k in before[n] if before[n][k] != after[n].get(k)] for n in before if n in after}
        print("\n".join(f"{name}: {', '.join(keys)}" for name, keys in differing.items() if keys))
        same = sum(not keys for keys in differing.values())
        print(f"{same} of {len(differing)} networks are the same; {len(before.keys() - after.keys())} not compared")
        return
    warnings.simplefilter("ignore")
    done = read(args.log)
    names = re.findall(r"^\| ((?:torchvision|timm)/\S+)", Path("docs/coverage.md").read_text(), re.MULTILINE)
    for name in names:
        if name in done or not re.search(args.only, name):
            continue
        try:
            row = fingerprint(name)
        except Exception as error:
            row = {"network": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        with args.log.open("a") as log:
            log.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
