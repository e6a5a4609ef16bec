"""Which modules stay whole, by rule, by choice, and because nothing else works."""

import pytest
import torch
from torch import nn
from tracing_helpers import SHAPE, Net, asserted, images, targets

import mbs_fx
from mbs_fx.errors import MBSError
from mbs_fx.tracing.trace import trace


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


class Covariances(nn.Module):
    """The upper triangle of the covariances; inside, a number of elements depends on values."""

    def forward(self, x):
        x = x.flatten(2)
        upper = torch.ones(x.shape[1], x.shape[1]).triu().flatten().nonzero().flatten()
        return (x @ x.mT).flatten(1)[:, upper]


def test_a_leaf_whose_shapes_inside_depend_on_values_is_analyzed():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.fc = nn.Conv2d(4, 6, 3), Covariances(), nn.Linear(21, 5)

        def forward(self, x):
            return self.fc(self.pool(self.conv(x).relu()))

    model = Pooled().eval()
    gm = trace(model, SHAPE)
    plan = mbs_fx.plan(mbs_fx.analyze(gm))
    assert list(gm.meta["mbs_leaves"]) == ["pool"]
    assert "pool" in plan.kept["conv"]
    assert torch.equal(mbs_fx.rewrite(gm, plan)(images()), model(images()))


def test_a_layer_inside_of_a_leaf_is_said_to_be_there():
    class Inner(ByValue):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)

        def forward(self, x):
            return self.conv(super().forward(x))

    analysis = mbs_fx.analyze(trace(Net(nn.Sequential(Inner(), nn.ReLU())).eval(), SHAPE))
    for key in ("then.0.conv", "then.0"):
        with pytest.raises(MBSError, match=r"kept then\.0 as a single node"):
            mbs_fx.plan(analysis, keep=key)


class Hidden(nn.Module):
    """Collects its hidden states by hooks."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(16, 3, 1)
        self.states = []
        for layer in (self.layers[1], self.layers[3]):
            layer.register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.states.append(output)

    def forward(self, x):
        self.states = []
        self.layers(x)
        return self.head(torch.cat(self.states, 1))


def test_a_network_that_works_by_its_own_hooks_is_rewritten_with_them():
    model = Hidden().eval()
    gm = trace(model, SHAPE)
    plan = mbs_fx.plan(mbs_fx.analyze(gm), betas={(8, 8): 0.5})
    small, graph = mbs_fx.rewrite(model, plan), mbs_fx.rewrite(gm, plan)
    assert small.head.in_channels == 8
    assert torch.allclose(small(images()), graph(images()))


class Tried(nn.Module):
    """Tells every layer the lengths, and those that do not take them nothing."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x):
        for layer in self.layers:
            try:
                x = layer(x, lengths=None)
            except TypeError:
                x = layer(x)
        return x


def test_a_layer_refuses_a_keyword_in_the_trace_as_it_does_in_the_model():
    gm = trace(Tried().eval(), (2, 3, 9, 9))
    assert gm.meta["mbs_tracing"] == "symbolic"
    assert not any(node.kwargs for node in gm.graph.nodes)
