"""Algorithm 1 of the paper, from effective flops to one scaling factor per macroblock.

No tensors, no graphs: a convolution is its receptive field, its macroblock and its effective flops.
Equation numbers are the paper's.  docs/semantics.md says how rectangular inputs are treated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConvFact:
    """RF(c_j) per axis in input pixels, the index of its macroblock, and p_j x flop(c_j)."""

    receptive_field: tuple[float, ...]
    macroblock: int
    effective_flops: float


@dataclass(frozen=True, slots=True)
class Scaling:
    """What Algorithm 1 finds for one macroblock m_i."""

    e_total: float
    e_base: float
    redundancy: float
    beta: float


def boundary(fields: Sequence[tuple[float, ...]], threshold: Sequence[float]) -> tuple[float, ...]:
    """The smallest receptive field greater than the threshold, per axis (Eq. 3); infinite where there is none."""
    return tuple(
        min((rf[axis] for rf in fields if rf[axis] > limit), default=math.inf) for axis, limit in enumerate(threshold)
    )


def is_base(field: tuple[float, ...], limit: tuple[float, ...]) -> bool:
    """RF(c_j) <= boundary; an enhancement layer exceeds it on every axis."""
    return any(rf <= bound for rf, bound in zip(field, limit, strict=True))


def effective_flops(p: float, flops: int) -> float:
    """e_cj (Eq. 4)."""
    return p * flops


def macroblock_scaling(convs: Sequence[ConvFact], macroblocks: int, limit: tuple[float, ...]) -> list[Scaling]:
    """Steps 8 to 26 of Algorithm 1 for macroblocks m_0 .. m_{M-1}, with the boundary of Eq. 3."""
    e_base = sum(c.effective_flops for c in convs if is_base(c.receptive_field, limit))  # Eq. 6
    result: list[Scaling] = []
    for i in range(macroblocks):
        e_total = sum(c.effective_flops for c in convs if c.macroblock <= i)  # Eq. 5
        if e_total > e_base:
            r = 1 - e_base / e_total  # Eq. 7
            beta = 1 / (1 + r)  # Eq. 9
        else:
            r, beta = 0.0, 1.0
        result.append(Scaling(e_total, e_base, r, beta))
    return result


def scaled_width(beta: float, width: int) -> int:
    """ceil(beta x width), step 25; a hair's breadth above a whole number is rounding error of beta."""
    return max(1, math.ceil(beta * width - 1e-9 * width))
