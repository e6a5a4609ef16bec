"""Multiply-adds of every convolution of docs/coverage.md against torch's own counter.

    python benchmarks/flops.py --log flops.jsonl [--only REGEX]     # one line a network; goes on where it stopped

Each traced graph runs node by node on fake tensors under `torch.utils.flop_counter.FlopCounterMode`, which counts a
multiply-add as two.  What it counts at a node must be twice the batch size times what `analyze` says of it.  It also
counts what is no convolution of the macroblocks; that is told by kind, and `STATED` names the kinds that there may be.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from coverage import build, input_shape
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

import mbs_fx
from mbs_fx.shapes.convolutions import any_conv, conv_kind
from mbs_fx.shapes.shapes import infer

STATED = {
    "linear layer": "works on vectors or tokens; at every pixel of a map it is a convolution, and counted",
    "product of tensors": "attention, or features weighted by features: nothing is learned there",
    "fixed filter": "a blur, or another convolution whose weight is no parameter",
    "along the channels": "efficient channel attention: slides over channels, not over the image",
    "no pixel": "a convolution of constants, such as a position code",
    "inside a leaf": "what the trace kept as one node",
}


class _Counting(Interpreter):
    """Runs a graph and notes what torch counts at every node."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.counted: dict[str, int] = {}

    def run_node(self, n: Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        if counter.get_total_flops():
            self.counted[n.name] = counter.get_total_flops()
        return result


def counted(gm: GraphModule, shapes: tuple[tuple[int, ...], ...]) -> dict[str, int]:
    """Twice the multiply-adds of a batch by node name, as torch counts them; nodes without any are left out."""
    first = next(gm.parameters())
    run = _Counting(gm)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        run.run(*(torch.empty(shape, dtype=first.dtype) for shape in shapes))
    return run.counted


def compare(gm: GraphModule, analysis: mbs_fx.Analysis) -> dict[str, Any]:
    """Where torch and the analysis differ: ``wrong`` by node (torch's, ours), ``others`` multiply-adds by kind."""
    batch = analysis.input_shapes[analysis.image][0]
    ours = {conv.name: 2 * batch * conv.flops for conv in analysis.convs}
    theirs = counted(gm, analysis.input_shapes)
    shapes = infer(gm, analysis.input_shapes)
    others: Counter[str] = Counter()
    for node in gm.graph.nodes:
        if node.name in theirs and node.name not in ours:
            others[_kind(gm, node, shapes, analysis)] += theirs[node.name] // (2 * batch)
    return {
        "convs": len(ours),
        "flops": sum(ours.values()) // (2 * batch),
        "wrong": {name: (theirs.get(name, 0), own) for name, own in ours.items() if theirs.get(name, 0) != own},
        "others": dict(others),
    }


def _kind(gm: GraphModule, node: Node, shapes: Mapping[str, Any], analysis: mbs_fx.Analysis) -> str:
    """What a node is that torch counts and the analysis does not."""
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = str(getattr(node.target, "__name__", node.target))
    spec = any_conv(gm, node, shapes)
    if spec is not None:
        if conv_kind(gm, node, shapes) is None:
            return "fixed filter"
        place = analysis.geometry.get(node.name)
        if place is None or not place.receptive_field:
            return "no pixel"
        return "along the channels" if spec.dims == 1 and spec.weight[0] == 1 else "convolution"
    if isinstance(module, nn.Linear) or name == "linear":
        return "linear layer"
    if module is not None:
        return "inside a leaf"
    return "product of tensors"


def row(name: str) -> dict[str, Any]:
    """One network by its name in docs/coverage.md."""
    try:
        net = build(name)
        shape = input_shape(name, net)
        gm = mbs_fx.trace(net, shape)
        return {"network": name, **compare(gm, mbs_fx.analyze(gm, shape))}
    except Exception as error:
        return {"network": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}


def summary(rows: list[dict[str, Any]]) -> str:
    """How many networks agree, what differs, and what torch counts beside the convolutions."""
    done = [r for r in rows if "failed" not in r]
    lines = [f"{r['network']}: {r['failed']}" for r in rows if "failed" in r]
    lines += [f"{r['network']}: {r['wrong']}" for r in done if r["wrong"]]
    lines += [f"{r['network']}: not in the list: {kind}" for r in done for kind in r["others"] if kind not in STATED]
    same = sum(not r["wrong"] and STATED.keys() >= r["others"].keys() for r in done)
    lines.append(f"{same} of {len(rows)} networks agree, {sum(r['convs'] for r in done)} convolutions")
    for kind, reason in STATED.items():
        held = [r["network"] for r in done if kind in r["others"]]
        lines.append(f"- {kind}, in {len(held)} networks: {reason}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--only", default="", help="regular expression on names")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    known = {r["network"] for r in rows}
    names = re.findall(r"^\| ((?:torchvision|timm)/\S+)", Path("docs/coverage.md").read_text(), re.MULTILINE)
    for name in names:
        if name in known or not re.search(args.only, name):
            continue
        rows.append(row(name))
        with args.log.open("a") as log:
            log.write(json.dumps(rows[-1]) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()
