"""Batches of (images, labels), the same whoever asks again.

- A map-style dataset is shuffled anew every epoch, and what does not fill the last batch waits for another epoch;
  several processes share it (`DistributedSampler`).
- A loader or any other iterable that can be read again is taken as it is; ``set_epoch`` is called on it, or on
  its sampler, where there is one.
- The order and what augmentation draws depend on the seed, the epoch and the rank alone, also where a loader has a
  generator of its own; workers that outlive an epoch (``persistent_workers``) are out of reach.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from mbs_fx.errors import MBSError
from mbs_fx.runtime.random_state import random_state_kept
from mbs_fx.runtime.ranks import Ranks
from mbs_fx.training.recipe import Recipe


def training_batches(data: Any, recipe: Recipe, ranks: Ranks, workers: int) -> Any:
    """What one epoch reads, with a length.

    Raises:
        MBSError: no length; a batch that the processes cannot share; a loader that gives all of them the same.

    """
    if isinstance(data, Iterator) or not _length(data):
        raise MBSError(
            "retrain: the training images can be read only once, or have no length, or there are none: give a data "
            "set of (image, label), a DataLoader, or another collection of batches that can be read once an epoch"
        )
    if _is_dataset(data):
        if recipe.batch % ranks.world:
            raise MBSError(f"recipe: a batch of {recipe.batch} cannot be shared by {ranks.world} processes")
        batch = recipe.batch // ranks.world
        sampler = DistributedSampler(data, ranks.world, ranks.rank, seed=recipe.seed) if ranks.world > 1 else None
        full = len(data) // ranks.world >= batch
        return _loader(data, batch, workers, sampler=sampler, shuffle=sampler is None, drop_last=full)
    shared = not isinstance(data, DataLoader | list | tuple) or isinstance(
        getattr(data, "sampler", None), DistributedSampler
    )
    if ranks.world > 1 and not shared:
        raise MBSError(
            f"retrain: {ranks.world} processes would all read the same batches of this {type(data).__name__}: give "
            "the data set itself, or a loader with a DistributedSampler"
        )
    return data


def testing_batches(data: Any, recipe: Recipe, ranks: Ranks, workers: int) -> Any:
    """What a test reads, in order.

    Raises:
        MBSError: nothing to read, or only once; a loader of which the processes do not see the same batches.

    """
    if isinstance(data, Iterator) or _length(data) == 0:
        raise MBSError("there are no test images, or they can be read only once: give a data set of (image, label)")
    if _is_dataset(data):
        return _loader(data, recipe.batch, workers, shuffle=False)
    if ranks.world > 1 and isinstance(data, DataLoader) and not isinstance(data.sampler, SequentialSampler):
        raise MBSError(
            "processes share the test batches in order, and this DataLoader gives each of them others: give "
            "the data set itself, or a loader without a sampler"
        )
    return data


def _is_dataset(data: Any) -> bool:
    """Single images by number, as against batches in turn."""
    batches = isinstance(data, DataLoader | IterableDataset | list | tuple)
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not batches


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _loader(data: Any, batch: int, workers: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, batch, num_workers=workers, pin_memory=torch.cuda.is_available(), **options)


@contextmanager
def drawing(batches: Any, recipe: Recipe, epoch: int, ranks: Ranks) -> Generator[None]:
    """Seeds all generators from (seed, epoch, rank) and restores their states on exit."""
    holders = (batches, getattr(batches, "sampler", None))
    for holder in holders:
        set_epoch = getattr(holder, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
    seed = int(np.random.SeedSequence((recipe.seed, epoch, ranks.rank)).generate_state(1)[0])
    own = [g for g in (getattr(h, "generator", None) for h in holders) if isinstance(g, torch.Generator)]
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_initialized() else None
    with random_state_kept(device, own):
        for generator in own:
            generator.manual_seed(seed)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield
