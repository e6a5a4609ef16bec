"""Optimiser state and averaged copies follow the weights."""

import copy

import pytest
import torch

import mbs_fx
from mbs_fx.sample import resnet


def trained_a_little(net, make):
    optimizer = make(net.parameters())
    net.train()
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    net.eval()
    return optimizer


def test_momentum_is_sliced_like_the_weight():
    torch.manual_seed(0)
    net = resnet(20)
    optimizer = trained_a_little(net, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    gm = mbs_fx.trace(net, (2, 3, 32, 32))
    small = mbs_fx.reduce(gm, example=(1, 3, 32, 32))
    carried = mbs_fx.carry_optimizer(optimizer, gm, small)
    kept = torch.tensor(small.meta["mbs"].channels["layer3.0.conv1"])
    inputs = torch.tensor(small.meta["mbs"].channels["layer2.2.conv2"])
    momentum = optimizer.state[net.layer3[0].conv1.weight]["momentum_buffer"]
    new = carried.state[small.get_parameter("layer3.0.conv1.weight")]["momentum_buffer"]
    assert torch.equal(new, momentum[kept][:, inputs])
    assert carried.param_groups[0]["momentum"] == 0.9
    small.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    carried.step()


def test_adam_state_is_carried():
    net = resnet(20)
    optimizer = trained_a_little(net, torch.optim.AdamW)
    gm = mbs_fx.trace(net, (2, 3, 32, 32))
    small = mbs_fx.reduce(gm, example=(1, 3, 32, 32))
    carried = mbs_fx.carry_optimizer(optimizer, gm, small)
    for parameter in small.parameters():
        assert carried.state[parameter]["exp_avg_sq"].shape == parameter.shape
        assert float(carried.state[parameter]["step"]) == 2


def test_an_averaged_copy_keeps_the_same_channels():
    net = resnet(20).eval()
    average = copy.deepcopy(net)
    with torch.no_grad():
        for p in average.parameters():
            p.mul_(torch.rand_like(p))
    small = mbs_fx.reduce(net, example=(1, 3, 32, 32))
    other = mbs_fx.rewrite(mbs_fx.trace(average), small.meta["mbs"])
    assert other.meta["mbs"].channels == small.meta["mbs"].channels
    kept = torch.tensor(small.meta["mbs"].channels["layer3.0.bn1"])
    assert torch.equal(other.get_parameter("layer3.0.bn1.weight"), average.layer3[0].bn1.weight[kept])


def test_a_module_takes_the_place_of_its_graph():
    net = resnet(20)
    optimizer = trained_a_little(net, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    small = mbs_fx.reduce(net, example=(1, 3, 32, 32))
    carried = mbs_fx.carry_optimizer(optimizer, net, small)
    kept = torch.tensor(small.meta["mbs"].channels["layer3.0.bn1"])
    momentum = optimizer.state[net.layer3[0].bn1.weight]["momentum_buffer"]
    assert torch.equal(carried.state[small.layer3[0].bn1.weight]["momentum_buffer"], momentum[kept])


def test_factored_state_is_sliced_on_the_axes_that_it_has():
    net = resnet(20)
    optimizer = trained_a_little(net, torch.optim.Adafactor)
    small = mbs_fx.reduce(net, example=(1, 3, 32, 32))
    carried = mbs_fx.carry_optimizer(optimizer, net, small)
    kept = torch.tensor(small.meta["mbs"].channels["layer3.0.conv1"])
    inputs = torch.tensor(small.meta["mbs"].channels["layer2.2.conv2"])
    rows = optimizer.state[net.layer3[0].conv1.weight]["row_var"]  # (64, 32, 3, 1)
    assert torch.equal(carried.state[small.layer3[0].conv1.weight]["row_var"], rows[kept][:, inputs])
    small.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    carried.step()


def test_state_of_another_shape_is_left_out_and_said():
    net = resnet(20)
    optimizer = trained_a_little(net, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    weight = net.layer3[0].conv1.weight
    optimizer.state[weight]["exp_avg_sq_row"] = torch.zeros(weight.shape[:-1])
    small = mbs_fx.reduce(net, example=(1, 3, 32, 32))
    with pytest.warns(UserWarning, match=r"without optimiser state: layer3.0.conv1.weight$"):
        carried = mbs_fx.carry_optimizer(optimizer, net, small)
    assert small.layer3[0].conv1.weight not in carried.state
