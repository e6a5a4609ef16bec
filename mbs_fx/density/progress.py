"""What a person sees while images are read: a bar on a terminal, nothing elsewhere."""

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
        """So many images had been read before; they do not count for the speed."""
        self._bar.initial = self._bar.n = images
        self._bar.refresh()

    def read(self, images: int) -> None:
        """So many more images have been read."""
        self._bar.update(images)

    def judged(self, intervals: Sequence[Interval]) -> None:
        """The state of the widths."""
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
    """Let the first Ctrl-C wait for the end of the batch; the second acts at once.

    Only the main thread can do so; elsewhere Ctrl-C is left as it is.
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
