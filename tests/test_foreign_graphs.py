"""Graphs that others made: dynamo's with module calls, and those that onnx2torch makes of an ONNX file."""

import pytest
import torch
import torchvision
from proof import difference, is_exact, random_inputs, widths_hold, zeroed
from torch import nn
from wirings import ConstantView

import mbs_fx
from mbs_fx import MBSError

SHAPE = (2, 3, 64, 64)


def randomised(net):
    """A network of which no two tensors are equal: the exporter would share them."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.data.uniform_(-0.1, 0.1)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return net.eval()


def holds(gm, shape=SHAPE):
    """Reduce by a uniform factor and check the result against the zeroed original."""
    gm = gm.double()
    analysis = mbs_fx.analyze(gm, shape)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: 0.75 for m in analysis.macroblocks})
    small = mbs_fx.rewrite(gm, plan)
    assert plan.params[1] < 0.8 * plan.params[0]
    assert sum(p.numel() for p in small.parameters()) == plan.params[1]
    assert widths_hold(small, plan) == ""
    inputs = random_inputs(gm, plan, torch.float64)
    with torch.no_grad():
        if is_exact(gm, plan):
            assert difference(zeroed(gm, small.meta["mbs"])(*inputs), small(*inputs)) < 1e-10
        same = mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={}))
        assert difference(gm(*inputs), same(*inputs)) == 0


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_dynamo_with_module_calls(name):
    net = randomised(torchvision.models.get_model(name))
    switch = {"install_free_tensors_for_export": False}
    if not hasattr(torch._dynamo.config, next(iter(switch))):
        pytest.skip("this torch has no switch that keeps module calls in dynamo's graphs")
    with torch._dynamo.config.patch(**switch):
        holds(torch._dynamo.export(net)(torch.randn(SHAPE)).graph_module)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "view"])
@pytest.mark.filterwarnings("ignore")  # the exporter's and the converter's own
def test_an_onnx_file(name, tmp_path):
    onnx2torch = pytest.importorskip("onnx2torch", reason="onnx2torch is not installed")
    net = randomised(ConstantView() if name == "view" else torchvision.models.get_model(name))
    path = tmp_path / "net.onnx"
    x = torch.randn((2, 3, 8, 8) if name == "view" else SHAPE)
    torch.onnx.export(net, (x,), path, dynamo=False, opset_version=13)
    gm = onnx2torch.convert(path)
    with torch.no_grad():
        assert difference(net(x), gm(x)) < 1e-4
    holds(gm, tuple(x.shape))


def test_an_exported_graph_of_aten_operators_is_reduced():
    net = torchvision.models.resnet18().eval()
    holds(torch.export.export(net, (torch.randn(SHAPE),)).module(), SHAPE)


def test_graphs_whose_weights_are_inputs_are_refused_with_advice():
    net = torchvision.models.resnet18().eval()
    captured = []

    def backend(gm, inputs):
        captured.append(gm)
        return gm.forward

    torch.compile(net, backend=backend)(torch.randn(SHAPE))
    with pytest.raises(MBSError, match=r"weights are inputs.*mbs_fx\.trace"):
        mbs_fx.analyze(
            captured[0], [tuple(n.meta["example_value"].shape) for n in captured[0].graph.find_nodes(op="placeholder")]
        )
