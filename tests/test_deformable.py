"""torchvision's deformable convolution, as a module and as a function: counted, cut, and its offsets kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from proof import difference, zeroed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import DeformConv2d, deform_conv2d

import mbs_fx

SHAPE = (2, 3, 16, 16)


class Net(nn.Module):
    """A convolution that looks where another one says, between two plain ones."""

    def __init__(self, groups: int = 1, masked: bool = True) -> None:
        super().__init__()
        self.masked, self.stem = masked, nn.Conv2d(3, 16, 3, padding=1)
        self.where = nn.Conv2d(16, 27 if masked else 18, 3, padding=1)
        self.deform = DeformConv2d(16, 16 if groups == 16 else 32, 3, padding=1, groups=groups)
        self.norm, self.head = nn.BatchNorm2d(self.deform.out_channels), nn.Linear(self.deform.out_channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        found = self.where(x)
        x = self.looked(x, found[:, :18], found[:, 18:].sigmoid() if self.masked else None)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))

    def looked(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        return self.deform(x, offset, mask)


class Functional(Net):
    """Borrows the weights of a plain convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.deform = nn.Conv2d(16, 32, 3, padding=1, stride=2)

    def looked(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        every_other = offset[:, :, ::2, ::2], None if mask is None else mask[:, :, ::2, ::2]
        layer = self.deform
        return deform_conv2d(x, every_other[0], layer.weight, layer.bias, (2, 2), (1, 1), mask=every_other[1])


class Borrowed(Net):
    """A plain depthwise convolution, called as a function with what the layer says of itself."""

    def __init__(self) -> None:
        super().__init__(groups=16)
        self.deform = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x: Tensor) -> Tensor:
        x, layer = F.relu(self.stem(x)), self.deform
        x = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


NETS = {
    "masked": Net,
    "without a mask": lambda: Net(masked=False),
    "grouped": lambda: Net(groups=4),
    "depthwise": lambda: Net(groups=16),
    "function": Functional,
}


@pytest.mark.parametrize("name", NETS)
def test_a_deformable_convolution_is_a_convolution(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net: Any = NETS[name]().eval()
    gm = mbs_fx.trace(net, SHAPE)
    analysis = mbs_fx.analyze(gm)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.5 for m in analysis.macroblocks})
    assert any("looks where its offsets say" in note for note in analysis.notes)
    widths = {"stem": 8, "where": len(net.where.weight), "deform": len(net.deform.weight) // 2}
    assert {path.removesuffix(".weight"): width for path, width in plan.widths.items()} == widths
    assert list(plan.kept) == ["where", "head"]
    small = mbs_fx.rewrite(gm, plan)
    assert sum(p.numel() for p in small.parameters()) == plan.params[1]
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert difference(zeroed(gm, small.meta["mbs"])(x), small(x)) < 1e-5
        module = mbs_fx.rewrite(net, small.meta["mbs"])
        assert difference(module(x), small(x)) < 1e-6
        assert torch.equal(mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={}))(x), gm(x))
    assert len(module.deform.weight) == module.deform.out_channels
    mbs_fx.save(small, tmp_path / "plan.json", tmp_path / "weights.safetensors")
    assert torch.equal(
        mbs_fx.load(NETS[name]().eval(), tmp_path / "plan.json", tmp_path / "weights.safetensors")(x), small(x)
    )
    small.train()
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


class Plain(Net):
    """The same with offsets of zero and without a mask."""

    def looked(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        return F.conv2d(x, self.deform.weight, self.deform.bias, padding=1)


def test_a_layer_whose_weight_a_function_takes_counts_its_channels() -> None:
    net = Borrowed().eval()
    analysis = mbs_fx.analyze(mbs_fx.trace(net, SHAPE))
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.5 for m in analysis.macroblocks})
    small: Any = mbs_fx.rewrite(net, plan)
    assert (small.deform.in_channels, small.deform.out_channels, small.deform.groups) == (8, 8, 8)
    assert not any("traced code" in note for note in small.meta["mbs"].notes)


def test_cost_and_field_are_those_of_the_plain_convolution() -> None:
    analysis = mbs_fx.analyze(mbs_fx.trace(Net().eval(), SHAPE))
    with FlopCounterMode(display=False) as counter:
        Plain()(torch.randn(1, *SHAPE[1:]))
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert 2 * sum(conv.flops for conv in analysis.convs) == counted
    plain = mbs_fx.analyze(mbs_fx.trace(Plain().eval(), SHAPE))
    field = {conv.target.removesuffix(".weight"): conv.receptive_field for conv in plain.convs}
    assert {conv.target.removesuffix(".weight"): conv.receptive_field for conv in analysis.convs} == field
