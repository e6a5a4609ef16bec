"""From labels to cells and widths: which channels can be dropped, and how that changes every axis.

Semantics
- A *choice* is a class of labels that stay or go together.  Where the balances of grouped convolutions, chunks
  and shuffles leave the choices of a layer fine enough, indices are followed and a choice is a class under ties
  and balances.
- Where they tie more positions of a layer together than divisibility asks for (a shuffle unit ends up tied into
  one piece), the layer is *opaque*: only counts are planned there, and a choice is a class under ties alone.
- The groups of a group normalisation alone make no layer opaque.
- A cell collects the choices that appear equally often in every axis that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm

import numpy as np
from numpy.typing import NDArray

from mbs_fx.channels.flow import Flow
from mbs_fx.channels.labels import Factor
from mbs_fx.results.analysis import Cell, Width
from mbs_fx.runtime.by_identity import ByIdentity

Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Choices:
    """Classes of labels and their cells.  Arrays are indexed by label; cell -1 is what always stays.

    ``parts`` maps sets of opaque cells to the number of equal parts that their sum must split into.
    """

    hard: Array
    choice: Array
    cell: Array
    opaque: NDArray[np.bool_]
    cells: tuple[Cell, ...]
    reasons: dict[int, str]
    opaque_cells: frozenset[int]
    parts: dict[tuple[int, ...], int]

    @cached_property
    def _widths(self) -> ByIdentity[Factor, Width]:
        return ByIdentity()

    def width(self, axis: Factor) -> Width:
        """The size of an axis with these labels, as a function of how many choices of each cell stay.

        Labels are one per position, or (groups, positions in a group) for one group's share.
        """
        return self._widths.get(axis, self._width)

    def _width(self, axis: Factor) -> Width:
        parts = axis.shape[0] if axis.ndim == 2 else 1
        counts = np.bincount(self.cell[axis.reshape(-1)] + 1, minlength=1)
        present = (np.flatnonzero(counts[1:]) + 1).tolist()
        terms = ((cell - 1, Fraction(int(counts[cell]), self.cells[cell - 1].size * parts)) for cell in present)
        return Width(int(counts[0]) // parts, tuple(terms))

    def reason(self, axis: Factor) -> str:
        """Why an axis keeps its width."""
        roots = self.hard[axis.reshape(-1)]
        found = next((self.reasons[int(r)] for r in roots if int(r) in self.reasons), None)
        if found is not None:
            return found
        soft = {int(c) for c in self.choice[axis.reshape(-1)]}
        return next((self.reasons[c] for c in soft if c in self.reasons), "no convolution makes these channels")


def choose(flow: Flow, convs: Iterable[str], forced: Callable[[str], bool] | None = None) -> Choices:
    """Cells of a graph.

    ``convs`` names the nodes whose outputs are planned (a depthwise one's follow); ``forced`` the opaque ones.
    """
    hard, soft, _ = flow.ties.resolve()
    reasons = flow.ties.frozen(hard)
    outs = {name: m.out for name in convs if not (m := flow.mixers[name]).depthwise}
    opaque = _opaque(outs, soft, flow.ties.resolve(statistics=False), forced)
    choice = np.where(opaque, hard, soft)
    for root, reason in list(reasons.items()):
        reasons.setdefault(int(choice[root]), reason)
    _one_piece(flow, outs, hard, soft, opaque, reasons)
    planned = np.zeros(len(hard), bool)
    for out in outs.values():
        planned[choice[out]] = True
    for root in reasons:
        planned[choice[root]] = False
    cell, cells = _cells(flow, choice, opaque, planned, list(outs.values()))
    opaque_cells = frozenset(int(c) for c in np.unique(cell[opaque]) if c >= 0)
    parts: dict[tuple[int, ...], int] = {}
    if opaque_cells:
        for vector, count in (*flow.ties.balances, *flow.ties.statistics):
            inside = tuple(int(c) for c in np.unique(cell[vector]))
            if opaque_cells.issuperset(inside):
                parts[inside] = lcm(parts.get(inside, 1), count)
    return Choices(hard, choice, cell, opaque, cells, reasons, opaque_cells, parts)


def _one_piece(
    flow: Flow,
    outs: dict[str, Factor],
    hard: Array,
    soft: Array,
    opaque: NDArray[np.bool_],
    reasons: dict[int, str],
) -> None:
    """Say of layers that normalisations tie into one piece why they keep their width."""
    if not flow.ties.statistics:
        return
    for out in outs.values():
        roots = np.unique(soft[out])
        if len(roots) == 1 and len(np.unique(hard[out])) > 1 and not opaque[out].any():
            why = "group normalisations divide these channels in ways that only the whole of them fits"
            reasons.setdefault(int(roots[0]), why)


def _opaque(
    outs: dict[str, Factor],
    soft: Array,
    strict: tuple[Array, Array, Array],
    forced: Callable[[str], bool] | None,
) -> NDArray[np.bool_]:
    """Labels whose balances tie more of a layer together than divisibility asks for.

    ``soft`` are classes under all balances, ``strict`` those that count: without the groups of normalisations.
    """
    hard, classes, steps = strict
    collapsed = np.zeros(len(hard), bool)
    for name, out in outs.items():
        if forced is not None and forced(name):
            collapsed[soft[out]] = True
    moved = classes != hard
    for out in outs.values():
        if moved[out].any():
            roots, counts = np.unique(classes[out], return_counts=True)
            most = np.unique(hard[out], return_counts=True)[1].max()
            collapsed[soft[out[np.isin(classes[out], roots[counts > steps[roots] * most])]]] = True
    while collapsed.any():
        before = collapsed.sum()
        for out in outs.values():
            if collapsed[soft[out]].any():
                collapsed[soft[out]] = True
        if collapsed.sum() == before:
            break
    collapsed[0] = False
    return collapsed[soft]


def _axes(flow: Flow) -> list[Factor]:
    """Every distinct vector of labels along an axis of a layer's input, output, or parameters."""
    found: dict[bytes, Factor] = {}
    vectors = [v for m in flow.mixers.values() for v in (m.out, m.inp)]
    vectors += [
        v
        for layer in flow.layers.values()
        for axes in layer.tensors.values()
        for v in axes
        if v is not None and v.ndim == 1
    ]
    vectors += [v for axes in flow.parameters.values() for v in axes if v is not None]
    for each in {id(v): v for v in vectors}.values():
        found.setdefault(each.tobytes(), each)
    return list(found.values())


def _cells(
    flow: Flow, choice: Array, opaque: NDArray[np.bool_], planned: NDArray[np.bool_], outs: list[Factor]
) -> tuple[Array, tuple[Cell, ...]]:
    """Choices with equal signatures share a cell: how often they appear in which axis, hashed."""
    random = np.random.default_rng(0)
    signature = np.zeros(len(choice), np.uint64)
    whole = {out.tobytes() for out in outs}
    for axis in _axes(flow):
        labels = choice[axis]
        if axis.tobytes() not in whole:
            labels = labels[~opaque[axis]]
        np.add.at(signature, labels, random.integers(1, 2**63, dtype=np.uint64))
    roots = np.flatnonzero(planned & (choice == np.arange(len(choice))))
    _, first, index, sizes = np.unique(signature[roots], return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    of_root = np.full(len(choice), -1, np.int64)
    of_root[roots] = rank[index]
    cells = tuple(Cell(number, int(sizes[old])) for number, old in enumerate(order))
    return of_root[choice], cells
