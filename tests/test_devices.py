"""Devices by name, on machines with and without GPUs."""

import pytest
import torch

from mbs_fx import MBSError
from mbs_fx.runtime.devices import own, usable


@pytest.fixture
def gpus(monkeypatch):
    """A machine with so many GPUs; one of several processes where ``local`` is given."""

    def pretend(count, local=None):
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        if local is not None:
            monkeypatch.setenv("LOCAL_RANK", str(local))

    return pretend


@pytest.mark.parametrize(
    ("count", "local", "name", "device"),
    [
        (0, None, None, "cpu"),
        (0, 1, None, "cpu"),
        (4, None, None, "cuda"),
        (4, 2, None, "cuda:2"),
        (4, 2, "cuda", "cuda:2"),
        (4, 2, "cuda:1", "cuda:1"),
        (4, 2, "cpu", "cpu"),
        (1, 3, None, "cuda:0"),  # a launcher that shows each process one GPU
    ],
)
def test_no_number_is_the_gpu_of_this_process(gpus, count, local, name, device):
    gpus(count, local)
    assert own(name) == torch.device(device)


@pytest.mark.parametrize("name", ["gpu", "cuda:77"])
def test_what_is_no_device(name):
    with pytest.raises(MBSError, match=f"device '{name}' cannot be used"):
        usable(name)
