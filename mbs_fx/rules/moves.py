"""Operations that move data: labels move the same way, constants that count channels are remembered."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from torch.fx import Node

from mbs_fx import labels as move
from mbs_fx.flow import Count, Flow, Rule, count_of
from mbs_fx.labels import Labels, along, factor_on
from mbs_fx.shapes import TensorShape


def _sizes(node: Node, start: int) -> tuple[list[Any], tuple[str | int, ...], int]:
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
    source = node.args[0]
    after = flow.shape(node)
    labels = move.reshape(flow.of(source), flow.shape(source), after, flow.ties, _merged(flow, node))
    return labels


def view_rule(flow: Flow, node: Node) -> Labels:
    labels = reshape_rule(flow, node)
    sizes, where, first = _sizes(node, 1)
    for axis, size in enumerate(sizes):
        template = count_of(factor_on(labels, axis), axis, size)
        if isinstance(template, Count):
            flow.edit(node, (*where, first + axis), template)
    return labels


def unflatten_rule(flow: Flow, node: Node) -> Labels:
    labels = reshape_rule(flow, node)
    rank = len(flow.shape(node.args[0]))
    start = int(flow.value(flow.arg(node, 1, "dim"))) % rank
    sizes = flow.arg(node, 2, "sizes", flow.arg(node, 2, "unflattened_size"))
    name = "sizes" if "sizes" in node.kwargs else "unflattened_size"
    where = ("args", 2) if len(node.args) > 2 else ("kwargs", name)
    for offset, size in enumerate(sizes):
        template = count_of(factor_on(labels, start + offset), start + offset, size)
        if isinstance(template, Count):
            flow.edit(node, (*where, offset), template)
    return labels


def _merged(flow: Flow, node: Node) -> str:
    return f"{flow.where(node)}: merges two kinds of channels into one axis"


def permute_rule(flow: Flow, node: Node) -> Labels:
    order, _, _ = _sizes(node, 1)
    rank = len(order)
    return move.permute(flow.of(node.args[0]), [int(flow.value(a)) % rank for a in order])


def transpose_rule(flow: Flow, node: Node) -> Labels:
    rank = len(flow.shape(node))
    order = list(range(rank))
    name = "axis" if "axis0" in node.kwargs else "dim"
    a = int(flow.value(flow.arg(node, 1, f"{name}0"))) % rank
    b = int(flow.value(flow.arg(node, 2, f"{name}1"))) % rank
    order[a], order[b] = order[b], order[a]
    return move.permute(flow.of(node.args[0]), order)


def t_rule(flow: Flow, node: Node) -> Labels:
    return move.permute(flow.of(node.args[0]), list(reversed(range(len(flow.shape(node))))))


def movedim_rule(flow: Flow, node: Node) -> Labels:
    rank = len(flow.shape(node))
    source, target = (flow.value(flow.arg(node, i, n)) for i, n in ((1, "source"), (2, "destination")))
    sources = [int(s) % rank for s in (source if isinstance(source, tuple) else (source,))]
    targets = [int(t) % rank for t in (target if isinstance(target, tuple) else (target,))]
    rest = iter(a for a in range(rank) if a not in sources)
    order = [sources[targets.index(a)] if a in targets else next(rest) for a in range(rank)]
    return move.permute(flow.of(node.args[0]), order)


def concatenate_rule(flow: Flow, node: Node) -> Labels:
    tensors = flow.arg(node, 0, "tensors")
    if isinstance(tensors, Node):
        return flow.freeze(node, "concatenates a list made elsewhere")
    rank = len(flow.shape(node))
    axis = int(flow.value(flow.arg(node, 1, "dim", node.kwargs.get("axis", 0)))) % rank
    operands = [(flow.of(t), flow.shape(t)) for t in tensors]
    if len(operands) > 1:
        flow.concatenations[node.name] = [f for ls, _ in operands for f in ls if f.shape[axis] > 1]
    reason = f"{flow.where(node)}: meets channels that stay"
    return move.concatenate(operands, axis, flow.ties, reason)


def stack_rule(flow: Flow, node: Node) -> Labels:
    tensors = flow.arg(node, 0, "tensors")
    if isinstance(tensors, Node):
        return flow.freeze(node, "stacks a list made elsewhere")
    rank = len(flow.shape(node))
    axis = int(flow.value(flow.arg(node, 1, "dim", 0))) % rank
    operands = [
        (move.insert_axis(flow.of(t), axis), (*flow.shape(t)[:axis], 1, *flow.shape(t)[axis:])) for t in tensors
    ]
    return move.concatenate(operands, axis, flow.ties, f"{flow.where(node)}: meets channels that stay")


def _parts(flow: Flow, node: Node, axis: int) -> list[Labels]:
    labels = flow.of(node.args[0])
    result: list[Labels] = []
    start = 0
    for part in flow.shapes[node.name]:
        size = part.shape[axis]
        result.append(move.take(labels, axis, slice(start, start + size)))
        start += size
    return result


def chunk_rule(flow: Flow, node: Node) -> Any:
    """Equal parts stay equal."""
    axis = _axis(flow, node, 2)
    parts = _parts(flow, node, axis)
    factor = factor_on(flow.of(node.args[0]), axis)
    size = flow.shape(node.args[0])[axis]
    if factor is not None:
        if size % len(parts):
            return flow.freeze(node, "splits channels into unequal chunks")
        balance_axis(flow, factor, axis, len(parts))
    return parts


def balance_axis(flow: Flow, factor: move.Factor, axis: int, parts: int) -> None:
    """Equally many positions of an axis stay in each of its equal parts."""
    flow.ties.balance(np.moveaxis(factor, axis, 0).reshape(factor.shape[axis], -1).ravel(), parts)


def split_rule(flow: Flow, node: Node) -> Any:
    """``split(x, size or sizes, dim)``: sizes on an axis that shrinks are counted anew."""
    axis = _axis(flow, node, 2)
    parts = _parts(flow, node, axis)
    labels = flow.of(node.args[0])
    if factor_on(labels, axis) is None:
        return parts
    sizes = [part.shape[axis] for part in flow.shapes[node.name]]
    full = [f if (f := factor_on(p, axis)) is not None else None for p in parts]
    factor = factor_on(labels, axis)
    assert factor is not None
    if move.shrinking_axis(factor) != axis:
        return parts
    template = [s if f is None else Count(f) for s, f in zip(sizes, full, strict=True)]
    where = ("args", 1) if len(node.args) > 1 else ("kwargs", _split_name(node))
    flow.edit(node, where, template)
    return parts


def _split_name(node: Node) -> str:
    return next(k for k in node.kwargs if k in ("split_size_or_sections", "split_size", "split_sizes"))


def _axis(flow: Flow, node: Node, index: int) -> int:
    rank = len(flow.shape(node.args[0]))
    return int(flow.value(flow.arg(node, index, "dim", node.kwargs.get("axis", 0)))) % rank


def unbind_rule(flow: Flow, node: Node) -> Any:
    axis = _axis(flow, node, 1)
    labels = flow.of(node.args[0])
    if any(move.varying(f) == (axis,) for f in labels):
        return flow.freeze(node, "takes single channels apart")
    return [move.select(labels, axis, i) for i in range(len(flow.shapes[node.name]))]


def getitem_rule(flow: Flow, node: Node) -> Any:
    """Elements of a tuple, or basic indexing of a tensor."""
    source, index = node.args
    if not isinstance(flow.value(source), TensorShape):
        held = flow.labels[source.name]  # type: ignore[union-attr]
        return held[index] if isinstance(held, list) and isinstance(index, int) else ()
    items = index if isinstance(index, tuple) else (index,)
    values = [flow.value(i) for i in items]
    if any(isinstance(v, TensorShape | list | bool) for v in values):
        return flow.freeze(node, "indexes with a tensor")
    return _basic_index(flow, node, list(items), values, not isinstance(index, tuple))


def _basic_index(flow: Flow, node: Node, items: list[Any], values: list[Any], single: bool) -> Any:
    labels, shape = flow.of(node.args[0]), flow.shape(node.args[0])
    used = sum(v is not None and v is not Ellipsis for v in values)
    axis = 0
    for position, (item, value) in enumerate(zip(items, values, strict=True)):
        if value is Ellipsis:
            axis += len(shape) - used
        elif value is None:
            labels = move.insert_axis(labels, axis)
            axis += 1
        elif isinstance(value, int):
            factor = factor_on(labels, axis)
            if factor is not None and move.varying(factor) == (axis,):
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
    factor = factor_on(labels, axis)
    if factor is None or value == slice(None):
        return labels
    start, stop, step = value.indices(factor.shape[axis])
    if step != 1:
        flow.freeze(node, "takes every n-th channel")
        return move.take(labels, axis, value)
    bounds = [_before(factor, axis, b) for b in (start, stop)]
    keep_open = [getattr(item, name) is None for name in ("start", "stop")]
    template = slice(*(None if is_open else bound for is_open, bound in zip(keep_open, bounds, strict=True)))
    flow.edit(node, where, template)
    return move.take(labels, axis, value)


def _before(factor: move.Factor, axis: int, position: int) -> Any:
    """The bound of a slice: how many positions before it stay."""
    return Count(np.take(factor, range(position), axis)) if position else 0


def narrow_rule(flow: Flow, node: Node) -> Any:
    axis = _axis(flow, node, 1)
    start, length = (int(flow.value(flow.arg(node, i, n))) for i, n in ((2, "start"), (3, "length")))
    labels = flow.of(node.args[0])
    factor = factor_on(labels, axis)
    taken = move.take(labels, axis, slice(start, start + length))
    if factor is not None and len(node.args) == 4:
        flow.edit(node, ("args", 2), _before(factor, axis, start))
        flow.edit(node, ("args", 3), Count(np.take(factor, range(start, start + length), axis)))
    elif factor is not None:
        return flow.freeze(node, "narrow with keyword arguments")
    return taken


def select_rule(flow: Flow, node: Node) -> Any:
    axis = _axis(flow, node, 1)
    labels = flow.of(node.args[0])
    if any(move.varying(f) == (axis,) for f in labels):
        return flow.freeze(node, "takes a single channel")
    return move.select(labels, axis, int(flow.value(flow.arg(node, 2, "index"))))


def pad_rule(flow: Flow, node: Node) -> Any:
    """``pad(x, amounts)``: zeros on a channel axis are channels of their own until something binds them."""
    source = node.args[0]
    labels, shape = flow.of(source), flow.shape(source)
    amounts = list(flow.arg(node, 1, "pad"))
    where = ("args", 1) if len(node.args) > 1 else ("kwargs", "pad")
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
    labels, before, after = flow.of(node.args[0]), flow.shape(node.args[0]), flow.shape(node)
    rank = len(after)
    labels = tuple(f.reshape((1,) * (rank - f.ndim) + f.shape) for f in labels)
    sizes, where, first = _sizes(node, 1)
    for axis, size in enumerate(sizes):
        old = before[axis - (rank - len(before))] if axis >= rank - len(before) else 1
        if old == 1 and isinstance(size, int) and size > 1:
            grown = along(flow.ties.new(size), axis, rank)
            flow.edit(node, (*where, first + axis), Count(grown[0]))
            labels = (*labels, *grown)
        elif isinstance(template := count_of(factor_on(labels, axis), axis, size), Count):
            flow.edit(node, (*where, first + axis), template)
    return labels


def expand_as_rule(flow: Flow, node: Node) -> Labels:
    """``expand_as(y)``: axes that grow follow those of ``y``."""
    labels, before = flow.of(node.args[0]), flow.shape(node.args[0])
    other, rank = flow.of(node.args[1]), len(flow.shape(node))
    aligned = tuple(f.reshape((1,) * (rank - f.ndim) + f.shape) for f in labels)
    full = [1] * (rank - len(before)) + list(before)
    grown = tuple(f for f in other if all(full[a] == 1 for a in move.varying(f)))
    return (*aligned, *grown)


def repeat_rule(flow: Flow, node: Node) -> Any:
    """``x.repeat(times)``: whole axes are repeated; an axis of size 1 becomes an axis of its own."""
    labels, before, after = flow.of(node.args[0]), flow.shape(node.args[0]), flow.shape(node)
    rank = len(after)
    labels = tuple(f.reshape((1,) * (rank - f.ndim) + f.shape) for f in labels)
    full = [1] * (rank - len(before)) + list(before)
    times, where, first = _sizes(node, 1)
    for axis, count in enumerate(times):
        value = int(flow.value(count))
        if full[axis] > 1 and value > 1:
            labels = move.tile(labels, axis, value)
        elif value > 1 and isinstance(count, int):
            grown = along(flow.ties.new(value), axis, rank)
            flow.edit(node, (*where, first + axis), Count(grown[0]))
            labels = (*labels, *grown)
    return labels


def repeat_interleave_rule(flow: Flow, node: Node) -> Any:
    labels = flow.of(node.args[0])
    times, dim = flow.value(flow.arg(node, 1, "repeats")), flow.value(flow.arg(node, 2, "dim"))
    if not isinstance(times, int) or dim is None:
        return flow.freeze(node, "repeats by a tensor or over the flattened input")
    axis = int(dim) % len(flow.shape(node))
    return tuple(np.repeat(f, times, axis) if f.shape[axis] > 1 else f for f in labels)


def roll_rule(flow: Flow, node: Node) -> Any:
    labels = flow.of(node.args[0])
    shifts, dims = flow.value(flow.arg(node, 1, "shifts")), flow.value(flow.arg(node, 2, "dims"))
    shifts = shifts if isinstance(shifts, tuple) else (shifts,)
    dims = dims if isinstance(dims, tuple) else (dims,)
    rank = len(flow.shape(node))
    if any(d is None or factor_on(labels, int(d) % rank) is not None for d in dims):
        return flow.freeze(node, "rolls channels by a constant")
    return labels


def flip_rule(flow: Flow, node: Node) -> Labels:
    dims, _, _ = _sizes(node, 1)
    rank = len(flow.shape(node))
    labels = flow.of(node.args[0])
    for dim in dims:
        axis = int(dim) % rank
        labels = tuple(np.flip(f, axis) if f.shape[axis] > 1 else f for f in labels)
    return labels


def squeeze_rule(flow: Flow, node: Node) -> Labels:
    return reshape_rule(flow, node)


def shuffle_labels(flow: Flow, labels: Labels, groups: int) -> Labels:
    """Channel shuffle: (groups, channels / groups) transposed; groups keep equally many channels."""
    factor = factor_on(labels, 1)
    if factor is None:
        return labels
    balance_axis(flow, factor, 1, groups)
    order = np.arange(factor.shape[1]).reshape(groups, -1).T.reshape(-1)
    return move.take(labels, 1, order)


def channel_shuffle_rule(flow: Flow, node: Node) -> Labels:
    return shuffle_labels(flow, flow.of(node.args[0]), int(flow.value(flow.arg(node, 1, "groups"))))


def pixel_shuffle_labels(flow: Flow, labels: Labels, factor: int) -> Labels:
    """Runs of r*r channels become one: they stay or go together."""
    held = factor_on(labels, 1)
    if held is None:
        return ()
    rows = held.reshape(-1, factor * factor)
    flow.ties.tie(np.broadcast_to(rows[:, :1], rows.shape), rows)
    return along(rows[:, 0], 1, held.ndim)


def pixel_shuffle_rule(flow: Flow, node: Node) -> Labels:
    return pixel_shuffle_labels(flow, flow.of(node.args[0]), int(flow.value(node.args[1])))


def pixel_unshuffle_rule(flow: Flow, node: Node) -> Labels:
    return pixel_unshuffle_labels(flow.of(node.args[0]), int(flow.value(node.args[1])))


def pixel_unshuffle_labels(labels: Labels, factor: int) -> Labels:
    return tuple(np.repeat(f, factor * factor, 1) if f.shape[1] > 1 else f for f in labels)


def unfold_rule(flow: Flow, node: Node) -> Any:
    """``F.unfold``: (N, C, H, W) to (N, C * k * k, L); the method ``x.unfold`` makes windows along an axis."""
    labels, before, after = flow.of(node.args[0]), flow.shape(node.args[0]), flow.shape(node)
    held = factor_on(labels, 1)
    if held is None:
        return ()
    if node.op == "call_method":
        return tuple(f[..., None] for f in labels) if int(flow.value(node.args[1])) % len(before) != 1 else flow.freeze(
            node, "windows over channels"
        )
    if move.varying(held) != (1,) or after[1] % before[1]:
        return flow.freeze(node, "unfolds channels that vary along other axes")
    return along(np.repeat(held.reshape(-1), after[1] // before[1]), 1, len(after))


def factory_rule(flow: Flow, node: Node) -> Labels:
    """zeros, ones, ... of constant size: every axis can follow its partner."""
    shape = flow.shape(node)
    start = 1 if node.op == "call_method" else 0
    if prod(shape) < 2 or not node.args[start:]:
        return ()
    sizes, where, first = _sizes(node, start)
    labels: Labels = ()
    for axis, size in enumerate(sizes):
        if isinstance(size, int) and size > 1 and axis < len(shape):
            grown = along(flow.ties.new(size), axis, len(shape))
            flow.edit(node, (*where, first + axis), Count(grown[0]))
            labels = (*labels, *grown)
    return labels


FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape"), view_rule),
    **dict.fromkeys(("flatten", "view_as", "reshape_as", "ravel"), reshape_rule),
    **dict.fromkeys(("squeeze", "unsqueeze"), squeeze_rule),
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate_rule),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose_rule),
    **dict.fromkeys(("movedim", "moveaxis"), movedim_rule),
    **dict.fromkeys(("split", "split_with_sizes"), split_rule),
    **dict.fromkeys(("expand", "broadcast_to"), expand_rule),
    **dict.fromkeys(("repeat", "tile"), repeat_rule),
    **dict.fromkeys("zeros ones full empty rand randn new_zeros new_ones new_full new_empty".split(), factory_rule),
    "unflatten": unflatten_rule,
    "permute": permute_rule,
    "t": t_rule,
    "stack": stack_rule,
    "chunk": chunk_rule,
    "unbind": unbind_rule,
    "getitem": getitem_rule,
    "narrow": narrow_rule,
    "select": select_rule,
    "pad": pad_rule,
    "expand_as": expand_as_rule,
    "repeat_interleave": repeat_interleave_rule,
    "roll": roll_rule,
    "flip": flip_rule,
    "channel_shuffle": channel_shuffle_rule,
    "pixel_shuffle": pixel_shuffle_rule,
    "pixel_unshuffle": pixel_unshuffle_rule,
    "unfold": unfold_rule,
}
