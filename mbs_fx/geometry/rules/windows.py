"""Windows and changes of scale: one rule for each kind of operation that makes new pixels.

Semantics
- A window (convolution, pooling, unfolding): field += dilation * (kernel - 1) * stride; stride *= its stride.
- Pooling to one pixel makes context and leaves field and stride.  So does an average pool without padding
  whose kernel covers the map, if it has three pixels or more or was computed from the map's size.
- A transposed convolution: stride /= its stride; the field grows by the input pixels that one output
  pixel sees.
- Padding on one side moves the map by half of it: `F.pad(x, (2, 0, 0, 0))[..., :-2]` is the map two pixels further.
- Interpolation: the stride follows the sizes; the field grows by one pixel of the input (linear), three
  (cubic) or none (nearest).  Pixel shuffle: stride /= r.  Pixel unshuffle: a window of r, r apart.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any

from torch.fx import Node

from mbs_fx.geometry.axes import Axis, Track, mixed_in, scaled
from mbs_fx.geometry.call import GeometryCall, MapResult, along, fitted, shifted
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.register import geometry
from mbs_fx.shapes.convolutions import any_conv, of_module, per_axis

WINDOWS = frozenset((*v.CONVOLUTIONS, *v.MAX_POOL, *v.AVG_POOL, *v.LP_POOL, *v.ADAPTIVE_POOL, *v.FRACTIONAL_POOL))
"""Operations that extend receptive fields or change strides by themselves."""


@geometry(*v.CONVOLUTIONS)
def convolution(call: GeometryCall) -> MapResult | None:
    """A window, or its transpose."""
    spec = of_module(call.module) if call.module is not None else any_conv(call.gm, call.node, call.values)
    if spec is None:
        return None
    channel = len(call.shape) - spec.dims - 1
    x = mixed_in(call.input, channel)

    def step(i: int, axis: Axis, size: int) -> Axis:
        kernel, stride, dilation = spec.kernel[i], spec.stride[i], spec.dilation[i]
        if not spec.transposed or axis.context is not None:
            return axis.windowed(size, kernel, stride, dilation)
        return seen_through(axis, size, kernel, stride, dilation)

    track = along(call, x, spec.dims, step, channel)
    if call.operation is not v.DEFORMABLE_CONV:
        return track
    return replace(track, notes=(*track.notes, "looks where its offsets say; the receptive field is that of zeros"))


def seen_through(axis: Axis, size: int, kernel: int, stride: int, dilation: int) -> Axis:
    """A transposed window: an output pixel sees the inputs whose taps fall on it, those of one phase."""
    phases: dict[int, list[int]] = {}
    for tap in range(kernel):
        phases.setdefault(dilation * tap % stride, []).append(dilation * tap)
    reach = max((taps[-1] - taps[0]) // stride for taps in phases.values())
    finer = scaled(axis.stride, 1, stride)
    return replace(axis, size=size, stride=finer, field=axis.field + reach * axis.stride)


@geometry(*v.MAX_POOL, *v.AVG_POOL, *v.LP_POOL)
def pool(call: GeometryCall) -> MapResult:
    """A window for each channel; an average over the whole map makes context."""
    dims, average = _dims(call), call.operation not in v.MAX_POOL
    kernel = per_axis(call.value("kernel_size"), dims)
    stride = per_axis(call.value("stride") or kernel, dims)
    pad = per_axis(0 if call.operation in v.LP_POOL else call.value("padding", 0), dims)
    dilation = per_axis(1 if average else call.value("dilation", 1), dims)
    computed = call.module is None and _computed(call.argument("kernel_size"))

    def step(i: int, axis: Axis, size: int) -> Axis:
        covers = size == 1 < axis.size <= kernel[i] and not pad[i]
        if average and covers and (computed or kernel[i] > 2):
            return axis.pooled()
        return axis.windowed(size, kernel[i], stride[i], dilation[i])

    return along(call, call.input, dims, step)


def _dims(call: GeometryCall) -> int:
    return (call.operation.dims if call.operation is not None else None) or 2


def _computed(value: Any) -> bool:
    return isinstance(value, Node) or (isinstance(value, tuple | list) and any(map(_computed, value)))


@geometry(*v.ADAPTIVE_POOL)
def adaptive_pool(call: GeometryCall) -> MapResult:
    """Windows as large as the sizes ask for."""
    return along(call, call.input, _dims(call), _adapted)


def _adapted(_: int, axis: Axis, size: int) -> Axis:
    if axis.context is not None or axis.size == size:
        return axis.resized(size)
    if size == 1:
        return axis.pooled()
    starts = [i * axis.size // size for i in range(size)]
    window = max(ceil((i + 1) * axis.size / size) - start for i, start in enumerate(starts))
    return axis.windowed(size, window, Fraction(axis.size, size))


@geometry(*v.FRACTIONAL_POOL)
def fractional_pool(call: GeometryCall) -> MapResult:
    """Windows of one size in varying steps, which follow the ratio of sizes."""
    dims = _dims(call)
    kernel = per_axis(call.value("kernel_size"), dims)
    return along(call, call.input, dims, lambda i, a, n: a.windowed(n, kernel[i], Fraction(a.size, n)))


@geometry(*v.UNPOOL)
def unpool(call: GeometryCall) -> MapResult:
    """The map at its size before the pooling."""
    return along(call, call.input, _dims(call), lambda _, axis, size: axis.resized(size))


_REACH = {"linear": 1, "bilinear": 1, "trilinear": 1, "bicubic": 3}


@geometry(v.INTERPOLATE)
def interpolate(call: GeometryCall) -> MapResult:
    """The stride follows the sizes; the field grows by the pixels that a new one is made of."""
    mode = call.value("mode", "nearest")
    antialias = call.module is None and bool(call.value("antialias", False))

    def step(_: int, axis: Axis, size: int) -> Axis:
        if axis.context is not None or size == axis.size:
            return axis.resized(size)
        reach = _REACH.get(mode, 0)
        if antialias and size < axis.size:
            reach = ceil((reach + 1) * axis.size / size) - 1
        grown = axis.field + min(reach, axis.size - 1) * axis.stride
        return replace(axis.resized(size), field=grown)

    return along(call, call.input, len(call.shape) - 2, _adapted if mode == "area" else step)


@geometry(v.PIXEL_SHUFFLE)
def pixel_shuffle(call: GeometryCall) -> MapResult:
    """Channels become finer pixels."""
    return along(call, call.input, 2, lambda _, axis, size: axis.resized(size), len(call.shape) - 3)


@geometry(v.PIXEL_UNSHUFFLE)
def pixel_unshuffle(call: GeometryCall) -> MapResult:
    """Blocks of pixels become channels."""
    factor = int(call.value("downscale_factor"))
    return along(call, call.input, 2, lambda _, a, n: a.windowed(n, factor, factor), len(call.shape) - 3)


@geometry(v.PAD, *v.PADDING)
def pad(call: GeometryCall) -> Track:
    """Pixels stay where they are; one-sided padding moves the map against those that were not padded."""
    x, amounts = call.input, call.value("padding")
    moved: dict[int, Fraction] = {}
    if isinstance(amounts, tuple) and all(isinstance(each, int) for each in amounts):
        for right, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=False), 1):
            index = x.lone(len(x.dims) - right)
            if index is not None and before != after:
                moved[index] = Fraction(after - before, 2)
    return fitted(shifted(x, moved), call.shape)


@geometry(v.CHUNK, v.SPLIT, v.TENSOR_SPLIT)
def split(call: GeometryCall) -> Any:
    """Parts of the map, pixel for pixel."""
    value: Any = call.returned
    return tuple(fitted(call.input, part.shape) for part in value)
