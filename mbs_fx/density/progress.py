"""The progress bar of a measurement: on a terminal, nothing elsewhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from mbs_fx.results.density import Interval
from mbs_fx.results.tables import size_text


class Progress:
    """Images read, images per second, and how close the widths are to settled."""

    def __init__(self, show: bool | None, total: int | None) -> None:
        from tqdm import tqdm

        hidden = None if show is None else not show
        self._bar: Any = tqdm(total=total, desc="measure", unit="image", disable=hidden, leave=False)

    def resumed(self, images: int) -> None:
        """Starts at the images of a checkpoint; they do not count for the speed."""
        self._bar.initial = self._bar.n = images
        self._bar.refresh()

    def read(self, images: int) -> None:
        """Adds images to the bar."""
        self._bar.update(images)

    def settled(self, intervals: Sequence[Interval]) -> None:
        """Shows how many scaling factors are settled."""
        if self._bar.disable or not intervals:
            return
        undecided = [i for i in intervals if not i.settled]
        text = f"{len(intervals) - len(undecided)}/{len(intervals)} settled"
        if undecided:
            widest = max(undecided, key=lambda i: i.high - i.low)
            text += (
                f", beta at {size_text(widest.spatial_size)} {widest.beta:.3f} in {widest.low:.3f}..{widest.high:.3f}"
            )
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed."""

    seen: bool = False


@contextmanager
def interruptible() -> Generator[Interrupt]:
    """The first Ctrl-C takes effect at the end of the batch, the second at once.

    Signals reach the main thread only; elsewhere Ctrl-C is left as it is.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(_signal: int, _frame: FrameType | None) -> None:
        interrupt.seen = True
        signal.signal(signal.SIGINT, previous)

    if previous is not signal.default_int_handler:
        yield interrupt
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
