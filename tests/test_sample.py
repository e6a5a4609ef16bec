"""The network and the images that come with the package."""

from __future__ import annotations

from importlib.resources import files

import torch
from torch.utils.data import TensorDataset

import mbs_fx
from mbs_fx import sample


def test_images_are_normalised_and_class_balanced():
    images, labels = sample.images(), sample.labels()
    assert images.shape == (500, 3, 32, 32)
    assert images.dtype == torch.float32
    assert torch.equal(labels.bincount(), torch.full((10,), 50))
    # every value is a byte that was scaled to [0, 1] and normalised
    pixels = (images * torch.tensor(sample.STD).view(3, 1, 1) + torch.tensor(sample.MEAN).view(3, 1, 1)) * 255
    assert pixels.min() > -1e-3
    assert pixels.max() < 255 + 1e-3
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)


def test_images_are_distinct_and_every_batch_has_all_classes():
    images, labels = sample.images(), sample.labels()
    assert len(images.flatten(1).unique(dim=0)) == 500
    assert all(len(batch.unique()) == 10 for batch in labels.split(10))


def test_trained_network_recognises_the_shipped_images():
    net = sample.trained()
    assert not net.training
    with torch.inference_mode():
        right = (net(sample.images()).argmax(1) == sample.labels()).float().mean()
    # training images: above the 90 % that the network reaches on CIFAR-10's test images
    assert right > 0.9


def test_test_images_are_others_and_recognised_less_often():
    net, images, known = sample.trained(), sample.test_images(), sample.images()
    assert images.shape == known.shape
    assert len(torch.cat([images, known]).flatten(1).unique(dim=0)) == 1000
    accuracy = [mbs_fx.accuracy(net, TensorDataset(each, sample.labels())) for each in (images, known)]
    assert 0.88 < accuracy[0] < accuracy[1]


def test_sample_fits_the_size_that_was_promised():
    package = files("mbs_fx.sample")
    assert len((package / "resnet20.safetensors").read_bytes()) < 700_000
    assert len((package / "images.webp").read_bytes()) < 900_000
    assert len((package / "test_images.webp").read_bytes()) < 900_000


def test_depths_are_those_of_the_paper():
    # He et al. (2016), table 6: 0.27 and 0.46 million parameters
    sizes = [sum(p.numel() for p in sample.resnet(depth).parameters()) for depth in (20, 32)]
    assert sizes == [269722, 464154]
