"""A trained ResNet-20, 500 training and 500 test images of CIFAR-10: something to reduce right after installing.

- ``images.webp`` and ``test_images.webp`` are lossless sheets: one row a class, in the order of `CLASSES`, of 50
  images of 32 x 32.  Densities are measured on the first; accuracy is that on the second, which the network has not
  been trained on.
- ``resnet20.safetensors`` holds the weights in half precision; benchmarks/cifar10.py trained it.
- Images come normalised as the network was trained to see them.
"""

from __future__ import annotations

from importlib.resources import files

import torch
from torch import Tensor

from mbs_fx.sample.resnet import MEAN, STD, ResNet, resnet

__all__ = ["CLASSES", "MEAN", "STD", "images", "labels", "resnet", "test_images", "trained"]

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
PER_CLASS = 50


def trained() -> ResNet:
    """The shipped ResNet-20 in eval mode, float32."""
    from safetensors.torch import load

    net = resnet(20)
    net.load_state_dict(load((files("mbs_fx.sample") / "resnet20.safetensors").read_bytes()))
    return net.eval()


def images() -> Tensor:
    """The shipped training images (500, 3, 32, 32), normalised; classes alternate, so every batch has all."""
    return _prepared("images.webp")


def test_images() -> Tensor:
    """The shipped test images (500, 3, 32, 32), prepared and ordered as `images`."""
    return _prepared("test_images.webp")


def labels() -> Tensor:
    """Class indices (500,) of `images`, and of `test_images`."""
    return torch.arange(len(CLASSES)).repeat(PER_CLASS)


def _prepared(name: str) -> Tensor:
    """The images of a sheet in order, normalised."""
    tiles = _sheet(name).unflatten(0, (len(CLASSES), 32)).unflatten(2, (PER_CLASS, 32))
    pixels = tiles.permute(2, 0, 4, 1, 3).flatten(0, 1)
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def _sheet(name: str) -> Tensor:
    """A sheet's pixels, uint8 (320, 1600, 3)."""
    import numpy as np
    from PIL import Image

    with (files("mbs_fx.sample") / name).open("rb") as file, Image.open(file) as sheet:
        return torch.from_numpy(np.array(sheet.convert("RGB")))
