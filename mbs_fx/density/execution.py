"""Ways to run the counting graph, fastest first.

- Channels-last memory order and folded BatchNorm where the network allows them, then folded BatchNorm
  alone, then the graph as it is.
- A compiled graph has counting fused into the kernels that make the activations.  It is compiled once, and a CUDA
  graph is recorded once, for one batch size: smaller batches are filled up.
- On a CPU, batches are cut so that no activation is larger than `LARGEST`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx

from mbs_fx.density.columns import Columns
from mbs_fx.density.counting import instrument
from mbs_fx.density.fast_copy import LAYOUTS, fast_copy
from mbs_fx.density.recorded import Recorded
from mbs_fx.density.rectify import fuse
from mbs_fx.results.analysis import Analysis
from mbs_fx.runtime.devices import usable
from mbs_fx.runtime.precision import Shape, fast_dtype
from mbs_fx.shapes.graph_inputs import Name, arguments_of

LARGEST = 24 << 20
"""Bytes of an activation on a CPU.  From 32 MiB on, the C library gets every tensor from the system, and filling
fresh pages costs more than most layers do."""


@dataclass(frozen=True)
class Execution:
    """One way to run the counting graph.  ``filled``: it wants batches of one size; ``images``: no more than that."""

    build: Callable[[], Callable[..., Any]]
    device: torch.device
    dtype: torch.dtype
    channels_last: bool = False
    compiled: bool = False
    filled: bool = False
    images: int | None = None

    def __str__(self) -> str:
        order = "channels last, " if self.channels_last else ""
        return f"{order}{str(self.dtype).removeprefix('torch.')}{', compiled' if self.compiled else ''}"

    def prepared(self, tensor: Tensor) -> Tensor:
        """An input where and as the graph wants it; the copy to a GPU does not wait."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        tensor = tensor.to(self.device, dtype, non_blocking=True)
        if self.channels_last and tensor.ndim in LAYOUTS:
            tensor = tensor.contiguous(memory_format=LAYOUTS[tensor.ndim])
        return tensor


def executions(
    gm: fx.GraphModule,
    columns: Columns,
    analysis: Analysis,
    device: torch.device | str | None,
    fast: bool,
    dtype: torch.dtype | None,
    compiled: bool,
) -> list[Execution]:
    """Ways to run the counting graph, fastest first."""
    first = next((t for t in chain(gm.parameters(), gm.buffers()) if t.is_floating_point()), torch.empty(0))
    place = first.device if device is None else usable(device)
    counting = instrument(gm, columns, analysis.activations)
    taking_tensors = partial(_taking_tensors, analysis.input_names)
    unfolded = partial(fast_copy, counting, place, first.dtype, fold=False)
    own = Execution(lambda: taking_tensors(unfolded().forward), place, first.dtype)
    if not fast and not compiled:
        return [own]
    precision = dtype or fast_dtype(first.dtype, place, _largest(analysis))
    images = _images_at_once(analysis, precision) if place.type == "cpu" else None

    def execution(channels_last: bool) -> Execution:
        def build() -> Callable[..., Any]:
            copy = fast_copy(counting, place, precision, channels_last)
            if compiled:
                return taking_tensors(_compiled(copy, place))
            if place.type == "cuda":
                return Recorded(taking_tensors(copy.forward))
            return taking_tensors(fuse(copy).forward)

        filled = compiled or place.type == "cuda"
        return Execution(build, place, precision, channels_last, compiled, filled, images)

    return [execution(True), execution(False), own]


def _largest(analysis: Analysis) -> Shape:
    """The convolution with the most multiply-adds, as a square one."""
    conv = max(analysis.convs, key=lambda conv: conv.flops)
    inputs, pixels = conv.in_width // conv.groups, math.prod(conv.spatial_size)
    kernel = round(math.sqrt(conv.flops / (inputs * conv.width * pixels)))
    return Shape(inputs, conv.width, max(1, kernel), max(1, math.isqrt(pixels)))


def _taking_tensors(names: tuple[Name, ...], run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` as a function of tensors alone, also where it takes lists or dicts of them."""
    if all(len(name) == 1 for name in names):
        return run
    return lambda *tensors: run(*arguments_of(names, tensors))


def _images_at_once(analysis: Analysis, dtype: torch.dtype) -> int:
    largest = max((math.prod(conv.spatial_size) * conv.width for conv in analysis.convs), default=1)
    return max(1, LARGEST // (largest * dtype.itemsize))


def _compiled(gm: fx.GraphModule, device: torch.device) -> Callable[..., Any]:
    """CUDA graphs as well on a GPU: deep networks wait for kernel launches more than for kernels."""
    return torch.compile(gm, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)
