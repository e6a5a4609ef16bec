"""The vocabulary of operations: complete, true to torch, and one answer for every spelling."""

import math
import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mbs_fx.channels.label_pass
import mbs_fx.geometry.propagation  # noqa: F401 both attach their rules
from mbs_fx.operations import onnx, vocabulary
from mbs_fx.operations.call import Call
from mbs_fx.operations.register import channels, geometry
from mbs_fx.operations.resolve import is_in_place, named, of_function, of_module, of_target, operation_of, spelling

OPERATIONS = list(
    dict.fromkeys([*vocabulary.NAMES.values(), *vocabulary.METHODS.values(), *vocabulary.MODULES.values()])
)


def test_every_operation_has_rules_of_both_passes():
    without = [o.name for o in OPERATIONS if channels.of(o) is None]
    assert not without, f"no rule of the label pass: {without}"
    without = [o.name for o in OPERATIONS if not o.elementwise and geometry.of(o) is None]
    assert not without, f"neither elementwise nor a rule of geometry: {without}"
    assert all(channels.of(each) is not None for each in vars(onnx).values() if isinstance(each, type(OPERATIONS[0])))


def test_every_name_is_one_of_torch_or_python():
    spaces = (torch, F, torch.Tensor, torch.ops.aten, operator, torch.special, torch.linalg)

    def known(name):
        plain = name.removeprefix("Tensor.").removeprefix("special_").removeprefix("linalg_")
        spelled = (plain, f"{plain}_", f"__{plain}__")
        return any(hasattr(space, each) for space in spaces for each in spelled) or plain == "getattr"

    made_up = [
        name for o in OPERATIONS for name in o.names if "." not in name.removeprefix("Tensor.") and not known(name)
    ]
    assert not made_up


def test_functions_of_other_libraries_exist():
    from importlib import import_module

    paths = [name for name in vocabulary.NAMES if "." in name]
    assert paths
    for path in paths:
        module, _, name = path.rpartition(".")
        owner = import_module(module)
        assert callable(getattr(owner if hasattr(owner, name) else getattr(torch.ops, module), name))


def test_no_name_stands_twice():
    names = [name for o in OPERATIONS for name in o.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("targets", "name"),
    [
        ([torch.relu, torch.relu_, F.relu, "relu", "relu_", torch.ops.aten.relu.default, torch.ops.aten.relu_], "relu"),
        ([operator.add, operator.iadd, torch.add, "add_", "__add__", "__radd__", torch.ops.aten.add.Tensor], "add"),
        ([F.threshold, torch.threshold, torch.threshold_], "threshold"),
        ([F.max_pool2d, torch.max_pool2d, torch.ops.aten.max_pool2d.default], "max_pool2d"),
        ([torch.special.expit, torch.sigmoid, F.sigmoid, torch._C._nn.hardsigmoid], "sigmoid hardsigmoid"),
        (["transpose_", "swapaxes_", "swapdims_", torch.swapaxes], "transpose"),
        ([torch.absolute, torch.abs, operator.abs, "absolute_", "__abs__"], "abs"),
        ([F.logsigmoid], "logsigmoid"),
        ([torch.linalg.vector_norm, torch.norm, "norm"], "norm"),
        ([operator.mod, operator.imod, torch.remainder, "__mod__"], "remainder"),
    ],
)
def test_all_spellings_are_one_operation(targets, name):
    for target in targets:
        found = found_of(target)
        assert found is not None, target
        assert found.name in name.split(), target


def found_of(target):
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    return of_target(graph.call_method(target, (x,)) if isinstance(target, str) else graph.call_function(target, (x,)))


def test_functions_and_methods_of_one_name_can_be_two_operations():
    assert found_of("unfold") is vocabulary.WINDOWS
    assert found_of(torch.ops.aten.unfold.default) is vocabulary.WINDOWS
    assert found_of(F.unfold) is vocabulary.UNFOLD


def clip(x):
    return x[:, :2]


def test_a_function_of_ones_own_is_none_of_torchs():
    assert of_function(clip) is None
    assert of_function(math.sqrt) is of_function(torch.sqrt)
    assert of_function(torch.nn.init.normal_) is None
    assert of_function(torch.fft.fft) is None
    assert of_module(type("ReLU", (nn.Module,), {})) is None


def test_subclasses_are_what_their_nearest_base_class_is():
    assert of_module(type("Mine", (nn.Conv2d,), {})) is vocabulary.CONV[1]
    assert of_module(nn.ReLU6) is vocabulary.RELU6
    assert of_module(nn.LazyConv2d) is vocabulary.CONV[1]
    assert named("AvgPool3d") is vocabulary.AVG_POOL[2]


def test_torch_says_what_is_elementwise():
    """Every public function that torch marks pointwise is in the vocabulary, and is elementwise or has its own rule."""
    marked = [name for name in dir(torch) if callable(getattr(torch, name)) and vocabulary.is_pointwise(name)]
    assert len(marked) > 100
    found = {name: of_function(getattr(torch, name)) for name in marked}
    assert {name for name, each in found.items() if each is None or not each.elementwise} <= {"max", "min"}
    for name in ("hypot", "atan2", "xlogy", "absolute", "negative", "logaddexp", "copysign", "arctan2"):
        assert of_function(getattr(torch, name)).elementwise


@pytest.mark.parametrize(
    ("module", "zeros"),
    [
        (nn.ReLU(), "exact"), (nn.Hardtanh(), "none"), (nn.Hardtanh(0.0, 1.0), "exact"),
        (nn.Threshold(0.1, 0.0), "exact"),
        (nn.Threshold(0.1, 20.0), "none"), (nn.Softshrink(), "exact"), (nn.Hardshrink(), "exact"), (nn.SiLU(), "none"),
        (nn.Dropout(), "passes"), (nn.BatchNorm2d(3), "passes"),
    ],
)  # fmt: skip
def test_which_layers_make_zeros(module, zeros):
    gm = torch.fx.symbolic_trace(nn.Sequential(module))
    node = next(node for node in gm.graph.nodes if node.op == "call_module")
    operation = of_module(type(module))
    said = operation.zeros
    assert (said(Call(gm, node, operation, module, {})) if callable(said) else said) == zeros


@pytest.mark.parametrize(
    ("make", "name", "value", "place"),
    [
        (lambda x: torch.transpose(x, 1, 2), "dim0", 1, ("args", 1)),
        (lambda x: x.swapaxes(axis0=1, axis1=2), "dim1", 2, ("kwargs", "axis1")),
        (lambda x: x.sum(axis=3), "dim", 3, ("kwargs", "axis")),
        (lambda x: x.split(split_size=2), "split_size_or_sections", 2, ("kwargs", "split_size")),
        (lambda x: F.softmax(input=x, dim=1), "dim", 1, ("kwargs", "dim")),
        (lambda x: torch.narrow(x, 1, 0, 2), "length", 2, ("args", 3)),
    ],
)
def test_arguments_by_position_and_by_name(make, name, value, place):
    class Made(nn.Module):
        def forward(self, x):
            return make(x)

    gm = torch.fx.symbolic_trace(Made())
    node = next(node for node in gm.graph.nodes if node.op.startswith("call"))
    call = Call(gm, node, operation_of(gm, node), None, {})
    assert call.argument(name) == value
    assert call.place(name) == place
    assert call.source is next(iter(gm.graph.nodes))


def test_arguments_of_a_module_are_its_attributes():
    gm = torch.fx.symbolic_trace(nn.Sequential(nn.MaxPool2d(3, 2)))
    node = next(node for node in gm.graph.nodes if node.op == "call_module")
    call = Call(gm, node, vocabulary.MAX_POOL[1], gm.get_submodule("0"), {})
    assert (call.value("kernel_size"), call.value("stride"), call.source.op) == (3, 2, "placeholder")


def test_in_place_spellings():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    nodes = {name: graph.call_method(name, (x,)) for name in ("add_", "add", "__iadd__", "__add__", "index_select")}
    nodes |= {
        f.__name__: graph.call_function(f, (x,)) for f in (operator.iadd, operator.and_, torch.relu_, operator.index)
    }
    assert {name for name, node in nodes.items() if is_in_place(node)} == {"add_", "__iadd__", "iadd", "relu_"}
    assert (spelling("add_"), spelling(operator.iadd), spelling(operator.and_)) == ("add", "add", "and")
