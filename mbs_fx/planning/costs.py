"""The costs of a network at given kept choices: parameters, flops, bytes on disk, activation memory.

Semantics
- Counts are arrays (cells, plans) as `mbs_fx.planning.allocation` makes them; every cost is one whole number per plan.
- ``params``: elements of all parameters, shared ones once.
- ``flops``: multiply-adds of the convolutions for one image.
- ``model_bytes``: parameters and persistent buffers in the network's own types: what a file of weights holds.
- ``activation_bytes``: peak memory of feature maps for one image, in the network's own type
  (`mbs_fx.macroblocks.feature_maps` says what shares memory).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from mbs_fx.algorithm import Counts
from mbs_fx.planning.allocation import integers
from mbs_fx.results.analysis import Analysis, Conv, Width
from mbs_fx.runtime.by_identity import ByIdentity

Product = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Spent:
    """The costs of plans, one number per plan; computed when they are asked for."""

    costs: Costs
    counts: Counts

    @cached_property
    def sizes(self) -> Counts:
        """The size of every distinct width, (widths, plans)."""
        return self.costs.rows.sizes(self.counts)

    @cached_property
    def widths(self) -> Counts:
        """Output width of each convolution, (convolutions, plans)."""
        return self.sizes[self.costs.out]

    @cached_property
    def params(self) -> Counts:
        """Number of parameters."""
        return self.costs.params.total(self.sizes)

    @cached_property
    def model_bytes(self) -> Counts:
        """Bytes of parameters and persistent buffers."""
        return self.costs.model_bytes.total(self.sizes)

    @cached_property
    def flops(self) -> Counts:
        """Multiply-adds of all convolutions for one image."""
        return self.conv_flops.sum(axis=0)

    @cached_property
    def conv_flops(self) -> Counts:
        """Multiply-adds of each convolution for one image, (convolutions, plans)."""
        convs = self.costs.analysis.convs
        inp = np.where([[conv.depthwise] for conv in convs], 1, self.sizes[self.costs.inp])
        factor = np.array([_flops_per_pair(conv) for conv in convs], np.int64)
        return factor[:, :1] * self.widths * inp // factor[:, 1:]

    @cached_property
    def activation_bytes(self) -> Counts:
        """Peak bytes of feature maps for one image."""
        maps = self.costs.analysis.maps
        held = np.array([m.fixed for m in maps], np.int64)[:, None].repeat(self.counts.shape[1], axis=1)
        for place, rows in enumerate(self.costs.maps):
            for row in rows:
                held[place] *= self.sizes[row]
        change = np.zeros((max((m.last for m in maps), default=0) + 2, self.counts.shape[1]), np.int64)
        np.add.at(change, [m.first for m in maps], held)
        np.subtract.at(change, [m.last + 1 for m in maps], held)
        analysis = self.costs.analysis
        return change.cumsum(axis=0).max(axis=0) // max(1, analysis.input_shapes[analysis.image][0])


def _flops_per_pair(conv: Conv) -> tuple[int, int]:
    """Multiply-adds per pair of an output and an input channel, and what to divide them by."""
    if conv.depthwise:
        return conv.flops // conv.width, 1
    return conv.flops * conv.groups // (conv.width * conv.in_width), conv.groups


class Costs:
    """The costs of one network as functions of what is kept, prepared once for any number of plans."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.rows = _Rows()
        size = analysis.element_bytes
        tensors = {path: self.rows.product(axes) for path, axes in analysis.tensors.items()}
        saved = {**tensors, **{path: self.rows.product(axes) for path, axes in analysis.buffers.items()}}
        self.params = _Sum((1, product) for product in tensors.values())
        self.model_bytes = _Sum((size[path], product) for path, product in saved.items() if path in size)
        self.out = self.rows.numbers(conv.out for conv in analysis.convs)
        self.inp = self.rows.numbers(conv.inp for conv in analysis.convs)
        self.maps = [self.rows.numbers(m.widths) for m in analysis.maps]

    def at(self, counts: Counts) -> Spent:
        """The costs of plans given as counts (cells, plans)."""
        return Spent(self, counts)


class _Rows:
    """Distinct widths by number, and their sizes for all plans in one go.

    Widths are looked up by identity first and by their terms next: hashing fractions is slow.
    """

    def __init__(self) -> None:
        self._widths: list[Width] = []
        self._by_identity: ByIdentity[Width, int] = ByIdentity()
        self._by_terms: dict[tuple[Any, ...], int] = {}

    def numbers(self, widths: Iterable[Width]) -> list[int]:
        """The rows of widths, new ones where they are met for the first time."""
        return [self._by_identity.get(width, self._number) for width in widths]

    def product(self, axes: Sequence[Width]) -> Product:
        """The number of elements of a tensor: the rows that vary, in order, and the product of the other axes."""
        varying = tuple(sorted(self.numbers([width for width in axes if width.terms])))
        return varying, prod([width.fixed for width in axes if not width.terms])

    def _number(self, width: Width) -> int:
        key = (width.fixed, *((cell, share.numerator, share.denominator) for cell, share in width.terms))
        row = self._by_terms.setdefault(key, len(self._widths))
        if row == len(self._widths):
            self._widths.append(width)
        return row

    def sizes(self, counts: Counts) -> Counts:
        """Every width for every plan, (widths, plans)."""
        result = np.array([width.fixed for width in self._widths], np.int64)[:, None].repeat(counts.shape[1], axis=1)
        varying = [(row, *integers(width)) for row, width in enumerate(self._widths) if width.terms]
        if not varying:
            return result
        cells, shares = zip(*(term for _, _, terms in varying for term in terms), strict=True)
        starts = np.cumsum([0, *(len(terms) for _, _, terms in varying[:-1])])
        parts = np.array(shares, np.int64)[:, None] * counts[list(cells)]
        whole = np.array([denominator for _, denominator, _ in varying], np.int64)[:, None]
        result[[row for row, _, _ in varying]] += np.add.reduceat(parts, starts, axis=0) // whole
        return result


class _Sum:
    """A sum over tensors of a factor times the product of their sizes; tensors of one shape are counted together."""

    def __init__(self, tensors: Iterable[tuple[int, Product]]) -> None:
        self._factor: dict[tuple[int, ...], int] = {}
        for factor, (varying, fixed) in tensors:
            self._factor[varying] = self._factor.get(varying, 0) + factor * fixed

    def total(self, sizes: Counts) -> Counts:
        """The sum for every plan."""
        result = np.zeros(sizes.shape[1], np.int64)
        for rank in {len(key) for key in self._factor}:
            keys = [key for key in self._factor if len(key) == rank]
            product = np.array([self._factor[key] for key in keys], np.int64)[:, None].repeat(sizes.shape[1], axis=1)
            for axis in range(rank):
                product *= sizes[[key[axis] for key in keys]]
            result += product.sum(axis=0)
        return result
