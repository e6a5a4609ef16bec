"""``accuracy``: the share of images that a classifier names right, as `retrain` counts it after an epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mbs_fx.errors import MBSError
from mbs_fx.runtime.devices import usable
from mbs_fx.runtime.random_state import random_state_kept
from mbs_fx.runtime.ranks import join
from mbs_fx.tracing.check import copied
from mbs_fx.training.batches import testing_batches
from mbs_fx.training.losses import hits, takes_whole_numbers
from mbs_fx.training.recipe import Recipe


def accuracy(
    model: nn.Module,
    test: Any,
    *,
    batch: int = 128,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    timeout: float = 600.0,
) -> float:
    """Top-1: the share of images whose largest output is the label's, in eval mode.

    Args:
        model: takes images (N, C, H, W), gives logits (N, classes); not changed.
        test: as for `retrain`: a map-style data set of (image, label), a DataLoader, or batches (images, labels).
        batch: images at a time, where they do not come in batches.
        workers: processes that load the images of a data set.
        device: where to run; a GPU where there is one when absent, under torchrun the one of this process.
        progress: True, False, or None for a bar on a terminal only.
        timeout: seconds after which a process that does not answer is given up, under torchrun.

    Raises:
        MBSError: no images, labels outside the classes, an output that is no (N, classes).

    """
    from tqdm import tqdm

    where = usable(device)
    net = copied(model).to(where).eval()

    def place(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images.to(where), labels.to(where)

    with random_state_kept(), join(timeout) as ranks:
        batches = testing_batches(test, Recipe(batch=batch), ranks, workers)
        hidden = True if ranks.rank else None if progress is None else not progress
        shown = tqdm(batches, desc="accuracy", unit="batch", disable=hidden, leave=False)
        right, seen = hits(net, shown, place, ranks, takes_whole_numbers(model))
    if not seen:
        raise MBSError("there were no test images; give a data set of (image, label), or batches of them")
    return right / seen
