"""A training run on disk: written whole or not at all, resumed exactly.

- What is drawn in an epoch depends on the seed and the epoch's number alone, so that weights, momentum, the
  schedule and the epoch are all that a run needs to go on as if it had never stopped.
- A checkpoint belongs to one network and one recipe; another one is refused with what differs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from mbs_fx.errors import MBSError
from mbs_fx.results.files import write_atomically
from mbs_fx.training.recipe import Recipe
from mbs_fx.training.result import Epoch

FORMAT = 1
KEYS = {"format", "recipe", "epochs", "net", "optimizer", "schedule", "average"}


@dataclass
class Run:
    """Everything that changes while a network is trained; an epoch has so many ``steps``."""

    net: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    average: AveragedModel | None
    steps: int
    epochs: list[Epoch] = field(default_factory=list[Epoch])


def save(path: str | Path, run: Run, recipe: Recipe) -> None:
    """Put the state of a run on disk; what was there before stays valid until the new one is whole.

    Raises:
        MBSError: the disk is full, or the folder cannot be written.

    """
    buffer = BytesIO()
    torch.save(
        {
            "format": FORMAT,
            "recipe": recipe.plain(),
            "epochs": [asdict(epoch) for epoch in run.epochs],
            "net": run.net.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "schedule": run.schedule.state_dict(),
            "average": run.average.state_dict() if run.average else None,
        },
        buffer,
    )
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def resume(path: str | Path, run: Run, recipe: Recipe) -> None:
    """Bring a fresh run to where the checkpoint left off; nothing happens where there is no file.

    Raises:
        MBSError: the file is no checkpoint, or belongs to another network or recipe.

    """
    if not Path(path).exists():
        return
    saved = _read(path)
    _check_network(path, saved["net"], run.net)
    before, now = saved["recipe"], recipe.plain()
    different = [f"{key}: {before.get(key)!r} there, {now[key]!r} here" for key in now if before.get(key) != now[key]]
    if different:
        raise MBSError(
            f"{path}: the checkpoint was made with another recipe ({'; '.join(different)}). Go on with its recipe, "
            "or name another file"
        )
    there = saved["schedule"]["last_epoch"] // max(1, len(saved["epochs"]))
    if there != run.steps:
        raise MBSError(
            f"{path}: the checkpoint was made with {there} steps an epoch, here are {run.steps}: the images or the "
            "batches are others, and the schedule would not fit. Give the same, or name another file"
        )
    run.net.load_state_dict(saved["net"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.schedule.load_state_dict(saved["schedule"])
    if run.average is not None:
        run.average.load_state_dict(saved["average"])
    run.epochs[:] = [Epoch(**epoch) for epoch in saved["epochs"]]


def _read(path: str | Path) -> dict[str, Any]:
    try:
        saved: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise MBSError(
            f"{path}: not a checkpoint of retrain, or it cannot be read ({why}); name another file"
        ) from error
    if not isinstance(saved, dict) or not saved.keys() >= KEYS:  # pyright: ignore[reportUnknownMemberType]
        raise MBSError(f"{path}: not a checkpoint of retrain; name another file")
    if saved["format"] != FORMAT:
        raise MBSError(f"{path}: checkpoint format {saved['format']}, this version reads {FORMAT}")
    return saved


def _check_network(path: str | Path, saved: dict[str, torch.Tensor], net: nn.Module) -> None:
    """The same names and shapes, or an error that names the first that differs."""
    own = net.state_dict()
    for name in {**own, **saved}:
        there, here = (tuple(state[name].shape) if name in state else "nothing" for state in (saved, own))
        if there != here:
            raise MBSError(
                f"{path}: the checkpoint is of another network: {name} is {there} there and {here} here. "
                "Name another file, or give the network that it was made from"
            )
