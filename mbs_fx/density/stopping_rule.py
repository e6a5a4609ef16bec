"""When enough images have been read: a sequential test on the widths.  No torch.

Semantics
- beta_i depends on the densities through one ratio x = E_base / E_total(m_i), both sums over layers of one
  image, averaged over images (Eq. 7 and 9).  Whether x is above the value where a width changes is whether
  the mean of A - x B is above 0, with A and B the two sums of one image: nothing is linearised.
- The interval for x holds at all numbers of images at once (a confidence sequence: Robbins' normal
  mixture), so testing after every batch costs no confidence.  Drawing without replacement from a set of N is a Brownian
  bridge; its clock is n / (1 - n/N), and at n = N the interval is a point.
- The error 1 - confidence is shared equally among the scaling factors that depend on densities at all, over
  macroblocks and thresholds: with the stated confidence none of them ever leaves its interval.
- A macroblock is settled when the low and the high end of beta give each of its streams the same width.
  Widths are monotone in beta, so everything between gives it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mbs_fx.algorithm import (
    Counts,
    Floats,
    base_flops,
    base_layers,
    redundancy,
    scaled_width,
    scaling_factor,
    total_flops,
)
from mbs_fx.density.statistics import Moments
from mbs_fx.results.analysis import Analysis, Stream
from mbs_fx.results.density import FEWEST, Density, Interval
from mbs_fx.results.stream_widths import targets

TYPICAL = 128
"""The number of images at which the intervals are tightest for their confidence."""

CLEARLY = 1e-7
"""Above the value of beta where a width changes; rounding is a hundredth of this."""


@dataclass(frozen=True)
class ScalingFactor:
    """One beta_i: what sums to E_base and to E_total(m_i), as weights on the statistics of an image."""

    z: float
    macroblock: int
    base: Floats
    total: Floats

    @property
    def fixed(self) -> bool:
        """beta_i is 1 whatever the densities are."""
        return bool((self.total <= self.base).all())


def factors(analysis: Analysis, index: Mapping[str, int], zs: Sequence[float]) -> tuple[ScalingFactor, ...]:
    """Every scaling factor of a network, for each threshold.

    The weight of a statistic in a sum is what Eq. 5 or Eq. 6 gives with 1 for this statistic and 0 for the others.
    """
    size = max(index.values(), default=-1) + 1
    is_base = base_layers(analysis.fields, analysis.boundaries(zs))
    statistic = np.array([index.get(conv.name, -1) for conv in analysis.convs])
    flops = np.array([conv.flops for conv in analysis.convs], np.float64)
    place = [conv.macroblock for conv in analysis.convs]
    total = np.zeros((len(analysis.macroblocks), size))
    base = np.zeros((len(zs), size))
    for j in range(size):
        effective = np.where(statistic == j, flops, 0.0)
        total[:, j], base[:, j] = total_flops(effective, place), base_flops(effective, is_base)
    return tuple(ScalingFactor(z, i, base[k], total[i]) for k, z in enumerate(zs) for i in range(len(total)))


@dataclass(frozen=True)
class StoppingRule:
    """Stop when all widths at these scaling factors are known with this confidence."""

    analysis: Analysis
    factors: tuple[ScalingFactor, ...]
    confidence: float
    population: int | None

    def __call__(self, moments: Moments, edges: bool = False) -> tuple[Interval, ...]:
        """The interval of every scaling factor; with ``edges`` also which width is closest to changing."""
        population = None if self.population is None else self.population - moments.skipped
        asked, spread = self.factors, moments.covariance
        return intervals_of(
            self.analysis, asked, moments.mean, spread, moments.images, population, self.confidence, edges
        )


def intervals(
    analysis: Analysis, density: Density, z: float | Sequence[float] = 1.0, confidence: float = 0.99
) -> tuple[Interval, ...]:
    """Where every scaling factor lies, at thresholds that need not be those of the measurement."""
    density.check(analysis)
    asked = factors(analysis, density.index, (z,) if isinstance(z, int | float) else tuple(z))
    population = None if density.population is None else density.population - density.skipped
    return intervals_of(analysis, asked, density.mean, density.covariance, density.images, population, confidence)


def intervals_of(
    analysis: Analysis,
    asked: Sequence[ScalingFactor],
    mean: Floats,
    covariance: Floats,
    images: int,
    population: int | None,
    confidence: float,
    edges: bool = True,
) -> tuple[Interval, ...]:
    """The interval of each scaling factor, and whether it decides all widths of its macroblock."""
    level = (1 - confidence) / max(1, sum(not factor.fixed for factor in asked))
    reach = half_width(images, population, level)
    x = np.array([(1.0, 1.0, 1.0) if f.fixed else _ratio(f, mean, covariance, reach) for f in asked])
    low, beta, high = scaling_factor(redundancy(1.0, x)).T
    places = np.array([factor.macroblock for factor in asked])
    settled = (_widths(analysis, places, low) == _widths(analysis, places, high)).all(axis=0)
    return tuple(
        Interval(
            z=factor.z,
            macroblock=factor.macroblock,
            spatial_size=analysis.macroblocks[factor.macroblock].spatial_size,
            beta=float(beta[k]),
            low=float(low[k]),
            high=float(high[k]),
            settled=bool(settled[k]),
            edge=_edge(analysis, factor.macroblock, beta[k]) if edges and not factor.fixed else "",
        )
        for k, factor in enumerate(asked)
    )


def half_width(images: int, population: int | None, level: float) -> float:
    """Half the width of the interval for a mean, in standard deviations of one image.

    Valid for all numbers of images at once, at error ``level``; infinite below `FEWEST` unless all were read.
    """
    unread = 1.0 if population is None else 1 - images / population
    if unread <= 0:
        return 0.0
    if images < FEWEST:
        return math.inf
    clock = images / unread
    tuned = -2 * math.log(level)
    prior = TYPICAL / (tuned + math.log(tuned + 1))
    deviations = math.sqrt((1 + prior / clock) * math.log((1 + clock / prior) / level**2))
    # The standard deviation is estimated from the same images: Student's t, to first order in 1/n.
    deviations *= 1 + (deviations**2 + 1) / (4 * (images - 1))
    return deviations * math.sqrt(unread / images)


def _ratio(factor: ScalingFactor, mean: Floats, covariance: Floats, reach: float) -> tuple[float, float, float]:
    """Low end, estimate and high end of E_base / E_total: mean(A - x B) within reach of 0 (Fieller)."""
    a, b = float(factor.base @ mean), float(factor.total @ mean)
    if b <= 0:
        return 1.0, 1.0, 1.0
    if reach == 0:
        return a / b, a / b, a / b
    if math.isinf(reach):
        return 0.0, a / b, math.inf
    with_base, with_total = covariance @ factor.base, covariance @ factor.total
    saa, sab, sbb = (
        float(u) * reach**2 for u in (factor.base @ with_base, factor.base @ with_total, factor.total @ with_total)
    )
    square, linear, constant = b * b - sbb, a * b - sab, a * a - saa
    if square <= 0:
        return 0.0, a / b, math.inf
    root = math.sqrt(max(0.0, linear * linear - square * constant))
    return max(0.0, (linear - root) / square), a / b, (linear + root) / square


def _edge(analysis: Analysis, macroblock: int, beta: float) -> str:
    """The width of a macroblock that is closest to changing; beta is never below 1/2 (Eq. 9)."""
    widths = {s.width for s in analysis.streams if s.macroblock == macroblock}
    places = {k / width for width in widths for k in range(-(-width // 2), width)}
    if not places:
        return ""
    at = np.array(sorted(places, key=lambda place: abs(beta - place)))
    where = np.full(len(at), macroblock)
    below, above = _widths(analysis, where, at), _widths(analysis, where, at + CLEARLY)
    changes = below != above
    if not changes.any():
        return ""
    nearest = int(changes.any(axis=0).argmax())
    stream = int(changes[:, nearest].argmax())
    path = analysis.by_name[analysis.streams[stream].convs[0]].target
    place, fewer, more = at[nearest], below[stream, nearest], above[stream, nearest]
    return f"{abs(beta - place):.4f} from where {path} has {fewer} or {more} channels at {place:.4f}"


def _widths(analysis: Analysis, macroblocks: Any, betas: Floats) -> Counts:
    """Widths of all streams where one macroblock has this beta and the others have 1, for each: (streams, betas)."""

    def wanted(stream: Stream) -> Any:
        return scaled_width(np.where(macroblocks == stream.macroblock, betas, 1.0), stream.width)

    found = targets(analysis, wanted, {})
    return np.array([found[s.index] for s in analysis.streams], np.int64).reshape(-1, len(betas))
