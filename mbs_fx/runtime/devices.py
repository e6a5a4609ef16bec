"""Devices by name, and what they are fast at.

- No name is the accelerator that there is, else the CPU.
- "cuda" without a number is this process's own GPU: under ``torchrun`` the one of its ``LOCAL_RANK``.
- Kernels work on channels in blocks; a width just above a block costs as much as the next block.  An accelerator's
  matrix units read 16 bytes at a time (NVIDIA asks for multiples of 8 channels in half precision, of 4 in TF32, of
  16 in int8).  On a CPU a block is one vector register.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    import torch

ACCELERATOR = 16
"""Bytes that a matrix unit reads at a time."""

REGISTER = {"AVX512": 64, "AVX2": 32, "SVE256": 32}
"""Bytes in a vector register, by what torch says of the CPU; 16 elsewhere (SSE, NEON)."""


def usable(device: torch.device | str | None) -> torch.device:
    """The device, once something was put on it."""
    import torch

    try:
        place = own(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise MBSError(f"device {str(device)!r} cannot be used: {said}") from error
    return place


def own(device: torch.device | str | None) -> torch.device:
    """The device that this process, one of several perhaps, means by a name."""
    import torch

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpus = torch.cuda.device_count() if str(place) == "cuda" and "LOCAL_RANK" in os.environ else 0
    # a launcher may show each process its own GPU alone: then there is one, whatever the rank
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % gpus) if gpus else place


def block(device: torch.device, dtype: torch.dtype) -> int:
    """Channels in a block: the multiple that ``round_to="auto"`` rounds widths to."""
    import torch

    size = REGISTER.get(torch.backends.cpu.get_cpu_capability(), 16) if device.type == "cpu" else ACCELERATOR
    return max(1, size // dtype.itemsize)
