"""Two networks side by side: what is run, what is said, what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.results.speed import Bench, Spread, Timing


@pytest.fixture(scope="module")
def pair():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    return net, mbs_fx.reduce(net, example=(1, 3, 16, 16), betas={14: 0.5, 12: 0.5})


def test_rows_are_what_was_asked_for(pair, monkeypatch):
    monkeypatch.setattr("mbs_fx.benchmarking.bench.BLOCK", 1e-4)
    net, small = pair
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = mbs_fx.bench(net, small, batch_sizes=(1, 3), threads=1, repetitions=3)
    assert [(t.backend, t.batch, t.threads) for t in found.timings] == [("eager", 1, 1), ("eager", 3, 1)]
    plan = small.meta["mbs"]
    assert found.timings[1].memory == tuple(
        plan.model_bytes[i] + 3 * plan.activation_bytes[i] for i in (0, 1)
    )  # three images
    assert all(0 < t.ratio.low <= t.ratio.median <= t.ratio.high for t in found.timings)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert json.loads(found.to_json())["timings"][0]["batch"] == 1


def test_networks_without_a_plan_need_an_example(pair, monkeypatch):
    monkeypatch.setattr("mbs_fx.benchmarking.bench.BLOCK", 1e-4)
    net, _ = pair
    found = mbs_fx.bench(net, net, (1, 3, 16, 16), batch_sizes=[2], repetitions=1)
    assert found.timings[0].memory is None
    with pytest.raises(MBSError, match="carries no plan, so the input is not known"):
        mbs_fx.bench(net, net)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_onnxruntime(pair, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    monkeypatch.setattr("mbs_fx.benchmarking.bench.BLOCK", 1e-4)
    found = mbs_fx.bench(*pair, batch_sizes=[1], threads=1, repetitions=1, backends=["onnxruntime"])
    assert found.timings[0].backend == "onnxruntime"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"backends": ["tensorrt"]}, "backend 'tensorrt': choose from eager, compile, onnxruntime"),
        ({"batch_sizes": [0]}, "batch_sizes"),
        ({"repetitions": 0}, "repetitions"),
    ],
)
def test_what_cannot_be_timed(pair, arguments, message):
    with pytest.raises(MBSError, match=message):
        mbs_fx.bench(*pair, **arguments)


def test_networks_that_do_not_run(pair):
    net, _ = pair
    with pytest.raises(MBSError, match="bench: small is a str: give the network itself"):
        mbs_fx.bench(net, "small.json")
    with pytest.raises(
        MBSError, match=r"the small network fails in eager on inputs of shape \(1, 3, 16, 16\)"
    ) as caught:
        mbs_fx.bench(net, nn.Sequential(nn.Conv2d(4, 4, 1)), (1, 3, 16, 16), batch_sizes=[1])
    assert "\n" not in str(caught.value)


def test_a_runtime_that_is_absent(pair, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MBSError, match="needs onnxruntime and onnxscript: pip install onnxruntime onnxscript"):
        mbs_fx.bench(*pair, backends=["onnxruntime"])


def test_the_table():
    spread = Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert spread == Spread(3.0, 2.0, 4.0)
    text = str(
        Bench((Timing("eager", 8, 2, spread, spread, Spread(1.0, 1.0, 1.0), (3_000_000, 1_500_000)),), "CPU", "m", "v")
    )
    assert "3 (2 to 4)" in text
    assert "3.0 → 1.5" in text


class Watch:
    """Stands for torch's timer: the seconds of each run of the two networks, in the order of the calls."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, statement, **settings):
        return self

    def timeit(self, number):
        return SimpleNamespace(mean=next(self.seconds))


def slowed(ratios):
    """Times of a network and of one that is ratio times as fast, while the machine gets slower and slower."""
    yield from (1.0, 1.0)  # how long a run is
    for turn, ratio in enumerate(ratios):
        pair = (1.0 + turn, (1.0 + turn) / ratio)
        yield from pair if turn % 2 == 0 else pair[::-1]


def test_turns_end_when_the_ratio_is_settled(pair, monkeypatch):
    monkeypatch.setattr("torch.utils.benchmark.Timer", Watch(slowed([1.0, 3.0, 2.0, *[2.0] * 6])))
    found = mbs_fx.bench(*pair, batch_sizes=[1], repetitions=3)
    assert found.timings[0].turns == 6  # the quartiles of six lie at 2
    assert found.timings[0].ratio.median == 2
    assert found.timings[0].error == 0
    assert "too noisy" not in str(found)


def test_turns_end_when_they_take_too_long(pair, monkeypatch):
    monkeypatch.setattr("torch.utils.benchmark.Timer", Watch(slowed([1.0, 3.0, 2.0])))
    monkeypatch.setattr("mbs_fx.benchmarking.bench.LONGEST", 0.0)
    assert mbs_fx.bench(*pair, batch_sizes=[1], repetitions=3).timings[0].turns == 3


def test_a_noisy_machine_is_named(pair, monkeypatch):
    monkeypatch.setattr("torch.utils.benchmark.Timer", Watch(slowed([1.0, 3.0, 2.0] * 64)))
    found = mbs_fx.bench(*pair, batch_sizes=[1], repetitions=3)
    assert found.timings[0].turns == 192
    assert f"too noisy: ratios are known to ± {found.timings[0].error:.1%}" in str(found)
    assert json.loads(found.to_json())["timings"][0]["turns"] == 192
