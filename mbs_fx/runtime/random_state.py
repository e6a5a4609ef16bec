"""The states of the random number generators of Python, NumPy and torch.

A pass that runs other people's code (models, datasets, transforms) leaves the caller's generators as they were.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept(
    device: torch.device | None = None, generators: Iterable[torch.Generator] = ()
) -> Generator[None]:
    """Restores on exit the generators of the CPU, that of a CUDA device where one is given, and further ones."""
    python, arrays = random.getstate(), np.random.get_state()
    states = [(generator, generator.get_state()) for generator in generators]
    try:
        with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        for generator, state in states:
            generator.set_state(state)
