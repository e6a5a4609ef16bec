"""The loop: batches in, totals out, until the widths are settled or the images are at an end.

- A round is a few batches on every rank, one synchronisation with the device, and one exchange between
  ranks; then every rank holds the same totals and comes to the same decision.
- Rounds grow with the number of images read, up to `QUEUE` batches, as another look soon after one tells
  little.
- Only whole batches count, in order, and nothing after a gap: totals can always be taken up again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbs_fx import checkpoint
from mbs_fx.columns import Columns
from mbs_fx.density_result import Interval
from mbs_fx.errors import MBSError
from mbs_fx.images import Batch
from mbs_fx.meter import Meter
from mbs_fx.moments import Block, Moments
from mbs_fx.progress import Interrupt, Progress, interruptible
from mbs_fx.ranks import Ranks
from mbs_fx.settle import FEWEST

QUEUE = 8
GROWTH = 1.25
SAVE_SECONDS = 10.0

Numbered = tuple[int, list[Batch]]
Judge = Callable[[Moments], tuple[Interval, ...]]


@dataclass
class Report:
    """What one rank brings to a round."""

    blocks: list[Block] = field(default_factory=list[Block])
    ended: bool = False
    interrupted: bool = False
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """Totals, and how the reading ended: the images were at an end, or Ctrl-C was pressed."""

    moments: Moments
    ended: bool = False
    interrupted: bool = False


@dataclass
class Reading:
    """A measurement under way.  ``judge`` is None where everything is to be read."""

    meter: Meter
    columns: Columns
    ranks: Ranks
    progress: Progress
    judge: Judge | None
    file: Path | None
    identity: Mapping[str, Any]
    saved: float = 0.0

    def run(self, stream: Iterator[Numbered], moments: Moments) -> Outcome:
        """Read until there is nothing more to find out."""
        try:
            with interruptible() as interrupt:
                outcome = self._rounds(stream, moments, interrupt)
        finally:
            self.progress.close()
        self._save(outcome.moments, last=True)
        return outcome

    def _rounds(self, stream: Iterator[Numbered], moments: Moments, interrupt: Interrupt) -> Outcome:
        intervals = self.judge(moments) if self.judge and moments.images else ()
        while not (intervals and all(i.settled for i in intervals)):
            report = self._round(stream, self._round_size(moments), interrupt)
            reports = self.ranks.exchange(report)
            moments = self._merged(moments, reports)
            if any(r.interrupted for r in reports):
                return Outcome(moments, interrupted=True)
            if all(r.ended for r in reports) or not self.columns.columns:
                return Outcome(moments, ended=True)
            self._save(moments, last=False)
            intervals = self.judge(moments) if self.judge else ()
            self.progress.judged(intervals)
        return Outcome(moments)

    def _round_size(self, moments: Moments) -> int:
        """Batches per rank until the next look."""
        if not self.judge:
            return QUEUE
        if not moments.images:
            return 1
        wanted = max(FEWEST, math.ceil(moments.images * GROWTH)) - moments.images
        per_round = moments.images / moments.batches * self.ranks.world
        return max(1, min(QUEUE, math.ceil(wanted / per_round)))

    def _round(self, stream: Iterator[Numbered], batches: int, interrupt: Interrupt) -> Report:
        report = Report()
        try:
            for _ in range(batches):
                item = None if interrupt.seen else next(stream, None)
                if item is None:
                    report.ended = not interrupt.seen
                    break
                self.meter.run(*item)
                self.progress.read(sum(map(len, item[1])) * self.ranks.world)
        except KeyboardInterrupt:
            interrupt.seen = True
        except MBSError as error:
            self._failed(report, error, interrupt)
        report.interrupted = interrupt.seen
        try:
            report.blocks = self.meter.collect()
        except MBSError as error:
            self._failed(report, error, interrupt)
        return report

    def _failed(self, report: Report, error: MBSError, interrupt: Interrupt) -> None:
        """Tell the other ranks before failing.  Workers that Ctrl-C ended are no failure."""
        if interrupt.seen:
            return
        if self.ranks.world == 1:
            raise error
        report.error = report.error or str(error)

    def _merged(self, moments: Moments, reports: list[Report]) -> Moments:
        for rank, report in enumerate(reports):
            if report.error:
                raise MBSError(f"rank {rank}: {report.error}")
        for block in sorted((b for r in reports for b in r.blocks), key=lambda b: b.number):
            if block.number > moments.batches:
                break
            moments = moments.plus(self.columns, block)
        return moments

    def _save(self, moments: Moments, last: bool) -> None:
        if self.file is None or self.ranks.rank or not moments.batches:
            return
        now = time.monotonic()
        if last or now - self.saved > SAVE_SECONDS:
            checkpoint.save(self.file, moments, self.identity)
            self.saved = now
