"""Algorithm 1 on an analysis and a density, for many thresholds at once: from z to E_base to kept choices.

Semantics
- Only convolutions with a ReLU output are counted; receptive fields of all of them make the boundary.
- A network has few distinct thresholds: the base layers change where z L passes a receptive field, on any axis.
- Everything after Eq. 6 depends on z through one number, E_base; plans are asked for by E_base.
- The caller's factors and widths (`mbs_fx.planning.overrides`) replace those of Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from mbs_fx import algorithm
from mbs_fx.algorithm import Counts, Floats, Scaling
from mbs_fx.errors import MBSError
from mbs_fx.planning.allocation import allocate
from mbs_fx.planning.costs import Costs
from mbs_fx.planning.overrides import Overrides
from mbs_fx.results.analysis import Analysis, Conv, Stream
from mbs_fx.results.density import Density
from mbs_fx.results.stream_widths import targets


def densities(analysis: Analysis, density: Density | None) -> Floats:
    """p_j of every convolution: 1 without a density, 0 where there is no ReLU output to count."""
    return np.array([_density_of(density, conv) if conv.counted else 0.0 for conv in analysis.convs])


def _density_of(density: Density | None, conv: Conv) -> float:
    if density is None:
        return 1.0
    if conv.name not in density.p:
        raise MBSError(
            f"%{conv.name} ({conv.target}): the density has no entry for this convolution; it was measured on "
            "another graph. Measure this one."
        )
    return density.p[conv.name]


@dataclass(frozen=True)
class Problem:
    """What is planned; z alone varies.  ``scaled`` is False where all factors are the caller's."""

    analysis: Analysis
    density: Density | None
    overrides: Overrides
    scaled: bool = True

    @cached_property
    def p(self) -> Floats:
        """p_j of every convolution."""
        return densities(self.analysis, self.density)

    @cached_property
    def costs(self) -> Costs:
        """What plans cost."""
        return Costs(self.analysis)

    @cached_property
    def e_total(self) -> Floats:
        """E_total(m_i) (Eq. 5), which no threshold changes."""
        return self._algorithm_1([1.0]).e_total

    def at(self, zs: Sequence[float]) -> Scaling:
        """Algorithm 1 at thresholds in multiples of the input size, the caller's factors where there are any."""
        return self._decided(self._algorithm_1(zs))

    def at_base(self, e_base: Floats) -> Scaling:
        """The same for given values of E_base, which may lie between those of two thresholds."""
        return self._decided(algorithm.scaling_at(self.e_total, e_base))

    def _algorithm_1(self, zs: Sequence[float]) -> Scaling:
        convs = self.analysis.convs
        return algorithm.macroblock_scaling(
            self.p,
            [conv.flops for conv in convs],
            [conv.macroblock for conv in convs],
            self.analysis.fields,
            self.analysis.thresholds(zs),
        )

    def _decided(self, found: Scaling) -> Scaling:
        """The caller's factors in place of those of Algorithm 1."""
        beta, r = found.beta.copy(), found.redundancy.copy()
        if not self.scaled:
            beta[:], r[:] = 1, 0
        for macroblock, given in self.overrides.factors.items():
            beta[:, macroblock], r[:, macroblock] = given, algorithm.redundancy_of(given)
        if self.scaled:
            return Scaling(found.e_total, found.e_base, r, beta)
        return Scaling(np.zeros_like(found.e_total), np.zeros_like(found.e_base), r, beta)

    @cached_property
    def ranges(self) -> list[tuple[float, float]]:
        """Between which thresholds (low <= z < high) the boundary stays the same, the largest first."""
        passed = np.unique(self.analysis.fields / np.array(self.analysis.input_size, float))
        ends = [0.0, *passed[np.isfinite(passed)].tolist(), float("inf")]
        return list(pairwise(ends))[::-1]

    def thresholds(self, most: float | None = None) -> list[float]:
        """A threshold for each of the ranges, the simplest number in it, up to ``most``; the largest first."""
        zs = [simplest(low, high) for low, high in self.ranges]
        return zs if most is None else [most, *(z for z in zs if z < most)]

    def counts(self, scaling: Scaling) -> Counts:
        """Kept choices (cells, plans) at the factors of each plan (step 25 for all tensors together)."""
        streams, given = self.analysis.streams, self.overrides
        plans = len(scaling.beta)

        def wanted(stream: Stream) -> Counts:
            own = given.groups.get(stream.index)
            factor = scaling.beta[:, stream.macroblock] if own is None else np.full(plans, own)
            return algorithm.scaled_width(factor, stream.width)

        free = {i for i, b in given.groups.items() if (s := streams[i].base) is None or given.groups.get(s) != b}
        target = targets(self.analysis, wanted, given.fixed, free, given.grain)
        return allocate(self.analysis, target, plans, given.whole)

    def candidates(self, most: float | None = None) -> Floats:
        """Every E_base, up to that of a threshold, at which some width changes; the largest first.

        A width group of width w in m_i has k channels up to the E_base at which beta_i x w = k, so that each
        candidate is the most for its widths.
        """
        reached = self.at(self.thresholds(most)).e_base
        ends = [reached]
        for macroblock, width in {(s.macroblock, s.width) for s in self.analysis.streams}:
            if macroblock not in self.overrides.factors:
                share = np.arange(1, width + 1) / width
                ends.append(algorithm.base_flops_of(share, float(self.e_total[macroblock])))
        found = np.unique(np.concatenate(ends))[::-1]
        return found[(found >= reached.min()) & (found <= reached.max())]


def simplest(low: float, high: float) -> float:
    """1 where low <= 1 < high, else the decimal with the fewest digits there, of several the largest."""
    if low <= 1 < high:
        return 1.0
    if math.isinf(high):
        return float(math.ceil(low))
    for digits in range(17):
        found = math.floor(high * 10**digits) / 10**digits
        if found == high:
            found = (math.floor(high * 10**digits) - 1) / 10**digits
        if max(low, 0) <= found < high and found > 0:
            return found
    return (low + high) / 2
