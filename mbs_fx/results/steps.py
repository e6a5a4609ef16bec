"""What a reduction in steps says: size and accuracy of the network after each of them; no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mbs_fx.results.files import write_text
from mbs_fx.results.plan import Plan
from mbs_fx.results.tables import table


@dataclass(frozen=True)
class Step:
    """One reduction and the training after it.

    ``plan`` is one of the original; ``accuracy`` maps "inherited", "reconstructed" or "fresh" (as `mbs_fx.reduce` has
    them) and "trained" to what ``evaluate`` gave.
    """

    plan: Plan
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class Steps:
    """All steps in order, and what ``evaluate`` gave for the network before the first; prints as a table."""

    steps: tuple[Step, ...]
    accuracy: float | None = None

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for step in self.steps for name in step.accuracy))
        before = self.steps[0].plan
        blank = [""] * max(0, len(names) - 1)
        rows = [["0", f"{before.params[0]:,}", "", f"{before.flops[0]:,}", "", *blank, _number(self.accuracy)]]
        for number, step in enumerate(self.steps, 1):
            costs = [part for pair in (step.plan.params, step.plan.flops) for part in (f"{pair[1]:,}", _share(pair))]
            rows.append([str(number), *costs, *[_number(step.accuracy.get(name)) for name in names]])
        return table(rows, ("step", "parameters", "left", "multiply-adds", "left", *names))

    def to_json(self, path: str | Path | None = None) -> str:
        """The sizes and accuracies as text, without plans; written to ``path`` as a whole or not at all."""
        rows = [
            {"params": step.plan.params, "flops": step.plan.flops, "accuracy": dict(step.accuracy)}
            for step in self.steps
        ]
        text = json.dumps({"format": "mbs_fx.reduce_in_steps", "accuracy": self.accuracy, "steps": rows}, indent=1)
        if path is not None:
            write_text(path, text)
        return text


def _share(pair: tuple[int, int]) -> str:
    return f"{pair[1] / max(1, pair[0]):.2%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
