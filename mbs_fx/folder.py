"""Images from a directory, prepared for a network.

- Every image file below the directory counts, at any depth: class folders and a flat heap read the same,
  since no label is needed.
- Each image becomes RGB, its shorter side is scaled to 8/7 of ``size``, and the middle ``size`` x ``size``
  pixels are scaled to [0, 1] and normalised per channel (ImageNet's statistics unless others are given).
- The order is that of the file names: `measure` draws from a dataset at random by itself.
- A file that cannot be read is an error that names it, or, with ``on_bad_image="skip"``, the item None, which
  `measure` leaves out and counts.
- For training (`labelled`) each folder below the directory is a class, in the order of their names, and images are
  cropped and flipped at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor
from torch.utils.data import Dataset

from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torchvision.datasets import ImageFolder as LabelledFolder
    from torchvision.transforms.v2 import Transform

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Channels = tuple[float, float, float]
OnBadImage = Literal["raise", "skip"]

SMALL = 64
"""Below this many pixels images are shifted to augment them, not cropped at random scales."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a network was trained to see.

    ``size`` in pixels; ``mean`` and ``std`` per channel, of pixels scaled to [0, 1].
    """

    size: int = 224
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD

    def transform(self) -> Transform:
        """From a PIL image to a tensor (3, size, size)."""
        from torchvision.transforms import v2

        return v2.Compose([v2.Resize(self.size * 8 // 7, antialias=True), v2.CenterCrop(self.size), self.scaling()])

    def augmentation(self) -> Transform:
        """The same for training: a crop of random size, of small images a random shift, flipped at random."""
        from torchvision.transforms import v2

        crop = (
            [v2.RandomResizedCrop(self.size, antialias=True)]
            if self.size >= SMALL
            else [v2.Resize((self.size, self.size), antialias=True), v2.RandomCrop(self.size, self.size // 8)]
        )
        return v2.Compose([*crop, v2.RandomHorizontalFlip(), self.scaling()])

    def scaling(self) -> Transform:
        """From bytes to [0, 1], then normalised; the size stays."""
        import torch
        from torchvision.transforms import v2

        as_float = v2.ToDtype(torch.float32, scale=True)
        return v2.Compose([v2.ToImage(), as_float, v2.Normalize(list(self.mean), list(self.std)), v2.ToPureTensor()])


@dataclass(frozen=True)
class ImageFolder(Dataset[Tensor | None]):
    """A map-style dataset of prepared images, without labels."""

    paths: tuple[Path, ...]
    preparation: Preparation
    on_bad_image: OnBadImage = "raise"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | None:
        try:
            return self._transform(read(self.paths[index]))
        except MBSError:
            if self.on_bad_image == "skip":
                return None
            raise

    @cached_property
    def _transform(self) -> Transform:
        return self.preparation.transform()


def read(path: str | Path) -> Image:
    """An image file as RGB.

    Raises:
        MBSError: it cannot be read as an image.

    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on broken PNG chunks
        raise MBSError(
            f"{path} cannot be read as an image ({error}); remove or replace it, or skip such files"
        ) from error


def folder(root: str | Path, preparation: Preparation | None = None, on_bad_image: OnBadImage = "raise") -> ImageFolder:
    """The images in ``root`` and below it."""
    if on_bad_image not in get_args(OnBadImage):
        raise MBSError(f"on_bad_image is {on_bad_image!r}; it must be 'raise' or 'skip'")
    root = _directory(root)
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise MBSError(f"no images in {root} or below it; what counts ends in {' '.join(sorted(SUFFIXES))}")
    return ImageFolder(tuple(paths), preparation or Preparation(), on_bad_image)


def labelled(root: str | Path, preparation: Preparation, *, augment: bool = False) -> LabelledFolder:
    """Pairs (image, class index) of the images in ``root/CLASS/``; classes in the order of their names."""
    from torchvision.datasets import ImageFolder as LabelledFolder

    root = _directory(root)
    view = preparation.augmentation() if augment else preparation.transform()
    try:
        return LabelledFolder(root, view, loader=read)
    except FileNotFoundError as error:
        raise MBSError(f"{root}: each class is a folder with images in it: {error}") from error


def _directory(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise MBSError(f"{root} is not a directory; name one that has image files in it or below it")
    return root
