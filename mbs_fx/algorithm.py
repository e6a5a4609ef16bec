"""Algorithm 1 of the paper, from effective flops to one scaling factor per macroblock.

No tensors, no graphs: a convolution is its receptive field, its macroblock and its effective flops.  Equation
numbers are the paper's, and each equation is one function.  docs/semantics.md says how rectangular inputs are treated.

The functions of arrays answer for many thresholds at once: ``fields`` is (convolutions, axes), thresholds and
boundaries are (thresholds, axes), E_base is (thresholds,), E_total is (macroblocks,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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


def on_axes(fields: Sequence[Sequence[float]], axes: int) -> Floats:
    """Receptive fields of convolutions on the axes of the input, (convolutions, axes).

    Where a convolution has fewer axes they are the last, and only these decide.
    """
    result = np.full((len(fields), axes), np.inf)
    for row, field in zip(result, fields, strict=True):
        own = field[-axes:]
        row[axes - len(own) :] = own
    return result


def boundaries(fields: Floats, thresholds: Floats) -> Floats:
    """The smallest receptive field greater than each threshold, per axis (Eq. 3); infinite where there is none."""
    result = np.empty_like(thresholds)
    for axis in range(fields.shape[1]):
        sizes = np.append(np.unique(fields[:, axis]), np.inf)
        result[:, axis] = sizes[np.searchsorted(sizes[:-1], thresholds[:, axis], side="right")]
    return result


def base_layers(fields: Floats, limits: Floats) -> NDArray[np.bool_]:
    """RF(c_j) <= boundary, (thresholds, convolutions); an enhancement layer exceeds the boundary on every axis."""
    return np.any(fields[None] <= limits[:, None], axis=2)


def effective_flops(p: float, flops: int) -> float:
    """e_cj (Eq. 4)."""
    return p * flops


def total_flops(effective: Floats, macroblock: Sequence[int], macroblocks: int) -> Floats:
    """E_total(m_i), the sum over m_0 .. m_i (Eq. 5)."""
    within = np.array(macroblock) <= np.arange(macroblocks)[:, None]
    return np.where(within, effective, 0.0).sum(axis=1)


def base_flops(effective: Floats, base: NDArray[np.bool_]) -> Floats:
    """E_base, the sum over all base layers of the network, for each threshold (Eq. 6)."""
    return np.where(base, effective, 0.0).sum(axis=1)


def redundancy(e_total: Floats, e_base: Floats) -> Floats:
    """r_i (Eq. 7), (thresholds, macroblocks); 0 where E_total <= E_base (steps 19 to 24)."""
    total = np.where(e_total > e_base[:, None], e_total, 1.0)
    return np.where(e_total > e_base[:, None], 1 - e_base[:, None] / total, 0.0)


def scaling_factor(r: Any) -> Any:
    """beta_i (Eq. 9)."""
    return 1 / (1 + r)


def base_flops_at(beta: Floats, e_total: float) -> Floats:
    """The E_base at which a macroblock gets these factors: Eq. 9 and 7 solved for it."""
    return e_total * (2 - 1 / beta)


def scaled_width(beta: Any, width: int) -> Any:
    """ceil(beta x width), step 25; a hair's breadth above a whole number is rounding error of beta."""
    return np.maximum(1, np.ceil(beta * width - 1e-9 * width)).astype(np.int64)


def scalings(e_total: Floats, e_base: float) -> list[Scaling]:
    """Steps 19 to 24 for every macroblock, at one E_base."""
    r = redundancy(e_total, np.array([e_base]))[0]
    return [Scaling(float(e), e_base, float(x), float(scaling_factor(x))) for e, x in zip(e_total, r, strict=True)]


def boundary(fields: Sequence[tuple[float, ...]], threshold: Sequence[float]) -> tuple[float, ...]:
    """`boundaries` for one threshold."""
    return tuple(boundaries(np.array(fields, float), np.array([threshold], float))[0].tolist())


def is_base(field: tuple[float, ...], limit: tuple[float, ...]) -> bool:
    """`base_layers` for one convolution and one boundary."""
    return any(rf <= bound for rf, bound in zip(field, limit, strict=True))


def macroblock_scaling(convs: Sequence[ConvFact], macroblocks: int, limit: tuple[float, ...]) -> list[Scaling]:
    """Steps 8 to 26 of Algorithm 1 for macroblocks m_0 .. m_{M-1}, with the boundary of Eq. 3."""
    effective = np.array([c.effective_flops for c in convs])
    base = np.array([[is_base(c.receptive_field, limit) for c in convs]])
    e_total = total_flops(effective, [c.macroblock for c in convs], macroblocks)
    return scalings(e_total, float(base_flops(effective, base)[0]))
