"""What shapes decide is traced with concrete shapes, and the graph serves other batch sizes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from tracing_helpers import SHAPE, Net, asserted, images, targets

from mbs_fx.tracing.recorded_values import Source, traced
from mbs_fx.tracing.trace import trace


def unpacked(x):
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def decided(x):
    return F.avg_pool2d(x, 2) if x.shape[-1] > 4 else x


def padded(x):
    height, _ = x.shape[-2:]
    pad = max((math.ceil(height / 3) - 1) * 3 + 5 - height, 0)
    return F.pad(x, [pad // 2, pad - pad // 2, 0, 0])


def iterated(x):
    return torch.cat([part * i for i, part in enumerate(x.split(2, dim=1))], 1)


def starred(x):
    first, *others = x.chunk(3, 1)
    return first + sum(others)


def counted(x):
    return x.reshape(len(x), -1)


def integer(x):
    return x.reshape(int(x.shape[0]), int(x.shape[1] / 2), -1)


def multiplied(x):
    return x.reshape(int(x.shape[0]) * 3, -1).mean(1).reshape(int(x.size(0)), 3)


def looped(x):
    return sum(x[:, i] * i for i in range(x.shape[1]))


def sized(x):
    return torch.cat([x, torch.zeros(x.shape[0], 2, *x.shape[2:], device=x.device, dtype=x.dtype)], 1)


def assigned(x):
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1]
    out[:, :1] += 1
    return out


def asked(x):
    if not isinstance(x, torch.Tensor):
        return x
    return F.relu(x) if x.dim() == 4 and x.ndim == 4 and x.dtype.is_floating_point else x


def formatted(x):
    return {"torch.Size([2, 6, 8, 8])": x * 2}.get(f"{x.shape}".replace("[3", "[2").replace("[5", "[2"), x)


def unbound(x):
    total = 0
    for column in x.unbind(-1):
        total = total + column
    return total


def arranged(x):
    position = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)
    return x * position / position.numel()


def looped_over_images(x):
    return x.flatten(1) if bool(x.size(0)) else x


def made_on_the_fly(x):
    return nn.Upsample(scale_factor=2)(nn.ReLU()(x))


CONTROL_FLOW = [
    unpacked, asserted, decided, padded, iterated, starred, counted, integer, multiplied, looped, sized,
    assigned, asked, formatted, unbound, arranged, looped_over_images, made_on_the_fly,
]  # fmt: skip

DECIDED_BY_SIZE = [decided, formatted, unbound]


@pytest.mark.parametrize("function", CONTROL_FLOW, ids=lambda function: function.__name__)
def test_what_shapes_decide_is_traced_and_serves_other_batch_sizes(function):
    model = Net(function).eval()
    gm = trace(model, images())
    assert gm.meta["mbs_leaves"] == {}
    assert any("refuses others" in note for note in gm.meta["mbs_notes"]) == (function in DECIDED_BY_SIZE)
    for batch in (2, 3, 5):
        assert torch.equal(gm(images(batch)), model(images(batch)))


@pytest.mark.parametrize("function", [asserted, decided, counted, integer, sized, assigned, asked, formatted])
def test_plain_tracing_fails_or_is_wrong_where_concrete_shapes_are_used(function):
    assert trace(Net(function).eval(), SHAPE).meta["mbs_tracing"] == "concrete"


def test_what_plain_tracing_can_do_is_left_to_it():
    assert trace(torchvision.models.resnet18(weights=None).eval(), (1, 3, 32, 32)).meta["mbs_tracing"] == "symbolic"


def test_sizes_stay_expressions_of_the_input():
    gm = trace(Net(lambda x: unpacked(asserted(x))).eval(), SHAPE)
    assert not [node for node in gm.graph.nodes if node.target == "view" and 3 in node.args]
    assert targets(gm, "call_method").count("size") == 4


def test_a_graph_that_depends_on_the_batch_size_says_so():
    gm = trace(Net(lambda x: x * 2 if x.shape[0] == 2 else x.mean(1)).eval(), SHAPE)
    (note,) = gm.meta["mbs_notes"]
    assert "batches of 2" in note


def test_a_constant_that_grows_with_the_batch_is_noticed():
    class Tabled(Net):
        def __init__(self):
            super().__init__(nn.ReLU())
            self.table = torch.rand(1, 6, 1, 1)

        def forward(self, x):
            return super().forward(x) * self.table.repeat(int(x.shape[0]), 1, 1, 1)

    gm = trace(Tabled().eval(), SHAPE)
    (note,) = gm.meta["mbs_notes"]
    assert "batches of 2" in note
    with pytest.raises(AssertionError, match="size 2"):
        gm(images(3))


def test_sizes_remember_their_arithmetic():
    size = traced(6, Source("call_method", "size"))
    for value in (
        size + 1,
        1 + size,
        2 * size,
        size // 2,
        13 // size,
        size % 4,
        -size,
        math.ceil(size / 4),
        size**2,
    ):
        assert type(value).__name__ == "TracedInt"
    assert type(size / 4).__name__ == type(size**-0.5).__name__ == "TracedFloat"
    assert (size, f"{size}", [0] * size, size > 5, hash(size)) == (6, "6", [0] * 6, True, hash(6))
    assert copy.deepcopy(size) is size
    with pytest.raises(TypeError):
        size + "x"


@pytest.mark.gpu
def test_a_model_on_the_gpu_is_traced_there_and_the_graph_can_move():
    model = Net(lambda x: sized(arranged(x))).cuda().eval()
    gm = trace(model, SHAPE)
    assert torch.equal(gm(images().cuda()), model(images().cuda()))
    assert torch.allclose(gm.cpu()(images()), model.cpu()(images()))


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvision_networks(name):
    model = getattr(torchvision.models, name)(weights=None).eval()
    gm = trace(model, (2, 3, 32, 32))
    assert gm.meta["mbs_leaves"] == {}
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(gm(x), model(x))


def test_a_segmentation_network_with_a_dictionary_of_outputs():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    gm = trace(model, (2, 3, 32, 32))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(gm(x)["out"], model(x)["out"])


TIMM = {"test_efficientnet": "symbolic", "test_nfnet": "symbolic", "mobilevitv2_050": "concrete"}


@pytest.mark.parametrize(("name", "strategy"), TIMM.items())
def test_timm_networks(name, strategy):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name).eval()
    gm = trace(model, (2, 3, 64, 64))
    assert gm.meta["mbs_tracing"] == strategy
    assert gm.meta["mbs_leaves"] == {}
    x = torch.randn(3, 3, 64, 64)
    assert torch.equal(gm(x), model(x))
