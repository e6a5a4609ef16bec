"""Types that follow the parameters.

Semantics
- ``x.to(next(self.parameters()).dtype)`` gives torch.fx the constant ``torch.float32``.  A graph that has such
  constants is traced once more on a copy of the model in another type: the constants that change with it are, in the
  graph, the type of a parameter; the others stay constants.
- Where that is not possible a note names the type that the graph keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from mbs_fx.errors import MBSError
from mbs_fx.tracing.check import copied
from mbs_fx.tracing.example import Example, place_and_dtype
from mbs_fx.tracing.leaves import UntraceableError


def follow_types(
    gm: fx.GraphModule,
    model: nn.Module,
    inputs: Example | None,
    retrace: Callable[..., fx.GraphModule],
) -> tuple[str, ...]:
    """Let types in the graph follow its parameters where the model's do; notes on what could not be told."""
    own = place_and_dtype(model)[1]
    fixed = [node for node in gm.graph.nodes if own in _types(node)]
    target = _parameter(gm)
    if not fixed or target is None:
        return ()
    other = torch.float64 if own is not torch.float64 else torch.float32
    note = (f"the graph keeps the type {own}: converted to another, it may fail where the model does not",)
    try:
        converted = None if inputs is None else inputs.map(lambda t: t.to(other) if t.dtype is own else t)
        twin = retrace(copied(model).to(other), converted, any_batch=False)
    except (UntraceableError, MBSError):
        return note
    # A constant may be a number in the graph of one type, and a tensor in that of another.
    nodes, twins = ({n.name: n for n in graph.graph.nodes if n.op != "get_attr"} for graph in (gm, twin))
    if any(name not in nodes or _call(node) != _call(nodes[name]) for name, node in twins.items()):
        return note
    follow = [node for node in fixed if own not in _types(twins[node.name])]
    if follow:
        _replace(gm, follow, own, target)
    return ()


def _replace(gm: fx.GraphModule, follow: list[fx.Node], own: torch.dtype, target: str) -> None:
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    with gm.graph.inserting_before(inputs[-1].next):
        parameter = gm.graph.get_attr(target)
        dtype = gm.graph.call_function(getattr, (parameter, "dtype"))
    for node in follow:
        node.args = map_aggregate(node.args, lambda arg: dtype if arg is own else arg)  # type: ignore[assignment]
        node.kwargs = map_aggregate(node.kwargs, lambda arg: dtype if arg is own else arg)  # type: ignore[assignment]
    gm.graph.lint()
    gm.recompile()


def _call(node: fx.Node) -> tuple[str, str]:
    return node.op, str(node.target)


def _parameter(gm: fx.GraphModule) -> str | None:
    return next((name for name, tensor in gm.named_parameters() if tensor.is_floating_point()), None)


def _types(node: fx.Node) -> Iterator[torch.dtype]:
    found: list[torch.dtype] = []

    def see(arg: Any) -> Any:
        if isinstance(arg, torch.dtype):
            found.append(arg)
        return arg

    map_aggregate((node.args, node.kwargs), see)
    return iter(found)
