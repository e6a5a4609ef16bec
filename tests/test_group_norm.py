"""Group normalisation over concatenations whose parts are no whole groups, as in the U-Nets of diffusion models."""

from __future__ import annotations

import copy

import pytest
import torch
from proof import difference, widths_hold, zeroed
from torch import Tensor, nn
from torch.nn import functional as F

import mbs_fx

SHAPE = (2, 3, 16, 16)
GROUPS = 8


class Unit(nn.Module):
    """Norm, convolution, norm, convolution, and a shortcut."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.n1, self.c1 = nn.GroupNorm(GROUPS, inp), nn.Conv2d(inp, out, 3, padding=1)
        self.n2, self.c2 = nn.GroupNorm(GROUPS, out), nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(inp, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.c2(F.silu(self.n2(self.c1(F.silu(self.n1(x))))))


class UNet(nn.Module):
    """The way up normalises 96 = 64 + 32 channels in 8 groups of 12, where 64 and 32 are no multiples of 12."""

    def __init__(self, last: int = 32) -> None:
        super().__init__()
        self.enter, self.first = nn.Conv2d(3, last, 3, padding=1), Unit(last, last)
        self.down, self.deep = Unit(last, 64), Unit(128, 64)
        self.up, self.leave = Unit(64 + last, last), nn.Conv2d(last, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(self.enter(x))
        b = self.down(F.avg_pool2d(a, 2))
        b = self.deep(torch.cat([b, b.flip(2)], 1))
        return self.leave(self.up(torch.cat([F.interpolate(b, scale_factor=2.0), a], 1)))


class Kept(nn.Module):
    """A group normalisation that looks at the kept channels alone, and leaves the others zero."""

    def __init__(self, norm: nn.GroupNorm, kept: tuple[int, ...]) -> None:
        super().__init__()
        self.norm, self.kept = norm, list(kept)
        own = norm.num_channels // norm.num_groups
        assert {sum(c // own == group for c in kept) for group in range(norm.num_groups)} == {
            len(kept) // norm.num_groups
        }

    def forward(self, x: Tensor) -> Tensor:
        norm, held = self.norm, x[:, self.kept]
        result = torch.zeros_like(x)
        result[:, self.kept] = F.group_norm(held, norm.num_groups, norm.weight[self.kept], norm.bias[self.kept])
        return result


@pytest.mark.parametrize(("beta", "share"), [(0.75, 0.75), (0.5, 0.5), (0.7, 0.75)])
def test_every_nth_channel_goes(beta: float, share: float) -> None:
    """Groups of 4, 8, 12 and 16 channels: every fourth fits all of them."""
    torch.manual_seed(0)
    net = UNet().eval().double()
    gm = mbs_fx.trace(net, SHAPE)
    analysis = mbs_fx.analyze(gm)
    assert not any(m.segments for m in analysis.macroblocks)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: beta for m in analysis.macroblocks})
    small = mbs_fx.rewrite(gm, plan)
    assert widths_hold(small, plan) == ""
    assert plan.widths["first.c1"] == 32 * share
    made = small.meta["mbs"]
    assert not any("fresh" in note for note in made.notes)
    big = copy.deepcopy(zeroed(gm, made))
    for path, module in list(big.named_modules()):
        if isinstance(module, nn.GroupNorm):
            big.set_submodule(path, Kept(module, made.channels[path]))
    x = torch.randn(SHAPE, dtype=torch.float64)
    with torch.no_grad():
        assert difference(big(x), small(x)) < 1e-9


def test_where_only_the_whole_fits_the_width_stays_with_a_reason() -> None:
    """40 channels in groups of 5, and 104 in groups of 13, beside others in groups of 8."""
    gm = mbs_fx.trace(UNet(40).eval(), SHAPE)
    analysis = mbs_fx.analyze(gm)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.75 for m in analysis.macroblocks})
    assert plan.widths["first.c2"] == 40
    assert "group normalisations" in plan.kept["first.c2"]
    mbs_fx.rewrite(gm, plan)
