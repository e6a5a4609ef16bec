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
from mbs_fx.channels.call import ChannelCall
from mbs_fx.channels.labels import Factor, Labels, factor_on
from mbs_fx.channels.records import Count, Edit, LabelResult, Positions
from mbs_fx.channels.rules.layout import balance_axis
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.call import Place, TensorShape
from mbs_fx.operations.register import channels
from mbs_fx.shapes.graph_attributes import attribute


@channels(v.CAT)
def concatenate_rule(call: ChannelCall) -> LabelResult:
    """``cat`` of tensors in a list."""
    axis = int(call.value("dim", 0)) % len(call.shape)
    return concatenated(call, call.each(call.source), axis)


def concatenated(call: ChannelCall, operands: list[tuple[Labels, tuple[int, ...]]], axis: int) -> LabelResult:
    """Operands (labels, shape) side by side along an axis; torch leaves out an empty vector among others."""
    rank = len(call.shape)
    held = [(labels, shape) for labels, shape in operands if len(shape) == rank]
    joined = tuple(f for labels, _ in held for f in labels if f.shape[axis] > 1) if len(operands) > 1 else None
    reason = f"{call.where}: meets channels that stay"
    return LabelResult(move.concatenate(held, axis, call.ties, reason), joined=joined)


@channels(v.STACK)
def stack_rule(call: ChannelCall) -> Labels:
    """``stack``: a new axis, and equal channels in every operand."""
    axis = int(call.value("dim", 0)) % len(call.shape)
    operands = [
        (move.insert_axis(labels, axis), (*shape[:axis], 1, *shape[axis:])) for labels, shape in call.each(call.source)
    ]
    return move.concatenate(operands, axis, call.ties, f"{call.where}: meets channels that stay")


def _parts(call: ChannelCall, labels: Labels, axis: int) -> list[Labels]:
    result: list[Labels] = []
    start = 0
    for part in call.returned:
        size = part.shape[axis]
        result.append(_taken(call, labels, axis, start, start + size))
        start += size
    return result


def _separable(call: ChannelCall, labels: Labels, axis: int) -> Labels:
    """Labels of a tensor of which parts along an axis are taken: there each part must shrink along that axis.

    What varies along further axes as well is tied across those.
    """
    factor = factor_on(labels, axis)
    if factor is None or move.shrinking_axis(factor) != axis:
        return labels
    rest = [a for a in move.varying(factor) if a != axis]
    single = move.collapse(factor, rest, call.ties) if rest else factor
    return tuple(single if f is factor else f for f in labels)


def _taken(call: ChannelCall, labels: Labels, axis: int, start: int, stop: int) -> Labels:
    """A part of an axis; a single channel meets others by broadcasting, so it stays."""
    factor = factor_on(labels, axis)
    if factor is not None and stop - start == 1:
        call.ties.freeze(np.take(factor, [start], axis), f"{call.where}: takes a single channel")
    return move.take(labels, axis, slice(start, stop))


@channels(v.CHUNK)
def chunk_rule(call: ChannelCall) -> Any:
    """Equal parts stay equal."""
    axis = call.axis()
    labels = _separable(call, call.input, axis)
    parts = _parts(call, labels, axis)
    factor = factor_on(labels, axis)
    if factor is not None:
        if call.input_shape[axis] % len(parts):
            return call.freeze("splits channels into unequal chunks")
        balance_axis(call, factor, axis, len(parts))
    return parts


@channels(v.TENSOR_SPLIT)
def tensor_split_rule(call: ChannelCall) -> Any:
    """``tensor_split``: along an axis that keeps its size."""
    if _shrinks(call.input, call.axis()):
        return call.freeze("splits channels at constant places")
    return _parts(call, call.input, call.axis())


@channels(v.SPLIT)
def split_rule(call: ChannelCall) -> Any:
    """``split(x, size or sizes, dim)``: sizes on an axis that shrinks are counted anew."""
    axis = call.axis()
    labels = _separable(call, call.input, axis)
    parts = _parts(call, labels, axis)
    factor = factor_on(labels, axis)
    if factor is None or move.shrinking_axis(factor) != axis:
        return parts
    sizes = [part.shape[axis] for part in call.returned]
    full = [factor_on(part, axis) for part in parts]
    template = [s if f is None else Count(f) for s, f in zip(sizes, full, strict=True)]
    return LabelResult(parts, (call.edit("split_size_or_sections", template),))


def _shrinks(labels: Labels, axis: int) -> bool:
    """Whether positions of an axis go, so that the one at a constant place becomes another."""
    factor = factor_on(labels, axis)
    return factor is not None and move.shrinking_axis(factor) == axis


@channels(v.UNBIND)
def unbind_rule(call: ChannelCall) -> Any:
    """``unbind``: slices along an axis that keeps its size."""
    axis, labels = call.axis(), call.input
    if _shrinks(labels, axis):
        return call.freeze("takes single channels apart")
    return [move.select(labels, axis, i) for i in range(len(call.returned))]


@channels(v.GETITEM)
def getitem_rule(call: ChannelCall) -> Any:
    """Elements of a tuple, or basic indexing of a tensor."""
    source, index = call.source, call.argument("index")
    if not isinstance(call.evaluated(source), TensorShape):
        held = call.labels[source.name]
        if isinstance(held, list) and isinstance(index, int | slice):
            return held[index]
        return call.freeze("takes a part of something that is not followed") if held else ()
    items = index if isinstance(index, tuple) else (index,)
    values = [call.evaluated(i) for i in items]
    tensors = [
        position for position, value in enumerate(values) if isinstance(value, TensorShape | list | tuple | bool)
    ]
    if tensors:
        plain = all(value == slice(None) for i, value in enumerate(values) if i != tensors[0])
        if len(tensors) > 1 or not plain:
            return call.freeze("indexes with a tensor")
        return _pick(call, tensors[0], items[tensors[0]])
    return _basic_index(call, list(items), values, not isinstance(index, tuple))


@channels(v.INDEX_SELECT)
def index_select_rule(call: ChannelCall) -> Any:
    """``index_select(x, dim, index)``."""
    return _pick(call, call.axis(), call.argument("index"))


def _pick(call: ChannelCall, axis: int, index: Any) -> Any:
    """Positions of one axis by an index tensor: labels follow one that is a constant of the graph."""
    labels = call.input
    factor = factor_on(labels, axis)
    if factor is None:
        return labels if len(call.shape_of(index)) == 1 else call.freeze("indexes with a tensor")
    readers = [
        n for n in call.node.graph.nodes if n.op == "get_attr" and isinstance(index, Node) and n.target == index.target
    ]
    read = isinstance(index, Node) and readers == [index] and len(index.users) == 1
    held: Tensor = attribute(call.gm, str(index.target)) if read else torch.empty(0)
    whole = held.dim() == 1 and held.dtype in (torch.int32, torch.int64) and not held.is_meta
    if not whole or move.varying(factor) != (axis,):
        return call.freeze("picks channels by an index that is not one constant of its own")
    where = held.cpu().numpy() % factor.shape[axis]
    if len(where) == 1:
        call.ties.freeze(np.take(factor, where, axis), f"{call.where}: takes a single channel")
    edit = Edit(index.name, ("value",), Positions(where, factor.reshape(-1)))
    return LabelResult(move.take(labels, axis, where), (edit,))


def _basic_index(call: ChannelCall, items: list[Any], values: list[Any], single: bool) -> Any:
    labels, shape = call.input, call.input_shape
    used = sum(value is not None and value is not Ellipsis for value in values)
    axis = 0
    edits: list[Edit] = []
    refused = ""
    for position, (item, value) in enumerate(zip(items, values, strict=True)):
        if value is Ellipsis:
            axis += len(shape) - used
        elif value is None:
            labels = move.insert_axis(labels, axis)
            axis += 1
        elif isinstance(value, int):
            if _shrinks(labels, axis):
                return call.freeze("takes a single channel")
            labels = move.select(labels, axis, value)
        else:
            where = ("args", 1) if single else ("args", 1, position)
            taken = _slice(call, labels, axis, item, value, where)
            labels, refused = taken.labels, taken.refused or refused
            edits += taken.edits
            axis += 1
    return LabelResult(labels, tuple(edits), refused=refused)


def _slice(call: ChannelCall, labels: Labels, axis: int, item: Any, value: slice, where: Place) -> LabelResult:
    if factor_on(labels, axis) is None or value == slice(None):
        return LabelResult(labels)
    labels = _separable(call, labels, axis)
    factor = factor_on(labels, axis)
    assert factor is not None
    start, stop, step = value.indices(factor.shape[axis])
    if step != 1 or move.shrinking_axis(factor) != axis:
        return LabelResult(move.take(labels, axis, value), refused="takes every n-th channel" if step != 1 else "")
    bounds = [_before(factor, axis, b) for b in (start, stop)]
    keep_open = [getattr(item, name) is None for name in ("start", "stop")]
    template = slice(*(None if is_open else bound for is_open, bound in zip(keep_open, bounds, strict=True)))
    return LabelResult(_taken(call, labels, axis, start, stop), (call.edit(where, template),))


def _before(factor: Factor, axis: int, position: int) -> Any:
    """The bound of a slice: how many positions before it stay."""
    return Count(np.take(factor, range(position), axis)) if position else 0


@channels(v.NARROW)
def narrow_rule(call: ChannelCall) -> Any:
    """``narrow(x, dim, start, length)``."""
    axis = call.axis()
    start, length = int(call.value("start")), int(call.value("length"))
    start %= max(1, call.input_shape[axis])
    labels = _separable(call, call.input, axis)
    factor = factor_on(labels, axis)
    taken = _taken(call, labels, axis, start, start + length)
    if factor is None or move.shrinking_axis(factor) != axis:
        return taken
    inside = Count(np.take(factor, range(start, start + length), axis))
    return LabelResult(taken, (call.edit("start", _before(factor, axis, start)), call.edit("length", inside)))


@channels(v.SELECT)
def select_rule(call: ChannelCall) -> Any:
    """``select(x, dim, index)``."""
    axis, labels = call.axis(), call.input
    if _shrinks(labels, axis):
        return call.freeze("takes a single channel")
    return move.select(labels, axis, int(call.value("index")))
