"""A convolutional attention that cuts its heads by numbers of its own keeps its class when it is narrowed."""

from __future__ import annotations

import pickle

import torch
from torch import Tensor, nn

import mbs_fx


class Attention(nn.Module):
    """``head_dim`` and ``key_dim`` are the width of no layer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = dim // heads
        self.key_dim = self.head_dim // 2
        self.scale = self.key_dim**-0.5
        self.qkv = nn.Conv2d(dim, dim + 2 * self.key_dim * heads, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        cut = [self.key_dim, self.key_dim, self.head_dim]
        q, k, v = self.qkv(x).view(b, self.num_heads, sum(cut), h * w).split(cut, dim=2)
        weights = ((q * self.scale).transpose(-2, -1) @ k).softmax(-1)
        return self.proj((v @ weights.transpose(-2, -1)).reshape(b, c, h, w))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.SiLU())
        self.attention = Attention(32, 2)
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.attention(x))


def test_numbers_of_the_code_are_found_among_attributes() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    gm = mbs_fx.trace(model, (2, 3, 16, 16))
    analysis = mbs_fx.analyze(gm)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.75 for m in analysis.macroblocks})
    small = mbs_fx.rewrite(model, plan)
    # 32 channels in 2 heads of 16 values and 8 keys: 24 channels, 12 values, 6 keys.
    assert (small.attention.num_heads, small.attention.head_dim, small.attention.key_dim) == (2, 12, 6)
    x = torch.randn(1, 3, 24, 16)
    with torch.no_grad():
        assert torch.equal(small(x), mbs_fx.rewrite(gm, plan)(x))
    assert isinstance(pickle.loads(pickle.dumps(small)), Net)
