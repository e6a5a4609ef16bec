"""What a graph does not look into, and inputs by name: in a plan, in a rewritten module, in another process."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from wirings import Net, conv

import mbs_fx
from mbs_fx import MBSError, Plan

SHAPE = (2, 3, 8, 8)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(16, 16)

    def forward(self, x):
        return F.relu(self.a(x))


class ByValue(Block):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else x


class Held(Net):
    block = Block

    def make(self):
        self.held, self.after = self.block(), conv(16, 16)

    def middle(self, x):
        return F.relu(self.after(self.held(x)))


class Decides(Held):
    block = ByValue


@pytest.mark.parametrize(("kind", "leaves"), [(Held, ["held"]), (Held, [Block]), (Decides, [])])
def test_leaves_travel_with_the_plan(kind, leaves, tmp_path):
    torch.manual_seed(0)
    net, x = kind().eval(), torch.randn(SHAPE)
    state = torch.get_rng_state()
    gm = mbs_fx.trace(net, SHAPE, leaves=leaves)
    plan = mbs_fx.plan(mbs_fx.analyze(gm, SHAPE), betas={8: 0.5})
    assert torch.equal(state, torch.get_rng_state())
    assert plan.leaves == Plan.from_json(plan.to_json()).leaves == ("held",)
    assert "held.a" not in plan.widths
    assert (plan.widths["stem.0"], plan.widths["after"]) == (16, 8)
    small = mbs_fx.rewrite(gm, plan)
    assert torch.equal(mbs_fx.rewrite(net, plan)(x), small(x))
    mbs_fx.save(small, tmp_path / "plan.json", tmp_path / "weights.safetensors")
    again = mbs_fx.load(kind().eval(), tmp_path / "plan.json", tmp_path / "weights.safetensors")
    assert torch.equal(again(x), small(x))


def test_a_leaf_of_another_network_is_named():
    plan = mbs_fx.plan(mbs_fx.analyze(mbs_fx.trace(Held().eval(), SHAPE, leaves=["held"]), SHAPE))
    with pytest.raises(MBSError, match="Net has no submodule 'held'"):
        mbs_fx.rewrite(type("Net", (Net,), {"middle": lambda self, x: x})().eval(), plan)


class Named(Net):
    def forward(self, image, *, other, factor=2.0):
        return super().forward(image + factor * other)

    def middle(self, x):
        return x


def test_inputs_that_are_taken_by_name_only(tmp_path):
    net = Named().eval()
    inputs = {"image": torch.randn(SHAPE), "other": torch.randn(SHAPE)}
    gm = mbs_fx.trace(net, inputs)
    small = mbs_fx.rewrite(gm, mbs_fx.plan(mbs_fx.analyze(gm, inputs), betas={8: 0.5}))
    assert small.tail.out_channels == 12
    assert torch.equal(mbs_fx.rewrite(net, small.meta["mbs"])(**inputs), small(**inputs))
    mbs_fx.save(small, tmp_path / "plan.json", tmp_path / "weights.safetensors")
    again = mbs_fx.load(Named().eval(), tmp_path / "plan.json", tmp_path / "weights.safetensors")
    assert torch.equal(again(**inputs), small(**inputs))
