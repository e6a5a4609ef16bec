"""Predicted costs against the networks that plans make."""

import planning_helpers as nets
import pytest
import torch
from torch import nn

import mbs_fx

SMALL = {
    "resnet20": (1, 3, 32, 32),
    "mobilenet_v2": (1, 3, 64, 64),
    "shufflenet_v2_x0_5": (1, 3, 64, 64),
    "densenet121": (1, 3, 64, 64),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("z", [0.3, 0.8])
def test_a_plan_costs_what_its_network_costs(name, z):
    gm = nets.graph(name)
    plan = mbs_fx.plan(mbs_fx.analyze(gm, SMALL[name]), z=z)
    small = mbs_fx.rewrite(gm, plan)
    assert plan.params[1] == sum(p.numel() for p in small.parameters())
    assert plan.model_bytes[1] == sum(t.numel() * t.element_size() for t in small.state_dict().values())
    analysis = mbs_fx.analyze(small, SMALL[name])
    again = mbs_fx.plan(analysis, betas={})
    assert again.params[0] == plan.params[1]
    assert again.flops[0] == sum(conv.flops for conv in analysis.convs) == plan.flops[1]
    assert again.model_bytes[0] == plan.model_bytes[1]
    assert again.activation_bytes[0] == plan.activation_bytes[1]


class Held(nn.Module):
    """Two convolutions and a shortcut around the second."""

    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 4, 1)
        self.register_buffer("scratch", torch.zeros(7), persistent=False)

    def forward(self, x):
        x = self.bn(self.a(x)).relu()
        return self.c((x + self.b(x)).relu())


def test_feature_maps_at_the_moment_when_they_are_most():
    # 10 x 10 pixels of 4 bytes: 400 bytes per channel. Input 3; after a: 8, batch norm and ReLU in its place.
    # b: 8 in, 8 out, both held for the sum: 16. The sum takes the place of one; c: 8 in, 4 out. The most is 16.
    plan = mbs_fx.plan(mbs_fx.analyze(torch.fx.symbolic_trace(Held()), (1, 3, 10, 10)), betas={10: 0.5})
    assert plan.activation_bytes == (16 * 400, 8 * 400)


def test_feature_maps_are_of_one_image_whatever_the_example():
    plans = [mbs_fx.plan(mbs_fx.analyze(torch.fx.symbolic_trace(Held()), (n, 3, 10, 10)), betas={}) for n in (1, 5)]
    assert plans[0].activation_bytes == plans[1].activation_bytes


def test_bytes_follow_the_type_of_the_network():
    # a: 3*8*9+8 = 224, batch norm 16 and 16 statistics, b: 8*8*9+8 = 584, c: 8*4+4 = 36 numbers; one int64 counter.
    for kind, size in ((torch.float32, 4), (torch.float16, 2)):
        plan = mbs_fx.plan(mbs_fx.analyze(torch.fx.symbolic_trace(Held().to(kind)), (1, 3, 10, 10)), betas={})
        assert plan.model_bytes[0] == (224 + 16 + 16 + 584 + 36) * size + 8
        assert plan.activation_bytes[0] == 16 * 100 * size


class Views(nn.Module):
    """A split whose halves live on, one of them longer than the whole."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x):
        left, right = self.a(x).chunk(2, 1)
        return self.b(left * right.sigmoid())


def test_parts_of_a_split_are_views():
    # 100 pixels of 4 bytes. a: 3 in, 8 out. The gate holds the 8 and makes 4 and then 4 more: 16, at b 4 in, 16 out.
    plan = mbs_fx.plan(mbs_fx.analyze(torch.fx.symbolic_trace(Views()), (1, 3, 10, 10)), betas={})
    assert plan.activation_bytes[0] == 20 * 400
