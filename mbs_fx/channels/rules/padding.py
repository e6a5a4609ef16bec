"""Operations that make axes longer or make tensors: padding, expansion, repetition, zeros and ones.

What is new gets labels of its own, so that it can follow whatever it meets; its size is a constant of the graph.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mbs_fx.channels import labels as move
from mbs_fx.channels.call import ChannelCall
from mbs_fx.channels.labels import FROZEN, Labels, along, factor_on
from mbs_fx.channels.records import Count, Edit, LabelResult, count_of
from mbs_fx.channels.shape_numbers import shaped_like, whole_shape
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.register import channels

MADE = frozenset((v.FACTORY, v.FULL, v.NEW_FACTORY))
"""Operations that make tensors, of which nothing that enters is a part."""

READS_NO_CHANNELS = MADE | {v.TYPE_AS}
"""Operations that read types or sizes of a tensor, and nothing of its channels."""


@channels(v.PAD)
def pad_rule(call: ChannelCall) -> Any:
    """``pad(x, amounts)``: zeros on a channel axis are channels of their own until something binds them."""
    labels, shape = call.input, call.input_shape
    amounts, where = list(call.argument("pad")), call.place("pad")
    edits: list[Edit] = []
    refused = ""
    for pair in range(len(amounts) // 2):
        axis = len(shape) - 1 - pair
        sides = [call.evaluated(a) for a in amounts[2 * pair : 2 * pair + 2]]
        if factor_on(labels, axis) is None or sides == [0, 0]:
            continue
        if min(sides) < 0 or call.value("mode", "constant") != "constant":
            return call.freeze("pads channels in a way that cannot be followed")
        fresh = [along(call.ties.new(int(s)), axis, len(shape)) for s in sides]
        refused = "pads a single channel" if 1 in sides else refused
        edits += [call.edit((*where, 2 * pair + i), Count(new[0])) for i, new in enumerate(fresh) if new]
        sized = [[*shape[:axis], int(s), *shape[axis + 1 :]] for s in sides]
        operands = [(fresh[0], sized[0]), (labels, shape), (fresh[1], sized[1])]
        labels = move.concatenate([o for o in operands if o[1][axis]], axis, call.ties, "")
    return LabelResult(labels, tuple(edits), refused=refused)


def _grown(call: ChannelCall) -> tuple[Labels, list[int]]:
    """Labels and shape of what enters, in the rank of the result."""
    rank = len(call.shape)
    labels = tuple(f.reshape((1,) * (rank - f.ndim) + f.shape) for f in call.input)
    return labels, [1] * (rank - len(call.input_shape)) + list(call.input_shape)


@channels(v.EXPAND)
def expand_rule(call: ChannelCall) -> Any:
    """``expand``: an axis that grows from 1 gets labels of its own, so that it can follow its partner."""
    rank = len(call.shape)
    labels, full = _grown(call)
    sizes, where, first = call.collected("size")
    held = whole_shape(call, sizes)
    if held is not None:
        return (*labels, *(f for f in shaped_like(held, rank) if all(full[a] == 1 for a in move.varying(f))))
    edits: list[Edit] = []
    for axis, size in enumerate(sizes):
        count = call.channel_count(size)
        if full[axis] == 1 and count is not None and count > 1:
            grown = along(call.ties.new(count), axis, rank)
            edits.append(call.edit((*where, first + axis), Count(grown[0])))
            labels = (*labels, *grown)
        elif isinstance(template := count_of(factor_on(labels, axis), axis, count), Count):
            edits.append(call.edit((*where, first + axis), template))
    return LabelResult(labels, tuple(edits))


@channels(v.REPEAT)
def repeat_rule(call: ChannelCall) -> Any:
    """``x.repeat(times)``: whole axes are repeated; an axis of size 1 becomes an axis of its own."""
    rank = len(call.shape)
    labels, full = _grown(call)
    times, where, first = call.collected("repeats")
    first -= rank - len(times)
    edits: list[Edit] = []
    for axis, count in enumerate(times, rank - len(times)):
        value = int(call.evaluated(count))
        if value == 0:
            labels = move.without(labels, axis)
        elif full[axis] > 1 and value > 1:
            labels = move.tile(labels, axis, value)
        elif value > 1 and call.channel_count(count):
            grown = along(call.ties.new(value), axis, rank)
            edits.append(call.edit((*where, first + axis), Count(grown[0])))
            labels = (*labels, *grown)
    return LabelResult(labels, tuple(edits))


@channels(v.REPEAT_INTERLEAVE)
def repeat_interleave_rule(call: ChannelCall) -> Any:
    """``x.repeat_interleave(times, dim)``: every position several times in a row."""
    times = call.value("repeats")
    if not isinstance(times, int) or call.value("dim") is None:
        return call.freeze("repeats by a tensor or over the flattened input")
    axis = call.axis()
    return tuple(np.repeat(f, times, axis) if f.shape[axis] > 1 else f for f in call.input)


@channels(*MADE)
def factory_rule(call: ChannelCall) -> Any:
    """zeros, ones, ... of constant size: every axis can follow its partner."""
    shape = call.shape
    sizes, where, first = call.collected("size")
    if prod(shape) < 2 or not sizes:
        return FROZEN
    held = whole_shape(call, sizes)
    if held is not None:
        return shaped_like(held, len(shape))
    labels: Labels = ()
    edits: list[Edit] = []
    for axis, size in enumerate(sizes):
        count = call.channel_count(size)
        if count is not None and count > 1 and axis < len(shape):
            grown = along(call.ties.new(count), axis, len(shape))
            edits.append(call.edit((*where, first + axis), Count(grown[0])))
            labels = (*labels, *grown)
    return LabelResult(labels, tuple(edits))


@channels(v.MESHGRID)
def meshgrid_rule(call: ChannelCall) -> LabelResult:
    """Coordinates: none of them can go."""
    return call.freeze("makes coordinates")
