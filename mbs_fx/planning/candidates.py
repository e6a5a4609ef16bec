"""Algorithm 1 on an analysis and a density, for many thresholds at once: from z to E_base to kept choices.

Semantics
- Only convolutions with a ReLU output are counted; receptive fields of all of them make the boundary.
- The thresholds of a network are few: the base layers change where z L passes a receptive field, on any axis.
- Everything after Eq. 6 depends on z through one number, E_base; plans are asked for by E_base.
- What the caller decided (`mbs_fx.planning.overrides`) stands in place of the factors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from mbs_fx import algorithm
from mbs_fx.algorithm import Floats, Scaling
from mbs_fx.errors import MBSError
from mbs_fx.planning.allocation import Counts, allocate, targets
from mbs_fx.planning.costs import Costs
from mbs_fx.planning.overrides import Overrides
from mbs_fx.results.analysis import Analysis, Conv, Stream
from mbs_fx.results.density import Density


def share(density: Density | None, conv: Conv) -> float:
    """p_j; 1 without a density."""
    if density is None:
        return 1.0
    if conv.name not in density.p:
        raise MBSError(
            f"%{conv.name} ({conv.target}): the density has no entry for this convolution; it was measured on "
            "another graph. Measure this one."
        )
    return density.p[conv.name]


@dataclass(frozen=True)
class Setting:
    """Everything that stays while z varies.  ``scaled`` is False where all factors are the caller's."""

    analysis: Analysis
    density: Density | None
    overrides: Overrides
    scaled: bool = True

    @cached_property
    def fields(self) -> Floats:
        """Receptive fields of all convolutions on the axes of the input, (convolutions, axes)."""
        fields = [conv.receptive_field for conv in self.analysis.convs]
        return algorithm.on_axes(fields, len(self.analysis.input_size))

    @cached_property
    def effective(self) -> Floats:
        """e_cj of all convolutions, 0 for those that are not counted (Eq. 4)."""
        return np.array(
            [
                algorithm.effective_flops(share(self.density, conv), conv.flops) if conv.counted else 0.0
                for conv in self.analysis.convs
            ]
        )

    @cached_property
    def e_total(self) -> Floats:
        """E_total(m_i) (Eq. 5)."""
        index = [conv.macroblock for conv in self.analysis.convs]
        return algorithm.total_flops(self.effective, index, len(self.analysis.macroblocks))

    @cached_property
    def costs(self) -> Costs:
        """What plans cost."""
        return Costs(self.analysis)

    def boundaries(self, zs: Sequence[float]) -> Floats:
        """The boundary of Eq. 3 for thresholds in multiples of the input size, (thresholds, axes)."""
        sizes = np.array(self.analysis.input_size, float)
        return algorithm.boundaries(self.fields, np.asarray(zs, float)[:, None] * sizes)

    def e_base(self, zs: Sequence[float]) -> Floats:
        """E_base for thresholds in multiples of the input size (Eq. 6)."""
        return algorithm.base_flops(self.effective, algorithm.base_layers(self.fields, self.boundaries(zs)))

    @cached_property
    def ranges(self) -> list[tuple[float, float]]:
        """Between which thresholds (low <= z < high) the boundary stays the same, the largest first."""
        passed = np.unique(self.fields / np.array(self.analysis.input_size, float))
        ends = [0.0, *passed[np.isfinite(passed)].tolist(), float("inf")]
        return list(pairwise(ends))[::-1]

    def thresholds(self, most: float | None = None) -> list[float]:
        """A threshold for each of the ranges, the simplest number in it, up to ``most``; the largest first."""
        zs = [simplest(low, high) for low, high in self.ranges]
        return zs if most is None else [most, *(z for z in zs if z < most)]

    def factors(self, e_base: Floats) -> Floats:
        """beta_i for each E_base, (macroblocks, plans), the caller's where there are any (Eq. 7 and 9)."""
        beta = np.ones((len(self.e_total), len(e_base)))
        if self.scaled:
            beta = algorithm.scaling_factor(algorithm.redundancy(self.e_total, e_base)).T
        for macroblock, given in self.overrides.factors.items():
            beta[macroblock] = given
        return beta

    def scalings(self, e_base: float) -> list[Scaling]:
        """What Algorithm 1 and the caller say of every macroblock, at one E_base."""
        found = (
            algorithm.scalings(self.e_total, e_base)
            if self.scaled
            else [Scaling(0.0, 0.0, 0.0, 1.0)] * len(self.e_total)
        )
        for macroblock, beta in self.overrides.factors.items():
            old = found[macroblock]
            found[macroblock] = Scaling(old.e_total, old.e_base, 1 / beta - 1, beta)
        return found

    def counts(self, e_base: Floats) -> Counts:
        """Kept choices (cells, plans) for each E_base."""
        beta, said = self.factors(e_base), self.overrides
        streams = self.analysis.streams

        def wanted(stream: Stream) -> Counts:
            given = said.groups.get(stream.index)
            factor = beta[stream.macroblock] if given is None else np.full(len(e_base), given)
            return algorithm.scaled_width(factor, stream.width)

        free = {i for i, b in said.groups.items() if (s := streams[i].base) is None or said.groups.get(s) != b}
        target = targets(self.analysis, wanted, said.fixed, free, said.grain)
        return allocate(self.analysis, target, len(e_base), said.whole)

    def candidates(self, most: float | None = None) -> Floats:
        """Every E_base, up to that of a threshold, at which some width changes; the largest first.

        A width group of width w in m_i has k channels up to the E_base at which beta_i x w = k, so that each
        candidate is the most for its widths.
        """
        reached = self.e_base(self.thresholds(most))
        ends = [reached]
        for macroblock, width in {(s.macroblock, s.width) for s in self.analysis.streams}:
            if macroblock not in self.overrides.factors:
                share = np.arange(1, width + 1) / width
                ends.append(algorithm.base_flops_at(share, float(self.e_total[macroblock])))
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
