"""Windows and changes of scale: one rule for each kind of operation that makes new pixels.

Semantics
- A window (convolution, pooling, unfolding): field += dilation * (kernel - 1) * stride; stride *= its stride.
- Pooling to one pixel makes context and leaves field and stride.  So does an average pool without padding
  whose kernel covers the map, if it has three pixels or more or was computed from the map's size.
- A transposed convolution: stride /= its stride; the field grows by the input pixels that one output
  pixel sees.
- Interpolation: the stride follows the sizes; the field grows by one pixel of the input (linear), three
  (cubic) or none (nearest).  Pixel shuffle: stride /= r.  Pixel unshuffle: a window of r, r apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any

from torch import nn
from torch.fx import Node

from mbs_fx.geometry.axes import Axis, Track, mixed_in, scaled
from mbs_fx.geometry.calls import Call, Rule, along, fitted
from mbs_fx.shapes.convolutions import any_conv, of_module, per_axis


def _convolution(call: Call) -> Track | None:
    spec = of_module(call.module) if call.module is not None else any_conv(call.gm, call.node, call.shapes)
    if spec is None:
        return None
    channel = len(call.shape) - spec.dims - 1
    x = mixed_in(call.input, channel)

    def step(i: int, axis: Axis, size: int) -> Axis:
        kernel, stride, dilation = spec.kernel[i], spec.stride[i], spec.dilation[i]
        if not spec.transposed or axis.context is not None:
            return axis.windowed(size, kernel, stride, dilation)
        return seen_through(axis, size, kernel, stride, dilation)

    return along(call, x, spec.dims, step, channel)


def seen_through(axis: Axis, size: int, kernel: int, stride: int, dilation: int) -> Axis:
    """A transposed window: an output pixel sees the inputs whose taps fall on it, those of one phase."""
    phases: dict[int, list[int]] = {}
    for tap in range(kernel):
        phases.setdefault(dilation * tap % stride, []).append(dilation * tap)
    reach = max((taps[-1] - taps[0]) // stride for taps in phases.values())
    finer = scaled(axis.stride, 1, stride)
    return replace(axis, size=size, stride=finer, field=axis.field + reach * axis.stride)


def _pool(dims: int, call: Call, at: int = 1, average: bool = False) -> Any:
    kernel = per_axis(call.option(at, "kernel_size"), dims)
    stride = per_axis(call.option(at + 1, "stride") or kernel, dims)
    pad = per_axis(call.option(at + 2, "padding", 0), dims)
    dilation = per_axis(1 if average else call.option(at + 3, "dilation", 1), dims)
    computed = call.module is None and _computed(call.raw(at, "kernel_size"))

    def step(i: int, axis: Axis, size: int) -> Axis:
        covers = size == 1 < axis.size <= kernel[i] and not pad[i]
        if average and covers and (computed or kernel[i] > 2):
            return axis.pooled()
        return axis.windowed(size, kernel[i], stride[i], dilation[i])

    return _each(call, along(call, call.input, dims, step))


def _computed(value: Any) -> bool:
    return isinstance(value, Node) or (isinstance(value, tuple | list) and any(map(_computed, value)))


def _each(call: Call, track: Track) -> Any:
    """The track once for every result: pools may return indices as well."""
    value = call.shapes[call.node.name]
    return (track,) * len(value) if isinstance(value, tuple) else track


def _adaptive_pool(dims: int, call: Call) -> Any:
    return _each(call, along(call, call.input, dims, _adapted))


def _adapted(_: int, axis: Axis, size: int) -> Axis:
    if axis.context is not None or axis.size == size:
        return axis.resized(size)
    if size == 1:
        return axis.pooled()
    starts = [i * axis.size // size for i in range(size)]
    window = max(ceil((i + 1) * axis.size / size) - start for i, start in enumerate(starts))
    return axis.windowed(size, window, Fraction(axis.size, size))


def _fractional_pool(dims: int, call: Call) -> Any:
    kernel = per_axis(call.option(1, "kernel_size"), dims)
    return _each(
        call,
        along(call, call.input, dims, lambda i, a, n: a.windowed(n, kernel[i], Fraction(a.size, n))),
    )


def _unpool(dims: int, call: Call) -> Track:
    return along(call, call.input, dims, lambda _, axis, size: axis.resized(size))


_REACH = {"linear": 1, "bilinear": 1, "trilinear": 1, "bicubic": 3}


def _interpolate(call: Call) -> Track:
    mode = call.option(3, "mode", "nearest")
    antialias = call.module is None and bool(call.option(6, "antialias", False))

    def step(_: int, axis: Axis, size: int) -> Axis:
        if axis.context is not None or size == axis.size:
            return axis.resized(size)
        reach = _REACH.get(mode, 0)
        if antialias and size < axis.size:
            reach = ceil((reach + 1) * axis.size / size) - 1
        grown = axis.field + min(reach, axis.size - 1) * axis.stride
        return replace(axis.resized(size), field=grown)

    return along(call, call.input, len(call.shape) - 2, _adapted if mode == "area" else step)


def _pixel_shuffle(call: Call) -> Track:
    return along(call, call.input, 2, lambda _, axis, size: axis.resized(size), len(call.shape) - 3)


def _pixel_unshuffle(call: Call) -> Track:
    factor = call.option(1, "downscale_factor")
    return along(call, call.input, 2, lambda _, a, n: a.windowed(n, factor, factor), len(call.shape) - 3)


def _sizes(call: Call) -> Any:
    """Padding, cropping, splitting: pixels stay where they are."""
    value = call.shapes[call.node.name]
    if isinstance(value, tuple | list):
        return tuple(fitted(call.input, item.shape) for item in value)
    return fitted(call.input, call.shape)


MODULES: dict[type[nn.Module], Rule] = {
    nn.Upsample: _interpolate,
    nn.PixelShuffle: _pixel_shuffle,
    nn.PixelUnshuffle: _pixel_unshuffle,
}
NAMES: dict[str, Rule] = {
    "interpolate": _interpolate,
    "upsample": _interpolate,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    **dict.fromkeys(["pad", "narrow", "narrow_copy"], _sizes),
    **dict.fromkeys(["chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk"], _sizes),
}


def _in_each_dimension(pattern: str, rule: Callable[[int, Call], Any]) -> None:
    """Registers a rule for the modules and functions of 1, 2 and 3 dimensions."""
    for dims in (1, 2, 3):
        name = pattern.format(dims)
        module = getattr(nn, "".join(map(str.capitalize, name.split("_"))).replace("Lp", "LP"), None)
        if module is not None:
            MODULES[module] = partial(rule, dims)
        NAMES[name] = partial(rule, dims)


_in_each_dimension("conv{}d", lambda _, call: _convolution(call))
_in_each_dimension("conv_transpose{}d", lambda _, call: _convolution(call))
for _kind in ("constant", "reflection", "replication", "circular"):
    _in_each_dimension(_kind + "_pad{}d", lambda _, call: _sizes(call))
_in_each_dimension("max_pool{}d", _pool)
_in_each_dimension("max_pool{}d_with_indices", _pool)
_in_each_dimension("avg_pool{}d", partial(_pool, average=True))
_in_each_dimension("lp_pool{}d", partial(_pool, at=2, average=True))
_in_each_dimension("adaptive_avg_pool{}d", _adaptive_pool)
_in_each_dimension("adaptive_max_pool{}d", _adaptive_pool)
_in_each_dimension("adaptive_max_pool{}d_with_indices", _adaptive_pool)
_in_each_dimension("fractional_max_pool{}d", _fractional_pool)
_in_each_dimension("max_unpool{}d", _unpool)
