"""Numbers that a graph reads off the shapes of feature maps, where they count channels.

Semantics
- ``x.shape[1]`` of a narrower map is a smaller number, and so is everything computed from it.  Where such a number
  meets a tensor again, it may have stood for a width that stays (the width of an attention beside the map).
- So a number that counts channels is fixed where a tensor operation takes it: at what that operation's rule found, or
  at its present value.  Sizes along other axes (batch, height, width) stay as they are.
- A whole shape (``y.view(x.shape)``) is not taken apart: the axes that it names follow those it was read from.
- What is known of a number: None where it counts no channels, the labels that it counts, or True where it was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from mbs_fx.channels.call import ChannelCall
from mbs_fx.channels.labels import Factor, Labels, along, factor_on, varying
from mbs_fx.channels.records import Edit
from mbs_fx.operations.call import TensorShape


def counts_channels(call: ChannelCall) -> Any:
    """What a node that is not a tensor counts; for a tuple, of each entry."""
    node = call.node
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if source is None:
        return None
    value = call.returned
    if isinstance(call.values[source.name], TensorShape):
        return _read(call, source, value)
    held = call.counting.get(source.name)
    if isinstance(held, tuple) and len(node.args) > 1 and isinstance(node.args[1], int | slice):
        return held[node.args[1]]
    joined = _entries(call, list(node.args))
    if isinstance(value, tuple) and len(value) == len(joined):
        return tuple(joined)
    return True if any(each is not None for each in joined) else None


def _entries(call: ChannelCall, held: Any) -> list[Any]:
    """What each number among nested arguments counts, in order."""
    if isinstance(held, Node):
        known = call.counting.get(held.name)
        return list(known) if isinstance(known, tuple) else [known]
    return [e for each in held for e in _entries(call, each)] if isinstance(held, list | tuple) else [None]


def _read(call: ChannelCall, source: Node, value: Any) -> Any:
    labels, rank = call.of(source), len(call.shape_of(source))
    if isinstance(value, tuple) and len(value) == rank:
        return tuple(_along(labels, axis) for axis in range(rank))
    node = call.node
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if isinstance(axis, int) and -rank <= axis < rank:
        return _along(labels, axis % rank)
    return True if labels else None


def _along(labels: Labels, axis: int) -> Factor | bool | None:
    factor = factor_on(labels, axis)
    if factor is None:
        return None
    return factor.reshape(-1) if varying(factor) == (axis,) else True


def fixed_counts(call: ChannelCall, edits: Sequence[Edit]) -> list[Edit]:
    """Edits that fix the numbers among the arguments of a tensor operation that count channels and have none yet."""
    node = call.node
    if all(call.counting.get(each.name) is None for each in node.all_input_nodes):
        return []
    edited = [edit.where for edit in edits if edit.node == node.name]
    fixed: list[Edit] = []
    for kind, held in (("args", node.args), ("kwargs", dict(node.kwargs))):
        for where, arg in _places(held, (kind,)):
            value = call.evaluated(arg)
            counts = call.counting.get(arg.name) is not None and isinstance(value, int | float)
            if counts and not any(where[: len(e)] == e for e in edited):
                fixed.append(Edit(node.name, where, value))
    return fixed


def _places(held: Any, where: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], Node]]:
    """Every node among nested arguments, and where it stands."""
    if isinstance(held, Node):
        return [(where, held)]
    if isinstance(held, slice):
        return _places({"start": held.start, "stop": held.stop, "step": held.step}, where)
    items = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list | tuple) else ()
    return [found for key, each in items for found in _places(each, (*where, key))]


def whole_shape(call: ChannelCall, sizes: list[Any]) -> tuple[Any, ...] | None:
    """What the entries of sizes that were given as one shape count; None where they were given one by one."""
    if len(sizes) != 1 or not isinstance(sizes[0], Node) or not isinstance(call.evaluated(sizes[0]), tuple):
        return None
    held = call.counting.get(sizes[0].name)
    return held if isinstance(held, tuple) else (None,) * len(call.evaluated(sizes[0]))


def shaped_like(held: tuple[Any, ...], rank: int) -> Labels:
    """Labels of a tensor made in a given shape: its axes follow those that the shape was read from."""
    return tuple(f for axis, h in enumerate(held) if isinstance(h, np.ndarray) for f in along(h, axis, rank))


def follow_shape(call: ChannelCall, labels: Labels, held: tuple[Any, ...]) -> None:
    """Tie the axes of a reshaped tensor to those that its shape was read from; a fixed size freezes them."""
    reason = f"{call.where}: takes a shape in which this axis keeps its size"
    for axis, (mine, size) in enumerate(zip(held, call.shape, strict=True)):
        factor = factor_on(labels, axis)
        own = _along(labels, axis)
        if isinstance(mine, np.ndarray) and isinstance(own, np.ndarray) and len(mine) == size:
            call.ties.tie(mine, own, reason)
            continue
        for each in (mine, factor):
            if isinstance(each, np.ndarray):
                call.ties.freeze(each, reason)
