"""The largest plan within a budget, at a threshold or between two.

Semantics
- The scaling factors of all macroblocks depend on z through one number, E_base (Eq. 6, 7 and 9), and a network has few
  distinct thresholds.  Between two neighbouring ones the layers just beyond the boundary count as base with a share of
  their effective flops, so that E_base takes every value in between; Eq. 7 and 9 stay as they are.
- Widths are whole numbers, so the plans along E_base are finitely many.  The budgets pick the largest E_base at which
  all of them hold.
- A share ("50%") is of the original network's cost.
- Latency is found by bisection over the plans that meet the other budgets: it is taken to grow with E_base.  Where a
  time lies too near the budget for its standard error, the plan says that another search may find another plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from mbs_fx.algorithm import Counts, Floats
from mbs_fx.errors import MBSError
from mbs_fx.planning.assemble import Point, assemble, everything, original
from mbs_fx.planning.candidates import Problem
from mbs_fx.results.plan import Plan

Amount = float | str | None

COUNTED = ("params", "flops", "model_bytes")
"""Costs that are computed; latency is measured."""

_CHUNK = 512
"""Plans that are computed at once."""

_CLEAR = 3
"""Standard errors between a time and the budget from which on another search would find the same."""


@runtime_checkable
class Measured(Protocol):
    """A latency that knows how well it knows a plan's time: a standard error, as a share of it."""

    def error(self, plan: Plan) -> float: ...


@dataclass(frozen=True, slots=True)
class Budgets:
    """The most that a plan may cost: a number, a share of the original such as "50%", or None."""

    params: Amount = None
    flops: Amount = None
    model_bytes: Amount = None
    latency_ms: Amount = None

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return any(amount is not None for amount in (self.params, self.flops, self.model_bytes, self.latency_ms))

    def limit(self, cost: str, before: float) -> float:
        """A budget as a number, infinite where there is none; ``before`` is the cost of the original."""
        amount: Amount = getattr(self, cost)
        if amount is None:
            return math.inf
        text = str(amount).strip()
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            value = math.nan
        if not value > 0:
            raise MBSError(
                f'{_argument(cost)} = {amount!r}: give a positive number, or a share of the original as "50%"'
            )
        return value / 100 * before if text.endswith("%") else value


def _argument(cost: str) -> str:
    return "max_bytes" if cost == "model_bytes" else f"max_{cost}"


def fit(
    problem: Problem, budgets: Budgets, z: float | None = None, latency: Callable[[Plan], float] | None = None
) -> Plan:
    """The plan with the largest E_base, up to that of the threshold ``z``, at which all budgets hold."""
    if (budgets.latency_ms is None) != (latency is None):
        raise MBSError(
            "max_latency_ms and latency= go together: latency=mbs_fx.latency_of(gm, device=...) times what a plan "
            "makes; mbs_fx.reduce(..., max_latency_ms=...) does so by itself"
        )
    full = problem.costs.at(everything(problem))
    before = {cost: int(getattr(full, cost)[0]) for cost in COUNTED}
    limits = {cost: budgets.limit(cost, before[cost]) for cost in COUNTED}
    ends = problem.candidates(z)
    parts = [problem.counts(problem.at_base(ends[i : i + _CHUNK])) for i in range(0, len(ends), _CHUNK)]
    spent = {cost: np.concatenate([getattr(problem.costs.at(part), cost) for part in parts]) for cost in COUNTED}
    fits = np.all([spent[cost] <= limits[cost] for cost in COUNTED], axis=0)
    if not fits.any():
        raise MBSError(_unreachable(budgets, limits, spent, before))
    if latency is None:
        return _plan_at(problem, float(ends[fits][0]), z)
    ends = _distinct(ends[fits], np.hstack(parts)[:, fits])
    return _fast_enough(problem, ends, z, budgets, latency)


def _unreachable(
    budgets: Budgets, limits: Mapping[str, float], spent: Mapping[str, Counts], before: Mapping[str, int]
) -> str:
    lines: list[str] = []
    for cost, limit in limits.items():
        if limit < math.inf:
            amount, least = getattr(budgets, cost), int(spent[cost].min())
            if (share := _share_meant(amount)) and before[cost] > 100:
                return f'{_argument(cost)} = {amount} is an amount, of {before[cost]:,}: did you mean "{share}"?'
            lines.append(
                f"{_argument(cost)} = {amount}: the smallest that can be reached is {least:,} of {before[cost]:,} "
                f"({least / max(1, before[cost]):.2%})"
            )
    return "; ".join(lines) + (
        ". No scaling factor falls to one half (Eq. 9), and what keeps its width stays: go down in several steps "
        "(mbs_fx.reduce_in_steps, docs/budgets.md), or allow more"
    )


def _share_meant(amount: Amount) -> str:
    """The share that a number may stand for: 0.5 and 50 are both "50%" to somebody.  Empty for other amounts."""
    text = str(amount)
    value = math.inf if "%" in text else float(text)
    share = 100 * value if value < 1 else value
    return f"{share:g}%" if share <= 100 else ""


def _plan_at(problem: Problem, e_base: float, most: float | None, notes: Sequence[str] = ()) -> Plan:
    """The plan at an E_base: at the largest threshold up to it, and how far it lies on the way to the next one."""
    zs = problem.thresholds(most)
    reached = problem.at(zs).e_base
    at = next((i for i, e in enumerate(reached) if e <= e_base * (1 + 1e-12)), len(zs) - 1)
    below = float(reached[at])
    pair = problem.counts(problem.at_base(np.array([e_base, below])))
    if at == 0 or (pair[:, 0] == pair[:, 1]).all():
        return assemble(problem, problem.at([zs[at]]), [Point(zs[at])], notes)[0]
    beyond = (e_base - below) / (float(reached[at - 1]) - below)
    return assemble(problem, problem.at_base(np.array([e_base])), [Point(zs[at], beyond)], notes)[0]


def _distinct(ends: Floats, counts: Counts) -> Floats:
    """The largest E_base of each of the plans that follow one another."""
    changes = (counts[:, 1:] != counts[:, :-1]).any(axis=0)
    return ends[np.concatenate([[True], changes])]


def _fast_enough(
    problem: Problem, ends: Floats, most: float | None, budgets: Budgets, latency: Callable[[Plan], float]
) -> Plan:
    """The plan at the first E_base whose network is fast enough, by bisection; that of the last is the smallest."""
    whole = original(problem)
    before = latency(whole)
    limit = budgets.limit("latency_ms", before)
    share = str(budgets.latency_ms).strip().endswith("%")
    close: list[float] = []

    def timed(index: int) -> tuple[Plan, float]:
        made = _plan_at(problem, float(ends[index]), most)
        found = latency(made)
        if isinstance(latency, Measured):
            own, first = latency.error(made), latency.error(whole)
            error = math.hypot(own, first) if not share else own * (made.widths != whole.widths)
            if abs(found - limit) < _CLEAR * error * found:
                close.append(error)
        return made, found

    slow, fast = -1, len(ends) - 1
    best = timed(fast)
    if best[1] > limit:
        raise MBSError(
            f"max_latency_ms = {budgets.latency_ms}: the smallest network that can be reached takes {best[1]:.3g} ms, "
            f"the original {before:.3g} ms"
        )
    middle = 0
    while slow + 1 < fast:
        found = timed(middle)
        if found[1] <= limit:
            fast, best = middle, found
        else:
            slow = middle
        middle = (slow + fast) // 2
    return _plan_at(problem, float(ends[fast]), most, _notes(best[1], before, close))


def _notes(found: float, before: float, close: Sequence[float]) -> list[str]:
    """What a plan says of its time; ``close`` are the errors of times too near the budget."""
    notes = [
        f"latency {found:.3g} ms, of the original {before:.3g} ms: measured where the plan was made; it falls in "
        "steps, where widths reach what the device computes at a time (round_to)"
    ]
    if close:
        notes.append(
            f"the machine is too noisy to order the candidates near the budget (times known to ± {max(close):.1%}): "
            "another search may find another plan"
        )
    return notes
