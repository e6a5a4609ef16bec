"""Autocast state, kept as it was.

A graph enters and leaves regions of autocast by two of its nodes.  When it fails in between, the region stays open.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def autocast_restored(device: torch.device) -> Generator[None]:
    """Gives the caller's autocast state back on exit, also after an error in the middle of a region."""
    kind = device.type
    if not torch.amp.autocast_mode.is_autocast_available(kind):
        yield
        return
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    with torch.autocast(kind, dtype, enabled, torch.is_autocast_cache_enabled()):
        yield
