"""Latency of the network that a plan makes, and plans that keep within one."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.rewriting import latency

SHAPE = (1, 3, 32, 32)


@pytest.fixture
def gm():
    def conv(i, o):
        return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())

    layers = [conv(3, 8), nn.MaxPool2d(2), conv(8, 16), conv(16, 16), nn.MaxPool2d(2), conv(16, 32), conv(32, 32)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    return torch.fx.symbolic_trace(net.eval())


@pytest.fixture
def plan(gm):
    return mbs_fx.plan(mbs_fx.analyze(gm, SHAPE), z=0.3)


def test_it_is_the_network_of_the_plan_that_is_timed(gm, plan):
    seen = []

    def prepare(small):
        def run(x):
            seen.append((small.get_submodule("3.0").out_channels, tuple(x.shape), small.training))
            return small(x)

        return run

    timed = mbs_fx.latency_of(gm, batch=4, repetitions=3, warmup=2, prepare=prepare)
    assert timed(plan) > 0
    assert seen == [(plan.widths["3.0"], (4, 3, 32, 32), False)] * 5


def test_equal_widths_are_timed_once(gm, plan):
    timed = mbs_fx.latency_of(gm, repetitions=3)
    assert timed(plan) == timed(plan)
    assert len(timed.measured) == 1


def test_the_median_counts_and_the_warm_up_does_not(gm, plan, monkeypatch):
    """A clock that moves while the network runs, by so many seconds."""
    now, runs = [0.0], iter([100.0, 5.0, 1.0, 3.0])
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def prepare(small):
        def run(x):
            now[0] += next(runs)

        return run

    assert mbs_fx.latency_of(gm, repetitions=3, warmup=1, prepare=prepare)(plan) == 3000


def test_nothing_changes(gm, plan):
    before = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    state = torch.get_rng_state()
    mbs_fx.latency_of(gm, repetitions=1)(plan)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in gm.state_dict().items())


def test_reduce_within_a_latency(gm):
    loose = mbs_fx.reduce(gm, example=SHAPE, max_latency_ms=1e6)
    assert loose.meta["mbs"].reduction == 0
    assert any(note.startswith("latency ") for note in loose.meta["mbs"].notes)
    with pytest.raises(MBSError, match=r"max_latency_ms = 1e-06: the smallest network .* takes .* ms, the original"):
        mbs_fx.reduce(gm, example=SHAPE, max_latency_ms=1e-6)


def test_the_smallest_that_is_fast_enough(gm):
    # A clock of its own: a millisecond for each million multiply-adds.
    class Clock:
        def __init__(self):
            self.asked = 0

        def __call__(self, plan):
            self.asked += 1
            return plan.flops[1] / 1e6

    clock, analysis = Clock(), mbs_fx.analyze(gm, SHAPE)
    plan = mbs_fx.plan(analysis, max_latency_ms="70%", latency=clock)
    assert plan.widths == mbs_fx.plan(analysis, max_flops="70%").widths
    assert clock.asked < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used"),
        ({"repetitions": 0}, "repetitions = 0"),
        ({"batch": 0}, "batch = 0"),
    ],
)
def test_what_cannot_be_timed(gm, arguments, message):
    with pytest.raises(MBSError, match=message):
        mbs_fx.latency_of(gm, **arguments)


def test_what_is_no_graph_or_has_no_numbers():
    with pytest.raises(MBSError, match="not a traced graph"):
        mbs_fx.latency_of(nn.Conv2d(3, 4, 1))
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with pytest.raises(MBSError, match="no numbers"):
        mbs_fx.latency_of(torch.fx.symbolic_trace(net))


class Clock:
    """Two milliseconds for each million multiply-adds, known to a share."""

    def __init__(self, error):
        self.share = error

    def __call__(self, plan):
        return plan.flops[1] / 5e5

    def error(self, plan):
        return self.share


class OfTheFirst(Clock):
    """The time of the original alone is known badly."""

    def error(self, plan):
        return self.share * (plan.reduction == 0)


def test_a_noisy_machine_is_named(gm):
    analysis = mbs_fx.analyze(gm, SHAPE)
    settled, noisy = (mbs_fx.plan(analysis, max_latency_ms="70%", latency=Clock(e)) for e in (0.0, 0.2))
    assert settled.widths == noisy.widths
    assert not any("too noisy" in note for note in settled.notes)
    assert any("too noisy" in note and "± 20.0%" in note for note in noisy.notes)
    assert any("falls in steps" in note for note in settled.notes)


@pytest.mark.parametrize("share", [True, False])
def test_what_the_original_takes_counts_where_the_budget_is_an_amount(gm, share):
    """A share is one of the original, beside which every candidate is timed."""
    analysis = mbs_fx.analyze(gm, SHAPE)
    whole = mbs_fx.plan(analysis, betas={})
    budget = "70%" if share else 0.7 * whole.flops[0] / 5e5
    plan = mbs_fx.plan(analysis, max_latency_ms=budget, latency=OfTheFirst(0.2))
    assert any("too noisy" in note for note in plan.notes) is not share


def test_every_candidate_is_shown(gm, plan, capsys):
    mbs_fx.latency_of(gm, repetitions=1, progress=True)(plan)
    assert "timed a candidate with" in capsys.readouterr().err


def test_times_are_ratios_to_the_first_network(gm, plan, monkeypatch):
    # The machine slows down tenfold after the first network was timed; the ratio does not see it.
    clock = iter([1.0] * 3 + [10.0, 5.0, 5.0, 10.0, 10.0, 5.0])
    monkeypatch.setattr("mbs_fx.rewriting.latency.Latency._once", lambda self, run, inputs: next(clock))
    latency = mbs_fx.latency_of(gm, repetitions=3, warmup=0)
    full = mbs_fx.plan(mbs_fx.analyze(gm, SHAPE), betas={})
    assert latency(full) == 1e3
    assert latency(plan) == 500  # half of the first, in each of three turns
