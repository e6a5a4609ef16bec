"""To what multiple widths are rounded where the caller leaves it to the device and the type.

Semantics
- Kernels work on channels in blocks; a width just above a block costs as much as the next block.
- An accelerator's matrix units read 16 bytes at a time (NVIDIA asks for multiples of 8 channels in half precision,
  of 4 in TF32, of 16 in int8).  On a CPU a block is one vector register.
"""

from __future__ import annotations

import torch

ACCELERATOR = 16
"""Bytes that a matrix unit reads at a time."""

REGISTER = {"AVX512": 64, "AVX2": 32, "SVE256": 32}
"""Bytes in a vector register, by what torch says of the CPU; 16 elsewhere (SSE, NEON)."""


def block(device: torch.device, dtype: torch.dtype) -> int:
    """Channels in a block: what ``round_to="auto"`` stands for."""
    size = REGISTER.get(torch.backends.cpu.get_cpu_capability(), 16) if device.type == "cpu" else ACCELERATOR
    return max(1, size // dtype.itemsize)
