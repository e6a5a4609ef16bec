"""One machine for all tests, whatever they run on."""

from __future__ import annotations

import pytest
import torch

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Small networks are slower on many threads, and sums depend on how many there are."""

TERMINAL = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH", "TTY_COMPATIBLE")
"""Variables that make help texts coloured or narrow."""


def pretend(patch: pytest.MonkeyPatch) -> None:
    """One thread here and in processes started from here, registers of 32 bytes, float32, no GPU, a plain terminal."""
    torch.set_num_threads(1)
    for name, value in {**THREADS, "COLUMNS": "120"}.items():
        patch.setenv(name, value)
    for name in TERMINAL:
        patch.delenv(name, raising=False)
    patch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    patch.setattr("torch.cpu.get_capabilities", lambda: {"architecture": "x86_64"}, raising=False)
    patch.setattr("torch.cuda.is_available", lambda: False)
