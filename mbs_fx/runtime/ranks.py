"""Several processes that measure together, as started by torchrun.

- Ranks exchange counts per image, not sums: every rank merges the same batches in the same order, so that
  all of them, and a single process, come to the same bits.
- They use a gloo group of their own, whatever the model's group uses: the numbers are few and on the CPU.
- A rank that fails sends its message, and all ranks fail with it.  Where a rank has ended, the others fail within the
  timeout and name it.
- A rank that fails while others are inside a collective of torch cannot send anything.  Its end breaks their
  connections (gloo), or makes torchrun end them (nccl).  A group that may be nccl's is then not destroyed: that would
  wait for ranks that have ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from mbs_fx.errors import MBSError
from mbs_fx.runtime.torch_private import prefix_store

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """One process among ``world``; ``group`` is None where there is only one."""

    rank: int = 0
    world: int = 1
    group: Any = None
    timeout: timedelta = timedelta(minutes=10)

    def exchange(self, own: T) -> list[T]:
        """What every rank gives, in the order of ranks, to every rank."""
        if self.group is None:
            return [own]
        everyone: list[Any] = [None] * self.world
        try:
            dist.monitored_barrier(self.group, self.timeout, wait_all_ranks=True)
            dist.all_gather_object(everyone, own, group=self.group)
        except RuntimeError as error:
            raise MBSError(
                f"rank {self.rank} lost the others ({str(error).splitlines()[0]}): a process "
                f"ended or did not answer within {self.timeout.total_seconds():g} s. See the log of that rank"
            ) from error
        return everyone

    def together(self, work: Callable[[], T]) -> list[T]:
        """What ``work`` gives on every rank; an error on one is an error on all."""
        if self.group is None:
            return [work()]
        own, trouble = None, ""
        try:
            own = work()
        except MBSError as error:
            trouble = str(error)
        everyone = self.exchange((own, trouble))
        for rank, (_, trouble) in enumerate(everyone):
            if trouble:
                raise MBSError(f"rank {rank}: {trouble}")
        return [cast("T", value) for value, _ in everyone]

    def alike(self, work: Callable[[], T], of: Callable[[T], object], what: str) -> T:
        """What ``work`` gives on this rank; ``of`` it must be the same on all."""
        own: list[T] = []

        def told() -> object:
            own.append(work())
            return of(own[0])

        everyone = self.together(told)
        if any(other != everyone[0] for other in everyone):
            raise MBSError(f"{what} differ between the processes: {', '.join(map(str, everyone))}, in order of ranks")
        return own[0]


_TURNS = count()


@contextmanager
def join(timeout: float) -> Generator[Ranks]:
    """All processes of this run; just this one where there was no torchrun and no process group.

    A group that is started here is destroyed here.  Each has a part of the store for itself: processes that start the
    next group at different times would otherwise read the addresses of the last one and wait for ever.
    """
    limit = timedelta(seconds=timeout)
    if not dist.is_available():
        yield Ranks()
        return
    started = not dist.is_initialized() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    if started:
        store, rank, world = _meeting()
        own = prefix_store(f"mbs_fx/{next(_TURNS)}", store)
        dist.init_process_group(store=own, rank=rank, world_size=world, timeout=limit)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield Ranks()
        return
    group = dist.new_group(backend="gloo", timeout=limit)
    failed = True
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), group, limit)
        failed = False
    finally:
        if not started:
            dist.destroy_process_group(group)
        elif not (failed and torch.cuda.is_initialized()):
            dist.destroy_process_group()


@cache
def _meeting() -> tuple[Any, int, int]:
    """The store where the processes of torchrun meet, this one's rank, and how many there are."""
    from torch.distributed.rendezvous import rendezvous

    store, rank, world = next(rendezvous("env://"))
    return store, rank, world
