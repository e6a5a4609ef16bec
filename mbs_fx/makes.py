"""Ways to run the counting graph, fastest first.

- Channels-last memory order and folded BatchNorm where the network allows them, then folded BatchNorm
  alone, then the graph as it is.
- A compiled graph has counting fused into the kernels that make the activations; batches are padded to one
  size, so that it is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx

from mbs_fx.analysis import Analysis
from mbs_fx.columns import Columns
from mbs_fx.counting import instrument
from mbs_fx.fast import LAYOUTS, fast_copy, fast_dtype
from mbs_fx.rectify import fuse_counting


@dataclass(frozen=True)
class Make:
    """One way to run the counting graph."""

    build: Callable[[], Callable[..., Any]]
    device: torch.device
    dtype: torch.dtype
    channels_last: bool = False
    compiled: bool = False

    def prepared(self, tensor: Tensor) -> Tensor:
        """An input where and as the graph wants it; the copy to a GPU does not wait."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        tensor = tensor.to(self.device, dtype, non_blocking=True)
        if self.channels_last and tensor.ndim in LAYOUTS:
            tensor = tensor.contiguous(memory_format=LAYOUTS[tensor.ndim])
        return tensor


def makes(
    gm: fx.GraphModule,
    columns: Columns,
    analysis: Analysis,
    device: torch.device | str | None,
    fast: bool,
    dtype: torch.dtype | None,
    compiled: bool,
) -> list[Make]:
    """The makes to try for a graph."""
    first = next((t for t in chain(gm.parameters(), gm.buffers()) if t.is_floating_point()), torch.empty(0))
    place = first.device if device is None else torch.device(device)
    counting = instrument(gm, columns, analysis.activations)
    own = Make(lambda: fast_copy(counting, place, first.dtype, fold=False), place, first.dtype)
    if not fast and not compiled:
        return [own]
    precision = dtype or fast_dtype(first.dtype, place)

    def make(channels_last: bool) -> Make:
        def build() -> Callable[..., Any]:
            copy = fast_copy(counting, place, precision, channels_last)
            if compiled:
                return _compiled(copy, place)
            return fuse_counting(copy) if place.type == "cpu" else copy

        return Make(build, place, precision, channels_last, compiled)

    return [make(True), make(False), own]


def _compiled(gm: fx.GraphModule, device: torch.device) -> Callable[..., Any]:
    """CUDA graphs as well on a GPU: deep networks wait for kernel launches more than for kernels."""
    return torch.compile(gm, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)
