"""Moving: one rule for each kind of operation that puts pixels elsewhere, joins or removes them.

Semantics
- Reshaping and permuting move atoms; an axis is where its atoms are.
- A strided slice multiplies the stride; slices that start at other pixels join to a larger field.
- A roll moves the map and widens nothing; joined with a map that was not rolled, the field grows by the
  shift.
- A mean or another reduction over an axis makes context.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from math import prod
from typing import Any

import torch

from mbs_fx.geometry.axes import (
    Atom,
    Axis,
    Track,
    changed,
    channels,
    has_axis,
    merged,
    mixed_in,
    recut,
    tracked,
)
from mbs_fx.geometry.call import GeometryCall, MapResult, along, displacement, fitted, placed, shifted, without
from mbs_fx.geometry.rules.windows import seen_through
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.call import TensorShape
from mbs_fx.operations.register import geometry
from mbs_fx.shapes.convolutions import per_axis


@geometry(v.VIEW, v.FLATTEN, v.UNFLATTEN, v.SQUEEZE, v.UNSQUEEZE, v.VIEW_AS)
def reshape(call: GeometryCall) -> MapResult:
    """The same pixels in another shape."""
    x = call.input
    result = recut(x, call.shape)
    if result is not None:
        return MapResult(result)
    lost = any(map(has_axis, x.dims))
    notes = ("pixels cannot be followed through this change of shape; the map ends here",) if lost else ()
    return MapResult(tracked(map(channels, call.shape), x.axes, x.upsampled), notes)


@geometry(v.PERMUTE, v.TRANSPOSE, v.REVERSED, v.ADJOINT, v.MOVEDIM)
def permute(call: GeometryCall) -> Track:
    """The order is read off a tensor whose sizes are all different."""
    x = call.input
    probe = torch.empty(tuple(range(2, len(x.dims) + 2)), device="meta")
    rest = call.evaluated(call.node.args[1:])
    named = {name: call.evaluated(value) for name, value in call.node.kwargs.items() if name != "input"}
    target: Any = call.node.target
    moved = getattr(probe, target)(*rest, **named) if isinstance(target, str) else target(probe, *rest, **named)
    return replace(x, dims=tuple(x.dims[size - 2] for size in moved.shape))


@geometry(v.GETATTR)
def attribute(call: GeometryCall) -> Any:
    """``x.T``, and the entries of a named tuple."""
    name = call.argument("name")
    if name in ("T", "mT", "H", "mH"):
        return permute(call)
    value, named = call.tracks.get(call.first), call.values[call.first.name]
    item = getattr(named, name, None)
    if isinstance(value, tuple) and isinstance(named, tuple):
        return next((track for track, part in zip(value, named, strict=True) if part is item), None)
    return None


@geometry(v.GETITEM)
def getitem(call: GeometryCall) -> Any:
    """An entry of several results, or a part of a tensor."""
    value = call.tracks.get(call.first)
    index = call.value("index")
    if isinstance(value, tuple | list | dict):
        return value[index]
    return _indexed(call, call.input, index if isinstance(index, tuple) else (index,))


def _indexed(call: GeometryCall, x: Track, index: tuple[Any, ...]) -> Track | None:
    """Slices, positions, new dimensions; None for indexing with tensors, which may do anything."""
    plain = all(i is None or i is Ellipsis or isinstance(i, slice | int) for i in index)
    if not plain or any(isinstance(i, bool) for i in index):
        return None
    used = sum(i is not None and i is not Ellipsis for i in index)
    every = [slice(None)] * (len(x.dims) - used)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    rows: list[tuple[Atom, ...]] = []
    axes = dict(x.axes)
    dims = iter(range(len(x.dims)))
    for item in (*index[:at], *every, *index[at + 1 :]):
        if item is None:
            rows.append(channels(1))
            continue
        dim = next(dims)
        if isinstance(item, slice):
            rows.append(_sliced(x, dim, item, call.shape[len(rows)], axes))
    return tracked(rows, axes, x.upsampled)


def _sliced(x: Track, dim: int, item: slice, size: int, axes: dict[int, Axis]) -> tuple[Atom, ...]:
    index = x.lone(dim)
    if index is None:
        return x.dims[dim] if prod(a.size for a in x.dims[dim]) == size else channels(size)
    axis = axes[index]
    start, _, step = item.indices(axis.size)
    if axis.context is None:
        away = displacement(start, size, axis.size) if step == 1 else start % step
        axis = replace(axis.windowed(size, 1, step), offset=axis.offset + away * axis.stride)
    axes[index] = axis.cropped(size)
    return (Atom(index, size),)


@geometry(v.NARROW)
def narrow(call: GeometryCall) -> Track:
    """A slice given by its start and length."""
    x, dim = call.input, int(call.value("dim")) % len(call.shape)
    index, start, size = x.lone(dim), call.number("start"), call.shape_of(call.first)[dim]
    if index is not None and isinstance(start, int):
        x = shifted(x, {index: displacement(start % max(size, 1), call.shape[dim], size)})
    return fitted(x, call.shape)


@geometry(v.CAT)
def cat(call: GeometryCall) -> Track | None:
    """Parts side by side; along an axis of the map, the longest part says how far the whole is moved."""
    parts = [t for t in call.sequence(call.source) if len(t.dims) == len(call.shape) and not _empty(t)]
    dim = int(call.value("dim", 0)) % len(call.shape)
    size = call.shape[dim]
    indices = {part.lone(dim) for part in parts}
    index = indices.pop() if len(indices) == 1 else None
    offset = None if index is None else _offset_of_the_longest([part.axes[index] for part in parts], size)
    joined: list[Track] = []
    for part in parts:
        axes, row = part.axes, channels(size)
        if index is not None and offset is not None:
            axes = {**axes, index: replace(part.axes[index].cropped(size), offset=offset)}
            row = (Atom(index, size),)
        joined.append(Track((*part.dims[:dim], row, *part.dims[dim + 1 :]), axes, part.upsampled))
    return merged(joined, call.shape) if joined else None


def _empty(x: Track) -> bool:
    return any(atom.size == 0 for row in x.dims for atom in row)


def _offset_of_the_longest(axes: list[Axis], size: int) -> int | Fraction:
    starts = accumulate((axis.size for axis in axes), initial=0)
    moved = [
        (axis.size, axis.offset - displacement(start, axis.size, size) * axis.stride)
        for axis, start in zip(axes, starts, strict=False)
    ]
    return max(moved, key=lambda each: each[0])[1]


@geometry(v.STACK)
def stack(call: GeometryCall) -> Track | None:
    """A new dimension before others."""
    parts = call.sequence(call.source)
    if not parts:
        return None
    dim = int(call.value("dim", 0)) % len(call.shape)
    joined = merged(parts, call.shape[:dim] + call.shape[dim + 1 :])
    rows = (*joined.dims[:dim], channels(call.shape[dim]), *joined.dims[dim:])
    return tracked(rows, joined.axes, joined.upsampled)


@geometry(v.UNBIND, v.SELECT)
def select(call: GeometryCall) -> Track:
    """One position, or each, along a dimension that goes."""
    return without(call.input, [int(call.value("dim", 0)) % len(call.input.dims)], keep=False)


@geometry(v.REDUCTION, v.EXTREMUM, v.NORM, v.ARGUMENT, v.QUANTILE)
def reduction(call: GeometryCall) -> Track | None:
    """A mean, a maximum, a norm: over dimensions, or over all of them."""
    x, value = call.input, call.returned
    shape = value.shape if isinstance(value, TensorShape) else value[0].shape
    given = call.value("dim")
    if isinstance(given, TensorShape):
        return None  # torch.max(x, y) is elementwise
    if isinstance(given, bool) or given is None or given == ():
        given = tuple(range(len(x.dims)))
    dims = [dim % len(x.dims) for dim in (given if isinstance(given, tuple) else (given,))]
    for dim in dims:
        x = mixed_in(x, dim)
    return without(x, dims, keep=len(shape) == len(x.dims))


@geometry(v.EXPAND)
def expand(call: GeometryCall) -> Track | None:
    """Context is broadcast back to where its pixels were."""
    x, sizes = call.input, call.shape_of(call.first)
    if len(x.dims) != len(call.shape):
        return None
    grown = [dim for dim, size in enumerate(call.shape) if size != sizes[dim]]
    if x.lost():
        x = placed(x, sizes, grown)
    new = {dim: x.axes[i].resized(call.shape[dim]) for dim in grown if (i := x.lone(dim)) is not None}
    return changed(x, new, {dim: call.shape[dim] for dim in grown if dim not in new})


@geometry(v.ROLL)
def roll(call: GeometryCall) -> Track:
    """The map moved."""
    x = call.input
    shifts, dims = call.value("shifts"), call.value("dims")
    pairs = zip(*(each if isinstance(each, tuple) else (each,) for each in (shifts, dims)), strict=False)
    moved: dict[int, int] = {}
    for shift, dim in pairs:
        index = x.lone(dim % len(x.dims)) if dim is not None else None
        if index is not None:
            moved[index] = moved.get(index, 0) - shift
    return shifted(x, moved)


@geometry(v.WINDOWS)
def windows(call: GeometryCall) -> Track | None:
    """``Tensor.unfold``: windows in a last dimension."""
    x = call.input
    dim, kernel, stride = (int(call.value(name)) for name in ("dimension", "size", "step"))
    index = x.lone(dim % len(x.dims))
    if index is None:
        return None
    slid = changed(x, {dim % len(x.dims): x.axes[index].windowed(call.shape[dim], kernel, stride)})
    return tracked((*slid.dims, channels(kernel)), slid.axes, slid.upsampled)


def _settings(call: GeometryCall) -> list[tuple[int, ...]]:
    """Kernel, dilation, padding and stride of unfolding and folding."""
    defaults = {"kernel_size": 1, "dilation": 1, "padding": 0, "stride": 1}
    return [per_axis(call.value(name, default), 2) for name, default in defaults.items()]


@geometry(v.UNFOLD)
def unfold(call: GeometryCall) -> MapResult | None:
    """``F.unfold``: windows as channels, their places as tokens."""
    x = call.input
    kernel, dilation, pad, stride = _settings(call)
    sizes = [
        (n + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, n in enumerate(call.shape_of(call.first)[-2:])
    ]
    slid = along(
        call,
        x,
        2,
        lambda i, a, n: a.windowed(n, kernel[i], stride[i], dilation[i]),
        len(x.dims) - 3,
        (*call.shape[:-1], *sizes),
    )
    result = recut(slid.track, call.shape)
    return None if result is None else replace(slid, track=result)


@geometry(v.FOLD)
def fold(call: GeometryCall) -> Track | None:
    """Windows back in their places: a pixel sees the windows that it lies in."""
    output = per_axis(call.value("output_size"), 2)
    kernel, dilation, pad, stride = _settings(call)
    sizes = [(n + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i, n in enumerate(output)]
    shape = (*call.shape_of(call.first)[:-1], *sizes)
    x = recut(call.input, shape)
    if x is None or len(shape) != 4:
        return None
    located = {dim: i for dim in (2, 3) if (i := x.lone(dim)) is not None}
    new = {
        dim: seen_through(x.axes[i], call.shape[dim], kernel[dim - 2], stride[dim - 2], dilation[dim - 2])
        for dim, i in located.items()
    }
    return changed(x, new, {dim: n for dim, n in enumerate(call.shape) if dim and dim not in new})


KEEPING = (
    *(v.BATCH_NORM, v.INSTANCE_NORM, v.LAYER_NORM, v.GROUP_NORM, v.LOCAL_NORM, v.NORMALIZE),
    *(v.SOFTMAX, v.SOFTMAX2D, v.GUMBEL_SOFTMAX, v.PRELU, v.GLU, v.SCAN, v.FLIP, v.CHANNEL_SHUFFLE),
    *(v.INDEX_SELECT, v.REPEAT, v.REPEAT_INTERLEAVE, v.GRID_SAMPLE, v.RESTRIDED, v.MESHGRID),
)


@geometry(*KEEPING)
def kept(call: GeometryCall) -> None:
    """The map of the largest input, as for every elementwise operation; a note says where sizes change."""
