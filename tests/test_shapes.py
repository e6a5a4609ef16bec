"""Shapes are compared with those of a real forward pass; the model must come out of it untouched."""

import random
from collections import namedtuple
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, symbolic_trace
from work import calls

from mbs_fx.errors import MBSError
from mbs_fx.sample import resnet
from mbs_fx.shapes.shapes import TensorShape, infer
from mbs_fx.tracing.trace import trace

Pair = namedtuple("Pair", "low high")


class Recorder(Interpreter):
    """The oracle: the values of a real forward pass."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[str, Any] = {}

    def run_node(self, n):
        self.values[n.name] = described(result := super().run_node(n))
        return result


def described(value):
    if isinstance(value, Tensor):
        return TensorShape(tuple(value.shape), value.dtype)
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        items = [described(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [described(item) for item in value]
    if isinstance(value, dict):
        return {key: described(item) for key, item in value.items()}
    return value


def real(gm: GraphModule, *inputs: Tensor):
    recorder = Recorder(gm)
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.values


def state_of(gm: GraphModule):
    tensors = {name: t.clone() for name, t in gm.state_dict().items()}
    modes = {name: m.training for name, m in gm.named_modules()}
    hooks = {name: len(m._forward_hooks) for name, m in gm.named_modules()}
    metas = {n.name: dict(n.meta) for n in gm.graph.nodes}
    return tensors, (modes, hooks, metas, random.getstate()), torch.get_rng_state()


def built(factory, *args, **kwargs):
    """The network without the time that initialisation takes; its numbers mean nothing."""
    with torch.device("meta"):
        model = factory(*args, **kwargs)
    return model.to_empty(device="cpu")


NETWORKS = [
    ("resnet18", {}, 32),
    ("mobilenet_v3_small", {}, 32),
    ("shufflenet_v2_x0_5", {}, 32),
    ("googlenet", {"init_weights": False, "aux_logits": False}, 64),
    ("efficientnet_b0", {}, 32),
    ("convnext_tiny", {}, 32),
    ("densenet121", {}, 32),
]


@pytest.mark.parametrize(("name", "options", "size"), NETWORKS)
def test_same_as_a_real_forward_pass(name, options, size):
    gm = symbolic_trace(built(torchvision.models.get_model, name, **options).eval())
    x = torch.randn(2, 3, size, size)
    assert infer(gm, [x.shape]) == infer(gm, [x]) == real(gm, x)


def test_windows_and_shifts():
    swin = torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4])
    gm = symbolic_trace(swin.eval())
    x = torch.randn(1, 3, 64, 32)
    assert infer(gm, [x.shape]) == real(gm, x)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_model_changes(training):
    gm = symbolic_trace(torchvision.models.mobilenet_v2(dropout=0.5)).train(training)
    calls = []
    gm.features.get_submodule("0").register_forward_hook(lambda *_: calls.append(1))
    before = state_of(gm)
    infer(gm, [(2, 3, 64, 64)])
    after = state_of(gm)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])
    assert not calls


class Values(nn.Module):
    """Everything a node can return besides a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor | None = None, k: int = 3):
        low, high = x.chunk(2, 1)
        size = x.size()
        count = size[2] // 2 + k
        ids = torch.arange(4, device=x.device) + 1
        whole, half = ids * 2, ids * 0.5
        best = x.max(dim=1).values
        return (
            {"pair": [low, (high, y)], "size": size, "count": count},
            (whole, half),
            best,
            self.scale * 2,
        )


def test_python_values_stand_as_they_are_and_tensors_in_containers_are_replaced():
    gm = symbolic_trace(Values())
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    found = infer(gm, [x.shape])
    assert found == real(gm, x)
    assert found["size"] == torch.Size([1, 4, 6, 6])
    assert found["add"] == 6
    assert found["getattr_1"] == torch.device("cpu")
    assert (found["mul"].dtype, found["mul_1"].dtype) == (torch.int64, torch.float32)
    assert found["y"] is None


class Drawer(nn.Module):
    """Other people's code: draws, counts, branches on shapes, returns a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.seen = [torch.zeros(1)]

    def forward(self, x):
        self.seen[0].add_(1)
        noise = torch.rand(1) + random.random()
        x = self.bn(self.conv(x)) + noise
        return Pair(x[:, :2], x[:, 2:]) if x.shape[1] > 4 else Pair(x, x)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drawer = Drawer()

    def forward(self, x):
        pair = self.drawer(x)
        return pair.low.mean() + pair.high


class DrawerIsLeaf(torch.fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, Drawer) or super().is_leaf_module(m, module_qualified_name)


def test_leaves_of_other_people_run_on_fakes():
    model = Around()
    gm = GraphModule(model, DrawerIsLeaf().trace(model))
    before = state_of(gm)
    found = infer(gm, [(2, 3, 9, 9)])
    after = state_of(gm)
    assert found["drawer"] == Pair(TensorShape((2, 2, 7, 7), torch.float32), TensorShape((2, 4, 7, 7), torch.float32))
    assert torch.equal(before[2], after[2])
    assert before[1] == after[1]
    assert model.drawer.seen[0].item() == 0
    assert model.drawer.bn.num_batches_tracked.item() == 0
    assert found == real(gm, torch.randn(2, 3, 9, 9))


class InPlace(nn.Module):
    def forward(self, x):
        y = x * 2
        y.unsqueeze_(0)
        z = x * 2
        return torch.relu_(y), z


def test_a_shape_that_changes_in_place_is_not_shared():
    found = infer(symbolic_trace(InPlace()), [(2, 3)])
    assert (found["mul"], found["relu_"], found["mul_1"]) == (
        TensorShape((2, 3), torch.float32),
        TensorShape((1, 2, 3), torch.float32),
        TensorShape((2, 3), torch.float32),
    )


class Mixed(nn.Module):
    """Tensors made on the way, and a list that grows."""

    def forward(self, x):
        grid = torch.linspace(-1, 1, 5)
        parts = [x, torch.zeros(1, 1, 5), grid.expand(1, 2, 5)]
        parts.append(x)
        return torch.cat(parts, 1) + grid.to(x.dtype)


def test_constants_made_on_the_way():
    gm = symbolic_trace(Mixed())
    assert infer(gm, [(1, 3, 5)])["add"].shape == (1, 9, 5)


def test_half_and_meta_parameters_lead_the_inputs():
    half = symbolic_trace(resnet(8).half())
    assert infer(half, [(1, 3, 32, 32)])["output"] == TensorShape((1, 10), torch.float16)
    with torch.device("meta"):
        meta = symbolic_trace(resnet(8))
    assert infer(meta, [(1, 3, 32, 32)])["output"] == TensorShape((1, 10), torch.float32)


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, stride=2, bias=False))
        self.same = nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect")

    def forward(self, x):
        return self.same(self.conv(x))


def test_parametrized_layers():
    gm = symbolic_trace(Parametrized())
    assert infer(gm, [(1, 3, 9, 9)])["same"].shape == (1, 8, 4, 4)


def test_channels_last_strides_decide_what_a_view_may_do():
    class View(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1).view(x.size(0), x.size(2), -1)

    gm = symbolic_trace(View())
    x = torch.randn(1, 4, 5, 5).to(memory_format=torch.channels_last)
    assert infer(gm, [x])["view"].shape == (1, 5, 20)
    with pytest.raises(MBSError, match=r"node view, call_method view"):
        infer(gm, [(1, 4, 5, 5)])


@pytest.mark.parametrize(
    ("model", "size", "limit"), [(lambda: resnet(218), 32, 100), (torchvision.models.densenet121, 224, 250)]
)
def test_work_grows_with_the_nodes(model, size, limit):
    """Most of the time is spent in calls; a second look at all nodes for each would be 700 of them per node."""
    with torch.device("meta"):
        gm = symbolic_trace(model())
    assert calls(lambda: infer(gm, [(1, 3, size, size)])) < limit * len(gm.graph.nodes)


def test_a_bound_that_is_a_tensor_of_one_number():
    class Resampled(nn.Module):
        def forward(self, x):
            length = torch.floor(torch.as_tensor(3 * x.shape[-1] / 4)).long()
            return x[..., :length] * torch.tensor(2.0)

    assert infer(trace(Resampled(), (2, 3, 40)), [(2, 3, 40)])["output"].shape == (2, 3, 30)
