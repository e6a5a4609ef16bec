"""Rules of the label pass against the zeroed original: arguments by name, and forms of operations that were missed."""

import numpy as np
import pytest
import torch
from proof import difference, random_inputs, widths_hold, zeroed
from torch import nn
from torch.nn import functional as F
from wirings import Net, conv

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.channels.labels import FROZEN, along

SHAPE = (2, 3, 8, 8)


class Middle(Net):
    """A convolution before the operation in question, and a vector per channel."""

    def make(self):
        self.a, self.vector = conv(16, 16), nn.Parameter(torch.rand(16) + 0.5)
        self.filters = nn.Parameter(torch.randn(16, 1, 3, 3))

    def middle(self, x):
        return self.operation(self.a(x), x)


def named_convolution(net, y, x):
    return F.relu(input=F.conv2d(input=F.pad(input=y, pad=(1, 1, 1, 1)), weight=net.tail.weight[:16, :16]))


def named_depthwise(net, y, x):
    return F.conv2d(input=y, weight=net.filters, padding=1, groups=16)


def named_concatenation(net, y, x):
    return torch.cat(tensors=[y, x], dim=1).view(y.shape[0], 2, -1, 8, 8).sum(dim=1)


def named_reshapes(net, y, x):
    y = torch.permute(input=torch.flatten(input=y, start_dim=2), dims=(0, 2, 1))
    y = torch.transpose(input=y, dim0=1, dim1=2)
    return torch.squeeze(input=torch.unsqueeze(input=torch.reshape(input=y, shape=(-1, 16, 8, 8)), dim=1), dim=1)


def named_parts(net, y, x):
    first, _ = torch.split(tensor=y, split_size_or_sections=[6, 10], dim=1)
    left, right = torch.chunk(input=y, chunks=2, dim=1)
    narrow = torch.narrow(input=y, dim=1, start=6, length=10)
    return torch.cat((first, narrow), 1) + torch.cat((left * right.sigmoid(), right), 1)


def named_moves(net, y, x):
    y = torch.roll(input=torch.flip(input=y, dims=(1,)), shifts=3, dims=1)
    y = F.pixel_unshuffle(input=F.pixel_shuffle(input=y, upscale_factor=2), downscale_factor=2)
    return torch.repeat_interleave(input=y.mean(dim=(2, 3), keepdim=True), repeats=8, dim=3).expand(-1, -1, 8, -1)


def named_products(net, y, x):
    mixed = F.linear(input=y.transpose(1, 3), weight=net.fc.weight[:, :16].T @ net.fc.weight[:, :16]).transpose(1, 3)
    flat = y.flatten(2)
    return mixed + torch.bmm(
        input=flat, mat2=torch.softmax(input=torch.matmul(input=flat.mT, other=flat), dim=-1)
    ).view_as(y)


def named_norms(net, y, x):
    mean, var = torch.zeros_like(input=net.vector), net.vector
    y = F.batch_norm(input=y, running_mean=mean, running_var=var, weight=net.vector)
    return F.prelu(input=F.instance_norm(input=y, weight=net.vector, bias=net.vector), weight=net.vector)


def named_reductions(net, y, x):
    gate = torch.sum(input=y, dim=(2, 3), keepdim=True) + torch.amax(input=y, dim=(2, 3), keepdim=True)
    pooled = F.interpolate(input=F.max_pool2d(input=y, kernel_size=2), scale_factor=2)
    return F.glu(input=torch.cat((gate * pooled, y), 1), dim=1)


def groups_of_one(net, y, x):
    return F.group_norm(F.group_norm(y, 16), num_groups=16, weight=net.vector)


def groups_by_size(net, y, x):
    return F.conv2d(y, net.filters, padding=1, groups=y.shape[1])


def instance_norm(net, y, x):
    return F.instance_norm(y, None, None, net.vector, net.vector)


def sampled(net, y, x):
    grid = y.view(2, 8, 2, 8, 8)[:, 0].permute(0, 2, 3, 1).tanh()
    return F.grid_sample(x, grid, align_corners=False)


def sampled_by_convolution(net, y, x):
    grid = F.conv2d(y, net.tail.weight[:2, :16], padding=1).permute(0, 2, 3, 1).tanh()
    return F.grid_sample(x, grid, align_corners=False)


def tiled(net, y, x):
    return y.mean((2, 3), keepdim=True).tile(8, 8) + torch.tile(y, (2, 1, 1)).view(-1, 2, 16, 8, 8).sum(1)


def norm_over_space(net, y, x):
    return x * y.norm(2, (2, 3), keepdim=True) * torch.norm(y, p=1, dim=(2, 3), keepdim=True)


def norm_over_channels(net, y, x):
    return x * y.norm(2, 1, keepdim=True)


def joined_chunks(net, y, x):
    return torch.cat(y.chunk(2, 1), dim=1) + torch.cat(tensors=torch.split(x, [6, 10], 1), dim=1)


def stacked_parts(net, y, x):
    halves = torch.stack(y.view(-1, 2, 8, 8, 8).unbind(1), 1).sum(1)
    return torch.cat([halves, halves], 1) + torch.stack(torch.chunk(x, 2, 1), dim=2).flatten(1, 2)


def as_another(net, y, x):
    pooled = y.mean((2, 3), keepdim=True)
    return pooled.expand_as(x) + y.flatten(2).view_as(x).type_as(net.tail.weight)


def softmax_of_three_axes(net, y, x):
    return F.gumbel_softmax(y, 1.0, dim=-1) * 0 + x.flatten(2).softmax(-1).view_as(y)


EXACT = [
    named_convolution,
    named_depthwise,
    named_concatenation,
    named_reshapes,
    named_parts,
    named_moves,
    named_products,
    named_norms,
    named_reductions,
    groups_of_one,
    groups_by_size,
    instance_norm,
    sampled,
    sampled_by_convolution,
    tiled,
    norm_over_space,
    norm_over_channels,
    joined_chunks,
    stacked_parts,
    as_another,
    softmax_of_three_axes,
]


def reduced(net, **wanted):
    """The reduced network, and how far it is from the original with the removed channels zeroed."""
    gm = mbs_fx.trace(net.double(), SHAPE)
    analysis = mbs_fx.analyze(gm, SHAPE)
    plan = mbs_fx.plan(analysis, **(wanted or {"betas": {m.spatial_size: 0.7 for m in analysis.macroblocks}}))
    small = mbs_fx.rewrite(gm, plan)
    x = random_inputs(gm, plan, torch.float64)
    assert widths_hold(small, plan) == ""
    assert sum(p.numel() for p in small.parameters()) == plan.params[1] < plan.params[0]
    with torch.no_grad():
        assert difference(mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={}))(*x), net(*x)) == 0
        assert difference(small(*x), mbs_fx.rewrite(net, plan)(*x)) < 1e-10
        return small, difference(zeroed(gm, small.meta["mbs"])(*x), small(*x))


@pytest.mark.parametrize("operation", EXACT, ids=lambda operation: operation.__name__)
def test_zeroed_original_equals_reduced(operation):
    torch.manual_seed(0)
    _, error = reduced(type("Made", (Middle,), {"operation": operation})().eval())
    assert error < 1e-10


@pytest.mark.parametrize("dim", [(), (1,), ((1, 2, 3),)], ids=["all", "channels", "several"])
def test_a_single_channel_is_not_squeezed_away(dim):
    class Squeezed(Net):
        def forward(self, x):
            return self.fc(F.relu(self.tail(self.stem(x))).mean((2, 3), keepdim=True).squeeze(*dim).view(-1, 24))

    small, error = reduced(Squeezed().eval(), widths={"tail": 1})
    assert small.tail.out_channels == 1
    assert error < 1e-10


def test_a_normalisation_of_channels_that_stay_and_of_others():
    class Shared(Net):
        def make(self):
            self.norm, self.first = nn.BatchNorm2d(3), conv(3, 3)

        def forward(self, x):
            y = self.norm(self.first(self.norm(x)))
            return self.fc(F.relu(self.tail(self.stem(y))).mean((2, 3)))

    small, error = reduced(Shared().eval(), betas={8: 0.5})
    assert small.first.out_channels == 3
    assert "norm is shared" in small.meta["mbs"].kept["first"]
    assert error < 1e-10


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of a map, as timm has it."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_normalisation_of_channels_that_stay():
    class Normalised(Net):
        def make(self):
            self.first, self.last = LayerNorm2d(3), LayerNorm2d(5)

        def forward(self, x):
            return self.last(super().forward(self.first(x))[:, :, None, None])

        def middle(self, x):
            return x

    small, error = reduced(Normalised().eval())
    assert (small.first.normalized_shape, small.last.normalized_shape) == ((3,), (5,))
    assert error < 1e-10


@torch.fx.wrap
def doubled(x):
    return torch.cat((x, x), 1)


class Doubled(Net):
    width = 32

    def middle(self, x):
        return doubled(x)


def other_rank(call):
    return along(np.arange(1, 17), 1, 3)


def other_size(call):
    return call.input


def twice_on_an_axis(call):
    return along(call.ties.new(32), 1, 4) * 2


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        (other_rank, r"shape \(1, 16, 1\)"),
        (other_size, r"shape \(1, 16, 1, 1\) for a tensor of shape \(2, 32, 8, 8\)"),
        (twice_on_an_axis, "two sets of labels along axis 1"),
        (lambda call: None, "nothing for a tensor"),
        (lambda call: [call.input], "a list of 1 for a tensor"),
        (lambda call: ("x",), "a str in place of an array"),
    ],
    ids=["rank", "size", "twice", "nothing", "list", "text"],
)
def test_a_wrong_rule_is_named(rule, wrong):
    gm = torch.fx.symbolic_trace(Doubled().eval())
    message = rf"%doubled \(doubled\): the rule .*{rule.__name__}.* returns .*{wrong}"
    with mbs_fx.register_operation(doubled, channels=rule), pytest.raises(MBSError, match=message):
        mbs_fx.analyze(gm, SHAPE)


def test_a_rule_that_forgets_the_channels_freezes_them():
    with mbs_fx.register_operation(doubled, channels=lambda call: FROZEN):
        kept = mbs_fx.analyze(torch.fx.symbolic_trace(Doubled().eval()), SHAPE).kept
    assert "its rule says nothing about the channels that enter" in kept["stem.0"]


@torch.fx.wrap
def counted(x):
    return x.reshape(-1, 16, 8, 8)


def test_what_counts_channels_unseen_is_refused_with_advice_that_works():
    class Counted(Net):
        def middle(self, x):
            return counted(x)

    gm = torch.fx.symbolic_trace(Counted().eval())
    with mbs_fx.register_operation(counted, channels=lambda call: call.input):
        analysis = mbs_fx.analyze(gm, SHAPE)
        with pytest.raises(MBSError, match=r"node counted, call_function counted.*keep= of mbs_fx\.plan") as caught:
            mbs_fx.rewrite(gm, mbs_fx.plan(analysis, widths={"stem.0": 15}))
        assert "Give an input" not in str(caught.value)
        kept = mbs_fx.plan(analysis, betas={"tail": 0.5}, keep="stem.0")
        assert mbs_fx.rewrite(gm, kept).tail.out_channels == 12
