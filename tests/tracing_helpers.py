"""A small network to trace, with a hole for what the test is about."""

import torch
from torch import nn

SHAPE = (2, 4, 8, 8)


def images(batch=2, **kwargs):
    return torch.randn(batch, *SHAPE[1:], generator=torch.Generator().manual_seed(1), **kwargs)


def targets(gm, op):
    return [node.target for node in gm.graph.nodes if node.op == op]


class Net(nn.Module):
    """A convolution, then a module or a function."""

    def __init__(self, then=None):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.then = then if isinstance(then, nn.Module) else None
        self.function = None if isinstance(then, nn.Module) else then

    def forward(self, x):
        x = self.conv(x)
        return self.then(x) if self.then is not None else self.function(x)


def asserted(x):
    assert x.shape[1] == 6, f"wrong number of channels in {x.shape}"
    return x + 1
