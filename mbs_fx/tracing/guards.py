"""Graphs that hold for some sizes only refuse all others."""

from __future__ import annotations

import operator

from torch import fx

from mbs_fx.runtime.torch_private import ASSERT


def refuse_others(gm: fx.GraphModule, fixed: str) -> None:
    """Let a graph check, at each call, the "sizes" or the "batch" size of its inputs, whichever is ``fixed``."""
    if not fixed:
        return
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    with gm.graph.inserting_before(inputs[-1].next):
        for node in inputs:
            shape = tuple(node.meta["tensor_meta"].shape) if "tensor_meta" in node.meta else ()
            axes = range(2, len(shape)) if fixed == "sizes" else range(min(1, len(shape)))
            for axis in axes:
                _require(gm.graph, node, axis, shape[axis])
    gm.graph.lint()
    gm.recompile()


def _require(graph: fx.Graph, node: fx.Node, axis: int, size: int) -> None:
    found = graph.call_method("size", (node, axis))
    same = graph.call_function(operator.eq, (found, size))
    message = f"this graph was traced at size {size} in axis {axis} of {node.name} and holds for that size only"
    graph.call_function(ASSERT, (same, message))
