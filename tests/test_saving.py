"""Files: whole or not at all, with ordinary permissions, and refused where they do not fit."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.results.files import write_atomically
from mbs_fx.sample import resnet


@pytest.fixture(scope="module")
def small():
    return mbs_fx.reduce(resnet(20).eval(), example=(1, 3, 32, 32))


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text("old")

    def broken(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, broken)
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_files_get_the_permissions_of_this_process(small, tmp_path):
    mbs_fx.save(small, tmp_path / "p.json", tmp_path / "w.safetensors")
    mask = os.umask(0)
    os.umask(mask)
    for file in tmp_path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_folder_that_cannot_be_written(small, tmp_path):
    with pytest.raises(MBSError, match="cannot write there"):
        mbs_fx.save(small, tmp_path / "none" / "p.json", tmp_path / "none" / "w.safetensors")


def test_a_state_dict_saved_by_torch_loads_too(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "w.pt")
    again = mbs_fx.load(resnet(20).eval(), small.meta["mbs"].to_json(), tmp_path / "w.pt")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))


def test_weights_that_do_not_fit_are_refused(small):
    plan = small.meta["mbs"]
    with pytest.raises(MBSError, match="the file has shape"):
        mbs_fx.load(resnet(20), plan, resnet(20).state_dict())
    with pytest.raises(MBSError, match="have no tensor"):
        mbs_fx.load(resnet(20), plan, {})


def test_what_was_not_reduced_carries_no_plan():
    with pytest.raises(MBSError, match="carries no plan"):
        mbs_fx.save(resnet(20), "p.json", "w.safetensors")


class Sometimes(nn.Module):
    """Drops channels by a function, and has a head that only training uses."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 8, 3, padding=1)
        self.auxiliary = nn.Conv2d(16, 8, 1)

    def forward(self, x):
        x = F.dropout(self.first(x).relu(), 0.5, self.training)
        return (self.second(x), self.auxiliary(x)) if self.training else self.second(x)


def test_a_fresh_module_in_training_mode_loads_as_the_graph_that_was_reduced(tmp_path):
    small = mbs_fx.reduce(Sometimes().eval(), example=(1, 3, 8, 8), widths={"first": 10})
    mbs_fx.save(small, tmp_path / "p.json", tmp_path / "w.safetensors")
    model = Sometimes()
    again = mbs_fx.load(model, tmp_path / "p.json", tmp_path / "w.safetensors")
    assert again.training
    assert all(module.training for module in model.modules())
    assert isinstance(again, Sometimes)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.eval()(x), small(x))


def test_a_plan_of_a_graph_in_training_mode_loads_in_training_mode():
    small = mbs_fx.reduce(Sometimes(), example=(1, 3, 8, 8), widths={"first": 10})
    again = mbs_fx.load(Sometimes(), small.meta["mbs"], small.state_dict())
    assert [y.shape for y in again(torch.randn(2, 3, 8, 8))] == [(2, 8, 8, 8)] * 2


class Versioned(nn.Module):
    """Reads the version of its layers from what it loads, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x):
        return self.convs(x)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version") not in (1, 2):
            raise ValueError("version should be set to 1 or 2")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_a_file_of_tensors_loads_into_layers_that_ask_for_a_version(tmp_path):
    model, x = Versioned().eval(), torch.randn(2, 3, 12, 12)
    small = mbs_fx.reduce(model, example=x, betas={0: 0.5})
    mbs_fx.save(small, tmp_path / "plan.json", tmp_path / "weights.safetensors")
    again = mbs_fx.load(Versioned().eval(), tmp_path / "plan.json", tmp_path / "weights.safetensors")
    assert torch.equal(small(x), again(x))


class Auxiliary(nn.Module):
    """Has a head in training mode that needs larger images."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.aux = nn.Conv2d(8, 2, 9)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = self.body(x)
        return (self.head(y), self.aux(y)) if self.training else self.head(y)


def test_a_head_of_the_other_mode_that_takes_no_such_size_is_noted():
    x = torch.randn(2, 3, 8, 8)
    small = mbs_fx.reduce(Auxiliary().eval(), example=x, betas={0: 0.5})
    assert small.body[0].out_channels == 4
    assert small(x).shape == (2, 2, 8, 8)
    assert any("training mode" in note and "aux" in note for note in small.meta["mbs"].notes)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(Sign.apply(self.second(self.first(x).relu())))


def test_a_network_with_an_autograd_function_of_its_own(tmp_path):
    torch.manual_seed(0)
    small = mbs_fx.reduce(Quantised().eval(), example=(2, 3, 8, 8), widths={"first": 4})
    mbs_fx.save(small, tmp_path / "p.json", tmp_path / "w.safetensors")
    again = mbs_fx.load(Quantised().eval(), tmp_path / "p.json", tmp_path / "w.safetensors")
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
