"""A module that counts channels inside a network runs traced code; the network around it keeps its own."""

import copy
import pickle

import pytest
import torch
from torch import nn

import mbs_fx
from mbs_fx import MBSError

SHAPE = (2, 3, 8, 8)


class Attention(nn.Module):
    """Views with a width that it also computes with, so that no value of the attribute gives both."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).view(b, self.heads, 3 * self.dim, h * w).chunk(3, 2)
        weights = ((q * self.dim**-0.5).transpose(-2, -1) @ k).softmax(-1)
        return self.proj((v @ weights.transpose(-2, -1)).reshape(b, self.heads * self.dim, h, w))


class Net(nn.Module):
    """Takes a batch with its labels, too, and gives the loss."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList([Attention(16, 2), Attention(16, 2)])
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        if isinstance(x, dict):
            return nn.functional.cross_entropy(self(x["img"]), x["label"])
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    net = Net().eval()
    small = mbs_fx.reduce(net, example=SHAPE, betas={8: 0.5})
    return small, mbs_fx.rewrite(mbs_fx.trace(net, SHAPE), small.meta["mbs"])


def test_it_computes_what_the_graph_computes_at_any_size(pair):
    small, graph = pair
    assert small.blocks[0].qkv.out_channels < 48
    for shape in (SHAPE, (1, 3, 8, 8), (3, 3, 12, 10)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert torch.equal(small(x), graph(x))
            assert torch.equal(copy.deepcopy(small)(x), graph(x))


def test_the_network_around_it_runs_its_own_code(pair):
    small = copy.deepcopy(pair[0]).train()
    assert "forward" not in vars(small)
    assert "forward" in vars(small.blocks[0])
    loss = small({"img": torch.randn(SHAPE), "label": torch.tensor([0, 1])})
    loss.backward()
    assert small.blocks[0].qkv.weight.grad.abs().sum() > 0


def test_it_says_so(pair):
    small = pair[0]
    assert small.meta["mbs"].notes[-1] == (
        "blocks.0 (Attention) and 1 more: the code counts channels, so the small one runs traced code instead, and "
        "cannot be pickled"
    )
    with pytest.raises(MBSError, match="Attention cannot be pickled"):
        pickle.dumps(small)


class Points(nn.Module):
    """As many rows as there are large numbers, so that only values tell the size."""

    def forward(self, x):
        return x[x[:, :1].expand_as(x) > 0.1]


def test_outputs_of_which_values_tell_the_size():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1), Points()).eval()
    small = mbs_fx.reduce(net, example=SHAPE, widths={"0": 8})
    graph = mbs_fx.rewrite(mbs_fx.trace(net, SHAPE), small.meta["mbs"])
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(small(x), graph(x))
