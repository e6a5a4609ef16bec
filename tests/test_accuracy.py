"""Accuracy: how it is counted, and where it is kept."""

from __future__ import annotations

import pytest
import torch
from test_training import images, net, recipe, same
from torch import nn
from torch.utils.data import DataLoader

import mbs_fx
from mbs_fx import MBSError


def test_it_is_the_share_of_right_answers():
    data, model = images(50), net()
    pixels, labels = data.tensors
    with torch.no_grad():
        right = int((model.eval()(pixels).argmax(1) == labels).sum())
    assert 0 < right < 50
    batches = [{"image": pixels[:20], "label": labels[:20]}, (pixels[20:], labels[20:])]
    for test in (data, DataLoader(data, 7), batches):
        assert mbs_fx.accuracy(model, test, batch=16) == right / 50


def test_the_network_and_the_random_state_stay_as_they_were():
    model, before = net().train(), net().train()
    state = torch.get_rng_state()
    mbs_fx.accuracy(model, images())
    assert model.training
    assert same(model, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "test", "message"),
    [
        (net(), [], "there are no test images"),
        (net(), iter(images()), "no test images, or they can be read only once"),
        (net(classes=3), images(), "test batch 0: label 3 is outside the 3 classes"),
        (net()[:3], images(), r"test batch 0: the network's output is \(64, 6, 8, 8\); this takes classifiers"),
    ],
)
def test_what_cannot_be_counted_is_said(model: nn.Module, test: object, message: str):
    with pytest.raises(MBSError, match=message):
        mbs_fx.accuracy(model, test)


def reduced(**options: object) -> nn.Module:
    """A network reduced on images, with its accuracies."""
    data, gm = images(), mbs_fx.trace(net(width=12).eval(), torch.zeros(2, 3, 8, 8))
    return mbs_fx.reduce(
        gm, data.tensors[0], betas={0: 0.5}, evaluate=lambda model: mbs_fx.accuracy(model, data), **options
    )


def test_accuracies_stand_in_the_plan_and_its_file(tmp_path):
    small = reduced()
    plan = mbs_fx.plan_of(small)
    assert list(plan.accuracy) == ["original", "inherited", "reconstructed"]
    assert plan.accuracy["reconstructed"] == mbs_fx.accuracy(small, images())
    words = " → ".join(f"{value:.2%} {name}" for name, value in plan.accuracy.items())
    assert f"accuracy {words}\n" in str(plan)
    assert words in plan.to_markdown()
    assert words in plan._repr_html_()
    mbs_fx.save(small, tmp_path / "small.json", tmp_path / "small.safetensors")
    assert mbs_fx.Plan.from_json(tmp_path / "small.json") == plan
    again = mbs_fx.load(net(width=12), tmp_path / "small.json", tmp_path / "small.safetensors")
    assert mbs_fx.plan_of(again).accuracy == plan.accuracy


def test_other_weights_have_no_accuracy_yet():
    small = reduced(init="fresh")
    plan = mbs_fx.plan_of(small)
    assert list(plan.accuracy) == ["original", "fresh"]
    assert not mbs_fx.plan_of(mbs_fx.rewrite(net(width=12), plan)).accuracy


def test_a_number_that_is_no_share_is_printed_as_it_is():
    small = mbs_fx.reduce(net(width=12).eval(), example=(1, 3, 8, 8), betas={0: 0.5}, evaluate=lambda model: 31.25)
    assert "accuracy 31.25 original → 31.25 inherited" in str(mbs_fx.plan_of(small))


def test_retraining_adds_its_own():
    small = reduced()
    result = mbs_fx.retrain(small, images(), images(seed=1), recipe())
    found = mbs_fx.plan_of(small).accuracy
    assert list(found) == ["original", "inherited", "reconstructed", "retrained"]
    assert found["retrained"] == result.accuracy
