"""Networks that their class builds from a configuration, as those of transformers are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mbs_fx

SHAPE = (2, 3, 8, 8)


class Config:
    def __init__(self, hidden_sizes=(16, 24), embedding_size=16, depth=2, multiplier=2):
        self.hidden_sizes, self.embedding_size = list(hidden_sizes), embedding_size
        self.depth, self.multiplier = depth, multiplier


class Built(nn.Module):
    """Its widths are those of the configuration, but for a hidden one that is a multiple."""

    config_class = Config

    def __init__(self, config):
        super().__init__()
        self.config = config
        first, last = config.hidden_sizes
        self.stem = nn.Conv2d(3, config.embedding_size, 3, padding=1)
        self.first = nn.Conv2d(config.embedding_size, first, 3, padding=1)
        self.widen = nn.Conv2d(first, first * config.multiplier, 1)
        self.last = nn.Conv2d(first * config.multiplier, last, 3, padding=1, stride=2)
        self.fc = nn.Linear(last, 10)

    def forward(self, x):
        x = self.first(self.stem(x).relu()).relu()
        return self.fc(self.last(self.widen(x).relu()).relu().mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Built(Config()).eval()


def test_the_class_builds_the_small_network_from_its_configuration(net):
    widths = {"stem": 8, "first": 10, "widen": 20, "last": 14}
    small = mbs_fx.reduce(net, example=SHAPE, widths=widths)
    assert (small.config.hidden_sizes, small.config.embedding_size, small.config.depth) == ([10, 14], 8, 2)
    again = Built(copy.deepcopy(small.config)).eval()
    again.load_state_dict(small.state_dict())
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
    assert net.config.hidden_sizes == [16, 24]


def test_widths_that_no_configuration_says_are_noted(net):
    small = mbs_fx.reduce(net, example=SHAPE, widths={"widen": 25})
    assert small.config.hidden_sizes == [16, 24]
    assert any("no Config says those of the small one" in note for note in small.meta["mbs"].notes)


def test_a_configuration_of_the_same_widths_stays(net):
    small = mbs_fx.reduce(net, example=SHAPE, betas={})
    assert not any("config" in note for note in small.meta["mbs"].notes)
