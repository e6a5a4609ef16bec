"""Convolutions and linear layers as one matrix product: patches times weights.

Semantics
- A layer of g groups gives, at every output position and for every group, y = W u: u are the D numbers of the patch
  that the group reads there (input channels of the group x kernel positions), W has O / g rows.
- Patches are gathered at chosen positions only.  A transposed convolution is a plain one over its input with zeros
  between the pixels; a linear layer has one kernel position, and its positions are all axes but the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from mbs_fx.shapes.convolutions import ConvSpec, any_conv


@dataclass(frozen=True, slots=True)
class LinearForm:
    """How a layer reads its input.  ``spec`` is None for a linear layer; ``mode`` is how a convolution pads."""

    spec: ConvSpec | None
    mode: str = "zeros"

    @property
    def groups(self) -> int:
        """Groups of channels that do not mix."""
        return 1 if self.spec is None else self.spec.groups

    @property
    def channel_axis(self) -> int:
        """The axis of inputs and outputs that holds channels."""
        return -1 if self.spec is None else 1

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as (groups, outputs of a group, D) in float64."""
        weight = weight.detach().double()
        if self.spec is None:
            return weight[None]
        if not self.spec.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        parts = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return parts.transpose(1, 2).flatten(2)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`, in the shape and type of ``like``."""
        if self.spec is not None and self.spec.transposed:
            inputs, outputs = like.shape[0] // self.groups, like.shape[1]
            matrix = matrix.reshape(self.groups, outputs, inputs, -1).transpose(1, 2)
        return matrix.reshape(like.shape).to(like.device, like.dtype)

    def unknowns(self, value: Tensor) -> int:
        """D, for the input of a call."""
        kernel = 1 if self.spec is None else math.prod(self.spec.kernel)
        return value.shape[self.channel_axis] // self.groups * kernel

    def positions(self, output: Tensor) -> int:
        """How many positions one image has."""
        return math.prod(output.shape[2:] if self.spec is not None else output.shape[1:-1])

    def outputs(self, output: Tensor, chosen: Tensor) -> Tensor:
        """Outputs at chosen positions, (groups, images x positions, outputs of a group) as products take them."""
        return self._rows(positions(output, self.channel_axis).index_select(1, chosen)[:, :, None])

    def patches(self, value: Tensor, output: tuple[int, ...], chosen: Tensor) -> Tensor:
        """Patches at chosen positions, (groups, images x positions, D); ``output`` is the output's shape."""
        if self.spec is None:
            return self.outputs(value, chosen)
        value, step = self._padded(value, self.spec, output[2:])
        index = _flat_index(self.spec, step, output[2:], value.shape[2:], chosen)
        taken = positions(value, self.channel_axis).index_select(1, index.reshape(-1))
        return self._rows(taken.unflatten(1, index.shape))

    def _rows(self, taken: Tensor) -> Tensor:
        """(images, positions, kernel, channels) as (groups, images x positions, channels of a group x kernel)."""
        n, positions, kernel, channels = taken.shape
        parts = taken.reshape(n, positions, kernel, self.groups, channels // self.groups)
        rows = parts.permute(3, 0, 1, 4, 2).to(products(taken))
        return rows.reshape(self.groups, n * positions, -1)

    def _padded(self, value: Tensor, spec: ConvSpec, output: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
        """The input with its padding, and the step between neighbouring outputs on it."""
        step = spec.stride
        ends = _padding(spec)
        if spec.transposed:
            value, step = _spread(value, spec.stride), (1,) * spec.dims
            spans = zip(spec.kernel, spec.dilation, ends, strict=True)
            ends = [(d * (k - 1) - p, d * (k - 1) - p) for k, d, (p, _) in spans]
        pads: list[int] = []
        for axis in reversed(range(spec.dims)):
            first, last = ends[axis]
            if self.mode == "zeros":
                reach = (output[axis] - 1) * step[axis] + (spec.kernel[axis] - 1) * spec.dilation[axis] + 1
                last = max(reach - value.shape[2 + axis] - first, 0)
            pads += [first, last]
        return F.pad(value, pads, mode="constant" if self.mode == "zeros" else self.mode), step


def positions(value: Tensor, channel_axis: int) -> Tensor:
    """(images, positions, channels); a view of a tensor in channels-last order."""
    value = value.movedim(channel_axis, -1)
    return value.flatten(1, -2) if value.dim() > 2 else value[:, None]


def products(value: Tensor) -> torch.dtype:
    """The type that products of rows are summed in: float32 holds them well enough where float64 is slow."""
    return torch.float32 if value.device.type == "cpu" and value.dtype != torch.float64 else torch.float64


def _padding(spec: ConvSpec) -> list[tuple[int, int]]:
    """Padding in front of and behind each axis; "same" puts the odd pixel behind."""
    if spec.padding == "valid":
        return [(0, 0)] * spec.dims
    if isinstance(spec.padding, str):
        both = [d * (k - 1) for k, d in zip(spec.kernel, spec.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in both]
    return [(p, p) for p in spec.padding]


def _spread(value: Tensor, stride: tuple[int, ...]) -> Tensor:
    """``value`` with stride - 1 zeros between neighbours."""
    for axis, step in enumerate(stride, 2):
        if step > 1:
            shape = list(value.shape)
            shape[axis] = (shape[axis] - 1) * step + 1
            wide = value.new_zeros(shape)
            wide[(slice(None),) * axis + (slice(None, None, step),)] = value
            value = wide
    return value


def _flat_index(
    spec: ConvSpec, step: tuple[int, ...], output: tuple[int, ...], padded: tuple[int, ...], chosen: Tensor
) -> Tensor:
    """Where on the flattened padded input the kernel lies for every chosen output, (positions, kernel)."""
    index = torch.zeros(1, dtype=torch.long, device=chosen.device)
    coordinates = torch.unravel_index(chosen, output)
    taps = torch.tensor(list(product(*(range(k) for k in spec.kernel))), device=chosen.device)
    for axis, where in enumerate(coordinates):
        tap = spec.kernel[axis] - 1 - taps[:, axis] if spec.transposed else taps[:, axis]
        index = index * padded[axis] + where[:, None] * step[axis] + tap * spec.dilation[axis]
    return index


def form_of(gm: GraphModule, node: Node, shapes: Any) -> LinearForm | None:
    """The form of a convolution or linear layer; None for other nodes."""
    spec = any_conv(gm, node, shapes)
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    if spec is not None:
        return LinearForm(spec, getattr(module, "padding_mode", "zeros"))
    if isinstance(module, nn.Linear) or node.target is F.linear:
        return LinearForm(None)
    return None
