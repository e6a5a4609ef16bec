"""Which integer ratios between widths are kept as designed (rule 3), and which are chance."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import mbs_fx

BETA = 0.75


def widths(net: nn.Module, size: int = 16) -> dict[str, int]:
    """Planned widths at one factor for every macroblock."""
    gm = mbs_fx.trace(net.eval(), (2, 3, size, size))
    analysis = mbs_fx.analyze(gm)
    return dict(mbs_fx.plan(analysis, betas={m.spatial_size: BETA for m in analysis.macroblocks}).widths)


class AttentionGate(nn.Module):
    """The gate of an attention U-Net: 32 channels, then one that weights the pixels of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.theta, self.psi = nn.Conv2d(64, 32, 1), nn.Conv2d(32, 1, 1)
        self.tail = nn.Conv2d(64, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.tail(x * self.psi(F.relu(self.theta(x))).sigmoid()).mean((2, 3))


def test_the_single_channel_of_a_gate_is_no_design_unit() -> None:
    assert widths(AttentionGate()) == {"stem": 48, "theta": 24, "psi": 1, "tail": 10}


class Heads(nn.Module):
    """LPIPS: every map is weighed by a convolution to one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 64), (64, 128), (128, 8)))
        self.heads = nn.ModuleList(nn.Conv2d(i, 1, 1) for i in (64, 128, 8))

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(())
        for one, head in zip(self.maps, self.heads, strict=True):
            x = F.relu(one(x))
            total = total + head(x).square().mean()
        return total


def test_heads_of_one_channel_leave_the_maps_to_their_factor() -> None:
    found = widths(Heads())
    # 64 is 1/2 of 128, and 8 is 1/8 of 64 and 1/16 of 128: 6 x 8 = 48 and 2 x 48 = 96.
    assert [found[f"maps.{i}"] for i in range(3)] == [48, 96, 6]


class ChannelGate(nn.Module):
    """OSNet at a quarter of its width: 16 channels gated by a squeeze to one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 10, 1)
        self.down, self.up = nn.Conv2d(16, 1, 1), nn.Conv2d(1, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.tail(x).mean((2, 3))


def test_a_squeeze_to_one_channel_is_no_design_unit() -> None:
    assert widths(ChannelGate())["stem"] == 12


@pytest.mark.parametrize(("base", "ratio"), [(8, 2), (7, 3), (9, 4), (7, 6), (5, 8)])
def test_designed_ratios_stay(base: int, ratio: int) -> None:
    """An expansion keeps its factor: a multiple of the narrow side, and not its own ceil(beta x w)."""
    net = nn.Sequential(
        nn.Conv2d(3, base, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(base, base * ratio, 1),
        nn.ReLU(),
        nn.Conv2d(base * ratio, 10, 1),
    )
    assert list(widths(net).values()) == [ceil(BETA * base), ratio * ceil(BETA * base), 10]


@pytest.mark.parametrize(("base", "wide"), [(1, 8), (2, 8), (2, 16), (4, 36), (8, 528)])
def test_chance_ratios_do_not(base: int, wide: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, base, 1), nn.ReLU())
    net.extend([nn.Conv2d(base, wide, 1), nn.ReLU(), nn.Conv2d(wide, 10, 1)])
    assert list(widths(net).values()) == [ceil(BETA * w) for w in (wide, base, wide)] + [10]


DESIGNED = {
    "densenet121": {4},  # bottleneck 4 x growth
    "mobilenet_v2": {2, 4, 6},  # 32 before 16, expansions, 320 before 1280
    "efficientnet_b0": {4, 6},
    "resnext50_32x4d": {2},
}


@pytest.mark.parametrize("name", DESIGNED)
def test_the_designed_ratios_of_known_networks(name: str) -> None:
    net = models.get_model(name, weights=None).eval()
    analysis = mbs_fx.analyze(torch.fx.symbolic_trace(net), (2, 3, 64, 64))
    assert {stream.ratio for stream in analysis.streams if stream.base is not None} == DESIGNED[name]
