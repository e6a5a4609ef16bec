"""Operations that rearrange a tensor: reshapes, permutations, shuffles.

Labels move as the data do; constants that count channels are remembered as edits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from mbs_fx.channels import labels as move
from mbs_fx.channels.flow import Count, Flow, Rule, Unless, count_of
from mbs_fx.channels.labels import Labels, along, factor_on
from mbs_fx.channels.shape_numbers import follow_shape, whole_shape


def sizes_of(node: Node, start: int) -> tuple[list[Any], tuple[str | int, ...], int]:
    """Sizes given as one sequence or as separate arguments: (sizes, where they stand, index of the first)."""
    if len(node.args) > start:
        first = node.args[start]
        if isinstance(first, list | tuple):
            return list(first), ("args", start), 0
        return list(node.args[start:]), ("args",), start
    name = next(k for k in ("shape", "size", "sizes", "repeats", "dims") if k in node.kwargs)
    return list(node.kwargs[name]), ("kwargs", name), 0  # type: ignore[arg-type]


def reshape_rule(flow: Flow, node: Node) -> Labels:
    """view, reshape, flatten, unflatten: constants for axes that shrink are counted anew."""
    source = flow.source(node)
    after = flow.shape(node)
    return move.reshape(flow.of(source), flow.shape(source), after, flow.ties, _merged(flow, node))


def view_rule(flow: Flow, node: Node) -> Labels:
    """``view`` and ``reshape`` with their sizes."""
    labels = reshape_rule(flow, node)
    sizes, where, first = sizes_of(node, 1)
    held = whole_shape(flow, sizes)
    if held is not None:
        given = flow.value(sizes[0])
        follow_shape(flow, node, tuple(f for f in labels if -1 not in (given[a] for a in move.varying(f))), held)
        return labels
    labels = _with_open_sizes(flow, node, labels, sizes)
    for axis, size in enumerate(sizes):
        template = count_of(factor_on(labels, axis), axis, flow.channel_count(size))
        if isinstance(template, Count):
            flow.edit(node, (*where, first + axis), template)
    return labels


def _with_open_sizes(flow: Flow, node: Node, labels: Labels, sizes: list[Any]) -> Labels:
    """An axis whose size counts no channels (batch times heads) cannot shrink: channels are tied across it."""
    fixed = {a for a, size in enumerate(sizes) if isinstance(size, Node) and flow.channel_count(size) is None}
    result: list[move.Factor] = []
    for factor in labels:
        axes = set(move.varying(factor))
        if axes <= fixed:
            flow.ties.freeze(factor, f"{flow.where(node)}: gives an axis a size that counts no channels")
        else:
            result.append(move.collapse(factor, sorted(axes & fixed), flow.ties))
    return tuple(result)


def unflatten_rule(flow: Flow, node: Node) -> Labels:
    """``unflatten(x, dim, sizes)``."""
    labels = reshape_rule(flow, node)
    rank = len(flow.shape(flow.source(node)))
    start = int(flow.value(flow.arg(node, 1, "dim"))) % rank
    sizes = flow.arg(node, 2, "sizes", flow.arg(node, 2, "unflattened_size"))
    name = "sizes" if "sizes" in node.kwargs else "unflattened_size"
    where = flow.place(node, 2, name)
    for offset, size in enumerate(sizes):
        template = count_of(factor_on(labels, start + offset), start + offset, flow.channel_count(size))
        if isinstance(template, Count):
            flow.edit(node, (*where, offset), template)
    return labels


def as_rule(flow: Flow, node: Node) -> Labels:
    """``x.view_as(y)``: every axis has the size of that of ``y``."""
    labels, shape = reshape_rule(flow, node), flow.shape(node)
    other = flow.of(flow.arg(node, 1, "other"))
    reason = f"{flow.where(node)}: takes the shape of a tensor that stays"
    return move.elementwise([(labels, shape), (other, shape)], shape, flow.ties, reason)


def squeeze_rule(flow: Flow, node: Node) -> Labels:
    """``squeeze``: where a single channel is left its axis is no other's, so the axes to squeeze are named then."""
    source = flow.source(node)
    labels, rank = flow.of(source), len(flow.shape(source))
    dim = flow.value(flow.arg(node, 1, "dim"))
    named = range(rank) if dim is None else [int(d) % rank for d in (dim if isinstance(dim, tuple) else (dim,))]
    rest = tuple(axis for axis in named if factor_on(labels, axis) is None)
    if len(rest) < len(named):
        flow.edit(node, flow.place(node, 1, "dim"), Unless(labels, rest))
    return reshape_rule(flow, node)


def _merged(flow: Flow, node: Node) -> str:
    return f"{flow.where(node)}: merges two kinds of channels into one axis"


def permute_rule(flow: Flow, node: Node) -> Labels:
    """``permute`` with axes as one sequence or separately."""
    order, _, _ = sizes_of(node, 1)
    rank = len(order)
    return move.permute(flow.of(flow.source(node)), [int(flow.value(a)) % rank for a in order])


def transpose_rule(flow: Flow, node: Node) -> Labels:
    """Two axes swapped."""
    rank = len(flow.shape(node))
    order = list(range(rank))
    name = "axis" if "axis0" in node.kwargs else "dim"
    a = int(flow.value(flow.arg(node, 1, f"{name}0"))) % rank
    b = int(flow.value(flow.arg(node, 2, f"{name}1"))) % rank
    order[a], order[b] = order[b], order[a]
    return move.permute(flow.of(flow.source(node)), order)


def t_rule(flow: Flow, node: Node) -> Labels:
    """A matrix transposed."""
    return move.permute(flow.of(flow.source(node)), list(reversed(range(len(flow.shape(node))))))


def movedim_rule(flow: Flow, node: Node) -> Labels:
    """``movedim(x, source, destination)``."""
    rank = len(flow.shape(node))
    source, target = (flow.value(flow.arg(node, i, n)) for i, n in ((1, "source"), (2, "destination")))
    sources = [int(s) % rank for s in (source if isinstance(source, tuple) else (source,))]
    targets = [int(t) % rank for t in (target if isinstance(target, tuple) else (target,))]
    rest = iter(a for a in range(rank) if a not in sources)
    order = [sources[targets.index(a)] if a in targets else next(rest) for a in range(rank)]
    return move.permute(flow.of(flow.source(node)), order)


def balance_axis(flow: Flow, factor: move.Factor, axis: int, parts: int) -> None:
    """Equally many positions of an axis stay in each of its equal parts."""
    flow.ties.balance(np.moveaxis(factor, axis, 0).reshape(factor.shape[axis], -1).ravel(), parts)


def roll_rule(flow: Flow, node: Node) -> Any:
    """``roll``: what is kept of the channels that wrap around is the new shift."""
    labels, shape = flow.of(flow.source(node)), flow.shape(node)
    given, dims = flow.arg(node, 1, "shifts"), flow.value(flow.arg(node, 2, "dims"))
    several = isinstance(given, list | tuple)
    shifts = flow.value(given) if several else (flow.value(given),)
    dims = dims if isinstance(dims, tuple) else (dims,)
    where = flow.place(node, 1, "shifts")
    if not labels:
        return labels
    for position, (shift, dim) in enumerate(zip(shifts, dims, strict=True)):
        if dim is None:
            return flow.freeze(node, "rolls all axes as one")
        axis = int(dim) % len(shape)
        factor = factor_on(labels, axis)
        if factor is None:
            continue
        if len(move.varying(factor)) > 1:
            return flow.freeze(node, "rolls an axis that does not hold channels alone")
        wrapped = int(shift or 0) % shape[axis]
        count = Count(np.take(factor, range(shape[axis] - wrapped, shape[axis]), axis)) if wrapped else 0
        flow.edit(node, (*where, position) if several else where, count)
        labels = move.roll(labels, axis, wrapped)
    return labels


def flip_rule(flow: Flow, node: Node) -> Labels:
    """``flip``: labels in reverse."""
    dims, _, _ = sizes_of(node, 1)
    rank = len(flow.shape(node))
    labels = flow.of(flow.source(node))
    for dim in dims:
        axis = int(dim) % rank
        labels = tuple(np.flip(f, axis) if f.shape[axis] > 1 else f for f in labels)
    return labels


def shuffle_labels(flow: Flow, labels: Labels, groups: int) -> Labels:
    """Channel shuffle: (groups, channels / groups) transposed; groups keep equally many channels."""
    factor = factor_on(labels, 1)
    if factor is None:
        return labels
    balance_axis(flow, factor, 1, groups)
    order = np.arange(factor.shape[1]).reshape(groups, -1).T.reshape(-1)
    return move.take(labels, 1, order)


def channel_shuffle_rule(flow: Flow, node: Node) -> Labels:
    """``F.channel_shuffle(x, groups)``."""
    return shuffle_labels(flow, flow.of(flow.source(node)), int(flow.value(flow.arg(node, 1, "groups"))))


def pixel_shuffle_labels(flow: Flow, node: Node, factor: int) -> Labels:
    """Runs of r*r channels become one: they stay or go together."""
    held = _channels_alone(flow, node)
    if held is None:
        return flow.freeze(node, "moves pixels of an axis that carries channels")
    rows = held.reshape(-1, factor * factor)
    flow.ties.tie(np.broadcast_to(rows[:, :1], rows.shape), rows)
    return along(rows[:, 0], 1, held.ndim)


def pixel_unshuffle_labels(flow: Flow, node: Node, factor: int) -> Labels:
    """Every channel becomes a run of r * r."""
    held = _channels_alone(flow, node)
    if held is None:
        return flow.freeze(node, "moves pixels of an axis that carries channels")
    return (np.repeat(held, factor * factor, 1),)


def _channels_alone(flow: Flow, node: Node) -> move.Factor | None:
    """The labels of what enters a node, where they lie along axis 1 and nowhere else."""
    labels = flow.of(flow.source(node))
    return labels[0] if len(labels) == 1 and move.varying(labels[0]) == (1,) else None


def pixel_shuffle_rule(flow: Flow, node: Node) -> Labels:
    """``F.pixel_shuffle(x, factor)``."""
    return pixel_shuffle_labels(flow, node, int(flow.value(flow.arg(node, 1, "upscale_factor"))))


def pixel_unshuffle_rule(flow: Flow, node: Node) -> Labels:
    """``F.pixel_unshuffle(x, factor)``."""
    return pixel_unshuffle_labels(flow, node, int(flow.value(flow.arg(node, 1, "downscale_factor"))))


def unfold_rule(flow: Flow, node: Node) -> Labels:
    """``F.unfold``: (N, C, H, W) to (N, C * k * k, L); the method ``x.unfold`` makes windows along an axis."""
    labels, before, after = flow.of(flow.source(node)), flow.shape(flow.source(node)), flow.shape(node)
    if node.op == "call_method":
        axis = int(flow.value(flow.arg(node, 1, "dimension"))) % len(before)
        if factor_on(labels, axis) is not None:
            return flow.freeze(node, "windows over channels")
        return tuple(f[..., None] for f in labels)
    held = _channels_alone(flow, node)
    if held is None:
        return flow.freeze(node, "unfolds channels that vary along other axes")
    return along(np.repeat(held.reshape(-1), after[1] // before[1]), 1, len(after))


FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape"), view_rule),
    **dict.fromkeys(("flatten", "ravel", "unsqueeze"), reshape_rule),
    **dict.fromkeys(("view_as", "reshape_as"), as_rule),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose_rule),
    **dict.fromkeys(("movedim", "moveaxis"), movedim_rule),
    "squeeze": squeeze_rule,
    "unflatten": unflatten_rule,
    "permute": permute_rule,
    "t": t_rule,
    "roll": roll_rule,
    "flip": flip_rule,
    "channel_shuffle": channel_shuffle_rule,
    "pixel_shuffle": pixel_shuffle_rule,
    "pixel_unshuffle": pixel_unshuffle_rule,
    "unfold": unfold_rule,
}
