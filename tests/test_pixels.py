"""Pixels in place of prepared images: files, PIL images, arrays and tensors of bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import mbs_fx
from mbs_fx import MBSError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SIZE = mbs_fx.Preparation(16, MEAN, STD)
BYTES = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
NORMALISED = (BYTES / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


class Labelled(Dataset):
    """What torchvision's data sets are without a transform, or Hugging Face's."""

    def __init__(self, items, as_dict=False):
        self.items, self.as_dict = items, as_dict

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return {"label": 3, "image": self.items[index]} if self.as_dict else (self.items[index], 3)


def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 9, padding=4), nn.ReLU(), nn.Conv2d(16, 4, 3))
    return mbs_fx.trace(nn.Sequential(*layers).eval(), (1, 3, 16, 16))


def measured(images, **options):
    return mbs_fx.measure(network(), images, confidence=None, **options)


def pil(images=BYTES):
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


FORMS = {
    "bytes": lambda: BYTES,
    "array of bytes": lambda: BYTES.numpy(),
    "channels last": lambda: BYTES.permute(0, 2, 3, 1).numpy(),
    "list of tensors": lambda: list(BYTES),
    "pairs": lambda: Labelled(BYTES),
    "dicts": lambda: Labelled(BYTES.permute(0, 2, 3, 1).numpy(), as_dict=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_scaled_and_normalised(form):
    assert measured(FORMS[form](), preparation=SIZE).nonzero == measured(NORMALISED).nonzero


def test_float_arrays_are_tensors():
    expected = measured(NORMALISED).nonzero
    assert measured(NORMALISED.numpy()).nonzero == expected
    assert measured(NORMALISED.numpy().astype(np.float64)).nonzero == expected


@pytest.mark.parametrize("form", ["list", "pairs", "dicts", "folder"])
def test_pil_images_and_files_are_resized_and_cropped(form, tmp_path):
    images = pil()
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index:02}.png")
    forms = {
        "list": lambda: images,
        "pairs": lambda: Labelled(images),
        "dicts": lambda: Labelled(images, as_dict=True),
        "folder": lambda: str(tmp_path),
    }
    by_hand = torch.stack([SIZE.transform()(image) for image in images])
    assert by_hand.shape == (40, 3, 16, 16)
    assert measured(forms[form](), preparation=SIZE).nonzero == measured(by_hand).nonzero


def test_reduce_takes_them_and_knows_the_size():
    small = mbs_fx.reduce(network(), pil(), preparation=SIZE, z=0.5)
    assert small.meta["mbs"].input_shapes == ((1, 3, 16, 16),)
    assert "<table>" in small._repr_html_()


def test_grey_pixels_become_three_channels():
    grey = BYTES[:, :1]
    assert measured(grey, preparation=SIZE).images == 40


@pytest.mark.parametrize(
    "form",
    [BYTES, BYTES.numpy(), pil(), Labelled(pil()), "photos"],
    ids=["bytes", "array", "PIL", "pairs", "path"],
)
@pytest.mark.parametrize("call", [measured, lambda images: mbs_fx.reduce(network(), images)], ids=["measure", "reduce"])
def test_without_a_preparation_it_is_said_what_to_give(call, form):
    with pytest.raises(MBSError, match=r"preparation=mbs_fx.Preparation\(size, mean, std\)"):
        call(form)


@pytest.mark.parametrize("form", [NORMALISED, list(NORMALISED.split(8)), DataLoader(NORMALISED, 8)])
def test_a_preparation_of_prepared_images_is_refused(form):
    with pytest.raises(MBSError, match="preparation= is for pixels"):
        measured(form, preparation=SIZE)


def test_a_shape_that_is_no_image():
    with pytest.raises(MBSError, match=r"pixels of shape \(5, 16, 16\)"):
        measured(torch.zeros(4, 5, 16, 16, dtype=torch.uint8), preparation=SIZE)


def test_floats_that_look_like_pixels_are_warned_of():
    with pytest.warns(UserWarning, match=r"measure: the images hold values from 0 to 255, which look like pixels"):
        measured(BYTES.float())
    measured(BYTES.float() / 255)  # scaled and not normalised is a choice that some networks make
