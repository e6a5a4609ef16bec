"""Optimiser state and averaged copies follow the weights."""

import copy

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
