"""What `retrain` refuses, before the first step where it can."""

import pytest
import torch
from test_training import images, net, recipe
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import mbs_fx

PIXELS, LABELS = images(16).tensors


def test_labels_outside_the_classes():
    data = TensorDataset(torch.randn(16, 3, 8, 8), torch.full((16,), 7))
    with pytest.raises(mbs_fx.MBSError, match=r"epoch 1, step 1: label 7 is outside the 4 classes"):
        mbs_fx.retrain(net(), data, None, recipe())


def test_output_that_is_no_classifier():
    with pytest.raises(mbs_fx.MBSError, match=r"output is \(16, 6, 8, 8\).*classifiers"):
        mbs_fx.retrain(net()[:3], images(), None, recipe())


def test_integer_images():
    data = TensorDataset(torch.zeros(16, 3, 8, 8, dtype=torch.uint8), torch.zeros(16, dtype=torch.long))
    with pytest.raises(mbs_fx.MBSError, match=r"images are torch.uint8.*normalised"):
        mbs_fx.retrain(net(), data, None, recipe())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be a whole number, at least 1"),
        ({"lr": -1.0}, "lr is -1.0; it must be positive"),
        ({"schedule": "cosine"}, "'steps' or 'one-cycle'"),
        ({"distill": 2.0}, "from 0 to 1"),
        ({"average": 1.0}, "None, or between 0 and 1"),
        ({"epochs": 1.5}, "a whole number"),
        ({"momentum": 1.5}, "from 0 to below 1"),
        ({"momentum": 0.0, "nesterov": True}, "False where momentum is 0"),
        ({"weight_decay": -1.0}, "0 or more"),
        ({"seed": -1}, "a whole number, 0 or more"),
    ],
)
def test_recipe_out_of_range(changes, message):
    with pytest.raises(mbs_fx.MBSError, match=message):
        recipe(**changes)


def test_distillation_without_a_teacher():
    with pytest.raises(mbs_fx.MBSError, match=r"distill=0.5, but there is no teacher"):
        mbs_fx.retrain(net(), images(), None, recipe(distill=0.5))


def test_images_that_can_be_read_only_once():
    with pytest.raises(mbs_fx.MBSError, match="can be read only once"):
        mbs_fx.retrain(net(), iter(DataLoader(images(), 16)), None, recipe())


class Endless(IterableDataset):
    """Images without a length."""

    def __iter__(self):
        return iter(images(16))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (TensorDataset(PIXELS[:0], LABELS[:0]), "there are none"),
        ([], "there are none"),
        (DataLoader(Endless(), 4), "have no length"),
        ([(PIXELS, LABELS.float())], r"labels are torch.float32 of shape \(16,\) for 16 images"),
        ([(PIXELS, LABELS[:, None])], r"labels are torch.int64 of shape \(16, 1\)"),
        ([(PIXELS, LABELS, LABELS)], "a batch holds Tensor, Tensor, Tensor"),
        ([{"image": PIXELS, "depth": PIXELS, "label": LABELS}], "a dict with keys image, depth, label"),
        ([{"image": PIXELS}], "a dict with keys image"),
        (PIXELS, r"a batch is a Tensor; give \(images, labels\), or images alone and a teacher"),
    ],
)
def test_what_is_no_training_set(train, message):
    with pytest.raises(mbs_fx.MBSError, match=message):
        mbs_fx.retrain(net(), train, None, recipe())


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (TensorDataset(PIXELS[:0], LABELS[:0]), "no test images"),
        (iter([(PIXELS, LABELS)]), "no test images, or they can be read only once"),
        ([(PIXELS, LABELS[:, None])], r"test batch 0: labels are torch.int64 of shape \(16, 1\)"),
        ([(PIXELS, LABELS + 1)], "test batch 0: label 4 is outside"),
    ],
)
def test_what_is_no_test_set(test, message):
    with pytest.raises(mbs_fx.MBSError, match=message):
        mbs_fx.retrain(net(), images(), test, recipe())


def test_batches_that_are_not_as_many_as_they_say():
    class Once:
        def __init__(self, count):
            self.batches = iter([(PIXELS, LABELS)] * count)

        def __len__(self):
            return 1

        def __iter__(self):
            return self.batches

    with pytest.raises(mbs_fx.MBSError, match="epoch 2: the batches have length 1, and there were 0"):
        mbs_fx.retrain(net(), Once(1), None, recipe())
    with pytest.raises(mbs_fx.MBSError, match="epoch 1: the batches have length 1, and there were more"):
        mbs_fx.retrain(net(), Once(2), None, recipe())


def test_labels_may_be_any_integers():
    small = TensorDataset(PIXELS, LABELS.to(torch.int16))
    assert mbs_fx.retrain(net(), small, small, recipe(epochs=1)).accuracy is not None


@pytest.mark.parametrize("classes", [1, 7])
def test_teacher_of_other_classes(classes):
    with pytest.raises(mbs_fx.MBSError, match=f"the teacher tells {classes} classes apart, not 4"):
        mbs_fx.retrain(net(), images(), None, recipe(), teacher=net(classes=classes))


def test_teacher_that_is_no_classifier():
    with pytest.raises(mbs_fx.MBSError, match="the teacher's output is"):
        mbs_fx.retrain(net(), images(), None, recipe(), teacher=net()[:3])


def test_frozen_network():
    with pytest.raises(mbs_fx.MBSError, match="every parameter of the network is frozen"):
        mbs_fx.retrain(net().requires_grad_(False), images(), None, recipe())


@pytest.mark.parametrize("name", ["checkpoint", "log"])
def test_files_that_cannot_be_written_are_found_before_training(tmp_path, name):
    model = net()
    before = model[0].weight.clone()
    with pytest.raises(mbs_fx.MBSError, match="cannot write there"):
        mbs_fx.retrain(model, images(), None, recipe(), **{name: tmp_path / "no" / "file"})
    assert torch.equal(before, model[0].weight)


def test_dicts_train_as_pairs_do():
    dicts = [{"label": y, "pixel_values": x, "name": "batch"} for x, y in DataLoader(images(16), 8)]
    results = []
    for data in (list(DataLoader(images(16), 8)), dicts):
        torch.manual_seed(0)
        model = net()
        results.append(mbs_fx.retrain(model, data, data, recipe()).epochs[-1])
    assert results[0].loss == results[1].loss
    assert results[0].accuracy == results[1].accuracy


def test_images_that_nobody_normalised():
    data = TensorDataset((PIXELS.sigmoid() * 255).round(), LABELS)
    with pytest.warns(UserWarning, match=r"retrain: the images hold values from .* look like pixels"):
        mbs_fx.retrain(net(), data, None, recipe(epochs=1, lr=1e-6))
