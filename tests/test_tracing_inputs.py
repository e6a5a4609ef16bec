"""Inputs and outputs of every structure, and what cannot be traced."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from tracing_helpers import SHAPE, Net, asserted, images, targets

import mbs_fx
from mbs_fx.errors import MBSError
from mbs_fx.tracing.trace import trace

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


class Gated(Net):
    def forward(self, x, gain=None, twice=False):
        x = super().forward(x) if gain is None else super().forward(x) * gain
        return x * 2 if twice else x


def test_later_calls_know_the_inputs_of_an_example():
    model, gain = Gated(nn.ReLU()).eval(), torch.rand(2, 1, 1, 1)
    shapes = (SHAPE, (2, 1, 1, 1))
    for example in ((images(), gain), (images(), gain, True), {"x": images(), "gain": gain}):
        gm = trace(model, example)
        assert mbs_fx.analyze(gm).input_shapes == shapes
        assert mbs_fx.analyze(gm, example).input_shapes == shapes
    assert torch.equal(trace(model, (images(), gain, True))(images(), gain), model(images(), gain, True))


def test_a_reduced_network_knows_its_inputs():
    once = mbs_fx.reduce(trace(Net(nn.ReLU()).eval(), SHAPE))
    assert mbs_fx.analyze(mbs_fx.reduce(once)).input_shapes == (SHAPE,)


@pytest.mark.parametrize("example", [3, "image", (SHAPE, "gain"), (SHAPE, (2, 1, 1, 1), 1, 1)])
def test_an_example_that_is_none_is_refused(example):
    gm = trace(Gated(nn.ReLU()).eval(), (SHAPE, (2, 1, 1, 1), True))
    with pytest.raises(MBSError, match=r"shape as a tuple|leave out the last"):
        mbs_fx.analyze(gm, example)


@pytest.mark.parametrize("name", ["graph", "code", "meta", "training", "_code", "recompile"])
def test_a_submodule_whose_name_torch_needs_is_an_error(name):
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net.eval()
    net._modules[name] = net._modules.pop("0")
    with pytest.raises(MBSError, match=f"has a submodule '{name}', a name that torch needs for itself"):
        trace(net, SHAPE)
