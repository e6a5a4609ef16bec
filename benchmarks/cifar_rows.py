"""Which runs make up each table and figure, and by which schedule they are trained.

- ``paper``: batch 128, weight decay 1e-4, learning rate 0.1 divided by 10 at 50 % and 75 % of 200 epochs (the paper
  does not say how many).
- ``short``: what a CPU can do in minutes: one cycle of 3 epochs, the first two on crops of 24 x 24 pixels.
- ``tune``: for inherited weights: one cycle of 2 epochs at a quarter of the learning rate.
- ``refine``: for reconstructed weights: the same at a fifth of that rate, on whole images.
- ``sample``: how the shipped ResNet-20 was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import mbs_fx


@dataclass(frozen=True)
class Row:
    """One network, trained once."""

    depth: int
    method: str
    k: float
    init: str
    distill: bool
    schedule: str
    seed: int

    @property
    def untrained(self) -> bool:
        """The original as it is: tested, not trained."""
        return self.method == "original" and self.init == "inherited"

    def __str__(self) -> str:
        taught = "-distill" if self.distill else ""
        return f"resnet{self.depth}-{self.method}-{self.k:g}-{self.init}{taught}-{self.schedule}-{self.seed}"


@dataclass(frozen=True)
class Schedule:
    """A recipe, and how many of its first epochs see small crops."""

    recipe: mbs_fx.Recipe
    small: int = 0


CYCLE = mbs_fx.Recipe(epochs=3, lr=0.2, nesterov=True, weight_decay=5e-4, schedule="one-cycle")
SCHEDULES = {
    "paper": Schedule(mbs_fx.Recipe(epochs=200)),
    "short": Schedule(CYCLE, small=2),
    "tune": Schedule(replace(CYCLE, epochs=2, lr=0.05), small=1),
    "refine": Schedule(replace(CYCLE, epochs=2, lr=0.01)),
    "sample": Schedule(replace(CYCLE, epochs=20), small=10),
}


def table1(depths: list[int], seeds: list[int], schedule: str) -> list[Row]:
    """Originals and MBS at z = L, from fresh weights and from inherited ones with the original as teacher."""
    kinds = (("original", "fresh", False), ("mbs", "fresh", False), ("mbs", "inherited", True))
    return [
        Row(depth, method, 1.0, init, distill, schedule, seed)
        for depth in depths
        for seed in seeds
        for method, init, distill in kinds
    ]


def fig4(depths: list[int], seeds: list[int], schedule: str) -> list[Row]:
    """MBS at z = k L for k from 1.4 to 0.6."""
    return [
        Row(depth, "mbs", k, "fresh", False, schedule, seed)
        for depth in depths
        for seed in seeds
        for k in (1.4, 1.2, 1.0, 0.8, 0.6)
    ]


def fig5(depths: list[int], seeds: list[int], schedule: str, init: str = "fresh") -> list[Row]:
    """MBS against one factor for every layer at equal parameters, from fresh weights, at three sizes."""
    return [
        Row(depth, method, k, init, False, schedule, seed)
        for depth in depths
        for k in (1.0, 0.6, 1.4)
        for seed in seeds
        for method in ("mbs", "uniform")
    ]


def inherited(depths: list[int], seeds: list[int], schedule: str) -> list[Row]:
    """Three methods at MBS's size for z = L, weights inherited, with the original as teacher; MBS without it, too.

    Before them the original as it is, which is tested and not trained.
    """
    kinds = [(method, True) for method in ("mbs", "uniform", "torch-pruning")]
    found = [Row(depth, "original", 1.0, "inherited", False, schedule, seeds[0]) for depth in depths]
    return found + [
        Row(depth, method, 1.0, "inherited", distill, schedule, seed)
        for depth in depths
        for part in (kinds, [("mbs", False)])
        for seed in seeds
        for method, distill in part
    ]


def practical(depths: list[int], seeds: list[int], schedule: str) -> list[Row]:
    """A short training from reconstructed weights: MBS, and one factor for all layers at equal size and equal flops."""
    return [
        Row(depth, method, k, "reconstructed", False, schedule, seed)
        for depth in depths
        for k in (1.0, 1.4, 0.6)
        for method in ("mbs", "uniform", "uniform-flops")
        for seed in seeds
    ]


TABLES: dict[str, Callable[[list[int], list[int], str], list[Row]]] = {
    "table1": table1,
    "fig4": fig4,
    "fig5": fig5,
    "fig5-inherited": partial(fig5, init="inherited"),
    "inherited": inherited,
    "practical": practical,
}
