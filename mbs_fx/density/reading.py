"""The loop: batches in, totals out, until the widths are settled or the images end.

- A round is a few batches on every rank, one synchronisation with the device, and one exchange between
  ranks; then every rank holds the same totals and comes to the same decision.
- Rounds grow with the number of images read, up to `QUEUE` batches: the intervals change little from one to the next.
- Only whole batches count, in order, and nothing after a gap, so that a checkpoint can always be resumed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbs_fx.density import checkpoint
from mbs_fx.density.batches import Batch
from mbs_fx.density.columns import Columns
from mbs_fx.density.failures import workers_watched
from mbs_fx.density.meter import Meter
from mbs_fx.density.progress import Interrupt, Progress, interruptible
from mbs_fx.density.statistics import Block, Moments
from mbs_fx.density.stopping_rule import StoppingRule
from mbs_fx.errors import MBSError
from mbs_fx.results.density import FEWEST
from mbs_fx.runtime.ranks import Ranks

QUEUE = 8
GROWTH = 1.25
SAVE_SECONDS = 10.0

Numbered = tuple[int, list[Batch]]


@dataclass
class Report:
    """What one rank brings to a round."""

    blocks: list[Block] = field(default_factory=list[Block])
    ended: bool = False
    interrupted: bool = False


@dataclass(frozen=True)
class Outcome:
    """Totals, and how reading ended: at the end of the images, or by Ctrl-C."""

    moments: Moments
    ended: bool = False
    interrupted: bool = False


@dataclass
class Reading:
    """A measurement under way.  ``rule`` is None where everything is to be read."""

    meter: Meter
    columns: Columns
    ranks: Ranks
    progress: Progress
    rule: StoppingRule | None
    file: Path | None
    identity: Mapping[str, Any]
    moments: Moments
    saved: float = 0.0

    def run(self, stream: Iterator[Numbered]) -> Outcome:
        """Reads until the widths are settled or the images end.  However it ends, the checkpoint is written."""
        self.progress.resumed(self.moments.images)
        try:
            with interruptible() as interrupt:
                return self._rounds(stream, interrupt)
        finally:
            self.progress.close()
            self._save(last=True)

    def _rounds(self, stream: Iterator[Numbered], interrupt: Interrupt) -> Outcome:
        while not self._settled():
            reports = self.ranks.together(lambda: self._round(stream, interrupt))
            self._merge([block for report in reports for block in report.blocks])
            if any(r.interrupted for r in reports):
                return Outcome(self.moments, interrupted=True)
            if all(r.ended for r in reports):
                return Outcome(self.moments, ended=True)
            if not self.columns.columns:
                break
        return Outcome(self.moments)

    def _settled(self) -> bool:
        if self.rule is None or not self.moments.images:
            return False
        intervals = self.rule(self.moments)
        self.progress.settled(intervals)
        return self.moments.images >= FEWEST and all(i.settled for i in intervals)

    def _round(self, stream: Iterator[Numbered], interrupt: Interrupt) -> Report:
        self._save(last=False)
        report = Report()
        try:
            report.ended = workers_watched(self._read)(stream, interrupt)
        except KeyboardInterrupt:
            interrupt.seen = True
        except MBSError:
            if not interrupt.seen:  # workers that Ctrl-C ended are no failure
                self._merge(self.meter.collect())  # for the checkpoint
                raise
        report.interrupted = interrupt.seen
        report.blocks = self.meter.collect()
        return report

    def _read(self, stream: Iterator[Numbered], interrupt: Interrupt) -> bool:
        """Queue the batches of a round; whether the images have ended."""
        for _ in range(self._round_size()):
            item = None if interrupt.seen else next(stream, None)
            if item is None:
                return not interrupt.seen
            self.meter.run(*item)
            self.progress.read(sum(map(len, item[1])) * self.ranks.world)
        return False

    def _round_size(self) -> int:
        """Batches per rank until the next look."""
        if self.rule is None:
            return QUEUE
        read = self.moments.images
        if not read:
            return 1
        wanted = max(FEWEST, math.ceil(read * GROWTH)) - read
        per_round = read / self.moments.batches * self.ranks.world
        return max(1, min(QUEUE, math.ceil(wanted / per_round)))

    def _merge(self, blocks: list[Block]) -> None:
        for block in sorted(blocks, key=lambda b: b.number):
            if block.number > self.moments.batches:
                break
            self.moments = self.moments.plus(self.columns, block)

    def _save(self, last: bool) -> None:
        if self.file is None or self.ranks.rank or not self.moments.batches:
            return
        now = time.monotonic()
        if last or now - self.saved > SAVE_SECONDS:
            checkpoint.save(self.file, self.moments, self.identity)
            self.saved = now
