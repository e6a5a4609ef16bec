"""Operations that put tensors together and take them apart: concatenation, splits, slices.

Sizes and bounds on an axis that shrinks are counted anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from mbs_fx.channels import labels as move
from mbs_fx.channels.flow import Count, Flow, Positions, Rule, attribute
from mbs_fx.channels.labels import Labels, factor_on
from mbs_fx.channels.rules.layout import balance_axis
from mbs_fx.shapes.shapes import TensorShape


def concatenate_rule(flow: Flow, node: Node) -> Labels:
    """``cat`` of tensors in a list."""
    tensors = flow.arg(node, 0, "tensors")
    rank = len(flow.shape(node))
    axis = int(flow.value(flow.arg(node, 1, "dim", node.kwargs.get("axis", 0)))) % rank
    operands = flow.each(tensors)
    if len(operands) > 1:
        flow.concatenations[node.name] = [f for ls, _ in operands for f in ls if f.shape[axis] > 1]
    reason = f"{flow.where(node)}: meets channels that stay"
    return move.concatenate(operands, axis, flow.ties, reason)


def stack_rule(flow: Flow, node: Node) -> Labels:
    """``stack``: a new axis, and equal channels in every operand."""
    tensors = flow.arg(node, 0, "tensors")
    rank = len(flow.shape(node))
    axis = int(flow.value(flow.arg(node, 1, "dim", 0))) % rank
    operands = [
        (move.insert_axis(labels, axis), (*shape[:axis], 1, *shape[axis:])) for labels, shape in flow.each(tensors)
    ]
    return move.concatenate(operands, axis, flow.ties, f"{flow.where(node)}: meets channels that stay")


def _parts(flow: Flow, node: Node, labels: Labels, axis: int) -> list[Labels]:
    result: list[Labels] = []
    start = 0
    for part in flow.shapes[node.name]:
        size = part.shape[axis]
        result.append(_taken(flow, node, labels, axis, start, start + size))
        start += size
    return result


def _separable(flow: Flow, labels: Labels, axis: int) -> Labels:
    """Labels of a tensor of which parts along an axis are taken: there each part must shrink along that axis.

    What varies along further axes as well is tied across those.
    """
    factor = factor_on(labels, axis)
    if factor is None or move.shrinking_axis(factor) != axis:
        return labels
    rest = [a for a in move.varying(factor) if a != axis]
    single = move.collapse(factor, rest, flow.ties) if rest else factor
    return tuple(single if f is factor else f for f in labels)


def _taken(flow: Flow, node: Node, labels: Labels, axis: int, start: int, stop: int) -> Labels:
    """A part of an axis; a single channel meets others by broadcasting, so it stays."""
    factor = factor_on(labels, axis)
    if factor is not None and stop - start == 1:
        flow.ties.freeze(np.take(factor, [start], axis), f"{flow.where(node)}: takes a single channel")
    return move.take(labels, axis, slice(start, stop))


def chunk_rule(flow: Flow, node: Node) -> Any:
    """Equal parts stay equal."""
    axis = _axis(flow, node, 2)
    labels = _separable(flow, flow.of(flow.source(node)), axis)
    parts = _parts(flow, node, labels, axis)
    factor = factor_on(labels, axis)
    size = flow.shape(flow.source(node))[axis]
    if factor is not None:
        if size % len(parts):
            return flow.freeze(node, "splits channels into unequal chunks")
        balance_axis(flow, factor, axis, len(parts))
    return parts


def split_rule(flow: Flow, node: Node) -> Any:
    """``split(x, size or sizes, dim)``: sizes on an axis that shrinks are counted anew."""
    axis = _axis(flow, node, 2)
    labels = _separable(flow, flow.of(flow.source(node)), axis)
    parts = _parts(flow, node, labels, axis)
    if factor_on(labels, axis) is None:
        return parts
    sizes = [part.shape[axis] for part in flow.shapes[node.name]]
    full = [f if (f := factor_on(p, axis)) is not None else None for p in parts]
    factor = factor_on(labels, axis)
    assert factor is not None
    if move.shrinking_axis(factor) != axis:
        return parts
    template = [s if f is None else Count(f) for s, f in zip(sizes, full, strict=True)]
    name = next((k for k in ("split_size_or_sections", "split_size", "split_sizes") if k in node.kwargs), "")
    flow.edit(node, flow.place(node, 1, name), template)
    return parts


def _axis(flow: Flow, node: Node, index: int) -> int:
    rank = len(flow.shape(flow.source(node)))
    return int(flow.value(flow.arg(node, index, "dim", node.kwargs.get("axis", 0)))) % rank


def _shrinks(labels: Labels, axis: int) -> bool:
    """Whether positions of an axis go, so that the one at a constant place becomes another."""
    factor = factor_on(labels, axis)
    return factor is not None and move.shrinking_axis(factor) == axis


def unbind_rule(flow: Flow, node: Node) -> Any:
    """``unbind``: slices along an axis that keeps its size."""
    axis = _axis(flow, node, 1)
    labels = flow.of(flow.source(node))
    if _shrinks(labels, axis):
        return flow.freeze(node, "takes single channels apart")
    return [move.select(labels, axis, i) for i in range(len(flow.shapes[node.name]))]


def getitem_rule(flow: Flow, node: Node) -> Any:
    """Elements of a tuple, or basic indexing of a tensor."""
    source, index = node.args
    if not isinstance(flow.value(source), TensorShape):
        held = flow.labels[source.name]  # type: ignore[union-attr]
        if isinstance(held, list) and isinstance(index, int | slice):
            return held[index]
        return flow.freeze(node, "takes a part of something that is not followed") if held else ()
    items = index if isinstance(index, tuple) else (index,)
    values = [flow.value(i) for i in items]
    tensors = [position for position, v in enumerate(values) if isinstance(v, TensorShape | list | tuple | bool)]
    if tensors:
        plain = all(v == slice(None) for i, v in enumerate(values) if i != tensors[0])
        if len(tensors) > 1 or not plain:
            return flow.freeze(node, "indexes with a tensor")
        return _pick(flow, node, tensors[0], items[tensors[0]])
    return _basic_index(flow, node, list(items), values, not isinstance(index, tuple))


def index_select_rule(flow: Flow, node: Node) -> Any:
    """``index_select(x, dim, index)``."""
    return _pick(flow, node, _axis(flow, node, 1), flow.arg(node, 2, "index"))


def _pick(flow: Flow, node: Node, axis: int, index: Any) -> Any:
    """Positions of one axis by an index tensor: labels follow one that is a constant of the graph."""
    labels = flow.of(flow.source(node))
    factor = factor_on(labels, axis)
    if factor is None:
        return labels if len(flow.shape(index)) == 1 else flow.freeze(node, "indexes with a tensor")
    readers = [
        n for n in node.graph.nodes if n.op == "get_attr" and isinstance(index, Node) and n.target == index.target
    ]
    read = isinstance(index, Node) and readers == [index] and len(index.users) == 1
    held: Tensor = attribute(flow.gm, str(index.target)) if read else torch.empty(0)
    whole = held.dim() == 1 and held.dtype in (torch.int32, torch.int64) and not held.is_meta
    if not whole or move.varying(factor) != (axis,):
        return flow.freeze(node, "picks channels by an index that is not one constant of its own")
    where = held.cpu().numpy() % factor.shape[axis]
    flow.edit(index, ("value",), Positions(where, factor.reshape(-1)))
    if len(where) == 1:
        flow.ties.freeze(np.take(factor, where, axis), f"{flow.where(node)}: takes a single channel")
    return move.take(labels, axis, where)


def _basic_index(flow: Flow, node: Node, items: list[Any], values: list[Any], single: bool) -> Any:
    labels, shape = flow.of(flow.source(node)), flow.shape(flow.source(node))
    used = sum(v is not None and v is not Ellipsis for v in values)
    axis = 0
    for position, (item, value) in enumerate(zip(items, values, strict=True)):
        if value is Ellipsis:
            axis += len(shape) - used
        elif value is None:
            labels = move.insert_axis(labels, axis)
            axis += 1
        elif isinstance(value, int):
            if _shrinks(labels, axis):
                return flow.freeze(node, "takes a single channel")
            labels = move.select(labels, axis, value)
        else:
            where = ("args", 1) if single else ("args", 1, position)
            labels = _slice(flow, node, labels, axis, item, value, where)
            axis += 1
    return labels


def _slice(
    flow: Flow, node: Node, labels: Labels, axis: int, item: Any, value: slice, where: tuple[str | int, ...]
) -> Labels:
    if factor_on(labels, axis) is None or value == slice(None):
        return labels
    labels = _separable(flow, labels, axis)
    factor = factor_on(labels, axis)
    assert factor is not None
    start, stop, step = value.indices(factor.shape[axis])
    if step != 1:
        flow.freeze(node, "takes every n-th channel")
    if step != 1 or move.shrinking_axis(factor) != axis:
        return move.take(labels, axis, value)
    bounds = [_before(factor, axis, b) for b in (start, stop)]
    keep_open = [getattr(item, name) is None for name in ("start", "stop")]
    template = slice(*(None if is_open else bound for is_open, bound in zip(keep_open, bounds, strict=True)))
    flow.edit(node, where, template)
    return _taken(flow, node, labels, axis, start, stop)


def _before(factor: move.Factor, axis: int, position: int) -> Any:
    """The bound of a slice: how many positions before it stay."""
    return Count(np.take(factor, range(position), axis)) if position else 0


def narrow_rule(flow: Flow, node: Node) -> Any:
    """``narrow(x, dim, start, length)``."""
    axis = _axis(flow, node, 1)
    start, length = (int(flow.value(flow.arg(node, i, n))) for i, n in ((2, "start"), (3, "length")))
    start %= max(1, flow.shape(flow.source(node))[axis])
    labels = _separable(flow, flow.of(flow.source(node)), axis)
    factor = factor_on(labels, axis)
    taken = _taken(flow, node, labels, axis, start, start + length)
    if factor is None or move.shrinking_axis(factor) != axis:
        return taken
    flow.edit(node, flow.place(node, 2, "start"), _before(factor, axis, start))
    flow.edit(node, flow.place(node, 3, "length"), Count(np.take(factor, range(start, start + length), axis)))
    return taken


def select_rule(flow: Flow, node: Node) -> Any:
    """``select(x, dim, index)``."""
    axis = _axis(flow, node, 1)
    labels = flow.of(flow.source(node))
    if _shrinks(labels, axis):
        return flow.freeze(node, "takes a single channel")
    return move.select(labels, axis, int(flow.value(flow.arg(node, 2, "index"))))


FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate_rule),
    **dict.fromkeys(("split", "split_with_sizes"), split_rule),
    "stack": stack_rule,
    "chunk": chunk_rule,
    "unbind": unbind_rule,
    "getitem": getitem_rule,
    "narrow": narrow_rule,
    "select": select_rule,
    "index_select": index_select_rule,
}
