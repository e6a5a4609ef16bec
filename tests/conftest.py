"""Fixtures of the whole suite, and what keeps it from saying different things on different machines."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import machine
import pytest
import torch
from hypothesis import HealthCheck, settings

from mbs_fx.operations.register import Registration
from mbs_fx.operations.resolve import registered

GPU = torch.cuda.is_available()

# The same examples in every run, and no limits in seconds.
settings.register_profile(
    "everywhere", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("everywhere")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What tests/test_golden.py explains."""
    parser.addoption("--renew-golden", action="store_true", help="write the texts of tests/golden again")


def pytest_configure(config: pytest.Config) -> None:
    """Markers of this suite."""
    config.addinivalue_line("markers", "gpu: runs on a CUDA device, and is skipped where there is none")


@pytest.fixture(scope="session", autouse=True)
def _one_machine() -> Iterator[None]:
    """What depends on the machine is the same everywhere; tests of such a thing pretend a machine of their own."""
    with pytest.MonkeyPatch.context() as patch:
        machine.pretend(patch)
        yield


@pytest.fixture(autouse=True)
def _gpu_where_asked_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU for tests that are marked ``gpu``."""
    if request.node.get_closest_marker("gpu") is not None:
        if not GPU:
            pytest.skip("needs a CUDA device")
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.fixture(autouse=True)
def _registrations_end_with_their_test() -> Iterator[None]:
    """What a test registers and does not take back is gone afterwards."""
    yield
    for kind, operations in list(registered.items()):
        for operation in list(operations):
            Registration(kind, operation).undo()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers whether it runs alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trained networks and photographs that lies beside the checkout on some machines."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (trained networks, photographs), which is not beside this checkout")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_works() -> None:
    """A shell that runs the tests in the background has SIGINT ignored, and Python then leaves it so."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
