"""Every plan that Algorithm 1 can make of one measurement: the paper's Fig. 4(b) for any network, without training.

Semantics
- Receptive fields are discrete, and so is the boundary of Eq. 3: the base layers change where z L passes a
  receptive field, on any axis.  Between two such thresholds there is one plan; neighbours with equal widths are one.
- Plans go from the largest threshold, at which nothing is reduced, to the smallest.
- ``z`` of a plan is the simplest number in its range, or the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from mbs_fx.errors import MBSError
from mbs_fx.planning.assemble import Point, assemble
from mbs_fx.planning.candidates import Problem
from mbs_fx.planning.overrides import resolve
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.density import Density
from mbs_fx.results.plan import Plan
from mbs_fx.results.sweep import Sweep


def sweep(
    analysis: Analysis,
    density: Density | None = None,
    z: float | Iterable[float] | None = None,
    *,
    evaluate: Callable[[Plan], float] | None = None,
    **overrides: Any,
) -> Sweep:
    """One plan for every distinct boundary of Eq. 3, the largest threshold first; equal plans are merged.

    Args:
        analysis: of the graph to be reduced.
        density: p_j per convolution; None counts every output as non-zero.
        z: these thresholds only, in multiples of the input size; None takes all that differ.
        evaluate: called on every plan; makes the network of a plan and tests it.  What it gives stands in the plan's
            ``accuracy`` as "reduced".
        overrides: ``keep``, ``betas``, ``widths``, ``round_to``, ``min_width`` as for `plan`; Algorithm 1 decides
            everything that they leave open.

    """
    if density is not None:
        density.check(analysis)
    problem = Problem(analysis, density, resolve(analysis, **overrides))
    asked: list[Any] = problem.thresholds() if z is None else list(z) if isinstance(z, Iterable) else [z]
    numbers = all(isinstance(each, Real) for each in asked)
    if not asked or not numbers or not all(0 < each < np.inf for each in asked):
        raise MBSError("sweep: z holds thresholds, each a positive multiple of the input size: z=(0.6, 0.8, 1.0)")
    zs = sorted(set(map(float, asked)), reverse=True)
    counts = problem.counts(problem.at(zs))
    first = np.flatnonzero(np.concatenate([[True], (counts[:, 1:] != counts[:, :-1]).any(axis=0)]))
    last = [*(first[1:] - 1), len(zs) - 1]
    chosen = [zs[i] for i in first]
    plans = assemble(problem, problem.at(chosen), [Point(z) for z in chosen])
    if evaluate is not None:
        plans = [replace(made, accuracy={"reduced": float(evaluate(made))}) for made in plans]
    ranges = [(_range(problem, zs[b])[0], _range(problem, zs[a])[1]) for a, b in zip(first, last, strict=True)]
    return Sweep(tuple(plans), tuple(ranges))


def _range(problem: Problem, z: float) -> tuple[float, float]:
    """The range of thresholds with the boundary of z."""
    return next((low, high) for low, high in problem.ranges if low <= z < high)
