"""Channels chosen by activations and by Taylor's first order, against sums written out here."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from wirings import Residual

import mbs_fx
from mbs_fx import MBSError

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 5


class Plain(nn.Module):
    """A convolution with normalisation and activation, one with neither, and a classifier; written out in `steps`."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.SiLU(inplace=True)
        self.second = nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, 5)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def steps(self, x):
        first = F.silu(self.norm(self.first(x)))
        second = self.second(first)
        return first, second, self.head(second.mean((2, 3)) + 0.0)

    def forward(self, x):
        x = self.second(self.act(self.norm(self.first(x))))
        return self.head(x.mean((2, 3)) + 0.0)


@pytest.fixture
def net():
    return Plain().eval()


def halved(net):
    gm = mbs_fx.trace(net, IMAGES[:2])
    analysis = mbs_fx.analyze(gm, IMAGES[:2])
    return gm, mbs_fx.plan(analysis, widths={"first": 4, "second": 3})


def best(scores, count):
    return tuple(sorted(scores.argsort(descending=True)[:count].tolist()))


def taylor(net, loss):
    """|sum over positions of activation x gradient|, image by image with autograd on the written-out network."""
    totals = [torch.zeros(8), torch.zeros(6)]
    for image, label in zip(IMAGES, LABELS, strict=True):
        first, second, output = net.steps(image[None])
        grads = torch.autograd.grad(loss(output, label[None]), (first, second))
        for total, value, gradient in zip(totals, (first, second), grads, strict=True):
            total += (value * gradient).sum((0, 2, 3)).abs().detach()
    return totals


def squares(output, labels):
    return (output - labels[:, None]).square().mean()


@pytest.mark.parametrize("loss", [None, squares], ids=["cross entropy", "another"])
@pytest.mark.parametrize("size", [24, 5])
def test_taylor_is_activation_times_gradient(net, loss, size):
    gm, plan = halved(net)
    batches = list(zip(IMAGES.split(size), LABELS.split(size), strict=True))
    before = copy.deepcopy(net.state_dict())
    chosen = mbs_fx.choose_channels(gm, plan, batches, criterion="taylor", loss=loss)
    first, second = taylor(net, loss or F.cross_entropy)
    assert chosen.channels["first"] == best(first, 4)
    assert chosen.channels["second"] == best(second, 3)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_taylor_is_what_the_loss_changes_by_to_first_order(net):
    """Setting a small part of a channel to zero changes the loss by that part of its score."""
    first, _ = taylor(net, F.cross_entropy)
    part = 1e-3
    changes = torch.zeros(8)
    with torch.no_grad():
        for image, label in zip(IMAGES.double(), LABELS, strict=True):
            wide = copy.deepcopy(net).double()
            value = F.silu(wide.norm(wide.first(image[None])))

            def loss(value, wide=wide, label=label):
                return F.cross_entropy(wide.head(wide.second(value).mean((2, 3))), label[None])

            for channel in range(8):
                less = value.clone()
                less[:, channel] *= 1 - part
                changes[channel] += float((loss(less) - loss(value)).abs()) / part
    assert torch.allclose(changes, first, rtol=0.02)


def test_activation_is_the_mean_of_the_absolute_value(net):
    gm, plan = halved(net)
    chosen = mbs_fx.choose_channels(gm, plan, IMAGES.split(7), criterion="activation")
    with torch.no_grad():
        first, second, _ = net.steps(IMAGES)
    assert chosen.channels["first"] == best(first.abs().mean((0, 2, 3)), 4)
    assert chosen.channels["second"] == best(second.abs().mean((0, 2, 3)), 3)


def test_a_layer_that_is_called_twice_has_one_score():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.again, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 5, 1)

        def forward(self, x):
            x = self.stem(x).relu()
            x = self.again(x).relu()
            return self.head(self.again(x).relu()).mean((2, 3))

    net = Twice().eval()
    gm = mbs_fx.trace(net, IMAGES[:2])
    analysis = mbs_fx.analyze(gm, IMAGES[:2])
    plan = mbs_fx.plan(analysis, betas=dict.fromkeys(("stem", "again"), 0.5))
    chosen = mbs_fx.choose_channels(gm, plan, [(IMAGES, LABELS)], criterion="taylor")
    scores = {"stem": torch.zeros(6), "again": torch.zeros(6)}
    for image, label in zip(IMAGES, LABELS, strict=True):
        stem = net.stem(image[None]).relu()
        once = net.again(stem).relu()
        twice = net.again(once).relu()
        loss = F.cross_entropy(net.head(twice).mean((2, 3)), label[None])
        grads = torch.autograd.grad(loss, (stem, once, twice))
        values = [(v * g).sum((0, 2, 3)) for v, g in zip((stem, once, twice), grads, strict=True)]
        scores["stem"] += values[0].abs().detach()
        scores["again"] += (values[1] + values[2]).abs().detach()
    together = sum(score / score.mean() for score in scores.values())
    assert chosen.channels["stem"] == chosen.channels["again"] == best(together, 3)


@pytest.mark.parametrize("criterion", ["taylor", "activation", "readers"])
@pytest.mark.parametrize("reconstruct", [True, False])
def test_reduce_takes_them(criterion, reconstruct):
    net = Residual().eval()
    classes = mbs_fx.trace(net, IMAGES[:2])(IMAGES[:2]).shape[1]
    images = TensorDataset(IMAGES, LABELS % classes)
    small = mbs_fx.reduce(net, images, z=0.3, criterion=criterion, reconstruct=reconstruct)
    gm = mbs_fx.trace(net, IMAGES[:2])
    plan = mbs_fx.plan(mbs_fx.analyze(gm, IMAGES[:2]), mbs_fx.measure(gm, images), z=0.3)
    chosen = mbs_fx.choose_channels(gm, plan, images, criterion=criterion)
    assert small.meta["mbs"].channels == chosen.channels
    assert ("mbs_reconstruction" in small.meta) == reconstruct


def test_batches_are_dicts_where_the_loss_says_what_is_in_them(net):
    gm, plan = halved(net)
    pairs = [(IMAGES, LABELS)]
    dicts = [{"pixels": IMAGES, "labels": LABELS}]
    wanted = mbs_fx.choose_channels(gm, plan, pairs, criterion="taylor").channels
    assert mbs_fx.choose_channels(gm, plan, dicts, criterion="taylor").channels == wanted
    own = mbs_fx.choose_channels(
        gm, plan, dicts, criterion="taylor", loss=lambda output, batch: F.cross_entropy(output, batch["labels"])
    )
    assert own.channels == wanted


WRONG = {
    "no labels": ([IMAGES], {}, 'batch 0 holds no labels: criterion "taylor" needs batches'),
    "single images": (list(IMAGES), {}, "batch 0 is a single image"),
    "no images": ([], {}, "there are no images"),
    "floats": ([(IMAGES, LABELS.float())], {}, "without a loss the network gives"),
    "classes": ([(IMAGES, LABELS + 9)], {}, "labels are outside the 5 classes"),
    "loss of a shape": ([(IMAGES, LABELS)], {"loss": lambda o, t: o}, r"the loss is a \(24, 5\): give one number"),
    "loss of a kind": ([(IMAGES, LABELS)], {"loss": lambda o, t: 1.0}, "the loss is a float"),
    "not finite": ([(IMAGES, LABELS)], {"loss": lambda o, t: o.sum() / 0}, "the loss is not finite"),
    "constant": ([(IMAGES, LABELS)], {"loss": lambda o, t: torch.zeros(())}, "does not depend on the layers"),
    "unknown": ([(IMAGES, LABELS)], {"criterion": "l1"}, "criterion 'l1': choose_channels takes readers, activation"),
    "loss for nothing": ([IMAGES], {"criterion": "activation", "loss": squares}, 'loss= is for criterion="taylor"'),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_clear_line(net, name):
    images, change, message = WRONG[name]
    gm, plan = halved(net)
    with pytest.raises(MBSError, match=message) as caught:
        mbs_fx.choose_channels(gm, plan, images, **{"criterion": "taylor", **change})
    assert "\n" not in str(caught.value)


def test_words_where_there_are_no_images(net):
    gm, plan = halved(net)
    with pytest.raises(MBSError, match=r"criterion 'taylor' needs images: mbs_fx\.choose_channels"):
        mbs_fx.rewrite(gm, plan, criterion="taylor")
    with pytest.raises(MBSError, match=r"reduce: criterion='activation' needs images"):
        mbs_fx.reduce(gm, example=IMAGES[:2], criterion="activation")
    with pytest.raises(MBSError, match=r'loss= is for criterion="taylor"'):
        mbs_fx.reduce(gm, IMAGES, loss=squares)
