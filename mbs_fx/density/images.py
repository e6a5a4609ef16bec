"""Batches of images from tensors, datasets, loaders and iterables.

Semantics
- A tensor (N, C, H, W), a map-style dataset and a `DataLoader` over one are *sets*: their size is known, and they
  are drawn from at random without replacement, in an order that depends on the seed alone.  A loader's own batch
  size, workers and collate function stay; its order may say something about the images (folders sorted by class).
- Everything else is read in the order it comes.
- Pixels (`pixels`) are prepared first: a folder of image files, PIL images, arrays or tensors of bytes.
- An item is a tensor, a pair (image, label), or a dict; the graph's placeholders say how many tensors it
  takes and what they are called.  Items with one axis less than a batch are single images and are stacked
  by size.
- A set of single images may give None for one that cannot be read: it is left out and counted.
- Batch k is the same batch whoever reads it: with several ranks, rank r of w reads batches r, r + w, ...  The
  numbers that transforms draw in this process depend on the seed and k; those drawn in workers do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from mbs_fx.density.batches import Batch, Signature
from mbs_fx.density.failures import reading_failed
from mbs_fx.density.pixels import Pixels, first_item, prepared
from mbs_fx.errors import MBSError
from mbs_fx.folder import Preparation

KEPT = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
"""Settings of a loader that are kept, besides its prefetch factor."""

END = object()
"""Marks the end of the items."""


@dataclass(frozen=True)
class Request:
    """How images are to be read."""

    batch_size: int = 32
    limit: int | None = None
    shuffled: bool = False
    seed: int = 0
    workers: int = 0
    rank: int = 0
    world: int = 1
    preparation: Preparation | None = None


@dataclass(frozen=True)
class ImageReader:
    """Images in a fixed order.

    ``read(start)`` yields number and groups of batches start + rank, start + rank + world, ...

    ``batch_size``: of those batches, where it is known.  ``population``: how many images the set holds.
    ``random``: any first n of them are a random sample; ``resampled``: the loader would have given another order.
    """

    read: Callable[[int], Iterator[tuple[int, list[Batch]]]]
    batch_size: int
    population: int | None = None
    random: bool = False
    resampled: bool = False

    def expected(self, limit: int | None) -> int | None:
        """How many images there are to read, where that is known."""
        known = [n for n in (self.population, limit) if n is not None]
        return min(known, default=None)


def open_images(images: Any, signature: Signature, request: Request) -> ImageReader:
    """A reader for anything that holds images."""
    first = _first(images)
    images = prepared(images, request.preparation, first, signature.whole or signature.several)
    if isinstance(images, DataLoader):
        return _loader(images, signature, request)
    if isinstance(images, Tensor) and images.ndim != signature.batch_axes:
        raise MBSError(
            f"images is a tensor of shape {tuple(images.shape)}; the graph takes batches with "
            f"{signature.batch_axes} axes: (images, channels, ...). For one image, use images[None]"
        )
    if isinstance(images, bytes | Mapping) or not (_is_sequence(images) or isinstance(images, Iterable)):
        raise MBSError(
            f"images is a {type(images).__name__}; give batches of tensors: a DataLoader, a dataset, a list "
            "of batches, or a tensor; or, with preparation=, a folder of image files, a list of PIL images, an array"
        )
    if _is_sequence(images) and not isinstance(images, IterableDataset):
        size = len(cast("Sized", images))
        if not size:
            raise MBSError("no images: the given set is empty")
        if isinstance(images, Tensor | Pixels) or first is None or signature.is_single(first):
            return _sampled(images, range(size), signature, request)
        images = _Items(images)
    return _in_order(images, signature, request)


class _Items:
    """Iteration by index, for sets of batches that know only ``__getitem__``."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return (self.items[i] for i in range(len(self.items)))


def _is_sequence(images: Any) -> bool:
    return hasattr(images, "__len__") and hasattr(images, "__getitem__")


def _first(images: Any) -> Any:
    try:
        return first_item(images)
    except Exception as error:
        raise reading_failed(error, 0, 0) from error


def _loader(loader: DataLoader[Any], signature: Signature, request: Request) -> ImageReader:
    members = _members(loader)
    if members is None:
        return _in_order(loader, signature, request)
    if not members:
        raise MBSError("no images: the loader's dataset is empty")
    return _sampled(loader.dataset, members, signature, request, loader)


def _members(loader: DataLoader[Any]) -> Sequence[int] | None:
    """The images that a loader draws from; None where only its sampler knows."""
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return None
    sampler = loader.batch_sampler.sampler
    if type(sampler) is SubsetRandomSampler:
        return sampler.indices
    everything = range(len(loader.dataset))  # pyright: ignore[reportArgumentType]
    shuffles = type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == len(everything)
    known = shuffles or type(sampler) is SequentialSampler or isinstance(sampler, DistributedSampler)
    return everything if known else None


def _sampled(
    dataset: Any,
    members: Sequence[int],
    signature: Signature,
    request: Request,
    loader: DataLoader[Any] | None = None,
) -> ImageReader:
    """Draw from a set without replacement, in an order that depends on the seed alone."""
    generator = torch.Generator().manual_seed(request.seed)
    order = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()][: request.limit]
    size = request.batch_size if loader is None else loader.batch_size or request.batch_size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    stacked = loader is not None or isinstance(dataset, Tensor)

    def read(start: int) -> Iterator[tuple[int, list[Batch]]]:
        own = list(enumerate(batches))[start + request.rank :: request.world]
        fetched = _fetch(dataset, [indices for _, indices in own], request, loader)
        for number, indices in own:
            _seed(request.seed + number)
            raw = _next(fetched, number, number * size)
            yield number, [_whole(signature, raw, number, indices)] if stacked else signature.stack(raw, indices)

    resampled = loader is not None and type(loader.sampler) is SequentialSampler
    return ImageReader(read, size, population=len(members), random=True, resampled=resampled)


def _whole(signature: Signature, raw: Any, number: int, indices: Sequence[int]) -> Batch:
    """A batch that a collate function made, image for item."""
    inputs = signature.inputs(raw, f"batch {number}")
    if len(inputs[0]) != len(indices):
        raise MBSError(
            f"batch {number}: the loader's collate function made {len(inputs[0])} images of {len(indices)} items, so "
            "which image is which is not known. Give iter(loader), and shuffled=True if the loader shuffles"
        )
    return Batch(inputs, tuple(indices))


def _fetch(dataset: Any, batches: list[list[int]], request: Request, loader: DataLoader[Any] | None) -> Iterator[Any]:
    if isinstance(dataset, Tensor):
        return (dataset[indices] for indices in batches)
    generator = torch.Generator().manual_seed(request.seed)
    settings: dict[str, Any] = {"num_workers": request.workers, "collate_fn": list}
    if loader is not None:
        settings = {name: getattr(loader, name) for name in (*KEPT, "prefetch_factor")}
    return iter(DataLoader(dataset, batch_sampler=batches, generator=generator, **settings))


def _seed(seed: int) -> None:
    """Every generator on the CPU that a transform may draw from."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _in_order(images: Iterable[Any], signature: Signature, request: Request) -> ImageReader:
    """Batches as they come; with several ranks every rank goes through all of them and keeps its own."""

    def read(start: int) -> Iterator[tuple[int, list[Batch]]]:
        numbered = enumerate(_limited(_grouped(images, signature, request.batch_size), request.limit))
        for number, batch in islice(numbered, start + request.rank, None, request.world):
            yield number, [batch]

    return ImageReader(read, request.batch_size, random=request.shuffled)


def _grouped(images: Iterable[Any], signature: Signature, batch_size: int) -> Iterator[Batch]:
    """Batches as they are; single images stacked as long as their size stays the same."""
    items = iter(images)
    seen = 0
    waiting: list[Any] = []
    for number in count():
        item = _next(items, number, seen)
        single = item is not END and signature.is_single(item)
        if single:
            waiting.append(item)
        if waiting and (len(waiting) == batch_size or not single):
            yield from signature.stack(waiting, range(seen, seen + len(waiting)))
            seen += len(waiting)
            waiting = []
        if item is END:
            return
        if not single:
            inputs = signature.inputs(item, f"batch {number}")
            yield Batch(inputs, tuple(range(seen, seen + len(inputs[0]))))
            seen += len(inputs[0])


def _limited(batches: Iterator[Batch], limit: int | None) -> Iterator[Batch]:
    left = limit
    for batch in batches:
        if left is None or len(batch) <= left:
            yield batch
        elif left > 0:
            yield batch.part(0, left)
        left = None if left is None else left - len(batch)
        if left is not None and left <= 0:
            return


def _next(items: Iterator[Any], number: int, seen: int) -> Any:
    """The next item, or `END`."""
    try:
        return next(items, END)
    except Exception as error:
        raise reading_failed(error, number, seen) from error
