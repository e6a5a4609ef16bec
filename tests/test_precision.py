"""bfloat16 where the hardware is faster at it: capabilities first, timing where they leave it open."""

import pytest
import torch

import mbs_fx
from mbs_fx import sample
from mbs_fx.runtime import precision
from mbs_fx.runtime.precision import Shape, fast_dtype

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A CPU with these capabilities, on which a convolution takes so many seconds in float32 and in bfloat16."""

    def pretend(capabilities, float32=1.0, bfloat16=1.0):
        timed = []
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

        def seconds(shape, dtype):
            timed.append((shape, dtype))
            return bfloat16 if dtype == torch.bfloat16 else float32

        monkeypatch.setattr(precision, "_seconds", seconds)
        precision._measured_faster.cache_clear()
        return timed

    yield pretend
    precision._measured_faster.cache_clear()


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"architecture": "x86_64", "amx_bf16": True}, torch.bfloat16),
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"architecture": "x86_64", "avx512_f": True}, torch.float32),
    ],
)
def test_instructions_decide_on_x86(machine, capabilities, dtype):
    timed = machine(capabilities, float32=1.0, bfloat16=0.1)
    assert fast_dtype(torch.float32, CPU) == dtype
    assert timed == []


@pytest.mark.parametrize(("bfloat16", "dtype"), [(0.5, torch.bfloat16), (0.79, torch.bfloat16), (0.9, torch.float32)])
def test_timing_decides_elsewhere_once(machine, bfloat16, dtype):
    timed = machine({"architecture": "aarch64", "bf16": True}, 1.0, bfloat16)
    shape = Shape(16, 32, 3, 14)
    assert [fast_dtype(torch.float32, CPU, shape) for _ in range(3)] == [dtype] * 3
    assert timed == [(shape, torch.bfloat16), (shape, torch.float32)]


def test_other_types_stay(machine):
    machine({"architecture": "x86_64", "amx_bf16": True})
    assert fast_dtype(torch.float64, CPU) == torch.float64
    assert fast_dtype(torch.float16, CPU) == torch.float16


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_tensor_cores_from_ampere_on(monkeypatch, capability, dtype):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert fast_dtype(torch.float32, torch.device("cuda")) == dtype


@pytest.mark.parametrize("shape", [Shape(3, 8, 7, 224), Shape(2048, 2048, 3, 7), Shape(1, 1, 1, 1)])
def test_any_convolution_can_be_timed(shape):
    assert precision._seconds(shape, torch.bfloat16) > 0


def test_densities_in_bfloat16_agree_within_their_standard_error():
    gm = torch.fx.symbolic_trace(sample.trained())
    images = sample.images()[:200]
    exact = mbs_fx.measure(gm, images, confidence=None, dtype=torch.float32)
    fast = mbs_fx.measure(gm, images, confidence=None, dtype=torch.bfloat16)
    assert all(abs(fast.p[name] - p) < exact.stderr[name] for name, p in exact.p.items())
    analysis = mbs_fx.analyze(gm, images[:1])
    assert mbs_fx.plan(analysis, fast).widths == mbs_fx.plan(analysis, exact).widths
