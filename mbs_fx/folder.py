"""Images from a directory, prepared for a network.

- Every image file below the directory counts, at any depth: class folders and a flat heap read the same,
  since no label is needed.
- Each image becomes RGB, its shorter side is scaled to 8/7 of ``size``, and the middle ``size`` x ``size``
  pixels are scaled to [0, 1] and normalised per channel (ImageNet's statistics unless others are given).
- The order is that of the file names: `measure` draws from a dataset at random by itself.
- A file that cannot be read is an error that names it, or, with ``on_bad_image="skip"``, the item None, which
  `measure` leaves out and counts.
- `labelled`: where the label of an image is known, for training (images are cropped and flipped at random) and for
  tests.  A folder per class, or a CSV of file names and labels.
- Which output of the network a class is: the position of its name in a list, where one is given; the number that the
  name is, where all names are whole numbers; otherwise its place in the order of all names, as torchvision's
  ImageFolder has it, and then there must be as many as the network has outputs.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor
from torch.utils.data import Dataset

from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    from PIL.Image import Image
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

    def view(self, augment: bool) -> Transform:
        """What a data set does to its images: `augmentation` for training, `transform` otherwise."""
        return self.augmentation() if augment else self.transform()

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
    augment: bool = False

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
        return self.preparation.view(self.augment)


@dataclass(frozen=True)
class LabelledImages(Dataset[tuple[Tensor, int]]):
    """A map-style dataset of pairs (prepared image, class number); ``order`` says how classes got their numbers."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    order: str
    preparation: Preparation
    augment: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(read(self.paths[index])), self.labels[index]

    @cached_property
    def _transform(self) -> Transform:
        return self.preparation.view(self.augment)


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


def folder(
    root: str | Path,
    preparation: Preparation | None = None,
    on_bad_image: OnBadImage = "raise",
    *,
    augment: bool = False,
) -> ImageFolder:
    """The images in ``root`` and below it; ``augment``: cropped and flipped at random, for training."""
    if on_bad_image not in get_args(OnBadImage):
        raise MBSError(f"on_bad_image is {on_bad_image!r}; it must be 'raise' or 'skip'")
    root = _directory(root)
    paths = _images_below(root)
    if not paths:
        raise MBSError(f"no images in {root} or below it; what counts ends in {' '.join(sorted(SUFFIXES))}")
    return ImageFolder(tuple(paths), preparation or Preparation(), on_bad_image, augment)


def labelled(
    root: str | Path,
    preparation: Preparation,
    *,
    augment: bool = False,
    classes: Sequence[str] | str | Path | None = None,
    outputs: int | None = None,
) -> LabelledImages:
    """Pairs (image, class number) of the images in ``root/CLASS/``, or of a CSV with rows of file name and label.

    Args:
        root: the folder, or the CSV, whose file names are relative to the folder that it lies in; its first row may be
            a heading.
        preparation: of the images.
        augment: cropped and flipped at random, for training.
        classes: names of all classes in the order of the network's outputs, or a file with one name a line; None
            numbers them as said above.
        outputs: how many classes the network tells apart, where that is to be checked.

    Raises:
        MBSError: no images, a class that is not among ``classes``, names that do not tell their number.

    """
    root = Path(root)
    classes = _names(Path(classes)) if isinstance(classes, str | Path) else classes
    found = _rows(root) if root.suffix.lower() == ".csv" and not root.is_dir() else _class_folders(_directory(root))
    numbers, order = _numbered(root, sorted({name for _, name in found}), classes, outputs)
    paths, names = zip(*found, strict=True)
    return LabelledImages(paths, tuple(numbers[name] for name in names), order, preparation, augment)


def _numbered(
    root: Path, names: list[str], classes: Sequence[str] | None, outputs: int | None
) -> tuple[dict[str, int], str]:
    """The output that each class is, and how that was found."""
    if classes is not None:
        numbers, order = {name: i for i, name in enumerate(classes)}, f"by the list of {len(classes)} names"
        unclear = next((name for name in names if classes.count(name) != 1), None)
        if unclear is not None:
            times = classes.count(unclear)
            raise MBSError(f"{root}: class {unclear!r} stands {times} times in the list of {len(classes)} names")
    elif all(name.isdecimal() for name in names):
        numbers, order = {name: int(name) for name in names}, "by their numbers"
    elif outputs in (None, len(names)):
        numbers, order = {name: i for i, name in enumerate(names)}, "in the order of their names"
    else:
        raise MBSError(
            f"{root}: there are {len(names)} classes, and the network has {outputs} outputs: which is which? Name the "
            "classes by the outputs' numbers (0, 1, ...), or give all names in the outputs' order (--classes FILE)"
        )
    beyond = next((name for name in names if outputs is not None and numbers[name] >= outputs), None)
    if beyond is not None:
        raise MBSError(
            f"{root}: class {beyond!r} would be output {numbers[beyond]}, and the network has {outputs}, counted from 0"
        )
    return numbers, order


def _names(file: Path) -> list[str]:
    """The names in a file, one a line."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise MBSError(f"{file}: cannot be read as a list of names, one a line: {error}") from error


def _class_folders(root: Path) -> list[tuple[Path, str]]:
    """Images with the names of the folders in ``root`` that they lie in."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    found = {path: _images_below(path) for path in folders}
    empty = next((path for path, images in found.items() if not images), None)
    if not folders or empty is not None:
        raise MBSError(f"{empty or root}: there are no images; each class is a folder in {root} with images in it")
    return [(image, path.name) for path, images in found.items() for image in images]


def _rows(file: Path) -> list[tuple[Path, str]]:
    """Images with their labels, from a CSV."""
    try:
        rows = [row for row in csv.reader(file.read_text(encoding="utf-8-sig").splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MBSError(f"{file}: cannot be read as a CSV: {error}") from error
    head = bool(rows) and Path(rows[0][0]).suffix.lower() not in SUFFIXES
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise MBSError(f"{file}, row {number}: {len(row)} cells; give a file name and a label")
        if (number > 1 or not head) and not (file.parent / row[0]).is_file():
            raise MBSError(f"{file}, row {number}: there is no file {file.parent / row[0]}")
    if len(rows) <= head:
        raise MBSError(f"{file}: there are no images; give rows of a file name and a label")
    return [(file.parent / name, label.strip()) for name, label in rows[head:]]


def _images_below(root: Path) -> list[Path]:
    """Image files at any depth, in the order of their names."""
    return sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _directory(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise MBSError(f"{root} is not a directory; name one that has image files in it or below it")
    return root
