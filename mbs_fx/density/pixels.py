"""Pixels as people have them: image files, PIL images, arrays and tensors of bytes.

Semantics
- Floating-point arrays are taken as tensors are: as prepared images, (N, C, H, W).
- A network that was traced with whole numbers normalises them itself: bytes are taken as they are.
- Other pixels (bytes, PIL images, a folder of files) have to be prepared as in training, and only the caller knows how:
  ``preparation`` says it, and nothing is guessed.
- Bytes at the network's size are scaled to [0, 1] and normalised; others, and images, are resized and cropped first.
- Floating-point images between 0 and 255 are probably pixels that nobody normalised: a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mbs_fx.errors import MBSError
from mbs_fx.folder import Preparation, folder

BRIGHT = 16.0
"""No usual normalisation reaches it: ImageNet's ends at 2.7."""


def prepared(images: Any, preparation: Preparation | None, first: Any, whole: bool = False) -> Any:
    """What `measure` reads: as it is, or with every item prepared where the ``first`` one is pixels.

    ``whole``: the network may take bytes as they are, so that they need no preparation.

    Raises:
        MBSError: pixels without a preparation, a preparation where there are no pixels.

    """
    if isinstance(images, str | Path):
        return folder(images, _known(preparation, f"{str(images)!r} names image files"))
    if isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating):
        images = torch.from_numpy(np.ascontiguousarray(images)).float()
    pixels = _pixels_in(first)
    if whole and preparation is None and isinstance(pixels, Tensor | np.ndarray):
        return torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if pixels is not None:
        what = f"images are pixels ({_described(pixels)})"
        return Pixels(images, _known(preparation, what))
    if preparation is not None:
        raise MBSError(
            "preparation= is for pixels: a folder, PIL images, or arrays of bytes; these images are a "
            f"{type(images).__name__}, which is taken as it is"
        )
    return images


def _known(preparation: Preparation | None, what: str) -> Preparation:
    if preparation is None:
        raise MBSError(
            f"{what}, to be prepared as in training: say how with preparation=mbs_fx.Preparation(size, mean, std), "
            "where mean and std are ImageNet's if left out; for a network that normalises bytes itself, trace it with "
            "such an example"
        )
    return preparation


def first_item(images: Any) -> Any:
    """The first item that can be read of a set that is read item by item; None of anything else."""
    if isinstance(images, Tensor | np.ndarray):
        return images[0] if images.ndim > 3 and len(images) else None
    if isinstance(images, str | bytes | Mapping | DataLoader | IterableDataset) or not hasattr(images, "__getitem__"):
        return None
    count = len(images) if hasattr(images, "__len__") else 0
    return next((item for i in range(count) if (item := images[i]) is not None), None)


def _pixels_in(item: Any) -> Any:
    """The image in an item if it consists of bytes: the item itself, or the first part of it that is an image."""
    if isinstance(item, Mapping | tuple | list):
        parts = cast("Mapping[Any, Any]", item).values() if isinstance(item, Mapping) else cast("list[Any]", item)
        item = next((part for part in parts if _is_image(part)), None)
    is_bytes = not isinstance(item, Tensor | np.ndarray) or str(item.dtype).endswith("uint8")
    return item if _is_image(item) and is_bytes else None


def _is_image(item: Any) -> bool:
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim == 3
    from PIL.Image import Image

    return isinstance(item, Image)


def _described(pixels: Any) -> str:
    kind = type(pixels).__name__
    return f"{kind} of {pixels.dtype}" if isinstance(pixels, Tensor | np.ndarray) else f"PIL {kind}"


@dataclass(frozen=True)
class Pixels(Dataset[Tensor]):
    """A set of pixels, prepared item by item."""

    items: Any
    preparation: Preparation

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        pixels = _pixels_in(self.items[index])
        if not isinstance(pixels, Tensor | np.ndarray):
            if pixels is None:
                raise MBSError(f"image {index} is no image of bytes as the first one is")
            return self._resized(pixels.convert("RGB"))
        tensor = _channels_first(torch.as_tensor(pixels))
        at_size = tuple(tensor.shape[1:]) == (self.preparation.size, self.preparation.size)
        return self._scaled(tensor) if at_size else self._resized(tensor)

    @cached_property
    def _resized(self) -> Callable[[Any], Tensor]:
        return self.preparation.transform()

    @cached_property
    def _scaled(self) -> Callable[[Any], Tensor]:
        return self.preparation.scaling()


def _channels_first(pixels: Tensor) -> Tensor:
    """(3, H, W) of three channels that come first or last, or of grey."""
    if pixels.shape[0] not in (1, 3) and pixels.shape[-1] in (1, 3):
        pixels = pixels.permute(2, 0, 1)
    if pixels.shape[0] not in (1, 3):
        raise MBSError(f"pixels of shape {tuple(pixels.shape)}: give 3 channels or 1, as the first axis or the last")
    return pixels.expand(3, -1, -1)


def warn_of_pixels(images: Tensor, what: str) -> None:
    """Warn of floating-point images that look like pixels from 0 to 255."""
    if not images.is_floating_point() or not images.numel():
        return
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if low >= 0 and BRIGHT < high <= 255:
        warnings.warn(
            f"{what}: the images hold values from {low:g} to {high:g}, which look like pixels that nobody normalised. "
            "Prepare them as in training, for instance (images / 255 - mean) / std",
            stacklevel=4,
        )
