"""In-place additions and activations, for the private copy of a measurement on a CPU.

- An addition writes into the output of a layer that nobody else reads.
- A ReLU whose input nobody else reads works in place, piece by piece, and its signs are summed while they are
  still in the cache.
- Both only where it is safe: the ReLU is in place already, or its input comes from an operation that returns a new
  tensor.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from mbs_fx.density.counting import Change, columns_of, tally
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.operation import Operation
from mbs_fx.operations.resolve import is_in_place, is_plain_layer, named, of_module, of_target

MAKERS = (v.ADD, v.CAT, *(found for name in ("sub", "mul") if (found := named(name)) is not None))
"""Functions that make new memory."""

LAYERS = (*v.CONV, v.LINEAR, v.BATCH_NORM)
"""Layers that make new memory."""


def fuse(gm: fx.GraphModule) -> fx.GraphModule:
    """Add in place, and join activations with the counting after them; in ``gm`` itself."""
    for node in gm.graph.nodes:
        if _makes(node, (v.ADD,)) and len(node.args) == 2 and not node.kwargs:
            fresh = next((a for a in node.args if _is_fresh(gm, a)), None)
            if fresh is not None:
                other = node.args[node.args.index(fresh) - 1]
                node.target, node.args = added, (fresh, other)
    for count in list(gm.graph.nodes):
        if count.op != "call_function" or count.target is not tally:
            continue
        activation = count.args[0]
        change = _change(gm, activation) if activation.args else None
        if change is not None and _owns_its_input(gm, activation):
            _join(gm.graph, activation, count, change)
    gm.recompile()
    return gm


def added(x: Tensor, other: Any) -> Tensor:
    """The sum, in ``x`` where it fits there."""
    fits = isinstance(other, Tensor) and other.shape == x.shape and other.dtype == x.dtype
    return x.add_(other) if fits else x + other


def rectified(x: Tensor, low: float, high: float | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    """``x`` clamped in place, and its counts."""
    change: Change = torch.relu_ if (low, high) == (0, None) else lambda part: part.clamp_(low, high)
    return x, columns_of(x, change, *arguments)


def _makes(node: fx.Node, operations: Sequence[Operation]) -> bool:
    """Whether a function makes new memory, or writes where nobody else reads."""
    if node.op != "call_function" or is_in_place(node):
        return False
    return node.target is added or of_target(node) in operations


def _join(graph: fx.Graph, activation: fx.Node, count: fx.Node, change: tuple[float, float | None]) -> None:
    with graph.inserting_before(activation):
        both = graph.call_function(rectified, (activation.args[0], *change, *count.args[1:]))
        output, counts = (graph.call_function(operator.getitem, (both, i)) for i in (0, 1))
    activation.replace_all_uses_with(output)
    count.replace_all_uses_with(counts)
    graph.erase_node(count)
    graph.erase_node(activation)


def _change(gm: fx.GraphModule, node: fx.Node) -> tuple[float, float | None] | None:
    """The limits that an activation clamps to, where it does nothing else."""
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        if module._forward_hooks or module._forward_pre_hooks or not is_plain_layer(module):
            return None
        operation = of_module(type(module))
        if isinstance(module, nn.Hardtanh) and operation in (v.HARDTANH, v.RELU6):
            return module.min_val, module.max_val
        return (0, None) if operation is v.RELU else None
    return (0, None) if of_target(node) is v.RELU else None


def _owns_its_input(gm: fx.GraphModule, node: fx.Node) -> bool:
    source = node.args[0]
    if _is_in_place(gm, node) or _is_fresh(gm, source):
        return True
    return isinstance(source, fx.Node) and len(source.users) == 1 and _makes(source, MAKERS)


def _is_fresh(gm: fx.GraphModule, value: Any) -> bool:
    """Whether a value is the output of a layer that makes new memory, for one reader."""
    if not isinstance(value, fx.Node) or value.op != "call_module" or len(value.users) > 1:
        return False
    module = gm.get_submodule(str(value.target))
    return of_module(type(module)) in LAYERS and is_plain_layer(module) and not module._forward_hooks


def _is_in_place(gm: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(gm.get_submodule(str(node.target)), "inplace", False))
    return is_in_place(node) or node.kwargs.get("inplace") is True or node.args[1:] == (True,)
