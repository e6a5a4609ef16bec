"""Measuring on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from density_helpers import SHAPE, graph, whole
from torch import nn

import mbs_fx
from mbs_fx.density.batches import Batch
from mbs_fx.density.columns import Columns
from mbs_fx.density.counting import nonzeros
from mbs_fx.density.execution import executions
from mbs_fx.density.meter import Meter
from mbs_fx.density.recorded import Recorded

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("batch_size", [4, 7])
def test_a_gpu_counts_what_the_cpu_counts(batch_size: int) -> None:
    """Four batches, so that the third and fourth are replayed from a recording; the last is smaller."""
    gm, images = graph(), torch.randn(4 * batch_size - 1, 3, 16, 16)
    settings: dict[str, Any] = {"batch_size": batch_size, "fast": True, "dtype": torch.float32}
    there, here = whole(gm, images, device="cuda", **settings), whole(gm, images, **settings)
    assert not there.notes
    for name, p in here.p.items():
        assert there.p[name] == pytest.approx(p, abs=1e-3)


def test_images_and_network_on_different_devices() -> None:
    images = torch.randn(12, 3, 16, 16)
    there = whole(graph().cuda(), images, dtype=torch.float32)
    again = whole(graph().cuda(), images.cuda(), dtype=torch.float32)
    assert there.nonzero == again.nonzero


def test_a_recorded_network_gives_what_it_gives_when_run() -> None:
    net = nn.Conv2d(3, 4, 3).cuda().eval()
    recorded = Recorded(net.forward)
    with torch.inference_mode():
        for _ in range(4):
            x = torch.randn(2, 3, 8, 8, device="cuda")
            assert torch.equal(recorded(x), net(x))
    assert len(recorded.recordings) == 1


def test_one_synchronisation_for_all_batches_of_a_check() -> None:
    gm = graph()
    analysis = mbs_fx.analyze(gm, SHAPE)
    columns = Columns.of(analysis)
    meter = Meter(gm, executions(gm, columns, analysis, "cuda", True, None, False), columns, analysis)
    batch = Batch((torch.randn(8, 3, 16, 16),), tuple(range(8)))
    for number in range(2):  # run, and recorded
        meter.run(number, [batch])
    meter.collect()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(2, 6):
            meter.run(number, [batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(meter.collect()) == 4


@pytest.mark.parametrize("dims", [(1, 2, 3), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_counts_are_exact(dims: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(3, 16, 64, 65, device="cuda", dtype=dtype).relu_()
    for order in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(nonzeros(x.contiguous(memory_format=order), dims, signed=False), (x != 0).sum(dims))


def test_a_compiled_graph_counts_the_same() -> None:
    gm = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval())
    images = torch.randn(22, 3, 16, 16)
    settings: dict[str, Any] = {"device": "cuda", "dtype": torch.float32, "batch_size": 4}
    compiled, plain = whole(gm, images, compile=True, **settings), whole(gm, images, fast=True, **settings)
    for name, p in plain.p.items():
        assert compiled.p[name] == pytest.approx(p, abs=1e-3)
