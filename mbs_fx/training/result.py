"""What training gives back: one line an epoch.  No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mbs_fx.errors import MBSError
from mbs_fx.results.tables import table_html
from mbs_fx.training.recipe import Recipe

EPOCH_HEADERS = ("epoch", "loss", "accuracy", "lr", "s")


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Attributes:
        epoch: counted from 1.
        loss: mean over the steps.
        accuracy: share of test images whose largest logit is the label's; None without test images.
        lr: the learning rate after the epoch's last step.
        seconds: of training, testing not included.
        images: that were trained on, over all processes.

    """

    epoch: int
    loss: float
    accuracy: float | None
    lr: float
    seconds: float
    images: int


@dataclass(frozen=True)
class Training:
    """A finished run: its recipe and its epochs in order."""

    recipe: Recipe
    epochs: tuple[Epoch, ...]

    @property
    def accuracy(self) -> float | None:
        """That of the network as it is now: of the last epoch, not of the best."""
        return self.epochs[-1].accuracy

    @property
    def images_per_second(self) -> float:
        """Of training alone."""
        return sum(e.images for e in self.epochs) / sum(e.seconds for e in self.epochs)

    def __str__(self) -> str:
        from tabulate import tabulate

        return tabulate(self._rows(), EPOCH_HEADERS, disable_numparse=True, stralign="right")

    def _repr_html_(self) -> str:
        return table_html(self._rows(), EPOCH_HEADERS)

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                str(e.epoch),
                f"{e.loss:.4f}",
                "" if e.accuracy is None else f"{e.accuracy:.2%}",
                f"{e.lr:.4g}",
                f"{e.seconds:.1f}",
            )
            for e in self.epochs
        ]


def append_line(path: str | Path, line: dict[str, Any]) -> None:
    """Append one JSON line; a reader never sees half of one."""
    append(path, json.dumps(line) + "\n")


def append(path: str | Path, text: str) -> None:
    """Append to a file; of nothing, to see whether that can be done."""
    try:
        with Path(path).open("a") as log:
            log.write(text)
    except OSError as error:
        raise MBSError(f"{path}: cannot write there: {error.strerror or error}") from error


def epoch_line(epoch: Epoch, recipe: Recipe) -> dict[str, Any]:
    """An epoch as it stands in a log that one can plot."""
    return asdict(epoch) | {"seed": recipe.seed}
