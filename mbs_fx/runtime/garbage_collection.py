"""Pausing Python's cyclic garbage collector during a pass.

A pass makes some hundred thousand small values that stay alive until it returns.  The collector would traverse them,
and all of torch, again and again without freeing anything: a quarter of the time on a network of a thousand layers.
Reference counts still free everything but cycles, which wait for the end of the pass.  The collector is not paused
where copies of a model are made and dropped (tracing, rewriting a module), since a cycle may hold such a copy.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Generator[None]:
    """No collections inside, and afterwards the caller's setting; also a decorator."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
