"""One pass over the training images, and the test after it.

- A batch is looked at before it is used: what is no (images, labels), labels outside the classes (labels on a GPU
  in the first epoch alone), an output that is no (images, classes).
- Every `LOOKS` steps, and at the end of an epoch, the processes tell each other their losses: all stop where one is
  no number.  After the last step the weights are looked at, too, for they are what is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mbs_fx.density.fast_copy import LAYOUTS
from mbs_fx.density.pixels import warn_of_pixels
from mbs_fx.errors import MBSError
from mbs_fx.runtime.ranks import Ranks
from mbs_fx.training.batches import drawing
from mbs_fx.training.checkpoint import Run
from mbs_fx.training.losses import check_answer, check_labels, hits, loss_of, opened, without_labels
from mbs_fx.training.recipe import Recipe
from mbs_fx.training.result import Epoch

LOOKS = 50
"""Steps between two looks at whether the loss is still a number; a look waits for the device."""


@dataclass(frozen=True)
class Setting:
    """What does not change while a network is trained; ``whole``: its images may be whole numbers."""

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    ranks: Ranks
    forward: nn.Module | Callable[[Tensor], Tensor]
    teacher: nn.Module | None
    show: bool | None
    whole: bool = False

    def images(self, images: Tensor) -> Tensor:
        """Images on the device, in the memory order of the recipe."""
        layout = LAYOUTS.get(images.dim()) if self.recipe.channels_last else None
        images = images.to(self.device, non_blocking=True)
        return images if layout is None else images.contiguous(memory_format=layout)

    def place(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device."""
        return self.images(images), labels.to(self.device, non_blocking=True)

    def open(self, batch: Any, where: str) -> tuple[Tensor, Tensor | None]:
        """Images and labels of a batch; a teacher can do without labels."""
        alone = None if self.teacher is None else without_labels(batch, where, self.whole)
        return (alone, None) if alone is not None else opened(batch, where, self.whole)

    def autocast(self) -> Any:
        """bfloat16 where the recipe and the hardware have it."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def one_epoch(run: Run, setting: Setting, batches: Any, tests: Any, checkpoint: str | Path | None) -> Epoch:
    """Train on every batch once, then test."""
    number = len(run.epochs) + 1
    start = time.perf_counter()
    with drawing(batches, setting.recipe, number, setting.ranks):
        loss, images = _pass(run, setting, batches, number, checkpoint)
        seconds = time.perf_counter() - start
        _agree(run, setting.ranks)
        _check_weights(run, number, checkpoint)
        accuracy = None if tests is None else _accuracy(run, setting, tests)
    return Epoch(number, loss, accuracy, float(run.schedule.get_last_lr()[0]), seconds, images)


def _pass(run: Run, setting: Setting, batches: Any, number: int, checkpoint: str | Path | None) -> tuple[float, int]:
    """The mean loss of the steps, and how many images all processes saw."""
    from tqdm import tqdm

    run.net.train()
    total, images, step = torch.zeros((), device=setting.device), 0, 0
    loss, everyone = 0.0, 0
    shown = tqdm(
        batches,
        desc=f"epoch {number}/{setting.recipe.epochs}",
        disable=None if setting.show is None else not setting.show,
        leave=False,
    )
    for step, batch in enumerate(shown, 1):
        if step > run.steps:
            break
        where = f"epoch {number}, step {step}"
        x, y = setting.open(batch, where)
        if number == step == 1:
            warn_of_pixels(x, "retrain")
        total += _step(run, setting, x, y, where)
        images += len(x)
        if step % LOOKS == 0 or step == run.steps:
            told = setting.ranks.exchange((float(total) / step, images))
            loss, everyone = (sum(own) for own in zip(*told, strict=True))
            loss /= len(told)
            if not isfinite(loss):
                raise _diverged(f"step {step}: the loss is {loss}", run, number, checkpoint)
    if step != run.steps:
        there = "more" if step > run.steps else step
        raise MBSError(
            f"epoch {number}: the batches have length {run.steps}, and there were {there}: "
            "give a collection that can be read once an epoch and knows its length"
        )
    return loss, everyone


def _accuracy(run: Run, setting: Setting, tests: Any) -> float:
    net = run.net if run.average is None else run.average
    net.eval()
    with setting.autocast():
        right, seen = hits(net, tests, setting.place, setting.ranks, setting.whole)
    if not seen:
        raise MBSError("there were no test images; give a data set, or batches that can be read every epoch")
    return right / seen


def _agree(run: Run, ranks: Ranks) -> None:
    """Every process takes the BatchNorm statistics of rank 0; gradients, and so weights, are the same anyway."""
    if ranks.world > 1:
        for net in (run.net, run.average):
            for buffer in () if net is None else net.buffers():
                dist.broadcast(buffer, 0)


def _step(run: Run, setting: Setting, images: Tensor, labels: Tensor | None, where: str) -> Tensor:
    """One step of the optimiser; the loss, still on the device."""
    count, taught = len(images), None
    images = setting.images(images)
    with setting.autocast():
        logits = setting.forward(images)
        check_answer(logits, count, where)
        if labels is not None and (not run.epochs or labels.device.type == "cpu"):
            check_labels(labels, logits.shape[1], where)
        if setting.teacher is not None:
            with torch.no_grad():
                taught = setting.teacher(images)
            check_answer(taught, count, where, "teacher")
            if taught.shape != logits.shape:
                raise MBSError(f"{where}: the teacher tells {taught.shape[1]} classes apart, not {logits.shape[1]}")
    labels = None if labels is None else labels.to(setting.device, non_blocking=True)
    loss = loss_of(setting.recipe, logits, labels, taught)
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    run.schedule.step()
    if run.average is not None:
        run.average.update_parameters(run.net)
    return loss.detach()


def _check_weights(run: Run, number: int, checkpoint: str | Path | None) -> None:
    """The loss of the last step is older than the weights, and BatchNorm does not train with its running statistics."""
    statistics = ((name, t) for name, t in run.net.named_buffers() if "running_" in name)
    for name, tensor in (*run.net.named_parameters(), *statistics):
        if not tensor.isfinite().all():
            raise _diverged(f"after the last step {name} is not finite", run, number, checkpoint)


def _diverged(what: str, run: Run, epoch: int, checkpoint: str | Path | None) -> MBSError:
    before = f"the loss was {run.epochs[-1].loss:.4g} in epoch {epoch - 1}" if run.epochs else "in the first epoch"
    kept = f"; {checkpoint} holds epoch {epoch - 1}" if checkpoint is not None and run.epochs else ""
    return MBSError(
        f"epoch {epoch}, {what} ({before}): the run diverged. Lower the learning rate, or look for images that are "
        f"no numbers{kept}"
    )
