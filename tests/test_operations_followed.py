"""Operations that the passes had missed: what becomes of channels, zeros and maps, each against another way to know."""

import json
import warnings

import numpy as np
import pytest
import torch
from proof import difference, random_inputs, zeroed
from test_rules import Middle, reduced
from torch import nn
from torch.nn import functional as F
from wirings import Net, conv

import mbs_fx
from mbs_fx.results.density import Density

SHAPE = (2, 3, 8, 8)


def traced(function, **layers):
    class Made(Net):
        def make(self):
            self.a = conv(16, 16)
            for name, layer in layers.items():
                setattr(self, name, layer)

        def middle(self, x):
            return function(self, self.a(x))

    torch.manual_seed(0)
    return torch.fx.symbolic_trace(Made().eval())


POINTWISE = ["absolute", "negative", "sinc", "expm1", "asinh", "arctan", "square", "logit", "erfinv", "isfinite"]
BINARY = ["hypot", "atan2", "xlogy", "logaddexp", "copysign", "fmax", "float_power", "heaviside"]


@pytest.mark.parametrize("name", [*POINTWISE, *BINARY])
def test_what_torch_marks_pointwise_is_followed(name):
    function = getattr(torch, name)
    torch.manual_seed(0)

    def operation(net, y, x):
        y, x = y.sigmoid(), x.sigmoid()
        return function(y, x + 1) if name in BINARY else function(y).to(x.dtype) + x

    small, error = reduced(type("Made", (Middle,), {"operation": operation})().eval(), betas={8: 0.7})
    assert small.a.out_channels == 12  # of 16: ⌈0.7 * 16⌉
    assert error < 1e-10


def test_scripted_activations_are_followed():
    relu = torch.ops.aten.relu.default
    gm = traced(lambda net, y: relu(y))
    analysis = mbs_fx.analyze(gm, SHAPE)
    assert "a" not in analysis.kept
    assert analysis.activations[analysis_of(gm, relu)].sparse
    plan = mbs_fx.plan(analysis, widths={"a": 9})
    small, x = mbs_fx.rewrite(gm, plan), random_inputs(gm, plan, torch.float32)
    with torch.no_grad():
        assert difference(zeroed(gm, small.meta["mbs"])(*x), small(*x)) < 1e-5


def analysis_of(gm, target):
    return next(node.name for node in gm.graph.nodes if node.target is target)


@pytest.mark.parametrize(
    "activation",
    [
        lambda net, y: F.threshold(y, 0.2, 0.0),
        lambda net, y: F.softshrink(y, 0.1),
        lambda net, y: F.hardshrink(y, 0.1),
        lambda net, y: net.act(y),
        lambda net, y: net.hard(y),
        lambda net, y: torch.clamp_min(y, 0),
        lambda net, y: F.hardtanh(y, 0.0, 0.5),
        lambda net, y: torch.ops.aten.relu.default(y),
    ],
    ids=["threshold", "softshrink", "hardshrink", "Softshrink", "Hardshrink", "clamp_min", "hardtanh", "aten"],
)
def test_density_is_counted_where_there_are_exact_zeros(activation):
    gm = traced(activation, act=nn.Softshrink(0.1), hard=nn.Hardshrink(0.1))
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    density = mbs_fx.measure(gm, images, confidence=None)
    assert isinstance(density, Density)
    held = {}
    gm.a.register_forward_hook(lambda module, args, output: held.update(y=output))
    with torch.no_grad():
        gm(images)
        share = float((activation(gm, held["y"]) != 0).float().mean())
    assert 0 < share < 1
    assert density.p["a"] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("value", [0.5, 20.0])
def test_a_threshold_at_another_value_makes_no_zeros(value):
    gm = traced(lambda net, y: F.threshold(y, 0.2, value))
    (activation,) = [a for a in mbs_fx.analyze(gm, SHAPE).activations.values() if a.kind == "threshold"]
    assert not activation.sparse


@torch.fx.wrap
def mixed(y, weight):
    return torch.einsum("nchw,kc->nkhw", y, weight)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16, 16))

    def forward(self, y):
        return mixed(y, self.weight)


@pytest.mark.parametrize("as_leaf", [False, True])
def test_what_is_not_known_ends_the_walk_to_an_activation(as_leaf):
    class Made(Net):
        def make(self):
            self.a, self.mix = conv(16, 16), Mixing()

        def middle(self, x):
            return F.relu(self.mix(self.a(x)))

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, path):
            return (as_leaf and isinstance(module, Mixing)) or super().is_leaf_module(module, path)

    model = Made().eval()
    gm = torch.fx.GraphModule(model, Tracer().trace(model))
    convs = {c.target: c for c in mbs_fx.analyze(gm, SHAPE).convs}
    assert not convs["a"].activations
    assert convs["tail"].activations


def test_numbers_read_off_a_map_are_no_path_to_an_activation():
    gm = traced(lambda net, y: y.sigmoid() + F.relu(net.b(y.sigmoid()).view(y.shape[0], 16, 8, 8)), b=conv(16, 16))
    convs = {c.target: c for c in mbs_fx.analyze(gm, SHAPE).convs}
    assert set(convs["a"].activations) == {"sigmoid", "sigmoid_1"}  # and not the rectifier after the view


@pytest.mark.parametrize("name", ["swapaxes_", "swapdims_", "transpose_"])
def test_swapped_axes(name):
    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, (5, 1), padding=(2, 0)), nn.Conv2d(8, 8, (1, 3), padding=(0, 1))

        def forward(self, x):
            return self.b(getattr(self.a(x), name)(2, 3))

    gm = torch.fx.symbolic_trace(Swapped())
    # 5 rows, which are columns to the second: it adds 2 along the same axis
    assert mbs_fx.analyze(gm, (1, 3, 12, 12)).geometry["b"].receptive_field == (7.0, 1.0)


def test_a_stride_that_is_a_numpy_integer():
    class Strided(Net):
        def make(self):
            self.a = nn.Conv2d(np.int64(16), np.int64(16), 3, np.int64(2), np.int64(1))
            self.up = nn.ConvTranspose2d(16, 16, 2, tuple(np.array([2, 2])))

        def middle(self, x):
            return self.up(F.relu(self.a(x)))

    analysis = mbs_fx.analyze(torch.fx.symbolic_trace(Strided().eval()), SHAPE)
    plan = mbs_fx.plan(analysis)
    assert [type(m.upsampled) for m in plan.macroblocks] == [bool] * len(plan.macroblocks)
    assert all(type(n) is int for conv in analysis.convs for n in (*conv.spatial_size, conv.width, conv.groups))
    assert mbs_fx.Plan.from_json(plan.to_json()).widths == plan.widths
    json.loads(plan.to_json())


def field_by_gradients(model, size):
    """From the first to the last input pixel of a row that the middle output pixel depends on."""
    x = torch.randn(1, 3, size, size, requires_grad=True)
    y = model(x)
    y[0, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
    columns = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    return int(columns[-1] - columns[0]) + 1


SHIFTS = {
    "pad and slice": lambda x: x + F.pad(x, (2, 0, 0, 0))[..., :-2] + F.pad(x, (0, 2))[..., 2:],
    "one side": lambda x: x + F.pad(x, (4, 0, 0, 0))[..., :-4],
    "slices": lambda x: x[..., 1:] - x[..., :-1],
    "three slices": lambda x: x[..., 2:] + x[..., 1:-1] + x[..., :-2],
    "narrow": lambda x: x.narrow(3, 3, 12) * x.narrow(3, 0, 12),
    "roll": lambda x: x + torch.roll(x, 2, 3),
    "halves": lambda x: torch.cat([x[..., :8] * 2, x[..., 8:]], 3),
    "stripes": lambda x: torch.cat([x[..., ::2], x[..., 1::2]], 1),
}


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS.keys())
def test_shifts_extend_receptive_fields(shift):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.last = nn.LazyConv2d(8, 1)

        def forward(self, x):
            return self.last(shift(self.first(x)))

    model = Shifted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(torch.randn(1, 3, 16, 16))
    analysis = mbs_fx.analyze(torch.fx.symbolic_trace(model), (1, 3, 16, 16))
    assert analysis.geometry["last"].receptive_field[1] == field_by_gradients(model, 16)


def coordinates(net, y):
    grid = torch.stack(torch.meshgrid(torch.arange(y.shape[2]), torch.arange(y.shape[3]), indexing="ij"))[None]
    return net.wide(torch.cat([y, grid.to(y.dtype).expand(y.shape[0], -1, -1, -1)], 1))


def weighted_by_index(net, y):
    w = F.relu(net.two)
    w = w / (w.sum() + 1e-4)
    return w[0] * y + w[1] * net.b(y)


def weighted_by_unbind(net, y):
    w = F.relu(net.two)
    one, other = (w / (w.sum() + 1e-4)).unbind()
    return one * y + other * net.b(y)


def nothing_appended(net, y):
    line = y.flatten(2)
    return torch.cat([line, line[:, :, -1:].repeat(1, 1, 0)], 2).view(-1, 16, 8, 8)


def weights_of_weights(net, y):
    once = F.conv2d(net.b.weight, net.square)
    return F.conv2d(y, F.conv2d(once, net.square), padding=1)


@pytest.mark.parametrize(
    "function",
    [coordinates, weighted_by_index, weighted_by_unbind, nothing_appended, weights_of_weights],
    ids=lambda function: function.__name__,
)
def test_what_had_raised_errors_is_followed(function):
    gm = traced(
        function,
        b=conv(16, 16),
        wide=conv(18, 16),
        two=nn.Parameter(torch.rand(2)),
        square=nn.Parameter(torch.randn(16, 16, 1, 1)),
    ).double()
    analysis = mbs_fx.analyze(gm, SHAPE)
    plan = mbs_fx.plan(analysis, widths={"a": 9})
    small, x = mbs_fx.rewrite(gm, plan), random_inputs(gm, plan, torch.float64)
    assert small.a.out_channels == 9
    with torch.no_grad():
        assert difference(zeroed(gm, small.meta["mbs"])(*x), small(*x)) < 1e-10
