"""Operations that work along the channels where they do not seem to, against the zeroed original."""

import pytest
import torch
from test_rules import SHAPE, Middle, reduced
from torch import nn
from torch.nn import functional as F
from wirings import conv

import mbs_fx


class LayerNorm1d(nn.LayerNorm):
    """Over the channels of a line."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Axes(Middle):
    def make(self):
        super().make()
        self.tokens = nn.InstanceNorm1d(64, affine=True)
        self.line = LayerNorm1d(16)
        self.one = conv(1, 1)
        self.padding = nn.ConstantPad3d((0, 0, 0, 0, 1, 1), 0.0)


def row_by_index(net, y, x):
    return torch.cat([y.view(2, 8, 2, 8, 8)[:, 3]] * 8, 1) + x


def row_by_select(net, y, x):
    return torch.cat([torch.select(y.view(2, 8, 2, 8, 8), 1, 3)] * 8, 1) + x


def row_by_unbind(net, y, x):
    return torch.cat([y.view(2, 8, 2, 8, 8).unbind(1)[1]] * 8, 1) + x


def plane_pooling_of_lines(net, y, x):
    return F.avg_pool2d(y.flatten(2), (3, 1), 1, (1, 0)).view(2, 16, 8, 8) + x


def line_pooling_of_vectors(net, y, x):
    return F.max_pool1d(y.mean((2, 3)), 3, 1, 1)[:, :, None, None] + x


def padding_in_three_axes(net, y, x):
    return net.padding(y[:, :14]) + x


def statistics_of_tokens(net, y, x):
    return net.tokens(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(2, 16, 8, 8) + x


def maps_one_by_one(net, y, x):
    return net.one(y.reshape(-1, 1, 8, 8)).reshape(2, -1, 8, 8) + x


def maps_one_by_one_by_function(net, y, x):
    return F.conv2d(y.reshape(32, 1, 8, 8), net.one.weight, padding=1).reshape(2, 16, 8, 8) + x


def larger_by_name(net, y, x):
    return torch.max(y, other=x)


EXACT = [
    row_by_index,
    row_by_select,
    row_by_unbind,
    plane_pooling_of_lines,
    line_pooling_of_vectors,
    padding_in_three_axes,
    statistics_of_tokens,
    maps_one_by_one,
    maps_one_by_one_by_function,
    larger_by_name,
]


def made(operation):
    torch.manual_seed(0)
    return type("Made", (Axes,), {"operation": operation})().eval()


@pytest.mark.parametrize("operation", EXACT, ids=lambda operation: operation.__name__)
@pytest.mark.parametrize("beta", [0.7, 0.1])
def test_zeroed_original_equals_reduced(operation, beta):
    _, error = reduced(made(operation), betas={8: beta})
    assert error < 1e-10


def sum_in_einsum(net, y, x):
    return torch.einsum("nchw,nkhw->nkhw", y.sigmoid(), x)


def similarity(net, y, x):
    near = y.sigmoid().flatten(2).transpose(1, 2) @ x.sigmoid().flatten(2)
    return (x.flatten(2) @ near).view(2, 16, 8, 8)


def computed_filters(net, y, x):
    return F.conv2d(y.sigmoid(), net.a.weight.exp(), padding=1)


def computed_matrix(net, y, x):
    return F.linear(y.sigmoid().transpose(1, 3), net.a.weight[:, :, 0, 0].exp()).transpose(1, 3)


def normalised_lines(net, y, x):
    return net.line(y.flatten(2)).view(2, 16, 8, 8) + x


@pytest.mark.parametrize(
    "operation",
    [sum_in_einsum, similarity, computed_filters, computed_matrix, normalised_lines],
    ids=lambda operation: operation.__name__,
)
def test_what_need_not_equal_the_zeroed_original_is_noted(operation):
    net = made(operation)
    assert mbs_fx.analyze(mbs_fx.trace(net, SHAPE), SHAPE).notes
    _, error = reduced(net, betas={8: 0.7})
    assert error > 1e-10


def test_a_product_with_a_parameter_is_exact():
    def product(net, y, x):
        return torch.einsum("nchw,c->nhw", y.sigmoid(), net.vector).unsqueeze(1) + x

    net = made(product)
    assert not mbs_fx.analyze(mbs_fx.trace(net, SHAPE), SHAPE).notes
    _, error = reduced(net, betas={8: 0.7})
    assert error < 1e-10


def test_a_single_channel_that_is_split_off_stays_alone():
    """The query of one channel that weighs keys and values (MobileViTv2)."""

    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.all, self.out = conv(3, 16), conv(16, 33), conv(16, 24)
            self.fc = nn.Linear(24, 5)

        def forward(self, x):
            query, key, value = self.all(F.relu(self.stem(x))).split([1, 16, 16], dim=1)
            weighed = F.relu(value) * (query.sigmoid() * key).mean((2, 3), keepdim=True)
            return self.fc(F.relu(self.out(weighed)).mean((2, 3)))

    torch.manual_seed(0)
    small, error = reduced(Weighed().eval(), betas={(8, 8): 0.5})
    assert small.meta["mbs"].widths == {"stem": 8, "all": 17, "out": 12}
    assert error < 1e-10
