"""Global context, mixing of all positions, several results, and what is not understood."""

import pytest
import torch
import torch.fx
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.fx import GraphModule, Tracer, symbolic_trace
from work import calls

from mbs_fx.geometry.propagation import propagate
from mbs_fx.results.analysis import Geometry
from mbs_fx.sample import resnet
from mbs_fx.shapes.shapes import infer

SIZE = (1, 4, 24, 16)
MAP = Geometry((12, 8), (2, 2), (3, 3))
AFTER = Geometry((12, 8), (2, 2), (7, 7))


class Around(nn.Module):
    """A strided convolution, something, and another convolution."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, 2, 1)
        self.function = function
        self.layers = nn.ModuleList(layers)
        self.last = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x):
        return self.last(self.function(self.first(x), *self.layers))


def analysed(model, *shape, tracer=Tracer):
    gm = GraphModule(model, tracer().trace(model))
    return propagate(gm, infer(gm, [shape]))


def one():
    return nn.Conv2d(4, 4, 1)


def efficient_channel_attention(x, conv):
    gate = conv(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2))
    return x * torch.sigmoid(gate.transpose(-1, -2).unsqueeze(-1)).expand_as(x)


def global_context(x, mask):
    """GCNet: a softmax over positions weighs them into one value per channel."""
    weights = mask(x).flatten(2).softmax(-1).transpose(1, 2)
    return x + torch.matmul(x.flatten(2), weights).unsqueeze(-1)


def coordinate_attention(x, conv):
    h, w = x.shape[2:]
    rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)
    rows, columns = conv(torch.cat([rows, columns], 2)).split([h, w], 2)
    return x * rows.sigmoid() * columns.permute(0, 1, 3, 2).sigmoid()


def pyramid(x, conv):
    """DeepLab: the mean of the image beside a map."""
    return x + F.interpolate(conv(F.adaptive_avg_pool2d(x, 1)), x.shape[2:], mode="bilinear")


CONTEXTS = {
    "SE of convolutions": (lambda x, a, b: x * b(F.relu(a(F.adaptive_avg_pool2d(x, 1)))), one(), one()),
    "SE of linear layers": (lambda x, a: a(x.mean((2, 3)))[:, :, None, None] * x, nn.Linear(4, 4)),
    "SE with a view": (lambda x, a: x * a(x.mean([-1, -2]).view(1, 4)).view(1, 4, 1, 1), nn.Linear(4, 4)),
    "channels last": (
        lambda x, a: (x.permute(0, 2, 3, 1) * a(x.mean((2, 3)))[:, None, None]).permute(0, 3, 1, 2),
        nn.Linear(4, 4)),
    "pool of the whole map": (lambda x, a: x * a(F.avg_pool2d(x, (12, 8))), one()),
    "pool of a computed size": (lambda x, a: x * a(F.avg_pool2d(x, x.shape[2:])), one()),
    "maximum and mean": (
        lambda x: x * (x.amax((2, 3), keepdim=True) + x.flatten(2).mean(-1)[..., None, None]),),
    "maximum with its place": (lambda x: x + x.flatten(2).max(-1).values[:, :, None, None],),
    "3 x 3 on context": (lambda x, a: x + a(F.adaptive_max_pool2d(x, 1)), nn.Conv2d(4, 4, 3, 1, 1)),
    "ECA": (efficient_channel_attention, nn.Conv1d(1, 1, 3, 1, 1)),
    "GCNet": (global_context, nn.Conv2d(4, 1, 1)),
    "coordinate attention": (coordinate_attention, one()),
    "image pooling": (pyramid, one()),
    "image pooling, expanded": (
        lambda x: torch.cat([x[:, :2], x.mean((2, 3), True)[:, 2:].expand(-1, -1, 12, 8)], 1),),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTEXTS)
def test_context_leaves_the_map_as_it_was(case):
    function, *layers = CONTEXTS[case]
    found, notes = analysed(Around(function, *layers), *SIZE)
    assert found["first"].geometry == MAP
    assert found["last"].geometry == AFTER
    assert found["last"].axes == (2, 3)
    assert notes == ()
    assert not any(item.geometry.upsampled for item in found.values())


def test_context_itself():
    found, _ = analysed(Around(*CONTEXTS["SE of convolutions"]), *SIZE)
    assert found["layers_1"].geometry == Geometry((1, 1), (2, 2), (3, 3))
    found, _ = analysed(Around(*CONTEXTS["ECA"]), *SIZE)
    assert (found["layers_0"].geometry, found["layers_0"].axes) == (Geometry((1, 1), (2, 2), (3, 3)), ())


def test_a_small_pool_is_a_pool_even_where_it_ends_at_one_pixel():
    found, _ = analysed(nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3)), 1, 4, 12, 12)
    assert found["_1"].geometry == Geometry((3, 3), (4, 4), (4, 4))
    assert found["_2"].geometry == Geometry((1, 1), (12, 12), (12, 12))
    found, _ = analysed(nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(2)), 1, 4, 4, 4)
    assert found["_1"].geometry == Geometry((1, 1), (4, 4), (4, 4))
    found, _ = analysed(nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(3)), 1, 4, 6, 6)
    assert found["_1"].geometry == Geometry((1, 1), (2, 2), (2, 2))


def attention(x, qkv, out):
    n, c, h, w = x.shape
    q, k, v = qkv(x.flatten(2).transpose(1, 2)).view(n, h * w, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
    x = ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(n, h * w, c)
    return out(x).transpose(1, 2).reshape(n, c, h, w)


def fused(x, qkv, out):
    n, c, h, w = x.shape
    q, k, v = qkv(x.flatten(2).mT).chunk(3, -1)
    return out(F.scaled_dot_product_attention(q, k, v)).mT.view(n, c, h, w)


def module(x, attend):
    tokens = x.flatten(2).permute(0, 2, 1)
    return attend(tokens, tokens, tokens)[0].permute(0, 2, 1).unflatten(2, x.shape[2:])


def summed(x):
    weights = torch.einsum("bci,bcj->bij", x.flatten(2), x.flatten(2)).softmax(-1)
    return torch.einsum("bij,bcj->bci", weights, x.flatten(2)).view_as(x)


MIXING = {
    "attention": (attention, nn.Linear(4, 12), nn.Linear(4, 4)),
    "fused attention": (fused, nn.Linear(4, 12), nn.Linear(4, 4)),
    "attention module": (module, nn.MultiheadAttention(4, 2, batch_first=True)),
    "einsum": (summed,),
    "token mixing": (lambda x, mix: mix(x.flatten(2)).view(1, 4, 12, 8), nn.Linear(96, 96)),
}


@pytest.mark.parametrize("case", MIXING)
def test_mixing_of_positions_is_context_and_one_note(case):
    function, *layers = MIXING[case]
    found, notes = analysed(Around(function, *layers), *SIZE)
    assert found["last"].geometry == AFTER
    assert len(notes) == 1
    assert "all positions" in notes[0]


def half(x):
    return x[:, :, : x.shape[2] // 2, : x.shape[3] // 2]


def gone(x):
    return x.sum(3)


torch.fx.wrap("half")
torch.fx.wrap("gone")


def test_what_is_not_known_follows_the_sizes_and_is_said():
    found, notes = analysed(Around(lambda x: half(x)), *SIZE)
    assert found["last"].geometry == Geometry((6, 4), (4, 4), (11, 11))
    assert notes == (
        "node half, call_function half: it is not known, and changes spatial sizes from (12, 8) to (6, 4); "
        "strides follow the sizes",
    )
    _, notes = analysed(Around(lambda x: gone(x).unsqueeze(3).expand(-1, -1, -1, 4)), *SIZE)
    assert "changes the number of dimensions; the map ends here" in notes[0]


class Closed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x):
        return self.inner(x)


class ClosedIsLeaf(Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, Closed) or super().is_leaf_module(m, module_qualified_name)


def test_a_leaf_that_hides_convolutions_is_said():
    found, notes = analysed(Around(lambda x, c: c(x), Closed()), *SIZE, tracer=ClosedIsLeaf)
    assert found["last"].geometry == AFTER
    assert notes == (
        "node layers_0, call_module layers.0 (Closed): it was not traced into; what its layers do inside "
        "does not count",
    )


def test_several_results_and_inputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 5, 2, 2)

        def forward(self, x, y):
            low, high = self.conv(x).chunk(2, 1)
            pooled, places = F.max_pool2d(y, 2, return_indices=True)
            return {"sum": low + high + pooled, "places": places}

    gm = symbolic_trace(Two())
    found, notes = propagate(gm, infer(gm, [SIZE, (1, 2, 24, 16)]))
    assert found["add_1"].geometry == Geometry((12, 8), (2, 2), (5, 5))
    assert found["max_pool2d_with_indices"].geometry == Geometry((12, 8), (2, 2), (2, 2))
    assert notes == ()


def test_time_before_features():
    """(batch, time, features) to a convolution over time: time is an axis from there on."""

    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(20, 8, 3, 2)

        def forward(self, x):
            return self.conv(x.transpose(1, 2))

    found, _ = analysed(Speech(), 1, 31, 20)
    assert found["conv"].geometry == Geometry((15,), (2,), (3,))


def test_an_encoder_and_its_decoder_meet_through_a_bottleneck():
    class Auto(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(4, 8, 3, 2, 1)
            self.squeeze, self.back = nn.Linear(8 * 96, 10), nn.Linear(10, 8 * 96)
            self.up = nn.ConvTranspose2d(8, 4, 2, 2)

        def forward(self, x):
            x = self.back(self.squeeze(self.down(x).flatten(1)))
            return self.up(x.view(-1, 8, 12, 8))

    found, _ = analysed(Auto(), *SIZE)
    assert found["up"].geometry == Geometry((24, 16), (1, 1), (3, 3), True)


@pytest.mark.parametrize(
    ("model", "size", "limit"), [(lambda: resnet(218), 32, 100), (torchvision.models.densenet121, 224, 150)]
)
def test_work_grows_with_the_nodes(model, size, limit):
    """Most of the time is spent in calls; a second look at all nodes for each would be 700 of them per node."""
    with torch.device("meta"):
        gm = symbolic_trace(model())
    shapes = infer(gm, [(1, 3, size, size)])
    assert calls(lambda: propagate(gm, shapes)) < limit * len(gm.graph.nodes)
