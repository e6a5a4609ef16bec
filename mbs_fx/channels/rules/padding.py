"""Operations that make axes longer or make tensors: padding, expansion, repetition, zeros and ones.

What is new gets labels of its own, so that it can follow whatever it meets; its size is a constant of the graph.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from torch.fx import Node

from mbs_fx.channels import labels as move
from mbs_fx.channels.flow import Count, Flow, Rule, count_of
from mbs_fx.channels.labels import FROZEN, Labels, along, factor_on
from mbs_fx.channels.rules.elementwise import elementwise_rule
from mbs_fx.channels.rules.layout import sizes_of
from mbs_fx.channels.shape_numbers import shaped_like, whole_shape


def pad_rule(flow: Flow, node: Node) -> Any:
    """``pad(x, amounts)``: zeros on a channel axis are channels of their own until something binds them."""
    source = flow.source(node)
    labels, shape = flow.of(source), flow.shape(source)
    amounts, where = list(flow.arg(node, 1, "pad")), flow.place(node, 1, "pad")
    for pair in range(len(amounts) // 2):
        axis = len(shape) - 1 - pair
        sides = [flow.value(a) for a in amounts[2 * pair : 2 * pair + 2]]
        if factor_on(labels, axis) is None or sides == [0, 0]:
            continue
        if min(sides) < 0 or (flow.arg(node, 2, "mode", "constant") != "constant"):
            return flow.freeze(node, "pads channels in a way that cannot be followed")
        fresh = [along(flow.ties.new(int(s)), axis, len(shape)) for s in sides]
        for side, size in enumerate(sides):
            if size == 1:
                flow.freeze(node, "pads a single channel")
            if fresh[side]:
                flow.edit(node, (*where, 2 * pair + side), Count(fresh[side][0]))
        sized = [[*shape[:axis], int(s), *shape[axis + 1 :]] for s in sides]
        operands = [(fresh[0], sized[0]), (labels, shape), (fresh[1], sized[1])]
        labels = move.concatenate([o for o in operands if o[1][axis]], axis, flow.ties, "")
    return labels


def expand_rule(flow: Flow, node: Node) -> Labels:
    """``expand``: an axis that grows from 1 gets labels of its own, so that it can follow its partner."""
    labels, before, after = flow.of(flow.source(node)), flow.shape(flow.source(node)), flow.shape(node)
    rank = len(after)
    labels = tuple(f.reshape((1,) * (rank - f.ndim) + f.shape) for f in labels)
    sizes, where, first = sizes_of(node, 1)
    held = whole_shape(flow, sizes)
    if held is not None:
        full = [1] * (rank - len(before)) + list(before)
        return (*labels, *(f for f in shaped_like(held, rank) if all(full[a] == 1 for a in move.varying(f))))
    for axis, size in enumerate(sizes):
        old = before[axis - (rank - len(before))] if axis >= rank - len(before) else 1
        count = flow.channel_count(size)
        if old == 1 and count is not None and count > 1:
            grown = along(flow.ties.new(count), axis, rank)
            flow.edit(node, (*where, first + axis), Count(grown[0]))
            labels = (*labels, *grown)
        elif isinstance(template := count_of(factor_on(labels, axis), axis, flow.channel_count(size)), Count):
            flow.edit(node, (*where, first + axis), template)
    return labels


def repeat_rule(flow: Flow, node: Node) -> Any:
    """``x.repeat(times)``: whole axes are repeated; an axis of size 1 becomes an axis of its own."""
    labels, before, after = flow.of(flow.source(node)), flow.shape(flow.source(node)), flow.shape(node)
    rank = len(after)
    labels = tuple(f.reshape((1,) * (rank - f.ndim) + f.shape) for f in labels)
    full = [1] * (rank - len(before)) + list(before)
    times, where, first = sizes_of(node, 1)
    first -= rank - len(times)
    for axis, count in enumerate(times, rank - len(times)):
        value = int(flow.value(count))
        if full[axis] > 1 and value > 1:
            labels = move.tile(labels, axis, value)
        elif value > 1 and flow.channel_count(count):
            grown = along(flow.ties.new(value), axis, rank)
            flow.edit(node, (*where, first + axis), Count(grown[0]))
            labels = (*labels, *grown)
    return labels


def repeat_interleave_rule(flow: Flow, node: Node) -> Any:
    """``x.repeat_interleave(times, dim)``: every position several times in a row."""
    labels = flow.of(flow.source(node))
    times, dim = flow.value(flow.arg(node, 1, "repeats")), flow.value(flow.arg(node, 2, "dim"))
    if not isinstance(times, int) or dim is None:
        return flow.freeze(node, "repeats by a tensor or over the flattened input")
    axis = int(dim) % len(flow.shape(node))
    return tuple(np.repeat(f, times, axis) if f.shape[axis] > 1 else f for f in labels)


def factory_rule(flow: Flow, node: Node) -> Labels:
    """zeros, ones, ... of constant size: every axis can follow its partner."""
    shape = flow.shape(node)
    start = 1 if node.op == "call_method" else 0
    if prod(shape) < 2 or not node.args[start:]:
        return FROZEN
    sizes, where, first = sizes_of(node, start)
    held = whole_shape(flow, sizes)
    if held is not None:
        return shaped_like(held, len(shape))
    labels: Labels = ()
    for axis, size in enumerate(sizes):
        count = flow.channel_count(size)
        if count is not None and count > 1 and axis < len(shape):
            grown = along(flow.ties.new(count), axis, len(shape))
            flow.edit(node, (*where, first + axis), Count(grown[0]))
            labels = (*labels, *grown)
    return labels


FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("expand", "broadcast_to"), expand_rule),
    **dict.fromkeys(("repeat", "tile"), repeat_rule),
    **dict.fromkeys(
        ["zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty"],
        factory_rule,
    ),
    "pad": pad_rule,
    "expand_as": elementwise_rule,
    "repeat_interleave": repeat_interleave_rule,
}
