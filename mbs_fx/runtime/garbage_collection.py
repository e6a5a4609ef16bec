"""Python's cyclic garbage collector, out of the way of a pass.

A pass makes some hundred thousand small values that all stay alive until it returns, and the collector would walk
through them, and through all of torch, again and again to free nothing: a quarter of the time on a network of a
thousand layers.  What is thrown away on the way is freed by reference counts; cycles wait until the pass is over.
The collector goes on where copies of a model are made and dropped (tracing, rewriting a module), since such a copy
may hang in a cycle.
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
