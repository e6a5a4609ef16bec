"""Convolutions whose weight is computed: always counted, cut where that can be done, kept with a reason elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from proof import difference, widths_hold, zeroed
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import mbs_fx

SHAPE = (2, 3, 8, 8)
# Pixels times kernel times channels of body, four convolutions: 64 (27 * 8 + 72 * 12 + 12 * 9 + 12 * 8 * 4) + fc.
FLOPS = 64 * (27 * 8 + 9 * 8 * 12 + 9 * 12 + 12 * 6 * 4)


class Halved(nn.Module):
    """Works on single elements, and keeps zeros."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Positive(nn.Module):
    """Works on single elements, and makes one of zero."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.exp()


class Centred(nn.Module):
    """Looks at all inputs of a filter."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean((1, 2, 3), keepdim=True)


class Net(nn.Module):
    """Plain, regular, depthwise and transposed convolutions, and a linear layer."""

    def __init__(self, change: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.deep, self.up = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.fc = nn.Linear(6, 4)
        for layer in (self.body, self.deep, self.up):
            change(layer)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.body(F.relu(self.stem(x))))
        return self.fc(F.relu(self.up(F.relu(self.deep(x)))).mean((2, 3)))


def own(kind: type[nn.Module]) -> Callable[[nn.Module], object]:
    return lambda layer: parametrize.register_parametrization(layer, "weight", kind())


def old(norm: Callable[..., nn.Module], layer: nn.Module, **arguments: Any) -> None:
    with pytest.warns(FutureWarning):
        norm(layer, **arguments)


FOLLOWED = {
    "weight norm": parametrizations.weight_norm,
    "weight norm, other axis": lambda layer: parametrizations.weight_norm(layer, dim=1),
    "weight norm by a hook": lambda layer: old(nn.utils.weight_norm, layer),
    "weight norm by a hook, other axis": lambda layer: old(nn.utils.weight_norm, layer, dim=1),
    "weight norm by a hook, one norm": lambda layer: old(nn.utils.weight_norm, layer, dim=None),
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by a hook": nn.utils.spectral_norm,
    "halved": own(Halved),
    "positive": own(Positive),
}
KEPT = {
    "orthogonal": (parametrizations.orthogonal, "_Orthogonal"),
    "centred": (own(Centred), "Centred"),
}


def prepared(change: Callable[[nn.Module], object]) -> tuple[Net, Any, Any]:
    torch.manual_seed(0)
    net = Net(change).eval()
    gm = mbs_fx.trace(net, SHAPE)
    analysis = mbs_fx.analyze(gm)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.5 for m in analysis.macroblocks})
    return net, gm, plan


@pytest.mark.parametrize("name", [*FOLLOWED, *KEPT])
def test_no_convolution_is_missing(name: str) -> None:
    change = FOLLOWED[name] if name in FOLLOWED else KEPT[name][0]
    _, gm, plan = prepared(change)
    assert plan.flops[0] == FLOPS
    assert list(plan.widths) == ["stem", "body", "deep", "up"]
    assert plan.params[0] == sum(p.numel() for p in gm.parameters())


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_can_be_cut_is(name: str) -> None:
    net, gm, plan = prepared(FOLLOWED[name])
    assert plan.widths == {"stem": 4, "body": 6, "deep": 6, "up": 3}
    small = mbs_fx.rewrite(gm, plan)
    assert widths_hold(small, plan) == ""
    assert sum(p.numel() for p in small.parameters()) == plan.params[1]
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(mbs_fx.rewrite(gm, mbs_fx.plan(mbs_fx.analyze(gm), betas={}))(x), gm(x))
        assert difference(mbs_fx.rewrite(net, small.meta["mbs"])(x), small(x)) < 1e-6
    small.train()
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("name", ["weight norm", "halved"])
def test_what_is_cut_is_the_original_with_zeros(name: str) -> None:
    """Zeros in g, or in all of the original, for the filters, and in v for what they read."""
    net, gm, plan = prepared(FOLLOWED[name])
    small = mbs_fx.rewrite(gm, plan)
    kept = small.meta["mbs"].channels
    gone = {path: [c for c in range(plan.before[path]) if c not in kept[path]] for path in kept if path in plan.before}
    with torch.no_grad():
        for layer, inputs, outputs in ((net.body, "stem", "body"), (net.deep, None, "body"), (net.up, "body", "up")):
            held: Any = layer.parametrizations.weight
            out_axis = 1 if layer is net.up else 0
            if name == "halved":
                held.original.index_fill_(out_axis, torch.tensor(gone[outputs]), 0)
            elif layer is not net.up:
                held.original0[gone[outputs]] = 0  # g of a filter
            else:
                held.original1[:, gone[outputs]] = 0  # the norm of a transposed weight runs over its outputs
            if inputs is not None and layer is not net.up:
                (held.original if name == "halved" else held.original1)[:, gone[inputs]] = 0
            layer.bias[gone[outputs]] = 0
        net.fc.weight[:, gone["up"]] = 0
        x = torch.randn(SHAPE)
        assert difference(net(x), small(x)) < 1e-5


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_cut_keeps_its_width_and_says_why(name: str) -> None:
    change, kind = KEPT[name]
    net, gm, plan = prepared(change)
    assert plan.widths == plan.before
    assert kind in plan.kept["body"]
    assert kind in plan.kept["up"]
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(mbs_fx.rewrite(gm, plan)(x), net(x))


def old_spectral_norm(layer: nn.Module) -> None:
    nn.utils.spectral_norm(layer)


@pytest.mark.parametrize("change", [parametrizations.spectral_norm, old_spectral_norm])
@pytest.mark.parametrize("training", [False, True])
def test_an_analysis_takes_no_power_step(change: Callable[[nn.Module], object], training: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)).train(training)
    change(net[2])
    gm = torch.fx.symbolic_trace(net)
    before = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    analysis = mbs_fx.analyze(gm, SHAPE)
    assert [conv.flops for conv in analysis.convs] == [27 * 8 * 36, 72 * 6 * 16]
    same = mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={}))
    mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={m.spatial_size: 0.5 for m in analysis.macroblocks}))
    assert all(torch.equal(before[name], tensor) for name, tensor in gm.state_dict().items())
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(same(x), gm(x))


class Pointwise(nn.Module):
    """A convolution of single positions over a sequence of channels: an axis with channels that it does not mix."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.states = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 10, 3, padding=1)
        self.mix, self.head = nn.Conv1d(8, 12, 1), nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        states = self.stem(x).flatten(2) @ self.states(x).flatten(2).transpose(1, 2)
        return self.head(F.relu(self.mix(states))).mean(2)


def test_a_convolution_of_one_position_may_run_along_channels() -> None:
    torch.manual_seed(0)
    gm = mbs_fx.trace(Pointwise().eval(), SHAPE)
    analysis = mbs_fx.analyze(gm)
    assert [conv.target for conv in analysis.convs] == ["stem", "states", "mix", "head"]
    assert analysis.by_name["mix"].flops == 8 * 12 * 10
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.5 for m in analysis.macroblocks})
    assert plan.widths == {"stem": 4, "states": 5, "mix": 6, "head": 4}
    assert mbs_fx.rewrite(gm, plan)(torch.randn(SHAPE)).shape == (2, 4)


class Generator(nn.Module):
    """A linear layer makes a map, which transposed convolutions enlarge."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.a = nn.Linear(10, 16 * 4 * 4), nn.ConvTranspose2d(16, 12, 4, 2, 1)
        self.b, self.c = nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(self.fc(z).view(-1, 16, 4, 4))))))


def test_a_map_made_by_a_linear_layer_is_convolved_as_every_other() -> None:
    torch.manual_seed(0)
    gm = mbs_fx.trace(Generator().eval(), (2, 10))
    analysis = mbs_fx.analyze(gm)
    # A transposed convolution multiplies at every pixel that enters.
    assert [c.flops for c in analysis.convs] == [16 * 16 * 16 * 12, 64 * 16 * 12 * 8, 256 * 9 * 8 * 3]
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.5 for m in analysis.macroblocks})
    assert plan.widths == {"a": 6, "b": 4, "c": 3}
    assert "linear" in plan.kept["fc"]
    small = mbs_fx.rewrite(gm, plan)
    z = torch.randn(2, 10)
    with torch.no_grad():
        assert difference(zeroed(gm, small.meta["mbs"])(z), small(z)) < 1e-5


class Octave(nn.Conv2d):
    """Two maps go in, and two come out."""

    def forward(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        made = F.conv2d(high, self.weight, self.bias, padding=1)
        return made + F.interpolate(low, scale_factor=2.0), F.avg_pool2d(made, 2)


class Octaves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.both, self.head = nn.Conv2d(3, 8, 3, padding=1), Octave(8, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        high, low = self.both(x, F.avg_pool2d(x, 2))
        return self.head(high).mean((2, 3)) + self.head(low).mean((2, 3))


def test_a_convolution_class_of_two_maps_keeps_its_width_and_counts() -> None:
    gm = mbs_fx.trace(Octaves().eval(), SHAPE)
    analysis = mbs_fx.analyze(gm)
    assert analysis.by_name["both"].flops == 9 * 8 * 8 * 64
    assert "several maps" in analysis.kept["both"]
    assert "several maps" in analysis.kept["stem"]
    mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={m.spatial_size: 0.5 for m in analysis.macroblocks}))


class Toeplitz(nn.Conv1d):
    """A linear layer that slides one filter over its input: it takes rows, not maps."""

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows[:, None])[:, 0]


def test_a_convolution_class_of_rows_keeps_what_enters_it() -> None:
    net = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3), nn.Flatten(), Toeplitz(1, 1, 5, bias=False))
    gm = mbs_fx.trace(net.eval(), (2, 2, 8))
    plan = mbs_fx.plan(analysis := mbs_fx.analyze(gm), betas={m.spatial_size: 0.5 for m in analysis.macroblocks})
    assert plan.widths == {"0": 4, "2": 4, "4": 1}
    assert "others than it convolves" in plan.kept["2"]
    x = torch.randn(2, 2, 8)
    small = mbs_fx.rewrite(gm, plan)
    with torch.no_grad():
        assert difference(zeroed(gm, small.meta["mbs"])(x), small(x)) < 1e-5


def test_a_mask_is_called_a_mask() -> None:
    masked = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    prune.l1_unstructured(masked[0], "weight", 0.5)
    with pytest.raises(mbs_fx.MBSError, match=r"0\.weight is masked by torch\.nn\.utils\.prune; .*prune\.remove"):
        mbs_fx.trace(masked, SHAPE)
    assert "prune.remove" in mbs_fx.analyze(torch.fx.symbolic_trace(masked), SHAPE).kept["0"]


@pytest.mark.filterwarnings("ignore")
def test_a_network_prepared_for_quantisation_is_to_be_reduced_before() -> None:
    net = quantization.QuantWrapper(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))).train()
    assert [c.width for c in mbs_fx.analyze(mbs_fx.trace(net, SHAPE)).convs] == [8, 4]
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    prepared = quantization.prepare_qat(net).eval()
    with pytest.raises(mbs_fx.MBSError, match="prepared for quantisation; reduce it before prepare_qat"):
        mbs_fx.analyze(torch.fx.symbolic_trace(prepared), SHAPE)


def test_a_message_about_an_input_is_short() -> None:
    gm = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(mbs_fx.MBSError) as caught:
        mbs_fx.analyze(gm, (["x" * 1000],))
    assert len(str(caught.value)) < 300
