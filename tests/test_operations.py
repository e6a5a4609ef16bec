"""The wiring that an analysis keeps, against the graph itself."""

import pickle

import torch
from torch import nn
from torchvision.models import resnet18

import mbs_fx


class Net(nn.Module):
    """One dimension, a pool with one number for its window, a module called twice, a size that is read."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(3, 8, 5, stride=2), nn.ReLU())
        self.pool = nn.MaxPool1d(3, 2)
        self.twice = nn.Sequential(nn.Conv1d(8, 8, 3, padding=1))

    def forward(self, x):
        y = self.pool(self.first(x))
        y = self.twice(self.twice(y) + y)
        return y.view(y.size(0), -1)


def operations(net, shape):
    gm = torch.fx.symbolic_trace(net)
    return gm, {o.name: o for o in mbs_fx.analyze(gm, shape).operations}


def test_operations_are_the_nodes_that_handle_tensors():
    gm, found = operations(resnet18().eval(), (1, 3, 64, 64))
    assert list(found) == [node.name for node in gm.graph.nodes]
    for node in gm.graph.nodes:
        assert found[node.name].inputs == tuple(n.name for n in node.all_input_nodes)
        assert found[node.name].path == (node.target if node.op == "call_module" else "")
    assert found["layer2_0_downsample_0"].scope == ("layer2", "layer2.0", "layer2.0.downsample")
    assert found["add"].scope == ("layer1", "layer1.0")
    assert found["fc"].shape == (1, 1000)
    assert (found["conv1"].kernel, found["conv1"].step) == ((7, 7), (2, 2))
    assert (found["maxpool"].kernel, found["maxpool"].step) == ((3, 3), (2, 2))


def test_sizes_are_left_out_and_second_calls_told_apart():
    _, found = operations(Net(), (1, 3, 40))
    assert "size" not in found
    assert found["view"].inputs == ("twice_1",)
    assert (found["pool"].kernel, found["pool"].step) == ((3,), (2,))
    assert found["twice_0"].path == found["twice_1"].path == "twice.0"
    assert found["twice_0"].scope != found["twice_1"].scope


def test_without_records_of_modules_the_path_says_where():
    gm = torch.fx.symbolic_trace(resnet18().eval())
    for node in gm.graph.nodes:
        node.meta.clear()
    found = {o.name: o for o in mbs_fx.analyze(gm, (1, 3, 64, 64)).operations}
    assert found["layer2_0_conv1"].scope == ("layer2", "layer2.0")
    assert found["add"].scope == ()


def test_an_analysis_is_plain_values():
    analysis = mbs_fx.analyze(torch.fx.symbolic_trace(Net()), (1, 3, 40))
    assert pickle.loads(pickle.dumps(analysis)) == analysis
    assert b"torch" not in pickle.dumps(analysis.operations)
