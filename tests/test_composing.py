"""Reductions in a row: the plan stays one of the original."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torchvision.models import shufflenet_v2_x0_5

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.sample import resnet

SHAPE = (2, 3, 32, 32)
NETWORKS = {"resnet20": lambda: resnet(20).eval(), "shufflenet": lambda: shufflenet_v2_x0_5().eval()}


@pytest.fixture(params=NETWORKS, scope="module")
def make(request):
    return NETWORKS[request.param]


@pytest.fixture(scope="module")
def networks(make):
    """The original, reduced once, and twice."""
    torch.manual_seed(0)
    net = make()
    once = mbs_fx.reduce(net, example=SHAPE, z=0.8)
    return net, once, mbs_fx.reduce(once, example=SHAPE, z=0.8)


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_factors_multiply_and_go_below_one_half(networks):
    net, once, twice = networks
    first, both = once.meta["mbs"], twice.meta["mbs"]
    own = mbs_fx.plan(mbs_fx.analyze(mbs_fx.trace(once, SHAPE), SHAPE), z=0.8)
    for m, a, b in zip(both.macroblocks, first.macroblocks, own.macroblocks, strict=True):
        assert m.beta == pytest.approx(a.beta * b.beta)
        assert m.redundancy == pytest.approx(1 / m.beta - 1)
        assert m.flops == (a.flops[0], b.flops[1])
    assert min(m.beta for m in both.macroblocks) < 0.55
    assert both.params == (parameters(net), parameters(twice))
    assert both.before == first.before
    assert both.widths == own.widths
    assert any(note.startswith("reduced before: ") for note in both.notes)
    assert "reduced before" in str(both)


def test_the_original_code_the_plan_and_the_weights_give_it_again(make, networks, tmp_path):
    _, _, twice = networks
    mbs_fx.save(twice, tmp_path / "plan.json", tmp_path / "weights.safetensors")
    again = mbs_fx.load(make(), tmp_path / "plan.json", tmp_path / "weights.safetensors")
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(again(x), twice(x))


def test_channels_are_those_of_the_original(networks):
    net, once, twice = networks
    first, both = once.meta["mbs"].channels, twice.meta["mbs"].channels
    for path, kept in both.items():
        assert set(kept) <= set(first[path])
    path = "conv1" if "conv1" in both and isinstance(net.conv1, torch.nn.Conv2d) else "conv1.0"
    assert torch.equal(twice.get_parameter(f"{path}.weight"), net.get_parameter(f"{path}.weight")[list(both[path])])


def test_three_times(networks, make):
    net, _, twice = networks
    thrice = mbs_fx.reduce(twice, example=SHAPE, z=0.8)
    assert thrice.meta["mbs"].params == (parameters(net), parameters(thrice))
    assert len([n for n in thrice.meta["mbs"].notes if n.startswith("reduced before: ")]) == 2
    again = mbs_fx.load(make(), thrice.meta["mbs"], thrice.state_dict())
    assert parameters(again) == parameters(thrice)


def test_modules_in_a_row(make):
    torch.manual_seed(0)
    net = make()
    once = mbs_fx.rewrite(net, mbs_fx.plan(mbs_fx.analyze(mbs_fx.trace(net, SHAPE), SHAPE), z=0.8))
    assert type(once) is type(net)
    twice = mbs_fx.reduce(once, example=SHAPE, z=0.8)
    assert twice.meta["mbs"].params == (parameters(net), parameters(twice))


def test_an_averaged_copy_takes_the_plan_of_the_original(networks):
    _, once, twice = networks
    plan = twice.meta["mbs"]
    made = mbs_fx.rewrite(copy.deepcopy(once), plan).meta["mbs"]
    assert made.widths == plan.widths
    assert made.channels == plan.channels
    assert made.params == plan.params
    for a, b in zip(made.macroblocks, plan.macroblocks, strict=True):
        assert a.beta == pytest.approx(b.beta)
        assert a.widths == b.widths


def test_optimizer_state_follows(networks):
    _, once, twice = networks
    optimizer = torch.optim.SGD(once.parameters(), lr=0.1, momentum=0.9)
    for parameter in once.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    opaque = "initialised fresh" in "".join(twice.meta["mbs"].notes)
    with pytest.warns(UserWarning, match="without optimiser state") if opaque else nullcontext():
        carried = mbs_fx.carry_optimizer(optimizer, once, twice)
    kept = once.meta["mbs"].channels["fc" if "fc" in once.meta["mbs"].channels else "linear"]
    assert len(kept) in (10, 1000)
    assert all(state["momentum_buffer"].shape == parameter.shape for parameter, state in carried.state.items())
    optimizer.zero_grad()


def test_a_channel_that_is_gone_cannot_be_kept(networks):
    _, once, twice = networks
    plan = twice.meta["mbs"]
    path, kept = next((p, k) for p, k in once.meta["mbs"].channels.items() if len(k) < plan.before.get(p, 0))
    gone = min(set(range(plan.before[path])) - set(kept))
    other = replace(plan, channels={**plan.channels, path: (gone, *plan.channels[path][1:])})
    with pytest.raises(MBSError, match=f"{path}: the plan keeps channel {gone} of the original, which this network"):
        mbs_fx.rewrite(once, other)
