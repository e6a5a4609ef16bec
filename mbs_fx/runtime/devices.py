"""A device by name, found out to be there.

- No name is the accelerator that there is, else the CPU.
- "cuda" without a number is this process's own GPU: under ``torchrun`` the one of its ``LOCAL_RANK``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    import torch


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
