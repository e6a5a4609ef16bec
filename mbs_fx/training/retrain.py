"""``retrain``: the smaller network, trained.

- The network is trained in place, as every optimiser of torch does; the teacher is copied and stays as it is.
- torch's own parts do the work: SGD and its schedulers, autocast, `AveragedModel`, `DistributedDataParallel`,
  ``torch.compile``.  What is here is their order, what is checked, and what is written down.
- Under ``torchrun`` every process trains on its share and holds the same weights at the end; rank 0 writes.
- A run that diverges stops; the last checkpoint on disk is then the last good one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mbs_fx.devices import usable
from mbs_fx.errors import MBSError
from mbs_fx.measuring.fast import LAYOUTS, fast_dtype
from mbs_fx.measuring.ranks import Ranks, join
from mbs_fx.training import checkpoint as checkpoints
from mbs_fx.training.batches import drawing, testing_batches, training_batches
from mbs_fx.training.checkpoint import Run
from mbs_fx.training.objective import check_answer, hits, loss_of
from mbs_fx.training.recipe import Recipe, optimizer_of, schedule_of
from mbs_fx.training.result import Epoch, Training, append_line, epoch_line

LOOKS = 50
"""Steps between two looks at whether the loss is still a number; a look waits for the device."""

TIMEOUT = 1800.0
"""Seconds after which a process that does not answer is given up: saving and testing fit."""


@dataclass(frozen=True)
class Setting:
    """What does not change while a network is trained."""

    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    ranks: Ranks
    forward: nn.Module | Callable[[Tensor], Tensor]
    teacher: nn.Module | None
    show: bool | None

    def place(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device, in the memory order of the recipe."""
        layout = LAYOUTS.get(images.dim()) if self.recipe.channels_last else None
        images = images.to(self.device, non_blocking=True)
        images = images if layout is None else images.contiguous(memory_format=layout)
        return images, labels.to(self.device, non_blocking=True)

    def autocast(self) -> Any:
        """bfloat16 where the recipe and the hardware have it."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def retrain(
    model: nn.Module,
    train: Any,
    test: Any = None,
    recipe: Recipe | None = None,
    *,
    teacher: nn.Module | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | Path | None = None,
    log: str | Path | None = None,
    workers: int = 0,
    progress: bool | None = None,
) -> Training:
    """Train a classifier, by default as the paper does (section 4.1).

    Args:
        model: takes images (N, C, H, W), gives logits (N, classes); trained in place, left in eval mode on
            ``device``.  With ``recipe.average`` it ends with the averaged weights.
        train: a map-style data set of (image, label), a DataLoader, or a collection of batches (images, labels)
            that can be read once an epoch; images normalised.
        test: the same; read after every epoch.
        recipe: what is trained and how; the paper's when absent.
        teacher: the original network, imitated with weight ``recipe.distill`` (0.5 where the recipe leaves it
            at 0).
        device: where to train; a GPU where there is one when absent, under torchrun the one of this process.
        checkpoint: written after every epoch; a run that was killed goes on from it, and ends in
            the same bits where the device computes the same twice.
        log: one JSON line an epoch is appended.
        workers: processes that load the images of a data set.
        progress: True, False, or None for a bar on a terminal only.

    Returns:
        Loss, accuracy, learning rate and seconds of every epoch.

    Raises:
        MBSError: labels outside the classes, an output that is no (N, classes), a checkpoint of another network
            or recipe, a loss that is no number, a disk that is full.

    """
    recipe = recipe or Recipe()
    if teacher is not None and recipe.distill == 0:
        recipe = replace(recipe, distill=0.5)
    if teacher is None and recipe.distill:
        raise MBSError(f"retrain: the recipe has distill={recipe.distill:g}, but there is no teacher: give one")
    where = usable(device)
    with join(TIMEOUT) as ranks, torch.cuda.device(where) if where.type == "cuda" else nullcontext():
        batches = training_batches(train, recipe, ranks, workers)
        tests = None if test is None else testing_batches(test, recipe, workers)
        run, setting = _set_up(model, teacher, recipe, where, ranks, progress, len(batches))
        if checkpoint is not None:
            checkpoints.resume(checkpoint, run, recipe)
        while len(run.epochs) < recipe.epochs:
            run.epochs.append(_epoch(run, setting, batches, tests, checkpoint))
            if ranks.rank == 0 and checkpoint is not None:
                checkpoints.save(checkpoint, run, recipe)
            if ranks.rank == 0 and log is not None:
                append_line(log, epoch_line(run.epochs[-1], recipe))
    if run.average is not None:
        model.load_state_dict(run.average.module.state_dict())
    model.eval()
    return Training(recipe, tuple(run.epochs))


def _set_up(
    model: nn.Module,
    teacher: nn.Module | None,
    recipe: Recipe,
    device: torch.device,
    ranks: Ranks,
    show: bool | None,
    steps: int,
) -> tuple[Run, Setting]:
    """Optimiser, schedule and the ways through the network."""
    dtype = fast_dtype(torch.float32, device) if recipe.precision == "auto" else getattr(torch, recipe.precision)
    model.to(device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(recipe, model.parameters())
    average = None
    if recipe.average is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
    forward: Any = torch.compile(model) if recipe.compile else model
    if ranks.world > 1:
        forward = DistributedDataParallel(forward)
    if teacher is not None:
        teacher = deepcopy(teacher).to(device).eval().requires_grad_(False)
        if recipe.channels_last:
            teacher.to(memory_format=torch.channels_last)
    run = Run(model, optimizer, schedule_of(recipe, optimizer, steps), average)
    return run, Setting(recipe, device, dtype, ranks, forward, teacher, show if ranks.rank == 0 else False)


def _epoch(run: Run, setting: Setting, batches: Any, tests: Any, checkpoint: str | Path | None) -> Epoch:
    """Train on every batch once, then test."""
    from tqdm import tqdm

    number = len(run.epochs) + 1
    run.net.train()
    total, images = torch.zeros((), device=setting.device), 0
    start = time.perf_counter()
    with drawing(batches, setting.recipe, number, setting.ranks):
        shown = tqdm(
            batches,
            desc=f"epoch {number}/{setting.recipe.epochs}",
            disable=None if setting.show is None else not setting.show,
            leave=False,
        )
        for step, (x, y) in enumerate(shown, 1):
            total += _step(run, setting, x, y, f"epoch {number}, step {step}")
            images += len(x)
            if step % LOOKS == 0 or step == len(batches):
                _check_finite(float(total) / step, number, step, run, checkpoint)
    seconds = time.perf_counter() - start
    _agree(run, setting.ranks)
    accuracy = None
    if tests is not None:
        net = run.net if run.average is None else run.average
        net.eval()
        with setting.autocast():
            right, seen = hits(net, tests, setting.place, setting.ranks)
        accuracy = right / seen
    everyone = setting.ranks.exchange((float(total) / len(batches), images))
    loss = sum(mean for mean, _ in everyone) / len(everyone)
    lr = float(run.schedule.get_last_lr()[0])
    return Epoch(number, loss, accuracy, lr, seconds, sum(n for _, n in everyone))


def _agree(run: Run, ranks: Ranks) -> None:
    """Every process takes the BatchNorm statistics of rank 0; gradients, and so weights, are the same anyway."""
    if ranks.world > 1:
        for net in (run.net, run.average):
            for buffer in () if net is None else net.buffers():
                dist.broadcast(buffer, 0)


def _step(run: Run, setting: Setting, images: Tensor, labels: Tensor, where: str) -> Tensor:
    """One step of the optimiser; the loss, still on the device."""
    if not images.is_floating_point():
        raise MBSError(f"{where}: images are {images.dtype}; give floating-point images, normalised")
    first = not run.epochs or labels.device.type == "cpu"
    held = labels
    images, labels = setting.place(images, labels)
    with setting.autocast():
        logits = setting.forward(images)
        if first:
            check_answer(logits, held, where)
        taught = None
        if setting.teacher is not None:
            with torch.no_grad():
                taught = setting.teacher(images)
    loss = loss_of(setting.recipe, logits, labels, taught)
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    run.schedule.step()
    if run.average is not None:
        run.average.update_parameters(run.net)
    return loss.detach()


def _check_finite(loss: float, epoch: int, step: int, run: Run, checkpoint: str | Path | None) -> None:
    if isfinite(loss):
        return
    before = f"it was {run.epochs[-1].loss:.4g} in epoch {epoch - 1}" if run.epochs else "in the first epoch"
    kept = f"; {checkpoint} holds epoch {epoch - 1}" if checkpoint is not None and run.epochs else ""
    raise MBSError(
        f"epoch {epoch}, step {step}: the loss is {loss} ({before}): the run diverged. Lower the learning rate, or "
        f"look for images that are no numbers{kept}"
    )
