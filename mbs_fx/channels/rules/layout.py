"""Operations that rearrange a tensor: reshapes, permutations, shuffles.

Labels move as the data do; constants that count channels are remembered as edits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from mbs_fx.channels import labels as move
from mbs_fx.channels.call import ChannelCall
from mbs_fx.channels.labels import FROZEN, Factor, Labels, along, factor_on
from mbs_fx.channels.records import Count, Edit, IfSingleChannel, LabelResult, Layer, count_of
from mbs_fx.channels.shape_numbers import follow_shape, whole_shape
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.register import channels


@channels(v.FLATTEN, v.UNSQUEEZE)
def reshape_rule(call: ChannelCall) -> Labels:
    """The same elements in another shape."""
    reason = f"{call.where}: merges two kinds of channels into one axis"
    return move.reshape(call.input, call.input_shape, call.shape, call.ties, reason)


@channels(v.VIEW)
def view_rule(call: ChannelCall) -> Any:
    """``view`` and ``reshape``: constants for axes that shrink are counted anew."""
    labels = reshape_rule(call)
    sizes, where, first = call.collected("size")
    held = whole_shape(call, sizes)
    if held is not None:
        given = call.evaluated(sizes[0])
        follow_shape(call, tuple(f for f in labels if -1 not in (given[a] for a in move.varying(f))), held)
        return labels
    labels = _with_open_sizes(call, labels, sizes)
    templates = [
        (axis, count_of(factor_on(labels, axis), axis, call.channel_count(size))) for axis, size in enumerate(sizes)
    ]
    edits = [call.edit((*where, first + axis), made) for axis, made in templates if isinstance(made, Count)]
    return LabelResult(labels, tuple(edits))


def _with_open_sizes(call: ChannelCall, labels: Labels, sizes: list[Any]) -> Labels:
    """An axis whose size counts no channels (batch times heads) cannot shrink: channels are tied across it."""
    fixed = {a for a, size in enumerate(sizes) if isinstance(size, Node) and call.channel_count(size) is None}
    result: list[Factor] = []
    for factor in labels:
        axes = set(move.varying(factor))
        if axes <= fixed:
            call.ties.freeze(factor, f"{call.where}: gives an axis a size that counts no channels")
        else:
            result.append(move.collapse(factor, sorted(axes & fixed), call.ties))
    return tuple(result)


@channels(v.UNFLATTEN)
def unflatten_rule(call: ChannelCall) -> LabelResult:
    """``unflatten(x, dim, sizes)``: sizes that count channels are constants, or attributes of the module."""
    labels, start = reshape_rule(call), call.axis()
    sizes = call.argument("unflattened_size")
    templates = [
        count_of(factor_on(labels, start + i), start + i, call.channel_count(size)) for i, size in enumerate(sizes)
    ]
    if call.module is not None:
        return LabelResult(labels, layer=Layer({"unflattened_size": tuple(templates)}, {}, np.zeros(1, np.int64)))
    where = call.place("unflattened_size")
    edits = [call.edit((*where, i), made) for i, made in enumerate(templates) if isinstance(made, Count)]
    return LabelResult(labels, tuple(edits))


@channels(v.VIEW_AS)
def as_rule(call: ChannelCall) -> Labels:
    """``x.view_as(y)``: every axis has the size of that of ``y``."""
    labels, shape = reshape_rule(call), call.shape
    other = call.of(call.argument("other"))
    reason = f"{call.where}: takes the shape of a tensor that stays"
    return move.elementwise([(labels, shape), (other, shape)], shape, call.ties, reason)


@channels(v.SQUEEZE)
def squeeze_rule(call: ChannelCall) -> LabelResult:
    """``squeeze``: where a single channel is left its axis is no other's, so the axes to squeeze are named then."""
    labels, rank = call.input, len(call.input_shape)
    dim = call.value("dim")
    named = range(rank) if dim is None else [int(d) % rank for d in (dim if isinstance(dim, tuple) else (dim,))]
    rest = tuple(axis for axis in named if factor_on(labels, axis) is None)
    edits = (call.edit("dim", IfSingleChannel(labels, rest)),) if len(rest) < len(named) else ()
    return LabelResult(reshape_rule(call), edits)


@channels(v.PERMUTE)
def permute_rule(call: ChannelCall) -> Labels:
    """``permute`` with axes as one sequence or separately."""
    order, _, _ = call.collected("dims")
    return move.permute(call.input, [int(call.evaluated(a)) % len(order) for a in order])


@channels(v.TRANSPOSE)
def transpose_rule(call: ChannelCall) -> Labels:
    """Two axes swapped."""
    order = list(range(len(call.shape)))
    a, b = call.axis("dim0"), call.axis("dim1")
    order[a], order[b] = order[b], order[a]
    return move.permute(call.input, order)


@channels(v.REVERSED)
def reversed_rule(call: ChannelCall) -> Labels:
    """A matrix transposed."""
    return move.permute(call.input, list(reversed(range(len(call.shape)))))


@channels(v.ADJOINT)
def adjoint_rule(call: ChannelCall) -> Labels:
    """The last two axes swapped."""
    order = list(range(len(call.shape)))
    return move.permute(call.input, [*order[:-2], order[-1], order[-2]])


@channels(v.GETATTR)
def attribute_rule(call: ChannelCall) -> Any:
    """``x.T``, ``x.mT``, ``x.data``, and the entries of a named tuple."""
    name, source = call.argument("name"), call.source
    held, value = call.labels.get(source.name), call.values[source.name]
    if isinstance(held, list):
        parts = zip(held, value, strict=True)
        return next((labels for labels, part in parts if part is getattr(value, name, None)), FROZEN)
    rules = {"T": reversed_rule, "H": reversed_rule, "mT": adjoint_rule, "mH": adjoint_rule}
    if name in rules:
        return rules[name](call)
    return call.input if name in ("data", "real") else call.freeze("no rule for this attribute")


@channels(v.MOVEDIM)
def movedim_rule(call: ChannelCall) -> Labels:
    """``movedim(x, source, destination)``."""
    rank = len(call.shape)
    source, target = call.value("source"), call.value("destination")
    sources = [int(s) % rank for s in (source if isinstance(source, tuple) else (source,))]
    targets = [int(t) % rank for t in (target if isinstance(target, tuple) else (target,))]
    rest = iter(a for a in range(rank) if a not in sources)
    order = [sources[targets.index(a)] if a in targets else next(rest) for a in range(rank)]
    return move.permute(call.input, order)


def balance_axis(call: ChannelCall, factor: Factor, axis: int, parts: int) -> None:
    """Equally many positions of an axis stay in each of its equal parts."""
    call.ties.balance(np.moveaxis(factor, axis, 0).reshape(factor.shape[axis], -1).ravel(), parts)


@channels(v.ROLL)
def roll_rule(call: ChannelCall) -> Any:
    """``roll``: what is kept of the channels that wrap around is the new shift."""
    labels, shape = call.input, call.shape
    given, dims = call.argument("shifts"), call.value("dims")
    several = isinstance(given, list | tuple)
    shifts = call.evaluated(given) if several else (call.evaluated(given),)
    dims = dims if isinstance(dims, tuple) else (dims,)
    where = call.place("shifts")
    edits: list[Edit] = []
    if not labels:
        return labels
    for position, (shift, dim) in enumerate(zip(shifts, dims, strict=True)):
        if dim is None:
            return call.freeze("rolls all axes as one")
        axis = int(dim) % len(shape)
        factor = factor_on(labels, axis)
        if factor is None:
            continue
        if len(move.varying(factor)) > 1:
            return call.freeze("rolls an axis that does not hold channels alone")
        wrapped = int(shift or 0) % shape[axis]
        count = Count(np.take(factor, range(shape[axis] - wrapped, shape[axis]), axis)) if wrapped else 0
        edits.append(call.edit((*where, position) if several else where, count))
        labels = move.roll(labels, axis, wrapped)
    return LabelResult(labels, tuple(edits))


@channels(v.FLIP)
def flip_rule(call: ChannelCall) -> Labels:
    """``flip``: labels in reverse."""
    dims, _, _ = call.collected("dims")
    labels = call.input
    for dim in dims:
        axis = int(call.evaluated(dim)) % len(call.shape)
        labels = tuple(np.flip(f, axis) if f.shape[axis] > 1 else f for f in labels)
    return labels


@channels(v.CHANNEL_SHUFFLE)
def shuffle_rule(call: ChannelCall) -> Labels:
    """Channel shuffle: (groups, channels / groups) transposed; groups keep equally many channels."""
    labels, groups = call.input, int(call.value("groups"))
    factor = factor_on(labels, 1)
    if factor is None:
        return labels
    balance_axis(call, factor, 1, groups)
    order = np.arange(factor.shape[1]).reshape(groups, -1).T.reshape(-1)
    return move.take(labels, 1, order)


def _channels_alone(call: ChannelCall) -> Factor | None:
    """The labels of what enters a node, where they lie along axis 1 and nowhere else."""
    labels = call.input
    return labels[0] if len(labels) == 1 and move.varying(labels[0]) == (1,) else None


def _joined_runs(call: ChannelCall, held: Factor, length: int) -> Factor:
    """Runs of channels become one: they stay or go together."""
    rows = held.reshape(-1, length)
    call.ties.tie(np.broadcast_to(rows[:, :1], rows.shape), rows)
    return rows[:, 0]


@channels(v.PIXEL_SHUFFLE)
def pixel_shuffle_rule(call: ChannelCall) -> Any:
    """Runs of r * r channels become one."""
    held = _channels_alone(call)
    if held is None:
        return call.freeze("moves pixels of an axis that carries channels")
    return along(_joined_runs(call, held, int(call.value("upscale_factor")) ** 2), 1, held.ndim)


@channels(v.PIXEL_UNSHUFFLE)
def pixel_unshuffle_rule(call: ChannelCall) -> Any:
    """Every channel becomes a run of r * r."""
    held = _channels_alone(call)
    if held is None:
        return call.freeze("moves pixels of an axis that carries channels")
    return (np.repeat(held, int(call.value("downscale_factor")) ** 2, 1),)


@channels(v.WINDOWS)
def windows_rule(call: ChannelCall) -> Any:
    """``Tensor.unfold``: windows along an axis, in a new last axis."""
    labels = call.input
    if factor_on(labels, call.axis("dimension")) is not None:
        return call.freeze("windows over channels")
    return tuple(f[..., None] for f in labels)


@channels(v.UNFOLD)
def unfold_rule(call: ChannelCall) -> Any:
    """``F.unfold``: (N, C, H, W) to (N, C * k * k, L)."""
    held = _channels_alone(call)
    if held is None:
        return call.freeze("unfolds channels that vary along other axes")
    return along(np.repeat(held.reshape(-1), call.shape[1] // call.input_shape[1]), 1, len(call.shape))


@channels(v.FOLD)
def fold_rule(call: ChannelCall) -> Any:
    """``F.fold``: (N, C * k * k, L) to (N, C, H, W)."""
    held = _channels_alone(call)
    if held is None or len(call.shape) != 4:
        return call.freeze("folds channels that vary along other axes")
    return along(_joined_runs(call, held, call.input_shape[1] // call.shape[1]), 1, 4)


@channels(v.RESTRIDED)
def restrided_rule(call: ChannelCall) -> LabelResult:
    """Reads memory in another order."""
    return call.freeze("reads its memory in another order")
