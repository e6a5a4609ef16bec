"""The plans of all thresholds, the largest first: rows of the paper's Fig. 4(b), and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from mbs_fx.errors import MBSError
from mbs_fx.results.files import write_text
from mbs_fx.results.plan import Plan, boundary_text
from mbs_fx.results.tables import markdown, place_text, share_text, table, table_html

VERSION = 1

SWEEP_HEADERS = (
    "z / L",
    "⌈z⌉_RF",
    "base",
    "β",
    "parameters",
    "fewer",
    "MFLOP",
    "fewer",
    "model, kB",
    "activations, kB",
)
TESTED = (*SWEEP_HEADERS, "accuracy")


@dataclass(frozen=True)
class Sweep(Sequence[Plan]):
    """Plans, the largest first.  ``plans[i]`` is that of every z with ``ranges[i][0] <= z < ranges[i][1]``."""

    plans: tuple[Plan, ...]
    ranges: tuple[tuple[float, float], ...]

    def __len__(self) -> int:
        return len(self.plans)

    @overload
    def __getitem__(self, index: int) -> Plan: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Plan, ...]: ...
    def __getitem__(self, index: int | slice) -> Plan | tuple[Plan, ...]:
        return self.plans[index]

    def at(self, z: float) -> Plan:
        """The plan of a threshold."""
        for made, (low, high) in zip(self.plans, self.ranges, strict=True):
            if low <= z < high:
                return made
        raise MBSError(f"z = {z}: this sweep has no plan there; it was made for other thresholds")

    def to_json(self, path: str | Path | None = None) -> str:
        """The sweep as text, what all plans share said once; written to ``path`` as a whole or not at all."""
        shared = ("before", "kept", "input_shapes", "images")
        rows: list[dict[str, Any]] = []
        for made, (low, high) in zip(self.plans, self.ranges, strict=True):
            row = json.loads(made.to_json())
            rows.append(
                {"range": [low, high if np.isfinite(high) else None]} | _without(row, *shared, "format", "version")
            )
        first = json.loads(self.plans[0].to_json())
        head = {"format": "mbs_fx.sweep", "version": VERSION, **{name: first[name] for name in shared}}
        text = json.dumps({**head, "plans": rows}, indent=1)
        if path is not None:
            write_text(path, text)
        return text

    def __str__(self) -> str:
        sizes = ", ".join(place_text(m.spatial_size, m.upsampled) for m in self.plans[0].macroblocks)
        lines = [table(*self._rows()), f"β of the macroblocks at {sizes}"]
        if any("p = 1" in note for note in self.plans[0].notes):
            lines.append("note  densities are taken as equal (p = 1): nothing was measured")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return table_html(*self._rows())

    def to_markdown(self) -> str:
        """A row for every plan, for a page or an issue."""
        return markdown(*self._rows())

    def _rows(self) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
        return sweep_rows(list(zip(self.plans, self.ranges, strict=True)))


def sweep_rows(
    plans: Sequence[tuple[Plan, tuple[float, float]]],
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Plans with the thresholds that lead to them as rows, and the headers; accuracies where one is known."""
    rows = [_row(plan, span) for plan, span in plans]
    if not any(plan.accuracy for plan, _ in plans):
        return rows, SWEEP_HEADERS
    found = [share_text(plan.tested) if plan.tested is not None else "" for plan, _ in plans]
    return [(*row, text) for row, text in zip(rows, found, strict=True)], TESTED


def _row(plan: Plan, span: tuple[float, float]) -> tuple[str, ...]:
    p1, (f0, f1) = plan.params[1], plan.flops
    low, high = span
    return (
        f"{low:.3g} – {high:.3g}" if high < float("inf") else f"from {low:.3g}",
        boundary_text(plan.boundary),
        f"{sum(m.base for m in plan.macroblocks)} of {sum(m.convs for m in plan.macroblocks)}",
        ", ".join(f"{m.beta:.3f}" if m.beta < 1 else "1" for m in plan.macroblocks),
        f"{p1:,}",
        f"{plan.reduction:.2%}",
        f"{f1 / 1e6:,.1f}",
        f"{1 - f1 / f0 if f0 else 0.0:.2%}",
        f"{plan.model_bytes[1] / 1e3:,.1f}",
        f"{plan.activation_bytes[1] / 1e3:,.1f}",
    )


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
