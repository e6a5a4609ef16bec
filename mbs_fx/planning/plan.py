"""The plan: one scaling factor per macroblock, and the width of every convolution that follows from it.

Semantics
- ``z`` is the threshold in multiples of the input size L: base layers have receptive fields up to the smallest
  one greater than z L (Eq. 3, 6).
- Without a density every counted convolution has p = 1, and the plan says so.
- Scaling factors and widths may be given (`mbs_fx.planning.overrides`).  Algorithm 1 decides what they leave open
  where there is a density, a threshold or a budget to decide by; otherwise it stays as it is.
- With a budget, the largest E_base that fits is taken (`mbs_fx.planning.budgets`), and ``z`` is its upper
  limit.
- No torch: a plan is computed from an `Analysis` and a `Density`, both plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

from mbs_fx.errors import MBSError
from mbs_fx.planning.assemble import Point, assemble, unscaled
from mbs_fx.planning.budgets import Budgets, fit
from mbs_fx.planning.candidates import Problem
from mbs_fx.planning.overrides import Key, resolve
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.density import Density
from mbs_fx.results.plan import Plan


def plan(
    analysis: Analysis,
    density: Density | None = None,
    z: float | None = None,
    *,
    betas: Mapping[Any, float] | None = None,
    widths: Mapping[Any, int] | None = None,
    keep: Key | Iterable[Key] = (),
    round_to: int = 1,
    min_width: int = 1,
    max_params: float | str | None = None,
    max_flops: float | str | None = None,
    max_bytes: float | str | None = None,
    max_latency_ms: float | str | None = None,
    latency: Callable[[Plan], float] | None = None,
) -> Plan:
    """Scale every macroblock by its factor (Algorithm 1) and find all widths.

    Args:
        analysis: of the graph to be reduced.
        density: p_j per convolution; None counts every output as non-zero.
        z: threshold on the receptive field in multiples of the input size, positive; 1 by default,
            with a budget the largest that is considered.
        betas: macroblock or convolutions -> scaling factor in (0, 1], in place of Algorithm 1.
        widths: convolutions or macroblock -> width of their groups, in place of a scaling factor.
        keep: macroblocks or convolutions whose widths stay.  `mbs_fx.planning.overrides` says what keys are.
        round_to: scaled widths are rounded up to multiples of it, never above the original.
        min_width: scaled widths are at least this, never above the original.
        max_params: the most parameters; a number, or a share of the original such as "50%".
        max_flops: the most multiply-adds of the convolutions, likewise.
        max_bytes: the most bytes of parameters and buffers, likewise.
        max_latency_ms: the most milliseconds that ``latency`` may find, likewise.
        latency: milliseconds of the network that a plan makes; `mbs_fx.latency_of` builds and times it.

    Raises:
        MBSError: something out of range, a key that names nothing or contradicts another, a width that cannot be
            had, a budget below the smallest that can be reached.

    """
    if not isinstance(analysis, Analysis):
        raise MBSError(f"the analysis is a {type(analysis).__name__}: mbs_fx.analyze(gm, example) makes one")
    if not isinstance(density, Density | None):
        raise MBSError(f"the density is a {type(density).__name__}: mbs_fx.measure(gm, images) makes one")
    if z is not None and not (isinstance(z, Real) and z > 0):
        raise MBSError(f"z = {z}: the threshold is a positive multiple of the input size, for example 1.0")
    if density is not None:
        density.check(analysis)
    said = resolve(analysis, keep=keep, betas=betas, widths=widths, round_to=round_to, min_width=min_width)
    budgets = Budgets(params=max_params, flops=max_flops, model_bytes=max_bytes, latency_ms=max_latency_ms)
    decided = betas is not None or widths is not None
    scaled = not decided or z is not None or density is not None or budgets.given
    problem = Problem(analysis, density, said, scaled)
    if budgets.given or latency is not None:
        return fit(problem, budgets, None if z is None else float(z), latency)
    if not scaled:
        return unscaled(problem)
    at = 1.0 if z is None else float(z)
    return assemble(problem, problem.at([at]), [Point(at)])[0]
