"""`register_operation`: what a user teaches the passes, and how it is taken back."""

import pytest
import torch
from proof import difference, random_inputs, zeroed
from torch import nn
from torch.nn import functional as F
from wirings import Net, conv

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.channels.rules.elementwise import elementwise_rule
from mbs_fx.geometry.call import along
from mbs_fx.operations.register import channels, geometry
from mbs_fx.operations.resolve import registered

SHAPE = (2, 3, 8, 8)


@torch.fx.wrap
def swish(x):
    return x * x.sigmoid()


@torch.fx.wrap
def rectified(x):
    return x.clamp(min=0)


class Swish(nn.Module):
    def forward(self, x):
        return swish(x) if isinstance(x, torch.fx.Proxy) else x * x.sigmoid()


class Leaves(torch.fx.Tracer):
    def is_leaf_module(self, module, path):
        return isinstance(module, Swish) or super().is_leaf_module(module, path)


def net(function):
    class Made(Net):
        def make(self):
            self.a = conv(16, 16)

        def middle(self, x):
            return function(self.a(x))

    return torch.fx.symbolic_trace(Made().eval())


def test_a_registered_function_is_followed_and_forgotten():
    gm = net(lambda x: swish(x))
    assert "swish" in mbs_fx.analyze(gm, SHAPE).kept["a"]
    with mbs_fx.register_operation(swish, channels=elementwise_rule):
        analysis = mbs_fx.analyze(gm, SHAPE)
        assert "a" not in analysis.kept
        plan = mbs_fx.plan(analysis, widths={"a": 9})
        small, x = mbs_fx.rewrite(gm, plan), random_inputs(gm, plan, torch.float32)
        with torch.no_grad():
            assert difference(zeroed(gm, small.meta["mbs"])(*x), small(*x)) < 1e-5
    assert "swish" in mbs_fx.analyze(gm, SHAPE).kept["a"]
    assert not registered


def test_a_class_of_modules():
    class Made(Net):
        def make(self):
            self.a, self.act = conv(16, 16), Swish()

        def middle(self, x):
            return self.act(self.a(x))

    model = Made().eval()
    gm = torch.fx.GraphModule(model, Leaves().trace(model))
    with mbs_fx.register_operation(Swish, channels=elementwise_rule, zeros="none"):
        analysis = mbs_fx.analyze(gm, SHAPE)
    assert "a" not in analysis.kept
    assert (analysis.activations["act"].kind, analysis.activations["act"].sparse) == ("Swish", False)
    assert "a" in mbs_fx.analyze(gm, SHAPE).kept


def test_zeros_are_counted_where_they_are_said_to_be():
    gm = net(lambda x: rectified(x))
    seen = {}
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    with mbs_fx.register_operation(rectified, channels=elementwise_rule, zeros="exact"):
        density = mbs_fx.measure(gm, images, confidence=None)
    gm.a.register_forward_hook(lambda module, args, output: seen.update(a=output))
    with torch.no_grad():
        gm(images)
    assert density.p["a"] == pytest.approx(float((seen["a"] > 0).float().mean()), abs=1e-6)


def test_geometry_of_a_function():
    gm = net(lambda x: swish(x))
    window = lambda call: along(call, call.input, 2, lambda i, axis, size: axis.windowed(size, 5))  # noqa: E731
    with mbs_fx.register_operation(swish, channels=elementwise_rule, geometry=window):
        fields = mbs_fx.analyze(gm, SHAPE).geometry
    # two convolutions of 3: 5 pixels; a window of 5 adds 4
    assert (fields["a"].receptive_field, fields["swish"].receptive_field) == ((5, 5), (9, 9))


def test_a_subclass_inherits_what_is_not_said():
    class Own(nn.ReLU):
        pass

    class Made(Net):
        def make(self):
            self.a, self.act = conv(16, 16), Own()

        def middle(self, x):
            return self.act(self.a(x))

    model = Made().eval()
    gm = torch.fx.GraphModule(model, Inherits(Own).trace(model))
    with mbs_fx.register_operation(Own, zeros="none"):
        analysis = mbs_fx.analyze(gm, SHAPE)
    assert (analysis.activations["act"].sparse, "a" in analysis.kept) == (False, False)
    assert mbs_fx.analyze(gm, SHAPE).activations["act"].sparse


class Inherits(torch.fx.Tracer):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def is_leaf_module(self, module, path):
        return isinstance(module, self.kind) or super().is_leaf_module(module, path)


def test_functions_of_torch_are_taught_in_all_spellings():
    gm = net(lambda x: torch.cumsum(x, 2) + x.cumsum(2))
    assert "a" in mbs_fx.analyze(gm, SHAPE).kept
    with mbs_fx.register_operation(torch.cumsum, channels=elementwise_rule):
        assert "a" not in mbs_fx.analyze(gm, SHAPE).kept


def test_of_two_registrations_the_later_counts():
    gm = net(lambda x: swish(x))
    first = mbs_fx.register_operation(swish, channels=elementwise_rule)
    second = mbs_fx.register_operation(swish, channels=lambda call: call.freeze("said second"))
    assert "said second" in mbs_fx.analyze(gm, SHAPE).kept["a"]
    second.undo()
    second.undo()
    assert "a" not in mbs_fx.analyze(gm, SHAPE).kept
    first.undo()
    assert "swish" in mbs_fx.analyze(gm, SHAPE).kept["a"]
    assert all(not operation.added for facet in (channels, geometry) for operation in facet.rules)


def test_a_failing_rule_is_named():
    def broken(call):
        raise KeyError("width")

    gm = net(lambda x: swish(x))
    with (
        mbs_fx.register_operation(swish, channels=broken),
        pytest.raises(MBSError, match=r"%swish \(swish\): the rule .*broken fails: KeyError: 'width'"),
    ):
        mbs_fx.analyze(gm, SHAPE)
    with (
        mbs_fx.register_operation(swish, geometry=broken),
        pytest.raises(MBSError, match=r"%swish \(swish\): its geometry rule fails: KeyError: 'width'"),
    ):
        mbs_fx.analyze(gm, SHAPE)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("swish", {}, "neither a function nor a class of modules"),
        (nn.ReLU(), {}, "neither a function nor a class of modules"),
        (dict, {}, "neither a function nor a class of modules"),
        (swish, {"zeros": "some"}, 'give "exact", "none" or "passes"'),
        (swish, {"channels": "elementwise"}, "give a function of the call"),
    ],
)
def test_what_cannot_be_registered(kind, options, message):
    with pytest.raises(MBSError, match=message):
        mbs_fx.register_operation(kind, **options)


def test_an_unforeseen_form_of_an_operation_keeps_its_channels():
    gm = net(lambda x: F.pad(x, (1, 1, 1, 1, 0, 0)))
    node = next(node for node in gm.graph.nodes if node.target is F.pad)
    from mbs_fx.channels.rules import padding
    from mbs_fx.operations import vocabulary

    def fails(call):
        raise IndexError("list index out of range")

    channels.rules[vocabulary.PAD] = fails
    try:
        kept = mbs_fx.analyze(gm, SHAPE).kept["a"]
    finally:
        channels.rules[vocabulary.PAD] = padding.pad_rule
    assert node.name in kept
    assert "this form of the operation is not followed" in kept
