"""``retrain``: the smaller network, trained.

- The network is trained in place, as every optimiser of torch does; the teacher is copied and stays as it is.
- torch's own parts do the work: SGD and its schedulers, autocast, `AveragedModel`, `DistributedDataParallel`,
  ``torch.compile``.  What is here is their order, what is checked, and what is written down.
- Under ``torchrun`` every process trains on its share and holds the same weights at the end; rank 0 writes.
- What can be found wrong before the first step is; a run that diverges stops, and the last checkpoint on disk is
  then the last good one.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mbs_fx.errors import MBSError
from mbs_fx.reconstruction.networks import MADE
from mbs_fx.rewriting.carried_plan import carry_accuracy, plan_in
from mbs_fx.runtime.devices import usable
from mbs_fx.runtime.precision import fast_dtype
from mbs_fx.runtime.ranks import Ranks, join
from mbs_fx.training import checkpoint as checkpoints
from mbs_fx.training.batches import testing_batches, training_batches
from mbs_fx.training.checkpoint import Run
from mbs_fx.training.epoch import Setting, one_epoch
from mbs_fx.training.losses import takes_whole_numbers
from mbs_fx.training.recipe import REFITTED, Recipe, optimizer_of, schedule_of
from mbs_fx.training.result import Training, append, append_line, epoch_line

TIMEOUT = 1800.0
"""Seconds after which a process that does not answer is given up: saving and testing fit."""


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
            that can be read once an epoch; images normalised.  Items may be dicts that hold one of each.
        test: the same; read after every epoch.
        recipe: what is trained and how; the paper's when absent, from reconstructed weights with a tenth of its
            learning rate.
        teacher: the original network, imitated with weight ``recipe.distill`` (0.5 where the recipe leaves it
            at 0); then ``train`` may also be images without labels.
        device: where to train; a GPU where there is one when absent, under torchrun the one of this process.
        checkpoint: written after every epoch; a run that was killed goes on from it, and ends in
            the same bits where the device computes the same twice.
        log: one JSON line an epoch is appended.
        workers: processes that load the images of a data set.
        progress: True, False, or None for a bar on a terminal only.

    Returns:
        Loss, accuracy, learning rate and seconds of every epoch.  The accuracy at the end joins those in the plan of a
        reduced network, as "retrained".

    Raises:
        MBSError: labels outside the classes, an output that is no (N, classes), a checkpoint of another network
            or recipe, a loss that is no number, a disk that is full.

    """
    refitted = MADE in getattr(model, "meta", {})
    recipe = _recipe(recipe or (Recipe(lr=REFITTED) if refitted else Recipe()), teacher)
    where = usable(device)
    with join(TIMEOUT) as ranks, torch.cuda.device(where) if where.type == "cuda" else nullcontext():

        def ready() -> tuple[Any, Any, Run]:
            batches = training_batches(train, recipe, ranks, workers)
            tests = None if test is None else testing_batches(test, recipe, ranks, workers)
            run = _run(model, recipe, where, len(batches))
            _check_files(run, recipe, ranks, checkpoint, log)
            return batches, tests, run

        def write() -> None:
            if ranks.rank == 0 and checkpoint is not None:
                checkpoints.save(checkpoint, run, recipe)
            if ranks.rank == 0 and log is not None:
                append_line(log, epoch_line(run.epochs[-1], recipe))

        what = "steps an epoch and epochs in the checkpoint"
        batches, tests, run = ranks.alike(ready, lambda all_: (all_[2].steps, len(all_[2].epochs)), what)
        setting = _setting(model, teacher, recipe, where, ranks, progress)
        while len(run.epochs) < recipe.epochs:
            run.epochs.append(one_epoch(run, setting, batches, tests, checkpoint))
            ranks.together(write)
    if run.average is not None:
        model.load_state_dict(run.average.module.state_dict())
    model.eval()
    result = Training(recipe, tuple(run.epochs))
    made = plan_in(model)
    if made is not None and result.accuracy is not None:
        carry_accuracy(model, {**made.accuracy, "retrained": result.accuracy})
    return result


def _recipe(recipe: Recipe, teacher: nn.Module | None) -> Recipe:
    """``distill`` defaults to 0.5 when a teacher is given."""
    if teacher is None and recipe.distill:
        raise MBSError(f"retrain: the recipe has distill={recipe.distill:g}, but there is no teacher: give one")
    return replace(recipe, distill=recipe.distill or (0.0 if teacher is None else 0.5))


def _check_files(run: Run, recipe: Recipe, ranks: Ranks, checkpoint: str | Path | None, log: str | Path | None) -> None:
    """Go on from the checkpoint, and see that files can be written: an epoch may take hours."""
    if checkpoint is not None:
        if not os.access(Path(checkpoint).parent, os.W_OK):
            raise MBSError(f"{checkpoint}: cannot write there: there is no such folder, or it cannot be written")
        checkpoints.resume(checkpoint, run, recipe)
    if log is not None and ranks.rank == 0:
        append(log, "")


def _run(model: nn.Module, recipe: Recipe, device: torch.device, steps: int) -> Run:
    """The network on its device, with optimiser and schedule at their start."""
    if not any(p.requires_grad for p in model.parameters()):
        raise MBSError("retrain: every parameter of the network is frozen: call requires_grad_() on it first")
    model.to(device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(recipe, model.parameters())
    average = None
    if recipe.average is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True)
    return Run(model, optimizer, schedule_of(recipe, optimizer, steps), average, steps)


def _setting(
    model: nn.Module,
    teacher: nn.Module | None,
    recipe: Recipe,
    device: torch.device,
    ranks: Ranks,
    show: bool | None,
) -> Setting:
    """The ways through the network and its teacher."""
    dtype = fast_dtype(torch.float32, device) if recipe.precision == "auto" else getattr(torch, recipe.precision)
    forward: Any = torch.compile(model) if recipe.compile else model
    if ranks.world > 1:
        forward = DistributedDataParallel(forward)
    if teacher is not None:
        teacher = deepcopy(teacher).to(device).eval().requires_grad_(False)
        if recipe.channels_last:
            teacher.to(memory_format=torch.channels_last)
    return Setting(
        recipe, device, dtype, ranks, forward, teacher, show if ranks.rank == 0 else False, takes_whole_numbers(model)
    )
