"""Fixtures of the whole suite."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trained networks and photographs that lies beside the checkout on some machines."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (trained networks, photographs), which is not beside this checkout")
    return folder


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers whether it runs alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _float32_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether this CPU multiplies bfloat16 is no matter: tests of that type ask for it."""
    monkeypatch.setattr("mbs_fx.runtime.precision._cpu_is_faster", lambda shape: False)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_works() -> None:
    """A shell that runs the tests in the background has SIGINT ignored, and Python then leaves it so."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
