"""What a comparison of two networks says: times before and after, their ratio, memory; no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

from tabulate import tabulate

from mbs_fx.results.files import write_text

SETTLED = 0.01
"""Standard error of a median ratio, as a share of it, at which no more turns are taken."""

HEADERS = ("backend", "batch", "threads", "before ms", "after ms", "times faster", "peak MB before → after")


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of repetitions."""
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
        return cls(median(values), low, high)

    @staticmethod
    def error(values: Sequence[float]) -> float:
        """The standard error of a median as a share of it, from the quartiles: 1.25 · (IQR / 1.35) / √n."""
        if len(values) < 2:
            return 0.0
        low, middle, high = quantiles(values, n=4, method="inclusive")
        return 1.25 * (high - low) / 1.35 / len(values) ** 0.5 / middle

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True, slots=True)
class Timing:
    """One setting: milliseconds of a batch before and after, and how many times faster; bytes where known.

    ``ratio`` is of pairs of runs that followed one another, so that what slows the machine slows both; ``error`` is the
    standard error of its median as a share of it, ``turns`` how many pairs there were.
    """

    backend: str
    batch: int
    threads: int
    before: Spread
    after: Spread
    ratio: Spread
    memory: tuple[int, int] | None
    error: float = 0.0
    turns: int = 0


@dataclass(frozen=True, slots=True)
class Bench:
    """Timings in the order asked for, the device, and what memory counts there; prints as a table."""

    timings: tuple[Timing, ...]
    device: str
    memory_is: str
    versions: str

    def __str__(self) -> str:
        rows = [
            (t.backend, t.batch, t.threads, str(t.before), str(t.after), str(t.ratio), _megabytes(t.memory))
            for t in self.timings
        ]
        table = tabulate(rows, HEADERS, disable_numparse=True)
        text = f"{table}\n\n{self.device}; {self.versions}. Median (quartiles). Peak memory: {self.memory_is}."
        noisy = max((timing.error for timing in self.timings), default=0.0)
        return text if noisy <= SETTLED else f"{text}\nThe machine is too noisy: ratios are known to ± {noisy:.1%}."

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as text; written to ``path`` as a whole or not at all."""
        text = json.dumps({"format": "mbs_fx.bench", **asdict(self)}, indent=1)
        if path is not None:
            write_text(path, text)
        return text


def _megabytes(memory: tuple[int, int] | None) -> str:
    return "" if memory is None else " → ".join(f"{each / 1e6:.1f}" for each in memory)
