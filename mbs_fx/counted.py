"""Numbers that a graph reads off the shapes of feature maps, where they count channels.

Semantics
- ``x.shape[1]`` of a narrower map is a smaller number, and so is everything computed from it.  Where such a number
  meets a tensor again, it may have stood for a width that stays (the width of an attention beside the map).
- So a number that counts channels is fixed where a tensor operation takes it: at what that operation's rule found, or
  at its present value.  Sizes along other axes (batch, height, width) stay as they are.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from mbs_fx.flow import Flow
from mbs_fx.labels import factor_on
from mbs_fx.shapes import TensorShape


def counts_channels(flow: Flow, node: Node) -> Any:
    """Whether a node that is not a tensor counts channels: a bool, or one for each entry of a tuple."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if source is None:
        return False
    value = flow.shapes[node.name]
    if isinstance(flow.shapes[source.name], TensorShape):
        return _read(flow, node, source, value)
    held = flow.counting.get(source.name, False)
    if isinstance(held, tuple) and len(node.args) > 1 and isinstance(node.args[1], int | slice):
        return held[node.args[1]]
    return any(_any(flow.counting.get(each.name, False)) for each in node.all_input_nodes)


def _read(flow: Flow, node: Node, source: Node, value: Any) -> Any:
    labels, rank = flow.of(source), len(flow.shape(source))
    if isinstance(value, tuple) and len(value) == rank:
        return tuple(factor_on(labels, axis) is not None for axis in range(rank))
    axis = flow.arg(node, 1, "dim")
    if isinstance(axis, int) and -rank <= axis < rank:
        return factor_on(labels, axis % rank) is not None
    return bool(labels)


def _any(held: Any) -> bool:
    return any(held) if isinstance(held, tuple) else bool(held)


def fix_counts(flow: Flow, node: Node) -> None:
    """Fix the numbers among the arguments of a tensor operation that count channels and have no edit yet."""
    if not any(_any(flow.counting.get(each.name, False)) for each in node.all_input_nodes):
        return
    edited = [edit.where for edit in flow.edits if edit.node == node.name]
    for kind, held in (("args", node.args), ("kwargs", dict(node.kwargs))):
        for where, arg in _places(held, (kind,)):
            value = flow.value(arg)
            counts = _any(flow.counting.get(arg.name, False)) and isinstance(value, int | float | tuple)
            if counts and not any(where[: len(e)] == e for e in edited):
                flow.edit(node, where, value)


def _places(held: Any, where: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], Node]]:
    """Every node among nested arguments, and where it stands."""
    if isinstance(held, Node):
        return [(where, held)]
    if isinstance(held, slice):
        parts = {"start": held.start, "stop": held.stop, "step": held.step}
        return _places(parts, where)
    items = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list | tuple) else ()
    return [found for key, each in items for found in _places(each, (*where, key))]
