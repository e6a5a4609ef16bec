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
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch.fx import Node

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
from mbs_fx.geometry.calls import Call, Rule, along, placed, without
from mbs_fx.geometry.rules.windows import seen_through
from mbs_fx.shapes.convolutions import per_axis
from mbs_fx.shapes.shapes import TensorShape


def _reshape(call: Call) -> Track:
    x = call.input
    result = recut(x, call.shape)
    if result is not None:
        return result
    if any(map(has_axis, x.dims)):
        call.note("pixels cannot be followed through this change of shape; the map ends here")
    return tracked(map(channels, call.shape), x.axes, x.upsampled)


def _permute(call: Call) -> Track:
    """The order is read off a tensor whose sizes are all different."""
    x = call.input
    probe = torch.empty(tuple(range(2, len(x.dims) + 2)), device="meta")
    rest = call.known(call.node.args[1:])
    named = {name: call.known(value) for name, value in call.node.kwargs.items() if name != "input"}
    target: Any = call.node.target
    moved = getattr(probe, target)(*rest, **named) if isinstance(target, str) else target(probe, *rest, **named)
    return replace(x, dims=tuple(x.dims[size - 2] for size in moved.shape))


def _attribute(call: Call) -> Any:
    if call.raw(1) in ("T", "mT", "H", "mH"):
        return _permute(call)
    value, named = call.tracks.get(call.first), call.shapes[call.first.name]
    item = getattr(named, call.raw(1), None)
    if isinstance(value, tuple) and isinstance(named, tuple):
        return next((track for track, part in zip(value, named, strict=True) if part is item), None)
    return None


def _getitem(call: Call) -> Any:
    value = call.tracks.get(call.first)
    index = call.known(call.raw(1))
    if isinstance(value, tuple | list | dict):
        return value[index]
    return _indexed(call, call.input, index if isinstance(index, tuple) else (index,))


def _indexed(call: Call, x: Track, index: tuple[Any, ...]) -> Track | None:
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
    if step > 1 and axis.context is None:
        axis = replace(axis.windowed(size, 1, step), offset=axis.offset + start % step * axis.stride)
    axes[index] = axis.cropped(size)
    return (Atom(index, size),)


def _cat(call: Call) -> Track | None:
    parts = [t for t in call.sequence(call.raw(0, "tensors")) if len(t.dims) == len(call.shape)]
    dim = int(call.known(call.raw(1, "dim", "axis")) or 0) % len(call.shape)
    size = call.shape[dim]
    indices = {part.lone(dim) for part in parts}
    index = indices.pop() if len(indices) == 1 else None
    fitted: list[Track] = []
    for part in parts:
        axes = part.axes if index is None else {**part.axes, index: part.axes[index].cropped(size)}
        row = channels(size) if index is None else (Atom(index, size),)
        fitted.append(Track((*part.dims[:dim], row, *part.dims[dim + 1 :]), axes, part.upsampled))
    return merged(fitted, call.shape) if fitted else None


def _stack(call: Call) -> Track | None:
    parts = call.sequence(call.raw(0, "tensors"))
    if not parts:
        return None
    dim = int(call.known(call.raw(1, "dim")) or 0) % len(call.shape)
    joined = merged(parts, call.shape[:dim] + call.shape[dim + 1 :])
    rows = (*joined.dims[:dim], channels(call.shape[dim]), *joined.dims[dim:])
    return tracked(rows, joined.axes, joined.upsampled)


def _unbind(call: Call) -> tuple[Track, ...]:
    dim = int(call.known(call.raw(1, "dim")) or 0) % len(call.input.dims)
    return (without(call.input, [dim], keep=False),) * len(call.shapes[call.node.name])


def _select(call: Call) -> Track:
    return without(call.input, [int(call.known(call.raw(1, "dim"))) % len(call.input.dims)], keep=False)


def _reduce(call: Call, at: int = 1) -> Any:
    """A mean, a maximum, a norm: over dimensions, or over all of them."""
    x, value = call.input, call.shapes[call.node.name]
    shape = value.shape if isinstance(value, TensorShape) else value[0].shape
    given = call.known(call.raw(at, "dim", "axis"))
    if isinstance(given, Node):
        return None  # torch.max(x, y) is elementwise
    if isinstance(given, bool) or given is None:
        given = tuple(range(len(x.dims)))
    dims = [dim % len(x.dims) for dim in (given if isinstance(given, tuple) else (given,))]
    for dim in dims:
        x = mixed_in(x, dim)
    result = without(x, dims, keep=len(shape) == len(x.dims))
    return result if isinstance(value, TensorShape) else (result,) * len(value)


def _expand(call: Call) -> Track | None:
    x, sizes = call.input, call.shape_of(call.first)
    if len(x.dims) != len(call.shape):
        return None
    grown = [dim for dim, size in enumerate(call.shape) if size != sizes[dim]]
    if x.lost():
        x = placed(x, sizes, grown)
    new = {dim: x.axes[i].resized(call.shape[dim]) for dim in grown if (i := x.lone(dim)) is not None}
    return changed(x, new, {dim: call.shape[dim] for dim in grown if dim not in new})


def _roll(call: Call) -> Track:
    x = call.input
    shifts, dims = (call.known(call.raw(at, name)) for at, name in ((1, "shifts"), (2, "dims")))
    pairs = zip(*(v if isinstance(v, tuple) else (v,) for v in (shifts, dims)), strict=False)
    axes = dict(x.axes)
    for shift, dim in pairs:
        index = x.lone(dim % len(x.dims)) if dim is not None else None
        if index is not None:
            axes[index] = replace(axes[index], offset=axes[index].offset - shift * axes[index].stride)
    return replace(x, axes=axes)


def _unfold(call: Call) -> Track | None:
    """F.unfold: windows as channels, their places as tokens.  Tensor.unfold: windows in a last dimension."""
    x = call.input
    if call.node.op == "call_method":
        dim, kernel, stride = (int(call.known(call.raw(at, name))) for at, name in _UNFOLD)
        index = x.lone(dim % len(x.dims))
        if index is None:
            return None
        slid = changed(x, {dim % len(x.dims): x.axes[index].windowed(call.shape[dim], kernel, stride)})
        return tracked((*slid.dims, channels(kernel)), slid.axes, slid.upsampled)
    kernel, dilation, pad, stride = (per_axis(call.option(at, name, default), 2) for at, name, default in _IM2COL)
    sizes = [
        (n + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, n in enumerate(call.shape_of(call.first)[-2:])
    ]
    inner = replace(call, shape=(*call.shape[:-1], *sizes))
    slid = along(inner, x, 2, lambda i, a, n: a.windowed(n, kernel[i], stride[i], dilation[i]), len(x.dims) - 3)
    return recut(slid, call.shape)


def _fold(call: Call) -> Track | None:
    """Windows back in their places: a pixel sees the windows that it lies in."""
    output, kernel, dilation, pad, stride = (
        per_axis(call.option(at, name, default), 2) for at, name, default in _COL2IM
    )
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


_COL2IM = ((1, "output_size", 1), (2, "kernel_size", 1), (3, "dilation", 1), (4, "padding", 0), (5, "stride", 1))
_UNFOLD = ((1, "dimension"), (2, "size"), (3, "step"))
_IM2COL = ((1, "kernel_size", 1), (2, "dilation", 1), (3, "padding", 0), (4, "stride", 1))

MODULES: dict[type[nn.Module], Rule] = {
    nn.Flatten: _reshape,
    nn.Unflatten: _reshape,
    nn.Unfold: _unfold,
    nn.Fold: _fold,
}
NAMES: dict[str, Rule] = {
    **dict.fromkeys(["view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel"], _reshape),
    **dict.fromkeys(["reshape_as", "view_as", "squeeze_", "unsqueeze_"], _reshape),
    **dict.fromkeys(["permute", "transpose", "transpose_", "t", "t_", "adjoint"], _permute),
    **dict.fromkeys(["movedim", "moveaxis", "swapaxes", "swapdims"], _permute),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "std", "var", "max", "min", "median", "prod"], _reduce),
    **dict.fromkeys(["logsumexp", "argmax", "argmin", "any", "all", "std_mean", "var_mean"], _reduce),
    **dict.fromkeys(["norm", "vector_norm", "quantile"], partial(_reduce, at=2)),
    **dict.fromkeys(["cat", "concat", "concatenate"], _cat),
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], _expand),
    "getitem": _getitem,
    "getattr": _attribute,
    "stack": _stack,
    "unbind": _unbind,
    "select": _select,
    "roll": _roll,
    "unfold": _unfold,
    "fold": _fold,
}
