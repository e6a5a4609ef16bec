"""From scaled widths to the target width of every stream, for many plans at once.

Semantics (rule 3 of docs/semantics.md)
- A stream's target is ceil(beta x width); where the design makes it a multiple of another stream, that multiple.
- Groups and shuffles round a target up to the next feasible width, and so does the multiple that the caller asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mbs_fx.results.analysis import Analysis, Stream


@dataclass(frozen=True, slots=True)
class Grain:
    """Widths are multiples of ``multiple`` and at least ``least``, but never above the original."""

    multiple: int = 1
    least: int = 1


ALL = Grain()
"""Every width will do."""


def targets(
    analysis: Analysis,
    wanted: Callable[[Stream], Any],
    fixed: Mapping[int, int],
    free: Collection[int] = (),
    grain: Grain = ALL,
) -> dict[int, Any]:
    """Target width of every stream: a number, or one number per plan.

    ``wanted`` is ceil(beta x width), ``fixed`` what the caller decided, ``free`` are streams that follow no other.
    """
    result: dict[int, Any] = {}

    def target(stream: Stream) -> Any:
        if stream.index not in result:
            if stream.index in fixed:
                result[stream.index] = fixed[stream.index]
            elif stream.base is not None and stream.index not in free:
                multiple = stream.ratio * target(analysis.streams[stream.base])
                result[stream.index] = _feasible(analysis, stream, multiple, grain)
            else:
                result[stream.index] = _feasible(analysis, stream, wanted(stream), grain)
        return result[stream.index]

    for stream in analysis.streams:
        target(stream)
    return result


def _feasible(analysis: Analysis, stream: Stream, width: Any, grain: Grain) -> Any:
    """The next width that groups, shuffles and the caller's grain allow."""
    unit, fixed = step_of(analysis, stream), stream.out.fixed
    number = np.maximum(-((fixed - np.maximum(width, grain.least)) // unit), 1)
    period = grain.multiple // math.gcd(unit, grain.multiple)
    first = next((n for n in range(period) if (fixed + n * unit) % grain.multiple == 0), None)
    if first is not None:
        number = number + (first - number) % period
    return np.minimum(stream.width, fixed + number * unit)


def step_of(analysis: Analysis, stream: Stream) -> int:
    """The part of a stream's width that is chosen is a multiple of this."""
    if len(stream.out.terms) == 1:
        cell, share = stream.out.terms[0]
        return math.lcm(stream.step, math.ceil(share) * analysis.cells[cell].step)
    return stream.step
