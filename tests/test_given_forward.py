"""Models whose own forward decides by values: a function runs what is convolutional in them."""

import pytest
import torch
from torch import nn

import mbs_fx
from mbs_fx import MBSError

SHAPE = (1, 3, 8, 8)


class Detector(nn.Module):
    """Returns the positions that score, as many as there are; its second stage reads the features once more."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(16, 1, 1)
        self.second = nn.Linear(16, 4)
        self.mask = nn.Conv2d(16, 2, 1)

    def forward(self, images):
        features = self.body(torch.stack(images))
        places = (self.head(features) > 0).nonzero().unbind(1)
        return self.second(features[places[0], :, places[2], places[3]]), self.mask(features)


def parts(model, x):
    features = model.body(x)
    return model.head(features), model.second(features[..., 0, 0])


def everything(model, x):
    features = model.body(x)
    return model.head(features), model.second(features[..., 0, 0]), model.mask(features)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Detector().eval()


def test_the_whole_model_comes_back_in_its_class_with_its_own_forward(model):
    small = mbs_fx.reduce(mbs_fx.with_forward(model, everything), example=SHAPE, widths={"body.0": 8, "body.2": 10})
    assert type(small) is Detector
    assert (small.head.in_channels, small.second.in_features, small.mask.in_channels) == (10, 10, 10)
    boxes, masks = small([torch.rand(3, 8, 8)])
    assert boxes.shape[1] == 4
    assert masks.shape == (1, 2, 8, 8)
    assert type(model) is Detector
    assert model.body[0].out_channels == 16


def test_it_is_saved_and_loaded(model, tmp_path):
    small = mbs_fx.reduce(mbs_fx.with_forward(model, everything), example=SHAPE, widths={"body.0": 8})
    mbs_fx.save(small, tmp_path / "p.json", tmp_path / "w.safetensors")
    fresh = mbs_fx.with_forward(Detector().eval(), everything)
    again = mbs_fx.load(fresh, tmp_path / "p.json", tmp_path / "w.safetensors")
    images = [torch.rand(3, 8, 8)]
    assert type(again) is Detector
    assert all(map(torch.equal, small(images), again(images)))


def test_layers_that_it_does_not_run_are_named(model):
    plan = mbs_fx.plan(mbs_fx.analyze(mbs_fx.trace(mbs_fx.with_forward(model, parts), SHAPE)), widths={"body.0": 8})
    assert "not run by the forward that was given, so as they were: mask" in plan.notes
    assert type(mbs_fx.rewrite(mbs_fx.with_forward(model, parts), plan)) is Detector


def test_images_reconstruct_it_and_evaluate_sees_whole_models(model):
    seen = []
    images = torch.rand(8, 3, 8, 8)
    small = mbs_fx.reduce(
        mbs_fx.with_forward(model, parts),
        images,
        keep=["body.2"],
        betas={8: 0.5},
        progress=False,
        evaluate=lambda network: seen.append(type(network)) or 0.0,
    )
    assert type(small) is Detector
    assert small.body[0].out_channels == 8
    assert set(seen) == {Detector}


def test_what_is_no_function_is_refused(model):
    with pytest.raises(MBSError, match=r"with_forward takes a torch\.nn\.Module and a function of it, not a Detector"):
        mbs_fx.with_forward(model, None)
    model.forward = lambda x: x
    with pytest.raises(MBSError, match="the forward of Detector was replaced"):
        mbs_fx.with_forward(model, parts)


def test_a_forward_that_counts_channels_is_for_graphs(model):
    def counts(model, x):
        return model.head(model.body(x).view(-1, 16, 8, 8))

    with pytest.raises(MBSError, match="the forward given for Detector counts channels"):
        mbs_fx.reduce(mbs_fx.with_forward(model, counts), example=SHAPE, widths={"body.2": 10})
