"""What comes from outside a graph: inputs without a batch, hooks, computed weights, modules that nobody calls."""

import gc
import warnings

import pytest
import torch
from proof import difference, random_inputs, zeroed
from torch import nn
from torch.nn import functional as F
from wirings import Net, Residual, conv

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.tracing.check import copied

SHAPE = (2, 3, 8, 8)


def halved(gm):
    analysis = mbs_fx.analyze(gm, SHAPE)
    return analysis, mbs_fx.plan(analysis, betas={m.spatial_size: 0.5 for m in analysis.macroblocks})


def number_of_parameters(model):
    return sum(p.numel() for p in model.parameters())


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(16, 3, 3, 3)), nn.Parameter(torch.randn(16, 16, 3, 3))

    def forward(self, x):
        return F.conv2d(F.relu(F.conv2d(x, self.a)), self.b).mean((-2, -1))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16)), (3, 16, 16)),
        (nn.Sequential(nn.Conv1d(3, 16, 3), nn.ReLU(), nn.Conv1d(16, 16, 3)), (3, 16)),
        (Functional(), (3, 16, 16)),
    ],
    ids=["maps", "lines", "functions"],
)
def test_an_input_without_a_batch_is_refused(net, shape):
    with pytest.raises(MBSError, match=rf"takes a map of shape \({', '.join(map(str, shape))}\), without a batch axis"):
        mbs_fx.analyze(mbs_fx.trace(net, shape), shape)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_a_weight_that_a_hook_computes_is_cut_as_that_of_a_parametrization(name):
    torch.manual_seed(0)
    old, new = Residual().eval(), Residual().eval()
    new.load_state_dict(old.state_dict())
    getattr(nn.utils.parametrizations, name)(new.a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        getattr(nn.utils, name)(old.a)
    if name == "spectral_norm":
        vectors = new.a.parametrizations.weight[0]
        old.a.weight_u.copy_(vectors._u)
        old.a.weight_v.copy_(vectors._v)
    x = torch.randn(SHAPE)
    old(x)  # leaves a weight that has a gradient
    graphs = [mbs_fx.trace(net, SHAPE) for net in (old, new)]
    graphs.insert(0, copied(graphs.pop(0)))
    plans = [halved(gm)[1] for gm in graphs]
    assert plans[0].widths == plans[1].widths
    assert plans[0].widths["stem.0"] < plans[0].before["stem.0"]
    with torch.no_grad():
        expected = mbs_fx.rewrite(graphs[1], plans[1])(x)
        small = mbs_fx.rewrite(graphs[0], plans[0])
        assert difference(small(x), expected) < 1e-5
        assert difference(mbs_fx.rewrite(old, plans[0])(x), expected) < 1e-5
        if name == "weight_norm":
            assert difference(zeroed(graphs[0], small.meta["mbs"])(x), small(x)) < 1e-5
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.a.parameters())


def test_a_weight_that_another_hook_computes_is_refused():
    net = Residual()
    del net.a._parameters["weight"]
    source = nn.Parameter(torch.randn(16, 16, 3, 3))
    net.a.register_forward_pre_hook(lambda layer, given: setattr(layer, "weight", source * 2))
    net(torch.randn(SHAPE))
    with pytest.raises(MBSError, match=r"a\.weight is computed by a hook \(function\); .*parametrize"):
        mbs_fx.trace(net, SHAPE)


class Standardised(nn.Conv2d):
    """Counts its calls, as somebody's code may."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def forward(self, x):
        self.calls.append(1)
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)


class Watched(Net):
    def make(self):
        self.a = Standardised(16, 16, 3)

    def middle(self, x):
        return self.a(x)


def test_a_pass_calls_no_hooks_and_no_code_of_the_original():
    net = Watched().eval()
    gm = mbs_fx.trace(net, SHAPE)
    fired, modules = [], [net, net.stem, net.a, net.fc]
    for module in modules:
        module.register_forward_hook(lambda *_: fired.append("forward"))
        module.register_forward_pre_hook(lambda *_: fired.append("before"))
        module.register_full_backward_hook(lambda *_: fired.append("backward"))
    state = torch.get_rng_state()
    analysis, plan = halved(gm)
    assert any("computes its weight" in note for note in analysis.notes)
    small = mbs_fx.rewrite(net, plan)
    mbs_fx.rewrite(gm, plan)
    assert (fired, net.a.calls, small.training) == ([], [], False)
    assert torch.equal(torch.get_rng_state(), state)
    small(torch.randn(SHAPE))
    assert fired == ["before"] * 1 + ["before", "forward"] * 3 + ["forward"]
    assert len(net.a._forward_hooks) == len(small.a._forward_hooks) == 1
    assert small.a._forward_hooks is not net.a._forward_hooks


class Indexed(Net):
    """A second input of whole numbers, and a table that the graph looks up."""

    def make(self):
        self.a, self.table = conv(16, 16), nn.Parameter(torch.randn(10, 16))

    def forward(self, x, index):
        y = self.stem(x) + F.relu(self.a(self.stem(x))) * F.embedding(index, self.table.sigmoid())[:, :1, None, None]
        return self.fc(F.relu(self.tail(y)).mean((2, 3)))


def test_an_input_of_whole_numbers_keeps_its_type():
    net, example = Indexed().eval(), (torch.randn(SHAPE), torch.tensor([1, 9]))
    gm = mbs_fx.trace(net, example)
    analysis = mbs_fx.analyze(gm, example)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.5 for m in analysis.macroblocks})
    plan = mbs_fx.Plan.from_json(plan.to_json())
    assert plan.input_types == ("", "int64")
    assert plan.widths["stem.0"] == 8
    small = mbs_fx.rewrite(gm, plan)
    with torch.no_grad():
        assert difference(zeroed(gm, small.meta["mbs"])(*example), small(*example)) < 1e-5
        assert difference(mbs_fx.rewrite(net, plan)(*example), small(*example)) < 1e-5
        again = mbs_fx.load(Indexed().eval(), small.meta["mbs"], small.state_dict())
        assert difference(again(*example), small(*example)) == 0
    batches = [(torch.randn(SHAPE), torch.tensor([i, i + 1])) for i in range(3)]
    assert mbs_fx.measure(gm, batches, confidence=None).images == 6
    assert mbs_fx.latency_of(gm)(plan) > 0


def test_parameters_are_those_that_the_graph_uses():
    gm = mbs_fx.trace(Residual().eval(), SHAPE)
    node = next(n for n in gm.graph.nodes if n.target == "b")
    node.replace_all_uses_with(node.args[0])
    gm.graph.erase_node(node)
    gm.recompile()
    _, plan = halved(gm)
    unused = number_of_parameters(gm.b)
    assert plan.params == (number_of_parameters(gm) - unused, number_of_parameters(mbs_fx.rewrite(gm, plan)))


class Whole(nn.Module):
    """Holds another layer's weight, and is not looked into."""

    def __init__(self, weight):
        super().__init__()
        self.inner = conv(16, 16)
        self.inner.weight = weight

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("leaf_first", [False, True])
def test_a_weight_that_a_leaf_holds_too_stays_one(leaf_first):
    class Tied(Net):
        def make(self):
            other = conv(16, 16)
            if leaf_first:
                self.leaf = Whole(other.weight)
            self.a, self.b = other, conv(16, 16)
            self.leaf = Whole(other.weight)

        def middle(self, x):
            return self.leaf(self.b(F.relu(self.a(x))))

    net = Tied().eval().double()
    gm = mbs_fx.trace(net, SHAPE, leaves=[Whole])
    _, plan = halved(gm)
    small = mbs_fx.rewrite(gm, plan)
    x = random_inputs(gm, plan, torch.float64)
    assert small.leaf.inner.weight is small.a.weight
    assert number_of_parameters(small) == plan.params[1] < plan.params[0]
    assert "are one tensor" in plan.kept["stem.0"]
    with torch.no_grad():
        assert difference(zeroed(gm, small.meta["mbs"])(*x), small(*x)) < 1e-10


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled):
    gm = mbs_fx.trace(Residual().eval(), SHAPE)
    try:
        gc.enable() if enabled else gc.disable()
        _, plan = halved(gm)
        mbs_fx.rewrite(gm, plan)
        assert gc.isenabled() == enabled
        with pytest.raises(MBSError):
            mbs_fx.analyze(gm, (2, 3, 8))
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
