"""What a training run is, in one value: the paper's by default.

- The paper (section 4.1): SGD with momentum, batch 128, weight decay 1e-4, learning rate 0.1, divided by 10 at
  50 % and at 75 % of all epochs.  It does not say how many epochs; its reference for these settings, the
  DenseNet paper, trains 300.
- Section 4.2, ImageNet: 90 epochs, batch 256, divided by 10 at epochs 30 and 60; weight decay 4e-5 for networks
  of depthwise convolutions.
- Rates and decays are as written for ``batch`` images a step; nothing is scaled behind one's back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal

from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from mbs_fx.errors import MBSError

Schedule = Literal["steps", "one-cycle"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; a plain value that goes into checkpoints and logs.

    Attributes:
        epochs: passes over the training images.
        batch: images a step, over all processes together.
        lr: the learning rate at the start ("steps") or at its peak ("one-cycle").
        momentum: of SGD.
        nesterov: look ahead with the momentum.
        weight_decay: on every parameter.
        schedule: "steps" divides by 10 after each of ``drops``; "one-cycle" rises for a quarter of the steps and
            falls to almost nothing.
        drops: shares of all steps after which "steps" divides.
        label_smoothing: share of the label spread over all classes.
        distill: weight of the teacher's answers against the labels', 0 to 1; of images without labels, all of it.
        temperature: both networks' logits are divided by it before the teacher's are imitated.
        average: decay per step of an averaged copy (EMA) of the weights, which is what training then returns;
            None for none.
        precision: "auto" takes bfloat16 where the hardware multiplies it faster, else float32.
        channels_last: keep images and weights in that memory order; faster on most hardware.
        compile: train through ``torch.compile``.
        seed: of the order of the images and of everything else that is drawn.

    """

    epochs: int = 300
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: Schedule = "steps"
    drops: tuple[float, ...] = (0.5, 0.75)
    label_smoothing: float = 0.0
    distill: float = 0.0
    temperature: float = 4.0
    average: float | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "epochs": (_whole(self.epochs, 1), "a whole number, at least 1"),
            "batch": (_whole(self.batch, 1), "a whole number, at least 1"),
            "lr": (0 < self.lr < inf, "positive"),
            "momentum": (0 <= self.momentum < 1, "from 0 to below 1"),
            "nesterov": (not self.nesterov or self.momentum > 0, "False where momentum is 0"),
            "weight_decay": (0 <= self.weight_decay < inf, "0 or more"),
            "schedule": (self.schedule in ("steps", "one-cycle"), "'steps' or 'one-cycle'"),
            "drops": (all(0 < d < 1 for d in self.drops), "shares of the epochs between 0 and 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "distill": (0 <= self.distill <= 1, "from 0 to 1"),
            "temperature": (0 < self.temperature < inf, "positive"),
            "average": (self.average is None or 0 < self.average < 1, "None, or between 0 and 1"),
            "precision": (self.precision in ("auto", "float32", "bfloat16"), "'auto', 'float32' or 'bfloat16'"),
            "seed": (_whole(self.seed, 0), "a whole number, 0 or more"),
        }
        for name, (fine, wanted) in checks.items():
            if not fine:
                raise MBSError(f"recipe: {name} is {getattr(self, name)!r}; it must be {wanted}")

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON has it."""
        return asdict(self) | {"drops": list(self.drops)}


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least


REFITTED = 0.01
"""The learning rate at the start from reconstructed weights, where none is given: they are near the original's."""


def optimizer_of(recipe: Recipe, parameters: Any) -> Optimizer:
    """SGD as the recipe has it."""
    return SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


def schedule_of(recipe: Recipe, optimizer: Optimizer, steps: int) -> LRScheduler:
    """The learning rate, step by step; ``steps`` is how many an epoch has."""
    total = recipe.epochs * steps
    if recipe.schedule == "steps":
        return MultiStepLR(optimizer, [max(1, round(share * total)) for share in recipe.drops])
    shortest = 8  # OneCycleLR divides by the steps of its rise less one
    return OneCycleLR(optimizer, recipe.lr, total_steps=max(total, shortest), pct_start=0.25, cycle_momentum=False)
