"""A trace is the model on other inputs, with other parameters, in its gradients and in the other mode, or says so."""

import copy
import functools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from tracing_helpers import SHAPE, Net, asserted, images, targets

import mbs_fx
from mbs_fx.errors import MBSError
from mbs_fx.runtime.torch_private import enter_autocast
from mbs_fx.tracing.trace import trace

CHECKS = pytest.mark.parametrize("check", [asserted, lambda x: x], ids=["concrete", "symbolic"])


def gradients(model, x):
    """The gradients of a copy of a model for the sum of squares of its output, by parameter, and of its input."""
    twin, x = copy.deepcopy(model), x.clone().requires_grad_()
    twin(x).square().sum().backward()
    zero = torch.zeros(())
    return {"input": x.grad, **{n: zero if p.grad is None else p.grad for n, p in twin.named_parameters()}}


def require_same_gradients(gm, model, x):
    mine, expected = gradients(gm, x), gradients(model, x)
    for name, gradient in expected.items():
        assert torch.allclose(mine[name], gradient, atol=1e-6), name


class Frozen(nn.Module):
    """One branch is trained, the other is not."""

    def __init__(self, branch, check):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.branch, self.check = branch, check

    def forward(self, x):
        return self.check(self.a(x)) + self.branch(self, x)


def under_no_grad(self, x):
    with torch.no_grad():
        return self.b(x).relu() * 2


def under_inference_mode(self, x):
    with torch.inference_mode():
        y = self.b(x).relu()
    return y.clone()


def under_set_grad_enabled(self, x):
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    y = self.b(x)
    torch.set_grad_enabled(before)
    return y.tanh()


@torch.no_grad()
def decorated(self, x):
    first, second = self.b(x).chunk(2, 1)
    return torch.cat([second, first], 1)


def chunked_outside(self, x):
    with torch.no_grad():
        parts = self.b(x).chunk(2, 1)
    return torch.cat([parts[1], parts[0].relu()], 1)


def partly(self, x):
    """The values that go into the region pass its end with their gradients."""
    y = self.b(x)
    with torch.no_grad():
        scale = y.abs().mean((2, 3), keepdim=True)
        z = y
    return z * scale


def in_place(self, x):
    y = self.b(x)
    with torch.no_grad():
        y.mul_(0.5)
    return y * self.a.bias.view(1, -1, 1, 1)


def sized(self, x):
    with torch.no_grad():
        height, width = x.shape[-2], x.size(-1)
    return self.b(x).reshape(-1, 6, height, width)


REGIONS = [
    under_no_grad, under_inference_mode, under_set_grad_enabled, decorated, chunked_outside, partly, in_place, sized,
]  # fmt: skip


@CHECKS
@pytest.mark.parametrize("branch", REGIONS, ids=lambda function: function.__name__)
def test_no_gradient_passes_a_region_without_gradients(branch, check):
    model = Frozen(branch, check).train()
    gm = trace(model, SHAPE)
    assert gm.meta["mbs_leaves"] == {}
    require_same_gradients(gm, model, images(3))
    assert torch.equal(gm(images(3)), model(images(3)))


def test_a_region_without_gradients_is_one_detach_and_stays_in_a_rewritten_module():
    model = Frozen(under_no_grad, lambda x: x).train()
    gm = trace(model, SHAPE)
    assert targets(gm, "call_method").count("detach") == 1
    for small in (mbs_fx.reduce(gm, betas={(8, 8): 0.5}), mbs_fx.rewrite(model, mbs_fx.plan(mbs_fx.analyze(gm)))):
        assert not gradients(small, images())["b.weight"].any()
        assert gradients(small, images())["a.weight"].any()


def test_a_moving_average_under_no_grad_can_be_trained_twice():
    class Tracked(Net):
        def __init__(self):
            super().__init__(nn.ReLU())
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x):
            y = super().forward(x)
            with torch.no_grad():
                self.mean.mul_(0.9).add_(y.mean((0, 2, 3)), alpha=0.1)
            return y - self.mean.view(1, -1, 1, 1)

    model = Tracked().train()
    gm, small = trace(model, SHAPE), copy.deepcopy(model)
    twin = copy.deepcopy(gm)
    for network in (twin, small):
        for _ in range(2):
            network(images()).sum().backward()
    assert torch.equal(twin.mean, small.mean)
    assert torch.allclose(twin.conv.weight.grad, small.conv.weight.grad)


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Swish(torch.autograd.Function):
    """What torch would derive by itself, with less memory."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return gradient * (s * (1 + x * (1 - s)))


@CHECKS
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("function", [Reversal, Sign])
def test_a_function_with_a_backward_of_its_own_stays_one_node(function, kept, check):
    apply = function.apply
    model = Net(lambda x: (apply if kept else function.apply)(check(x)) * 2).eval()
    gm = trace(model, SHAPE)
    assert [type(gm.get_submodule(t)).__name__ for t in targets(gm, "call_module")] == ["Conv2d", "AutogradFunction"]
    require_same_gradients(gm, model, images(3))
    small = mbs_fx.reduce(gm, betas={(8, 8): 0.5})
    assert torch.equal(small(images(3)), gm(images(3)))
    assert function.__name__ in " ".join(small.meta["mbs"].kept.values())
    assert torch.equal(pickle.loads(pickle.dumps(gm))(images(3)), gm(images(3))) if check is not asserted else True


@CHECKS
def test_a_function_with_the_gradient_of_its_operations_is_followed(check):
    model = Net(lambda x: Swish.apply(check(x))).eval()
    gm = trace(model, SHAPE)
    assert "sigmoid" in targets(gm, "call_method")
    assert gm.meta["mbs_notes"] == ()
    require_same_gradients(gm, model, images(3))


def test_unverified_a_function_is_kept():
    gm = trace(Net(Swish.apply).eval())
    assert targets(gm, "call_module") == ["conv", "autograd_Swish"]


class Reversible(nn.Module):
    """Two halves by a function that takes the modules which it calls."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, f, g):
            a, b = x.chunk(2, 1)
            with torch.no_grad():
                a = a + f(b)
                b = b + g(a)
            ctx.save_for_backward(x)
            ctx.modules = f, g
            return torch.cat([a, b], 1)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            f, g = ctx.modules
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                a, b = x.chunk(2, 1)
                a = a + f(b)
                b = b + g(a)
                torch.autograd.backward(torch.cat([a, b], 1), gradient)
            return x.grad, None, None

    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.Function.apply(x, self.f, self.g)


def test_a_reversible_block_trains_as_in_the_model():
    model = Net(nn.Sequential(Reversible(), nn.ReLU())).train()
    gm = trace(model, SHAPE)
    require_same_gradients(gm, model, images(3))
    assert mbs_fx.reduce(gm)(images()).shape == (2, 6, 8, 8)


def cast(x):
    with torch.autocast("cpu", torch.bfloat16):
        return torch.matmul(x, x.transpose(-1, -2)).float()


def uncast(x):
    with torch.autocast("cpu", enabled=False):
        return torch.matmul(x.float(), x.float().transpose(-1, -2))


@CHECKS
@pytest.mark.parametrize("function", [cast, uncast])
def test_autocast_regions_are_kept(function, check):
    model = Net(lambda x: function(check(x)) * 2).eval()
    gm = trace(model, SHAPE)
    small = mbs_fx.reduce(gm, betas={(8, 8): 0.5})
    assert enter_autocast in targets(small, "call_function")
    for _ in range(2):
        assert torch.equal(gm(images(3)), model(images(3)))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(gm(images(3)), model(images(3)))
            assert small(images(3)).dtype == model(images(3)).dtype
    assert not torch.is_autocast_enabled("cpu")


class Biased(nn.Module):
    """Attention biases gathered once and kept, in evaluation mode, as in LeViT."""

    def __init__(self, attribute):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1)
        self.bias = nn.Parameter(torch.randn(3))
        self.register_buffer("index", torch.tensor([0, 1, 2, 2, 1, 0]))
        self.cache, self.attribute = {}, attribute
        self.kept = None

    def biases(self):
        if self.attribute:
            if self.kept is None:
                self.kept = self.bias[self.index]
            return self.kept
        if "cpu" not in self.cache:
            self.cache["cpu"] = self.bias[self.index]
        return self.cache["cpu"]

    def forward(self, x):
        return self.conv(x) + self.biases().view(1, -1, 1, 1)


@pytest.mark.parametrize("called", ["before", "under no_grad", "never"])
@pytest.mark.parametrize("attribute", [True, False])
def test_what_an_earlier_call_has_kept_is_computed_in_the_graph(attribute, called):
    model, other = Biased(attribute).eval(), Biased(attribute).eval()
    if called != "never":
        with torch.set_grad_enabled(called == "before"):
            model(images())
    gm = trace(model, SHAPE)
    assert (model.kept is not None or bool(model.cache)) == (called != "never")
    gm.load_state_dict(other.state_dict())
    assert torch.equal(gm(images(3)), other(images(3)))
    assert gradients(gm, images())["bias"].any()


class Anchored(nn.Module):
    """Positions that are kept for one size of the input and made again for another."""

    def __init__(self, buffer):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.shape = None
        if buffer:
            self.register_buffer("anchors", torch.empty(0), persistent=False)
        else:
            self.anchors = torch.empty(0)

    def forward(self, x):
        y = self.conv(x)
        if self.shape != y.shape[2:]:
            rows, columns = (torch.arange(n, dtype=y.dtype) for n in y.shape[2:])
            self.anchors = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
            self.shape = y.shape[2:]
        return y + self.anchors.sum(0)


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("buffer", [True, False])
def test_positions_kept_for_one_size_hold_at_another_or_are_refused(buffer, called):
    model = Anchored(buffer).eval()
    x, turned = torch.randn(2, 4, 8, 16), torch.randn(2, 4, 16, 8)
    if called:
        model(x)
    gm = trace(model, x)
    assert torch.equal(gm(x), model(x))
    assert torch.equal(gm(turned), model(turned))
    assert not hasattr(gm, "shape")


def by_float(x):
    return F.interpolate(x, size=int(float(x.shape[-1]) / 1.2))


def by_ceil(x):
    return F.interpolate(x, size=math.ceil(float(x.shape[-1]) / 1.2))


def by_round(x):
    return F.interpolate(x, size=round(float(x.shape[-1]) / 1.2))


@pytest.mark.parametrize("function", [by_float, by_ceil, by_round], ids=lambda function: function.__name__)
def test_a_size_that_became_a_constant_is_noted_and_other_sizes_are_refused(function):
    model = Net(function).eval()
    gm = trace(model, SHAPE)
    assert torch.equal(gm(images(3)), model(images(3)))
    (note,) = gm.meta["mbs_notes"]
    assert note.startswith("the graph holds for inputs of 8 × 8 and refuses others")
    small = mbs_fx.reduce(gm, betas={(8, 8): 0.5})
    assert note in small.meta["mbs"].notes
    for graph in (gm, small):
        with pytest.raises(AssertionError, match="size 8"):
            graph(torch.randn(2, 4, 16, 16))


def test_a_size_that_is_rounded_without_float_follows_the_input():
    model = Net(lambda x: F.interpolate(x, size=(math.ceil(x.shape[-2] / 1.2), round(x.shape[-1] / 1.2)))).eval()
    gm = trace(model, SHAPE)
    assert gm.meta["mbs_notes"] == ()
    x = torch.randn(2, 4, 16, 12)
    assert torch.equal(gm(x), model(x))


class Reparametrized(nn.Module):
    """A convolution whose weight forward computes and assigns."""

    def __init__(self):
        super().__init__()
        self.conv, self.eval_conv = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        self.eval_conv.weight.data = self.conv.weight * 2
        return self.eval_conv(x)


def test_a_weight_that_forward_assigns_follows_the_parameters():
    model = Net(Reparametrized()).eval()
    gm = trace(model, SHAPE)
    assert "data" in gm.meta["mbs_leaves"]["then"]
    with torch.no_grad():
        model.then.conv.weight.mul_(3)
    assert torch.equal(gm(images()), model(images()))


def test_a_weight_that_the_model_itself_assigns_is_refused_by_name():
    class Root(Reparametrized):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(4, 6, 1)

        def forward(self, x):
            return super().forward(self.first(x))

    with pytest.raises(MBSError, match="data"):
        trace(Root().eval(), SHAPE)


class Typed(Net):
    def forward(self, x):
        x = x.to(next(self.parameters()).dtype)
        return super().forward(x / torch.ones(1, dtype=torch.float32).to(x.dtype))


@CHECKS
def test_a_type_that_follows_the_parameters_follows_them(check):
    model = Typed(check).eval()
    gm = trace(model, SHAPE)
    small = mbs_fx.reduce(gm, betas={(8, 8): 0.5})
    for dtype in (torch.float64, torch.bfloat16):
        for graph in (copy.deepcopy(gm), small):
            assert graph.to(dtype)(images()).dtype is dtype
        assert torch.equal(copy.deepcopy(gm).to(dtype)(images()), copy.deepcopy(model).to(dtype)(images()))


@CHECKS
def test_a_type_that_the_model_writes_down_stays(check):
    model = Net(lambda x: check(x).to(torch.float32).softmax(1)).eval()
    gm = trace(model, SHAPE)
    assert gm.double()(images().double()).dtype is torch.float32


def test_einops_keeps_nothing_of_a_trace():
    einops = pytest.importorskip("einops")
    model = Net(lambda x: einops.rearrange(asserted(x), "b (g c) h w -> b (c g) (h w)", g=2)).eval()
    model(images())
    gm = trace(model, images())
    assert gm.meta["mbs_notes"] == ()
    for x in (images(), images(3), torch.randn(2, 4, 6, 10)):
        assert torch.equal(gm(x), model(x))
    small = mbs_fx.rewrite(model, mbs_fx.plan(mbs_fx.analyze(gm)))
    assert torch.equal(small(images()), model(images()))


def test_caches_of_functions_keep_nothing_of_a_trace():
    @functools.lru_cache
    def part(size, parts):
        return size // parts

    model = Net(lambda x: asserted(x)[:, :, : part(x.shape[2], 2)]).eval()
    trace(model, SHAPE)
    assert type(part(8, 2)) is int
    (note,) = trace(model, SHAPE).meta["mbs_notes"]
    assert "refuses others" in note


class FunctionalDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


class StaysInEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(6)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.norm(x)


MODES = [(FunctionalDropout(), "dropout"), (StaysInEval(), "train() of StaysInEval")]


@pytest.mark.parametrize(("then", "name"), MODES)
def test_a_mode_that_tracing_fixes_is_named_in_the_plan(then, name):
    small = mbs_fx.reduce(Net(then).eval(), example=SHAPE)
    assert any("training mode" in note and name in note for note in small.meta["mbs"].notes)
    assert name in str(small.meta["mbs"])


@CHECKS
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_followed_and_noted(reentrant, check):
    class Checkpointed(Net):
        def forward(self, x):
            if self.training:
                return checkpoint(lambda y: check(self.conv(y)).relu(), x, use_reentrant=reentrant)
            return check(self.conv(x)).relu()

    model = Checkpointed(nn.ReLU()).train()
    gm = trace(model, SHAPE)
    (note,) = gm.meta["mbs_notes"]
    assert "checkpoint" in note
    require_same_gradients(gm, model, images(3))


def test_a_successful_trace_prints_nothing(capsys):
    trace(Net(lambda x: asserted(x) + (1 if isinstance(x, torch.Tensor) else 2)).eval(), SHAPE)
    trace(Net(by_float).eval(), SHAPE)
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


def test_at_most_eight_forward_passes():
    calls = []

    class Counting(nn.Conv2d):
        def forward(self, x):
            if type(x) is torch.Tensor:
                calls.append(x.shape)
            return super().forward(x)

    trace(nn.Sequential(Counting(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()).eval(), (2, 4, 16, 16))
    assert len(calls) == 4
    assert sorted(shape.numel() for shape in calls)[1] < 2 * 4 * 16 * 16
    trace(Net(nn.Sequential(Counting(6, 6, 1), FunctionalDropout())).eval(), SHAPE)
    assert len(calls) - 4 <= 8


def test_unverified_nothing_runs():
    calls = []

    class Counting(nn.Conv2d):
        def forward(self, x):
            calls.append(x.shape)
            return super().forward(x)

    gm = trace(nn.Sequential(Counting(4, 6, 1), nn.ReLU()).eval(), SHAPE, verify=False)
    assert calls == []
    assert mbs_fx.analyze(gm).input_shapes == (SHAPE,)


def test_a_submodule_with_a_name_that_torch_fx_needs_is_an_error():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.meta = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.meta(x)

    with pytest.raises(MBSError, match="'meta'"):
        trace(Named(), SHAPE)


def test_a_trace_under_inference_mode_is_an_ordinary_one():
    model = Frozen(under_no_grad, lambda x: x).train()
    with torch.inference_mode():
        gm = trace(model, SHAPE)
    require_same_gradients(gm, model, images())
