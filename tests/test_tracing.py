"""Does `mbs_fx.trace` give a graph that computes what the model computes, and say so where it cannot?"""

import copy
import math
import random
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn

from mbs_fx.errors import MBSError
from mbs_fx.tracers.sizes import Source, traced
from mbs_fx.tracing import trace

SHAPE = (2, 4, 8, 8)


def images(batch=2, **kwargs):
    return torch.randn(batch, *SHAPE[1:], generator=torch.Generator().manual_seed(1), **kwargs)


def targets(gm, op):
    return [node.target for node in gm.graph.nodes if node.op == op]


class Net(nn.Module):
    """A convolution, then whatever the test is about."""

    def __init__(self, then=None):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.then = then if isinstance(then, nn.Module) else None
        self.function = None if isinstance(then, nn.Module) else then

    def forward(self, x):
        x = self.conv(x)
        return self.then(x) if self.then is not None else self.function(x)


def unpacked(x):
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def asserted(x):
    assert x.shape[1] == 6, f"wrong number of channels in {x.shape}"
    return x + 1


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


@pytest.mark.parametrize("function", CONTROL_FLOW, ids=lambda function: function.__name__)
def test_what_shapes_decide_is_traced_and_serves_other_batch_sizes(function):
    model = Net(function).eval()
    gm = trace(model, images())
    assert gm.meta["mbs_leaves"] == {}
    assert gm.meta["mbs_notes"] == ()
    for batch in (2, 3, 5):
        assert torch.equal(gm(images(batch)), model(images(batch)))


@pytest.mark.parametrize("function", [asserted, decided, counted, integer, sized, assigned, asked, formatted])
def test_plain_tracing_fails_or_is_wrong_where_concrete_shapes_are_used(function):
    assert trace(Net(function).eval(), SHAPE).meta["mbs_tracing"] == "concrete"


def test_what_plain_tracing_can_do_is_left_to_it():
    assert (
        trace(torchvision.models.resnet18(weights=None).eval(), (1, 3, 32, 32)).meta["mbs_tracing"]
        == "symbolic"
    )


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

    (note,) = trace(Tabled().eval(), SHAPE).meta["mbs_notes"]
    assert "_tensor_constant0" in note


# Leaves


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Pair(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + x


def test_subclasses_of_layers_are_leaves_and_subclasses_of_containers_are_not():
    model = nn.Sequential(Doubled(4, 4, 1), Pair(nn.BatchNorm2d(4), nn.ReLU())).eval()
    assert targets(trace(model, SHAPE), "call_module") == ["0", "1.0", "1.1"]
    assert targets(trace(model), "call_module") == ["0", "1.0", "1.1"]


@pytest.mark.parametrize("leaves", [["1"], "1", [Pair], Pair])
def test_modules_and_classes_can_be_kept_whole(leaves):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Pair(nn.BatchNorm2d(4), nn.ReLU())).eval()
    gm = trace(model, SHAPE, leaves=leaves)
    assert targets(gm, "call_module") == ["0", "1"]
    assert gm.meta["mbs_leaves"] == {}


@pytest.mark.parametrize("leaves", [["conv3"], [int], [3]])
def test_a_leaf_that_is_no_module_is_an_error(leaves):
    with pytest.raises(MBSError, match="leaves"):
        trace(Net(nn.ReLU()), SHAPE, leaves=leaves)


class ByValue(nn.Module):
    """Decides by values, which no trace can show."""

    def __init__(self, channels=6):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x * self.scale if x.sum() > 0 else x


def test_a_module_that_decides_by_values_becomes_a_leaf_with_the_reason():
    model = Net(nn.Sequential(ByValue(), nn.BatchNorm2d(6), nn.ReLU())).eval()
    gm = trace(model, SHAPE)
    assert targets(gm, "call_module") == ["conv", "then.0", "then.1", "then.2"]
    assert list(gm.meta["mbs_leaves"]) == ["then.0"]
    assert "x.sum() > 0" in gm.meta["mbs_leaves"]["then.0"]
    assert torch.equal(gm(images(3)), model(images(3)))


def test_without_an_example_the_same_module_becomes_a_leaf_too():
    gm = trace(Net(nn.Sequential(ByValue(), nn.ReLU())).eval())
    assert list(gm.meta["mbs_leaves"]) == ["then.0"]


def test_a_class_that_fails_twice_becomes_a_leaf_as_a_whole():
    model = nn.Sequential(*(ByValue(4) for _ in range(5))).eval()
    assert list(trace(model, SHAPE).meta["mbs_leaves"]) == ["0", "1", "2", "3", "4"]


def test_a_leaf_that_calls_for_values_twice_gets_the_shape_of_each_call():
    class Shrunk(nn.Module):
        def forward(self, x):
            return x[:, : max(1, int(x.detach().abs().sum().clamp(max=3).item()))]

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 1)
            self.shrunk = Shrunk()

        def forward(self, x):
            x = self.shrunk(self.conv(x))
            assert x.shape[1] == 3
            return self.shrunk(x[:, :2])

    gm = trace(Twice().eval(), SHAPE)
    assert list(gm.meta["mbs_leaves"]) == ["shrunk"]
    assert gm(images()).shape == (2, 2, 8, 8)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_modules_are_leaves():
    script = torch.jit.script(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU()))
    for then in (script, nn.Sequential(script, nn.ReLU())):
        model = Net(then).eval()
        gm = trace(model, SHAPE)
        assert "TorchScript" in next(iter(gm.meta["mbs_leaves"].values()))
        assert torch.equal(gm(images(3)), model(images(3)))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_leaves_are_traced_around_with_concrete_shapes():
    class Asserting(Net):
        def forward(self, x):
            assert len(x.shape) == 4
            return super().forward(x)

    model = Asserting(torch.jit.script(nn.BatchNorm2d(6))).eval()
    gm = trace(model, SHAPE)
    assert gm.meta["mbs_tracing"] == "concrete"
    assert torch.equal(gm(images(3)), model(images(3)))


def test_what_the_model_itself_decides_by_values_is_an_error_that_names_the_line():
    with pytest.raises(MBSError, match=r"forward of Net(.|\n)*x\.mean\(\) > 0(.|\n)*leaves="):
        trace(Net(lambda x: x if x.mean() > 0 else -x), SHAPE)


def test_without_an_example_the_error_asks_for_one():
    with pytest.raises(MBSError, match="pass an example"):
        trace(Net(asserted))


# Modes, statistics, randomness


def test_the_model_and_the_random_state_are_left_alone():
    model = Net(nn.Sequential(nn.BatchNorm2d(6), nn.Dropout(0.5), ByValue())).train()
    model.then[0].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate()
    example = images()
    trace(model, example)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert torch.equal(example, images())


@pytest.mark.parametrize("training", [True, False])
def test_the_graph_has_the_mode_and_the_parameters_of_the_model(training):
    model = Net(nn.Sequential(nn.BatchNorm2d(6), nn.Dropout(0.5))).train(training)
    gm = trace(model, SHAPE)
    assert gm.training == training
    assert all(module.training == training for module in gm.modules())
    assert gm.meta["mbs_notes"] == ()
    assert list(gm.state_dict()) == list(model.state_dict())
    assert all(p is q for p, q in zip(gm.parameters(), model.parameters(), strict=True))


class FunctionalDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


class Auxiliary(Net):
    def forward(self, x):
        y = super().forward(x)
        return (y, y.mean()) if self.training else y


@pytest.mark.parametrize(
    "model", [Net(FunctionalDropout()), Auxiliary(nn.ReLU())], ids=["dropout", "auxiliary head"]
)
@pytest.mark.parametrize(("training", "other"), [(True, "evaluation"), (False, "training")])
def test_a_mode_that_tracing_fixed_is_noted(model, training, other):
    (note,) = trace(model.train(training), SHAPE).meta["mbs_notes"]
    assert f"not the model in {other} mode" in note
    assert "tracing fixed the mode" in note


def test_the_residual_past_a_dropout_is_not_dropped():
    """In evaluation mode dropout returns the very tensor it was given; the graph must keep them apart."""

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            assert x.shape[1] == 4
            return x + self.conv(self.drop(x)) + x.contiguous()

    gm = trace(Residual().eval(), SHAPE)
    assert gm.meta["mbs_tracing"] == "concrete"
    assert gm.meta["mbs_notes"] == ()


def test_random_numbers_sized_by_the_input_are_drawn_at_each_run():
    class DropPath(nn.Module):
        def forward(self, x):
            keep = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(0.5)
            keep.div_(0.5)
            return x * keep

    model = Net(DropPath()).train()
    gm = trace(model, SHAPE)
    for run in range(2):
        results = []
        for module in (gm, model):
            torch.manual_seed(run)
            results.append(module(images(5)))
        assert torch.equal(*results)


def test_changes_in_place_stay_in_order():
    def changed(x):
        assert x.shape[1] == 6
        y = x[:, :3]
        y.mul_(2)
        x += 1
        F.relu(x, inplace=True)
        return x[:, 3:] + y

    model = Net(changed).eval()
    gm = trace(model, SHAPE)
    assert torch.equal(gm(images(3)), model(images(3)))


# Inputs and outputs

Named = namedtuple("Named", "first second")


@dataclass
class Output:
    first: torch.Tensor
    second: torch.Tensor


OUTPUTS = [
    lambda x: (x, x + 1),
    lambda x: [x, (x + 1, None)],
    lambda x: {"out": x, "aux": x + 1},
    lambda x: OrderedDict(out=x, aux=x + 1),
    lambda x: Named(x, x + 1),
    lambda x: Output(x, x + 1),
]


@pytest.mark.parametrize("check", [asserted, lambda x: x], ids=["concrete", "symbolic"])
@pytest.mark.parametrize("function", OUTPUTS)
def test_outputs_of_every_structure(function, check):
    model = Net(lambda x: function(check(x))).eval()
    gm = trace(model, SHAPE)
    if isinstance(model(images()), dict):
        assert list(gm(images())) == list(model(images()))


@pytest.mark.parametrize("check", [asserted, lambda x: x], ids=["concrete", "symbolic"])
def test_several_inputs_keywords_and_defaults(check):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 1)

        def forward(self, x, mask=None, *, gain=None, twice=False):
            x = check(self.conv(x))
            if mask is not None:
                x = x * mask
            if gain is not None:
                x = x * gain
            return x * 2 if twice else x

    model, x = Several().eval(), images()
    mask = torch.rand(2, 1, 8, 8)
    assert targets(trace(model, x), "placeholder") == ["x"]
    assert targets(trace(model, (x, mask)), "placeholder") == ["x", "mask"]
    assert targets(trace(model, (SHAPE, (2, 1, 8, 8))), "placeholder") == ["x", "mask"]
    gm = trace(model, {"x": x, "gain": mask, "twice": True})
    assert targets(gm, "placeholder") == ["x", "gain", "twice"]
    assert gm.meta["mbs_notes"] == ("the input twice is fixed to True",)
    assert torch.equal(gm(x=x, gain=mask, twice=True), model(x, gain=mask, twice=True))


def test_without_an_example_defaults_are_not_inputs():
    class Optional(Net):
        def forward(self, x, mask=None):
            x = super().forward(x)
            return x if mask is None else x * mask

    model = Optional(nn.ReLU()).eval()
    gm = trace(model)
    assert targets(gm, "placeholder") == ["x"]
    assert torch.equal(gm(images()), model(images()))


def test_a_list_of_images_is_an_input():
    class Stacked(Net):
        def forward(self, xs):
            return super().forward(torch.stack(list(xs)))

    model = Stacked(nn.ReLU()).eval()
    xs = list(images())
    gm = trace(model, (xs,))
    assert torch.equal(gm(xs), model(xs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_example_has_the_dtype_of_the_parameters(dtype):
    model = Net(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU())).to(dtype).eval()
    assert trace(model, SHAPE)(images().to(dtype)).dtype is dtype
    assert trace(Net(asserted).to(dtype).eval(), SHAPE)(images().to(dtype)).dtype is dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_the_gpu_is_traced_there_and_the_graph_can_move():
    model = Net(lambda x: sized(arranged(x))).cuda().eval()
    gm = trace(model, SHAPE)
    assert torch.equal(gm(images().cuda()), model(images().cuda()))
    assert torch.allclose(gm.cpu()(images()), model.cpu()(images()))


# Parameters, buffers and constants


class Standardised(nn.Module):
    """A convolution by function on computed weights, with a buffer, a constant and an unsaved buffer."""

    def __init__(self, check):
        super().__init__()
        self.check = check
        self.weight = nn.Parameter(torch.randn(6, 4, 3, 3))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("scale", torch.rand(4, 1, 1), persistent=False)
        self.table = torch.rand(6, 1, 1)

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        x = (self.check(x) - self.mean.view(1, -1, 1, 1)) * self.scale
        return F.conv2d(x, weight) * self.table * torch.tensor(2.0)


def four(x):
    assert x.shape[1] == 4
    return x


@pytest.mark.parametrize("check", [four, lambda x: x], ids=["concrete", "symbolic"])
def test_nothing_computed_of_parameters_becomes_a_constant(check):
    model = Standardised(check).eval()
    gm = trace(model, SHAPE)
    assert {"weight", "mean", "scale", "table"} <= set(targets(gm, "get_attr"))
    assert list(gm.state_dict()) == ["weight", "mean"]
    assert gm.weight is model.weight
    assert not hasattr(model, "_tensor_constant0")
    with torch.no_grad():
        model.weight.mul_(2)
        model.mean.add_(1)
    assert torch.equal(gm(images()), model(images()))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x * gradient


@pytest.mark.parametrize("check", [asserted, lambda x: x], ids=["concrete", "symbolic"])
def test_custom_autograd_functions_are_followed_and_noted(check):
    model = Net(lambda x: Square.apply(check(x))).eval()
    (note,) = trace(model, SHAPE).meta["mbs_notes"]
    assert "Square" in note


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


# Real networks


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvision_networks(name):
    model = getattr(torchvision.models, name)(weights=None).eval()
    gm = trace(model, (2, 3, 32, 32))
    assert gm.meta["mbs_leaves"] == {}
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(gm(x), model(x))


def test_a_segmentation_network_with_a_dictionary_of_outputs():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None
    ).eval()
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


# Bad input


def test_a_graph_module_is_returned_as_it_is():
    gm = fx.symbolic_trace(Net(nn.ReLU()))
    assert trace(gm, SHAPE) is gm


BAD_MODELS = {
    "a class": lambda: nn.Conv2d,
    "a function": lambda: F.relu,
    "wrapped": lambda: nn.DataParallel(nn.Conv2d(4, 4, 1)),
    "lazy": lambda: nn.LazyConv2d(4, 1),
    "script": lambda: torch.jit.script(nn.Conv2d(4, 4, 1)),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("make", BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_what_is_no_traceable_module_is_an_error(make):
    with pytest.raises(MBSError, match=r"[Mm]odule|lazy"):
        trace(make(), SHAPE)


@pytest.mark.parametrize(
    "example", ["x", 3, (), (0, 4, 8, 8), (1, 3, 8, 8), images(dtype=torch.float64), (SHAPE, SHAPE)]
)
def test_an_example_that_does_not_fit_is_an_error(example):
    with pytest.raises(MBSError, match="example"):
        trace(Net(nn.ReLU()), example)


def test_a_model_that_cannot_be_copied_is_an_error():
    class Generating(Net):
        def __init__(self):
            super().__init__(nn.ReLU())
            self.stream = (i for i in range(3))

    with pytest.raises(MBSError, match="cannot be copied"):
        trace(Generating(), SHAPE)


def test_a_graph_that_computes_something_else_is_an_error():
    """A counter outside the model: no copy of the model and no trace of it gives the same twice."""
    calls = []

    def different(x):
        calls.append(1)
        return x * len(calls)

    with pytest.raises(MBSError, match="does not compute what the model computes"):
        trace(Net(different).eval(), SHAPE)
