"""Tracing leaves the model alone and keeps its mode, its parameters and the order of its changes."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from tracing_helpers import SHAPE, Net, images, targets

from mbs_fx.tracing.trace import trace


class ByValue(nn.Module):
    """Decides by values, so that it becomes a leaf, which runs while the model is traced."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


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


@pytest.mark.parametrize("model", [Net(FunctionalDropout()), Auxiliary(nn.ReLU())], ids=["dropout", "auxiliary head"])
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
