"""Algorithm 1 of the paper, from densities and flops to one scaling factor per macroblock.

No tensors and no graphs: convolution c_j is its density p_j, its flops, its receptive field and the index of its
macroblock.  Step and equation numbers are the paper's.  Each equation is one function, and `macroblock_scaling` is
the algorithm; planning, the stopping rule, repeated reduction and the plots call them.

Shapes: n convolutions, M macroblocks, T thresholds, and A axes of the input, one for each spatial axis.
docs/semantics.md says how rectangular inputs are treated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Number = TypeVar("Number", float, Floats)


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """What Algorithm 1 computes: E_total (M,), E_base (T,), r (T, M) and beta (T, M)."""

    e_total: Floats
    e_base: Floats
    redundancy: Floats
    beta: Floats


def macroblock_scaling(
    p: ArrayLike, flops: ArrayLike, macroblock: Sequence[int], fields: Floats, thresholds: Floats
) -> Scaling:
    """Steps 6 to 24 of Algorithm 1 for T thresholds at once; `scaled_width` is step 25.

    Args:
        p: p_j (n,), 0 for a convolution without a ReLU output v_j.
        flops: flop(c_j) (n,), multiply-adds for one image.
        macroblock: the index of the macroblock of each convolution (n,); m_0 comes first in the network.
        fields: RF(c_j) on every axis (n, A), see `on_axes`.
        thresholds: z in pixels on every axis (T, A).

    """
    e = effective_flops(p, flops)  # step 6
    e_total = total_flops(e, macroblock)  # steps 9 and 11 to 14
    e_base = base_flops(e, base_layers(fields, boundaries(fields, thresholds)))  # steps 10 and 15 to 17
    return scaling_at(e_total, e_base)  # steps 19 to 24


def scaling_at(e_total: Floats, e_base: Floats) -> Scaling:
    """Steps 19 to 24 of Algorithm 1, for any T values of E_base."""
    r = redundancy(e_total, e_base[:, None])
    return Scaling(e_total, e_base, r, scaling_factor(r))


def effective_flops(p: ArrayLike, flops: ArrayLike) -> Floats:
    """e_cj (n,): step 6, Eq. 4."""
    return np.asarray(p, np.float64) * np.asarray(flops, np.float64)


def total_flops(effective: Floats, macroblock: Sequence[int]) -> Floats:
    """E_total(m_i) (M,), the sum over m_0 .. m_i: steps 11 to 14, Eq. 5."""
    index = np.asarray(macroblock, np.int64)
    within = index <= np.arange(index.max(initial=-1) + 1)[:, None]
    return np.where(within, effective, 0.0).sum(axis=1)


def boundaries(fields: Floats, thresholds: Floats) -> Floats:
    """The smallest receptive field greater than the threshold on each axis (T, A): Eq. 3; infinite where none is."""
    result = np.empty(thresholds.shape)
    for axis in range(fields.shape[1]):
        sizes = np.append(np.unique(fields[:, axis]), np.inf)
        result[:, axis] = sizes[np.searchsorted(sizes[:-1], thresholds[:, axis], side="right")]
    return result


def base_layers(fields: Floats, limits: Floats) -> NDArray[np.bool_]:
    """RF(c_j) <= boundary (T, n): step 15.  An enhancement layer exceeds the boundary (T, A) on every axis."""
    return np.any(fields[None] <= limits[:, None], axis=2)


def base_flops(effective: Floats, base: NDArray[np.bool_]) -> Floats:
    """E_base (T,), the sum over all base layers of the network: steps 15 to 17, Eq. 6."""
    return np.where(base, effective, 0.0).sum(axis=1)


def redundancy(e_total: ArrayLike, e_base: ArrayLike) -> Floats:
    """r_i: steps 19 and 20, Eq. 7; 0 where E_total <= E_base, so that step 23 follows from Eq. 9."""
    total, base = np.broadcast_arrays(np.asarray(e_total, np.float64), np.asarray(e_base, np.float64))
    return 1 - np.divide(base, total, out=np.ones(total.shape), where=total > base)


def scaling_factor(r: Number) -> Number:
    """beta_i: steps 21 and 23, Eq. 9."""
    return 1 / (1 + r)


def redundancy_of(beta: Number) -> Number:
    """r_i of a scaling factor: Eq. 9 solved for it."""
    return 1 / beta - 1


def base_flops_of(beta: Floats, e_total: float) -> Floats:
    """The E_base at which a macroblock has these scaling factors: Eq. 9 and 7 solved for it."""
    return e_total * (2 - 1 / beta)


def scaled_width(beta: float | Floats, width: int) -> Counts:
    """ceil(beta x width), at least 1: step 25, Eq. 8.  Up to 1e-9 x width above a whole number is rounded down."""
    return np.maximum(1, np.ceil(beta * width - 1e-9 * width)).astype(np.int64)


def on_axes(fields: Sequence[Sequence[float]], axes: int) -> Floats:
    """Receptive fields on the A axes of the input (n, A).

    A convolution with fewer axes has the last ones, and only these decide about it.
    """
    result = np.full((len(fields), axes), np.inf)
    for row, field in zip(result, fields, strict=True):
        own = field[-axes:]
        row[axes - len(own) :] = own
    return result
