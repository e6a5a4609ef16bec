"""A device by name, found out to be there."""

from __future__ import annotations

import torch

from mbs_fx.errors import MBSError


def usable(device: torch.device | str) -> torch.device:
    """The device, once something was put on it."""
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise MBSError(f"device {str(device)!r} cannot be used: {said}") from error
    return place
