"""Images from a directory, prepared for a network.

- Every image file below the directory counts, at any depth: class folders and a flat heap read the same,
  since no label is needed.
- Each image becomes RGB, its shorter side is scaled to 8/7 of ``size``, and the middle ``size`` x ``size``
  pixels are scaled to [0, 1] and normalised per channel (ImageNet's statistics unless others are given).
- The order is that of the file names: `measure` draws from a dataset at random by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils.data import Dataset

from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    from torchvision.transforms.v2 import Transform

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Channels = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a network was trained to see."""

    size: int = 224
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD

    def transform(self) -> Transform:
        """From a PIL image to a tensor (3, size, size)."""
        import torch
        from torchvision.transforms import v2

        return v2.Compose(
            [
                v2.Resize(self.size * 8 // 7, antialias=True),
                v2.CenterCrop(self.size),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.mean), list(self.std)),
            ]
        )


@dataclass(frozen=True)
class ImageFolder(Dataset[Tensor]):
    """A map-style dataset of prepared images, without labels."""

    paths: tuple[Path, ...]
    preparation: Preparation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import Image

        path = self.paths[index]
        try:
            with Image.open(path) as image:
                pixels = image.convert("RGB")
        except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on broken PNG chunks
            raise MBSError(f"{path} cannot be read as an image ({error}); remove or replace it") from error
        return self._transform(pixels)

    @cached_property
    def _transform(self) -> Transform:
        return self.preparation.transform()


def folder(root: str | Path, preparation: Preparation | None = None) -> ImageFolder:
    """The images in ``root`` and below it."""
    root = Path(root)
    if not root.is_dir():
        raise MBSError(f"{root} is not a directory; name one that has image files in it or below it")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise MBSError(f"no images in {root} or below it; what counts ends in {' '.join(sorted(SUFFIXES))}")
    return ImageFolder(tuple(paths), preparation or Preparation())
