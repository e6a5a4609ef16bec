"""What counts as a learned convolution, and what it costs, against arithmetic written beside it."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.fx import GraphModule, Tracer, symbolic_trace
from torch.utils.flop_counter import FlopCounterMode

from mbs_fx.errors import MBSError
from mbs_fx.shapes.convolutions import ConvSpec, conv_kind, flops
from mbs_fx.shapes.shapes import infer


class Standardised(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, 2, 1)
        self.own = Standardised(8, 12, (3, 5), padding="same", groups=4)
        self.up = nn.ConvTranspose2d(12, 6, 4, 2, 1, groups=2)
        self.weight = nn.Parameter(torch.ones(5, 6, 1, 1))
        self.flat = nn.Parameter(torch.ones(5 * 2, 9))
        self.register_buffer("blur", torch.ones(2, 1, 3, 3))

    def forward(self, x):
        x = F.conv2d(self.up(self.own(self.plain(x))), weight=self.weight)
        x = F.conv_transpose2d(x, self.flat.view(5, 2, 3, 3), None, 2, 1, 1)
        return F.conv2d(x, self.blur, groups=2) + F.conv2d(x, torch.ones(2, 2, 3, 3))


class Whole(Tracer):
    """Leaves by base class, so that subclasses of layers are leaves too."""

    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, nn.modules.conv._ConvNd) or super().is_leaf_module(m, module_qualified_name)


def by_name(gm):
    return {n.name: n for n in gm.graph.nodes}


@pytest.mark.parametrize("tracer", [Tracer, Whole])
def test_kinds_and_costs(tracer):
    model = Everything()
    gm = GraphModule(model, tracer().trace(model))
    shapes = infer(gm, [(2, 3, 16, 12)])
    specs = {n.name: spec for n in gm.graph.nodes if (spec := conv_kind(gm, n, shapes))}
    inside = "own" if tracer is Whole else "conv2d"
    plain, own, up, one, back = specs.values()
    assert list(specs)[1] == inside
    assert plain == ConvSpec((8, 3, 3, 3), 1, (2, 2), (1, 1), (1, 1), False, 2)
    assert own == ConvSpec((12, 2, 3, 5), 4, (1, 1), "same", (1, 1), False, 2)
    assert up == ConvSpec((12, 3, 4, 4), 2, (2, 2), (1, 1), (1, 1), True, 2)
    assert one == ConvSpec((5, 6, 1, 1), 1, (1, 1), (0, 0), (1, 1), False, 2)
    assert back == ConvSpec((5, 2, 3, 3), 1, (2, 2), (1, 1), (1, 1), True, 2)
    # 16 x 12 pixels go in; the first layer halves them, the transposed ones double them.
    costs = [flops(gm, by_name(gm)[name], shapes) for name in specs]
    assert costs == [
        9 * 3 * 8 * 8 * 6,
        15 * 2 * 12 * 8 * 6,
        16 * 12 * 3 * 8 * 6,  # per input pixel
        6 * 5 * 16 * 12,
        9 * 5 * 2 * 16 * 12,
    ]


def test_without_shapes_a_reshaped_weight_is_said_to_be_unknown():
    gm = symbolic_trace(Everything())
    with pytest.raises(MBSError, match=r"conv_transpose2d.*pass the result of mbs_fx.shapes.shapes.infer"):
        conv_kind(gm, next(n for n in gm.graph.nodes if n.name == "conv_transpose2d"))


def test_parametrised_weights_are_not_computed():
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))
    gm = symbolic_trace(nn.Sequential(conv))
    before = {name: t.clone() for name, t in gm.state_dict().items()}
    specs = [conv_kind(gm, n) for n in gm.graph.nodes]
    assert ConvSpec((4, 3, 3, 3), 1, (1, 1), (0, 0), (1, 1), False, 2) in specs
    assert all(torch.equal(before[name], t) for name, t in gm.state_dict().items())


def test_other_nodes_are_none_and_cost_nothing():
    gm = symbolic_trace(nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU()))
    shapes = infer(gm, [(1, 2, 8)])
    relu = by_name(gm)["_1"]
    assert conv_kind(gm, relu, shapes) is None
    assert flops(gm, relu, shapes) == 0


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_the_sum_is_half_of_what_torch_counts(name):
    """FlopCounterMode counts a multiply-add as two."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name).eval()
        gm = symbolic_trace(model)
        with FlopCounterMode(display=False) as counter:
            gm(torch.empty(1, 3, 64, 96))
    shapes = infer(gm, [(1, 3, 64, 96)])
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert 2 * sum(flops(gm, n, shapes) for n in gm.graph.nodes) == counted
