"""Batches of images from whatever a person has.

Semantics
- A tensor (N, C, H, W), a map-style dataset and a `DataLoader` over one are *sets*: their size is known,
  and they can be read in a random order that depends on the seed alone.  Everything else is read in the
  order it comes.
- A set is drawn from without replacement.  A loader that does not shuffle is re-sampled when reading may
  stop early, as its order may say something about the images (folders sorted by class); its own batch size,
  workers and collate function stay.
- An item is a tensor, a pair (image, label), or a dict; the graph's placeholders say how many tensors it
  takes and what they are called.  Items with one axis less than a batch are single images and are stacked
  by size.
- Batch k is the same batch whoever reads it: with several ranks, rank r of w reads batches r, r + w, ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from mbs_fx.errors import MBSError
from mbs_fx.inputs import Signature


@dataclass(frozen=True)
class Batch:
    """Input tensors of one size, and the number of each image in its set (or in the order of reading)."""

    inputs: tuple[Tensor, ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Request:
    """How images are to be read."""

    batch_size: int = 32
    limit: int | None = None
    may_stop: bool = False
    shuffled: bool = False
    seed: int = 0
    workers: int = 0
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Source:
    """Images in a fixed order.

    ``read(start)`` yields number and groups of batches start + rank, start + rank + world, ...

    ``population``: how many images the set holds.  ``random``: any first n of them are a random sample.
    """

    read: Callable[[int], Iterator[tuple[int, list[Batch]]]]
    population: int | None = None
    random: bool = False
    notes: tuple[str, ...] = ()

    def expected(self, limit: int | None) -> int | None:
        """How many images there are to read, where that is known."""
        known = [n for n in (self.population, limit) if n is not None]
        return min(known, default=None)


def open_images(images: Any, signature: Signature, request: Request) -> Source:
    """A source for anything that holds images."""
    if isinstance(images, DataLoader):
        return _loader(images, signature, request)
    if isinstance(images, Tensor) and images.ndim != signature.batch_axes:
        raise MBSError(
            f"images is a tensor of shape {tuple(images.shape)}; the graph takes batches with "
            f"{signature.batch_axes} axes: (images, channels, ...). For one image, use images[None]"
        )
    if isinstance(images, str | Path | bytes | Mapping) or not (_is_sequence(images) or isinstance(images, Iterable)):
        raise MBSError(
            f"images is a {type(images).__name__}; give batches of tensors: a DataLoader, a dataset, a list "
            "of batches, or a tensor (for a folder of image files, torchvision.datasets.ImageFolder)"
        )
    if _is_sequence(images) and not isinstance(images, IterableDataset):
        if not len(cast("Sized", images)):
            raise MBSError("no images: the given set is empty")
        if isinstance(images, Tensor) or signature.is_single(_first(images)):
            return _sampled(images, range(len(cast("Sized", images))), signature, request, None)
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
        return images[0]
    except Exception as error:
        raise _failure(error, 0, 0) from error


def _loader(loader: DataLoader[Any], signature: Signature, request: Request) -> Source:
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return _in_order(loader, signature, request)
    sampler = loader.batch_sampler.sampler
    size = len(loader.dataset)  # pyright: ignore[reportArgumentType]
    everything = type(sampler) is SequentialSampler
    shuffles = type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == size
    if not size:
        raise MBSError("no images: the loader's dataset is empty")
    if shuffles or isinstance(sampler, DistributedSampler):
        return _sampled(loader.dataset, range(size), signature, request, loader)
    if everything and (request.may_stop or request.world > 1):
        source = _sampled(loader.dataset, range(size), signature, request, loader)
        note = f"the loader does not shuffle: its dataset was sampled at random instead (seed {request.seed})"
        return replace(source, notes=(note,))
    source = _in_order(loader, signature, request)
    return replace(source, population=size) if everything and not loader.drop_last else source


def _sampled(
    dataset: Any,
    members: Sequence[int],
    signature: Signature,
    request: Request,
    loader: DataLoader[Any] | None,
) -> Source:
    """Draw from a set without replacement, in an order that depends on the seed alone."""
    generator = torch.Generator().manual_seed(request.seed)
    order = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
    size = request.batch_size if loader is None else loader.batch_size or request.batch_size
    order = order[: request.limit]
    batches = [order[i : i + size] for i in range(0, len(order), size)]

    def read(start: int) -> Iterator[tuple[int, list[Batch]]]:
        own = list(enumerate(batches))[start + request.rank :: request.world]
        fetched = _fetch(dataset, [indices for _, indices in own], request, loader)
        for number, indices in own:
            torch.manual_seed(request.seed + number)
            raw = _next(fetched, number, number * size)
            if loader is None:
                yield number, signature.stack(raw, indices)
            else:
                yield number, [Batch(signature.inputs(raw, f"batch {number}"), tuple(indices))]

    return Source(read, population=len(members), random=True)


def _fetch(dataset: Any, batches: list[list[int]], request: Request, loader: DataLoader[Any] | None) -> Iterator[Any]:
    if isinstance(dataset, Tensor):
        return ([dataset[i] for i in indices] for indices in batches)
    generator = torch.Generator().manual_seed(request.seed)
    if loader is None:
        settings: dict[str, Any] = {"num_workers": request.workers, "collate_fn": list}
    else:
        names = (
            "num_workers",
            "collate_fn",
            "pin_memory",
            "timeout",
            "worker_init_fn",
            "multiprocessing_context",
        )
        settings = {name: getattr(loader, name) for name in (*names, "prefetch_factor")}
    return iter(DataLoader(dataset, batch_sampler=batches, generator=generator, **settings))


def _in_order(images: Iterable[Any], signature: Signature, request: Request) -> Source:
    """Batches as they come; with several ranks every rank goes through all of them and keeps its own."""

    def read(start: int) -> Iterator[tuple[int, list[Batch]]]:
        numbered = enumerate(_limited(_grouped(images, signature, request.batch_size), request.limit))
        for number, batch in islice(numbered, start + request.rank, None, request.world):
            yield number, [batch]

    return Source(read, random=request.shuffled)


def _grouped(images: Iterable[Any], signature: Signature, batch_size: int) -> Iterator[Batch]:
    """Batches as they are; single images stacked as long as their size stays the same."""
    items = iter(images)
    seen = 0
    waiting: list[Any] = []
    for number in count():
        item = _next(items, number, seen, stop=None)
        if item is not None and signature.is_single(item):
            waiting.append(item)
        if waiting and (item is None or len(waiting) == batch_size or not signature.is_single(item)):
            yield from signature.stack(waiting, range(seen, seen + len(waiting)))
            seen += len(waiting)
            waiting = []
        if item is None:
            return
        if not signature.is_single(item):
            inputs = signature.inputs(item, f"batch {number}")
            yield Batch(inputs, tuple(range(seen, seen + len(inputs[0]))))
            seen += len(inputs[0])


def _limited(batches: Iterator[Batch], limit: int | None) -> Iterator[Batch]:
    left = limit
    for batch in batches:
        if left is None or len(batch) <= left:
            yield batch
        elif left > 0:
            yield Batch(tuple(t[:left] for t in batch.inputs), batch.indices[:left])
        left = None if left is None else left - len(batch)
        if left is not None and left <= 0:
            return


def _next(items: Iterator[Any], number: int, seen: int, **default: Any) -> Any:
    try:
        return next(items, default["stop"]) if default else next(items)
    except MBSError:
        raise
    except Exception as error:
        raise _failure(error, number, seen) from error


def _failure(error: Exception, number: int, seen: int) -> MBSError:
    return MBSError(f"reading images failed at batch {number}, after {seen} images: {type(error).__name__}: {error}")
