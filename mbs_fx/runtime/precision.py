"""bfloat16 in place of float32 where the hardware multiplies it faster.

- CUDA: from Ampere (capability 8.0) on, whose Tensor Cores multiply it.
- x86: AMX tiles, or the dot products of AVX512_BF16; without either bfloat16 is emulated.
- Elsewhere (Arm reports the instruction, not whether torch's kernels use it): one convolution is timed in both types,
  once per process and shape, and bfloat16 is taken where it needs at most `WORTH` of the time.
"""

from __future__ import annotations

import math
import time
from functools import cache
from typing import NamedTuple

import torch

WORTH = 0.8
"""The share of float32's time below which bfloat16 is taken where it has to be timed."""

LARGEST = 30_000_000
"""Multiply-adds of the convolution that is timed at most: some milliseconds on one core."""

UNITS = ("amx_bf16", "avx512_bf16")
"""What torch calls the x86 instructions that multiply bfloat16."""


class Shape(NamedTuple):
    """A convolution over ``size`` × ``size`` pixels, to be timed."""

    inputs: int
    outputs: int
    kernel: int
    size: int


USUAL = Shape(64, 64, 3, 28)
"""What is timed where no network is at hand."""


def fast_dtype(dtype: torch.dtype, device: torch.device, shape: Shape = USUAL) -> torch.dtype:
    """bfloat16 in place of float32 where ``device`` is faster at it, else ``dtype``.

    ``shape`` is the convolution that decides where the device's capabilities do not.
    """
    if dtype != torch.float32:
        return dtype
    if device.type == "cuda":
        faster = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        faster = device.type == "cpu" and _cpu_is_faster(shape)
    return torch.bfloat16 if faster else dtype


def _cpu_is_faster(shape: Shape) -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("architecture") in ("x86_64", "x86") or any(capabilities.get(unit) for unit in UNITS):
        return any(capabilities.get(unit, False) for unit in UNITS)
    return _measured_faster(shape)


@cache
def _measured_faster(shape: Shape) -> bool:
    """Whether a convolution in bfloat16 needs at most `WORTH` of its time in float32."""
    return _seconds(shape, torch.bfloat16) <= WORTH * _seconds(shape, torch.float32)


@torch.no_grad()
def _seconds(shape: Shape, dtype: torch.dtype) -> float:
    """The shorter of two runs, after one that prepares kernels; on as many pixels as `LARGEST` allows."""
    pixels = LARGEST // (shape.inputs * shape.outputs * shape.kernel**2)
    size = max(shape.kernel, min(shape.size, math.isqrt(max(pixels, 1))))
    image = torch.ones(1, shape.inputs, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(shape.outputs, shape.inputs, shape.kernel, shape.kernel, dtype=dtype)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        torch.nn.functional.conv2d(image, weight)
        best = min(best, time.perf_counter() - start)
    return best
