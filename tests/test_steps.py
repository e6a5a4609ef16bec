"""Reduction in steps with training in between: budgets of every step, what is trained, what is reported."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.optim.swa_utils import AveragedModel
from wirings import Residual

import mbs_fx
from mbs_fx import MBSError

SHAPE = (2, 3, 8, 8)


def shaken(net):
    """Stands for a training: every parameter changes a little."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=generator))


def parameters(net):
    return sum(tensor.numel() for tensor in net.parameters())


def kept_widths(net):
    return {path: m.out_channels for path, m in net.named_modules() if isinstance(m, nn.Conv2d)}


def test_every_step_asks_for_the_same_share():
    net = Residual().eval()
    seen = []

    def train(small):
        seen.append((small, parameters(small), small.training))
        small.train()

    small = mbs_fx.reduce_in_steps(net, None, train, steps=3, example=SHAPE, max_params="40%")
    whole = parameters(net)
    assert [training for _, _, training in seen] == [False] * 3
    assert all(count <= whole * 0.4 ** (k / 3) for k, (_, count, _) in enumerate(seen, 1))
    assert whole > seen[0][1] > seen[1][1] > seen[2][1] > 0.3 * whole
    assert small is seen[-1][0]
    assert not small.training
    report = small.meta["mbs_steps"]
    assert [step.plan.params for step in report.steps] == [(whole, count) for _, count, _ in seen]
    assert report.accuracy is None
    assert len({id(each) for each, _, _ in seen}) == 3


@pytest.mark.parametrize("budget", [{"max_flops": 300_000}, {"max_bytes": "50%"}])
def test_budgets_are_of_the_network_that_was_given(budget):
    net = Residual().eval()
    plan = mbs_fx.reduce_in_steps(net, None, shaken, steps=2, example=SHAPE, **budget).meta["mbs"]
    assert plan.flops[1] <= 300_000 if "max_flops" in budget else plan.model_bytes[1] <= plan.model_bytes[0] / 2


def test_what_was_trained_goes_on_and_the_plan_is_one_of_the_original(tmp_path):
    net = Residual().eval()
    before = copy.deepcopy(net.state_dict())
    images = torch.randn(24, 3, 8, 8)
    asked = []

    def evaluate(network):
        asked.append(parameters(network))
        return float(len(asked))

    small = mbs_fx.reduce_in_steps(net, images, shaken, steps=2, max_params="50%", evaluate=evaluate)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    first, last = small.meta["mbs_steps"].steps
    assert list(first.accuracy) == list(last.accuracy) == ["inherited", "reconstructed", "trained"]
    sizes = [net, *([first.plan.params[1]] * 3), *([last.plan.params[1]] * 3)]
    assert asked == [parameters(net), *sizes[1:]]
    assert first.accuracy["trained"] == 4
    assert small.meta["mbs_steps"].accuracy == 1
    assert last.plan == small.meta["mbs"]
    assert last.plan.before == kept_widths(net)
    assert last.plan.widths == kept_widths(small)
    mbs_fx.save(small, tmp_path / "plan.json", tmp_path / "weights.safetensors")
    again = mbs_fx.load(Residual(), tmp_path / "plan.json", tmp_path / "weights.safetensors")
    assert torch.equal(again(images), small(images))


def test_thresholds_without_a_budget_are_taken_again_in_every_step():
    net = mbs_fx.trace(Residual().eval(), SHAPE)
    small = mbs_fx.reduce_in_steps(net, None, shaken, steps=2, z=0.3)
    assert isinstance(small, GraphModule)
    once = mbs_fx.reduce(net, z=0.3)
    assert small.meta["mbs"].widths == mbs_fx.reduce(once, z=0.3).meta["mbs"].widths


def test_a_network_that_train_gives_back_is_taken():
    made = []

    def train(small):
        average = AveragedModel(copy.deepcopy(small))
        shaken(average)
        made.append(average)
        return average

    small = mbs_fx.reduce_in_steps(Residual().eval(), None, train, steps=1, example=SHAPE, max_params="60%")
    assert small is not made[0].module
    own, given = small.state_dict(), made[0].module.state_dict()
    assert all(torch.equal(own[name], given[name]) for name in own)


def test_the_table_and_the_file(tmp_path):
    small = mbs_fx.reduce_in_steps(
        Residual().eval(), None, shaken, steps=2, example=SHAPE, max_params="50%", evaluate=lambda _: 0.25
    )
    report = small.meta["mbs_steps"]
    lines = str(report).splitlines()
    assert lines[0].split()[:3] == ["step", "parameters", "left"]
    assert len(lines) == 5
    assert f"{report.steps[1].plan.params[1]:,}" in lines[-1]
    assert lines[-1].endswith("0.25")
    held = json.loads(report.to_json(tmp_path / "steps.json"))
    assert held["steps"][1]["params"] == list(report.steps[1].plan.params)
    assert json.loads((tmp_path / "steps.json").read_text()) == held


def other(small):
    return Residual()


WRONG = {
    "no function": ({"train": None}, "train is called with the small network after every step: give a function"),
    "no steps": ({"steps": 0}, "steps = 0: give a whole number, 1 or more"),
    "read once": ({"images": iter([torch.zeros(SHAPE)])}, "the images can be read only once"),
    "factors": ({"betas": {8: 0.5}}, "leave out betas: they would multiply"),
    "density": ({"density": 0}, "leave out density: every step measures anew"),
    "too far": ({"max_params": "1%"}, "step 1 of 2: max_params = .* the smallest that can be reached"),
    "another network": ({"train": other}, r"step 1: \S+ of the network that train gave back is missing or has"),
    "no budget": ({"max_params": "x"}, "max_params = 'x': give a positive number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_clear_line(name):
    change, message = WRONG[name]
    given = {"images": None, "train": shaken, "steps": 2, "max_params": "60%", "example": SHAPE, **change}
    with pytest.raises(MBSError, match=message) as caught:
        mbs_fx.reduce_in_steps(Residual().eval(), **given)
    assert "\n" not in str(caught.value)


def test_a_report_is_of_one_network():
    small = mbs_fx.reduce(Residual().eval(), torch.randn(24, 3, 8, 8), max_params="70%", evaluate=lambda _: 1.0)
    assert small.meta.keys() - mbs_fx.reduce(small, example=SHAPE).meta.keys() == {"mbs_reconstruction"}
    assert mbs_fx.plan_of(small).accuracy
    assert not mbs_fx.plan_of(mbs_fx.reduce(small, example=SHAPE)).accuracy
