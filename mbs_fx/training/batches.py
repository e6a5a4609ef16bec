"""Batches of (images, labels), the same whoever asks again.

- A map-style dataset is shuffled anew every epoch; several processes share it (`DistributedSampler`).
- A loader or any other iterable that can be read again is taken as it is; ``set_epoch`` is called on it, or on
  its sampler, where there is one.
- The order and what augmentation draws depend on the seed, the epoch and the rank alone.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from mbs_fx.errors import MBSError
from mbs_fx.measuring.ranks import Ranks
from mbs_fx.training.recipe import Recipe


def training_batches(data: Any, recipe: Recipe, ranks: Ranks, workers: int) -> Any:
    """What one epoch reads, with a length.

    Raises:
        MBSError: no length; a batch that the processes cannot share; a loader that gives all of them the same.

    """
    if _is_dataset(data):
        if recipe.batch % ranks.world:
            raise MBSError(f"recipe: a batch of {recipe.batch} cannot be shared by {ranks.world} processes")
        batch = recipe.batch // ranks.world
        sampler = DistributedSampler(data, ranks.world, ranks.rank, seed=recipe.seed) if ranks.world > 1 else None
        full = len(data) // ranks.world >= batch
        return _loader(data, batch, workers, sampler=sampler, shuffle=sampler is None, drop_last=full)
    if isinstance(data, Iterator) or not hasattr(data, "__len__") or len(data) == 0:
        raise MBSError(
            "retrain: the training images can be read only once, or have no length, or there are none: give a data "
            "set of (image, label), a DataLoader, or another collection of batches that can be read once an epoch"
        )
    if ranks.world > 1 and isinstance(data, DataLoader) and not isinstance(data.sampler, DistributedSampler):
        raise MBSError(
            f"retrain: {ranks.world} processes would all read the same batches of this DataLoader: give the data "
            "set itself, or a loader with a DistributedSampler"
        )
    return data


def testing_batches(data: Any, recipe: Recipe, workers: int) -> Any:
    """What a test reads, in order."""
    return _loader(data, recipe.batch, workers, shuffle=False) if _is_dataset(data) else data


def _is_dataset(data: Any) -> bool:
    """Single images by number, as against batches in turn."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, DataLoader | list | tuple)


def _loader(data: Any, batch: int, workers: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, batch, num_workers=workers, pin_memory=torch.cuda.is_available(), **options)


@contextmanager
def drawing(batches: Any, recipe: Recipe, epoch: int, ranks: Ranks) -> Generator[None]:
    """Everything drawn inside depends on seed, epoch and rank; what was drawn outside goes on unharmed."""
    for holder in (batches, getattr(batches, "sampler", None)):
        set_epoch = getattr(holder, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
    seed = int(np.random.SeedSequence((recipe.seed, epoch, ranks.rank)).generate_state(1)[0])
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
