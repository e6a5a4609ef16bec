"""Receptive fields against the bounding box of the input gradient, and all else against arithmetic.

The oracle runs the network itself with weights that are all positive, so that nothing cancels, and with
maxima as means, activations and normalisations as identities, and gates of global context left out.
"""

import math
from collections.abc import Iterable
from operator import add

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, symbolic_trace
from torchvision.ops import SqueezeExcitation

from mbs_fx.geometry.propagation import Located, conv_kind, propagate
from mbs_fx.results.analysis import Geometry
from mbs_fx.sample import resnet
from mbs_fx.shapes.shapes import infer

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU)
IDENTITIES = (nn.BatchNorm2d, nn.LayerNorm, nn.Dropout, SqueezeExcitation, *ACTIVATIONS)
NOWHERE = Located(Geometry((), (), ()), ())


def positive(model: nn.Module) -> nn.Module:
    """The model as a sum over paths: every tap counts, and long products neither vanish nor overflow."""
    for name, module in list(model.named_modules()):
        if isinstance(module, IDENTITIES):
            model.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d):
            mean = getattr(nn, type(module).__name__.replace("Max", "Avg"))
            options = (module.kernel_size, module.stride, module.padding, module.ceil_mode)
            model.set_submodule(name, mean(*options))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1 / math.prod(parameter.shape[1:2]) / math.sqrt(math.prod(parameter.shape[2:])))
    return model


class Outputs(Interpreter):
    """The values of some nodes; nothing after the last of them runs."""

    def __init__(self, gm: GraphModule, names: Iterable[str]) -> None:
        super().__init__(gm)
        self.left = dict.fromkeys(names)

    def run_node(self, n):
        if None not in self.left.values():
            return None
        result = super().run_node(n)
        if n.name in self.left:
            self.left[n.name] = result
        return result

    def call_function(self, target, args, kwargs):
        if target is F.max_pool2d:
            target, kwargs = F.avg_pool2d, {"stride": kwargs["stride"]}
        return super().call_function(target, args, kwargs)


def boxes(value: Tensor, axes: tuple[int, ...], x: Tensor, pixels: int = 1) -> list[int]:
    """Per spatial axis, the largest extent of the input gradient of some pixels in the middle."""
    extents = [0] * len(axes)
    for shift in range(pixels):
        index = [slice(None)] * value.ndim
        for axis in axes:
            index[axis] = min(value.shape[axis] // 2 + shift, value.shape[axis] - 1)
        (gradient,) = torch.autograd.grad(value[tuple(index)].sum(), x, retain_graph=True)
        hit = gradient.abs().amax((0, 1)).nonzero()
        spans = (hit.amax(0) - hit.amin(0) + 1).tolist() if len(hit) else [0] * len(axes)
        extents = [max(pair) for pair in zip(extents, spans, strict=True)]
    return extents


def located(model: nn.Module, *shape: int) -> tuple[dict[str, Located], tuple[str, ...]]:
    gm = symbolic_trace(model.eval())
    return propagate(gm, infer(gm, [shape]))


NETWORKS = [
    ("resnet50", {}),
    ("resnext50_32x4d", {}),
    ("vgg11_bn", {}),
    ("alexnet", {}),
    ("mobilenet_v2", {}),
    ("mobilenet_v3_small", {}),
    ("mnasnet0_5", {}),
    ("densenet121", {}),
    ("googlenet", {"init_weights": False, "aux_logits": False}),
    ("inception_v3", {"init_weights": False, "aux_logits": False}),
    ("squeezenet1_1", {}),
    ("shufflenet_v2_x0_5", {}),
    ("regnet_y_400mf", {}),
    ("efficientnet_b0", {}),
    ("convnext_tiny", {}),
]


def built(name: str, options: dict[str, bool]) -> nn.Module:
    if name.startswith("regnet"):
        return torchvision.models.get_model(name, **options)
    with torch.device("meta"):
        return torchvision.models.get_model(name, **options)


CASES = [(name, options, (224, 32)) for name, options in NETWORKS if name not in ("alexnet", "inception_v3")]
CASES += [
    ("alexnet", {}, (224, 64)),
    *(("inception_v3", dict(NETWORKS)["inception_v3"], s) for s in ((224, 96), (96, 224))),
]


@pytest.mark.parametrize(("name", "options", "size"), CASES)
def test_fields_of_torchvision_networks(name, options, size):
    """The image is long in one axis, where fields up to 180 fit; in the other, they are clipped."""
    long = size.index(224)
    shape = (1, 3, *size)
    model = built(name, options).eval()
    found, notes = located(model, *shape)
    oracle = symbolic_trace(positive(model.to_empty(device="cpu")))
    same = [n.name for n in oracle.graph.nodes if conv_kind(oracle, n) or n.target in (torch.cat, add)]
    fields = {n: found[n].geometry.receptive_field for n in same if len(found.get(n, NOWHERE).axes) == 2}
    distinct = list({field: n for n, field in fields.items() if field[long] <= 180}.values())
    chosen = distinct[:: -max(1, len(distinct) // 2)][:2]
    x = torch.ones(shape, requires_grad=True)
    outputs = Outputs(oracle, chosen)
    outputs.run(x)
    for node in chosen:
        box = boxes(outputs.left[node], found[node].axes, x)
        assert box[long] == fields[node][long], node
        assert box[1 - long] <= fields[node][1 - long], node
    assert len(chosen) == 2
    assert notes == ()


def test_published_fields():
    """Araujo et al. (2019), Computing receptive fields of convolutional neural networks; ours for CIFAR."""
    for name, expected in (("alexnet", 163), ("vgg16", 196), ("resnet50", 427)):
        gm = symbolic_trace(built(name, {}).eval())
        found, _ = propagate(gm, infer(gm, [(1, 3, 224, 224)]))
        fields = [found[n.name].geometry.receptive_field for n in gm.graph.nodes if conv_kind(gm, n)]
        assert max(fields) == (expected, expected)
    for depth in (20, 32, 56):
        found, _ = located(resnet(depth), 1, 3, 32, 32)
        assert min(v.geometry.receptive_field[0] for v in found.values() if v.geometry.receptive_field > (32, 32)) == 33


class Do(nn.Module):
    """A function as a model, with layers to use in it."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def conv(kernel=3, stride=1, width=1, out=1, **options):
    return nn.Conv2d(width, out, kernel, stride, (kernel - 1) // 2, **options)


def up(mode, **options):
    return lambda x, c: F.interpolate(c(x), scale_factor=2, mode=mode, **options)


def focus(x):
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def to_depth(x):
    n, c, h, w = x.shape
    x = x.view(n, c, h // 2, 2, w // 2, 2)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(n, c * 4, h // 2, w // 2)


def from_depth(x):
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, h * 2, w * 2)


def windows(x, inner):
    """Windows of 4 x 4 and back, as in Swin, with a layer in between that keeps pixels apart."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    x = inner(x)
    x = x.view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(n, c, h, w)


def repeated(x, c):
    x = c(x)
    n, _, h, w = x.shape
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(n, -1, 2 * h, 2 * w)


def blur(x):
    weight = torch.tensor([[[[1.0, 2.0, 1.0]] * 3]])
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, stride=2)


def last(x, c, norm, linear):
    x = linear(norm(c(x).permute(0, 2, 3, 1)))
    return torch.roll(x.permute(0, 3, 1, 2), (0,), (0,))


def tokens(x, c, linear):
    x = c(x)
    return linear(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


S2 = conv(3, 2)
HAND_WRITTEN = {
    "1-d, dilated": (
        nn.Sequential(nn.Conv1d(2, 3, 3, dilation=4), nn.Conv1d(3, 3, 5, 2, 2)),
        (1, 2, 64), (28,), (2,), (13,), False),
    "3-d": (
        nn.Sequential(nn.Conv3d(1, 2, (1, 3, 5), (1, 2, 1), (0, 1, 2)), nn.MaxPool3d(2)),
        (1, 1, 8, 16, 20), (4, 4, 10), (2, 4, 2), (2, 5, 6), False),
    "rectangular": (
        nn.Sequential(nn.Conv2d(1, 1, (1, 7)), nn.Conv2d(1, 1, (5, 1), (2, 1))),
        (1, 1, 24, 30), (10, 24), (2, 1), (5, 7), False),
    "ceil_mode": (
        nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True)), (1, 1, 24, 24), (12, 12), (2, 2), (3, 3), False),
    "transposed": (
        nn.Sequential(conv(3, 2), nn.ConvTranspose2d(1, 1, 4, 2, 1)),
        (1, 1, 24, 24), (24, 24), (1, 1), (5, 5), True),
    "transposed, odd": (
        nn.Sequential(nn.ConvTranspose2d(1, 1, 5, 3, 1)), (1, 1, 9, 9), (27, 27), (1 / 3,) * 2, (2, 2), True),
    "transposed, dilated": (
        nn.Sequential(nn.ConvTranspose1d(1, 1, 5, 2, dilation=3)), (1, 1, 12), (35,), (1 / 2,), (7,), True),
    "transposed, stride 1": (
        nn.Sequential(nn.ConvTranspose2d(1, 1, 3)), (1, 1, 9, 9), (11, 11), (1, 1), (3, 3), False),
    "nearest": (Do(up("nearest"), S2), (1, 1, 24, 24), (24, 24), (1, 1), (3, 3), True),
    "bilinear": (Do(up("bilinear"), S2), (1, 1, 24, 24), (24, 24), (1, 1), (5, 5), True),
    "bicubic": (Do(up("bicubic"), S2), (1, 1, 32, 32), (32, 32), (1, 1), (9, 9), True),
    "linear down": (nn.Upsample(scale_factor=0.5, mode="linear"), (1, 1, 24), (12,), (2,), (2,), False),
    "pixel shuffle": (
        nn.Sequential(conv(3, 2, out=8), nn.PixelShuffle(2)), (1, 1, 24, 24), (24, 24), (1, 1), (3, 3), True),
    "pixel unshuffle": (
        nn.Sequential(nn.PixelUnshuffle(2), conv(3, width=4)),
        (1, 1, 24, 24), (12, 12), (2, 2), (6, 6), False),
    "adaptive": (nn.AdaptiveAvgPool1d(8), (1, 1, 20), (8,), (2.5,), (3,), False),
    "area": (Do(lambda x: F.interpolate(x, 5, mode="area")), (1, 1, 20), (5,), (4,), (4,), False),
    "strided slices": (
        Do(lambda x, c: c(focus(x)), conv(3, width=4)), (1, 1, 24, 24), (12, 12), (2, 2), (6, 6), False),
    "one strided slice": (
        Do(lambda x, c: c(x[:, :, ::2, 1::2]), conv(3)), (1, 1, 24, 24), (12, 12), (2, 2), (5, 5), False),
    "space to depth": (
        Do(lambda x, c: c(to_depth(x)), conv(3, width=4)), (1, 1, 24, 24), (12, 12), (2, 2), (6, 6), False),
    "depth to space": (
        Do(lambda x, c: from_depth(c(x)), conv(3, 2, out=4)), (1, 1, 24, 24), (24, 24), (1, 1), (3, 3), True),
    "mean of blocks": (
        Do(lambda x: x.view(1, 1, 8, 3, 8, 3).mean((3, 5))), (1, 1, 24, 24), (8, 8), (3, 3), (3, 3), False),
    "rolled and joined": (
        Do(lambda x: x + torch.roll(x, 2, 2)), (1, 1, 24, 24), (24, 24), (1, 1), (3, 1), False),
    "rolled and back": (
        Do(lambda x: x + x.roll(2, 2).roll(-2, 2)), (1, 1, 24, 24), (24, 24), (1, 1), (1, 1), False),
    "windows": (
        Do(lambda x, c, i: windows(c(x), i), conv(3), nn.Linear(1, 1)),
        (1, 1, 24, 16), (24, 16), (1, 1), (3, 3), False),
    "repeated pixels": (Do(repeated, conv(3, 2)), (1, 1, 24, 24), (24, 24), (1, 1), (3, 3), True),
    "fixed blur": (Do(blur), (1, 1, 24, 24), (12, 12), (2, 2), (3, 3), False),
    "channels last": (
        Do(last, conv(3, 2), nn.LayerNorm(1), nn.Linear(1, 2)),
        (1, 1, 24, 24), (12, 12), (2, 2), (3, 3), False),
    "tokens": (Do(tokens, conv(3, 2), nn.Linear(1, 2)), (1, 1, 24, 16), (12, 8), (2, 2), (3, 3), False),
    "crop, pad, split, join": (
        Do(lambda x, c: F.pad(torch.cat(c(x[:, :, 4:]).chunk(2, 3), 2), (1, 2)), conv(3, 2)),
        (1, 1, 20, 24), (16, 9), (2, 2), (3, 3), False),
    "unfold": (
        Do(lambda x: F.unfold(x, 3, stride=3).view(1, 9, 8, 8)),
        (1, 1, 24, 24), (8, 8), (3, 3), (3, 3), False),
    "unfold and fold": (
        Do(lambda x, mix: F.fold(mix(F.unfold(x, 3, stride=2).mT).mT, 25, 3, stride=2), nn.Linear(9, 9)),
        (1, 1, 25, 25), (25, 25), (1, 1), (5, 5), True),
    "windows of a tensor": (Do(lambda x: x.unfold(2, 4, 2).mean(-1)), (1, 1, 24), (11,), (2,), (4,), False),
}  # fmt: skip


@pytest.mark.parametrize("case", HAND_WRITTEN)
def test_hand_written(case):
    model, shape, size, stride, field, upsampled = HAND_WRITTEN[case]
    found, notes = located(model, *shape)
    name = list(found)[-1]
    assert found[name].geometry == Geometry(size, stride, field, upsampled)
    assert notes == ()
    oracle = symbolic_trace(positive(model))
    x = torch.ones(shape, requires_grad=True)
    outputs = Outputs(oracle, [name])
    outputs.run(x)
    assert tuple(boxes(outputs.left[name], found[name].axes, x, pixels=6)) == field
