"""Which counts the densities of all convolutions need.  No torch.

Semantics
- A *column* is one count per image: the non-zero values at an activation node, over all its channels or over
  some of them.
- A *statistic* is the mean share over the columns of a convolution, each with equal weight.  An activation
  without exact zeros is not counted and enters with share 1.
- Convolutions with the same activations and positions share columns and statistic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mbs_fx.algorithm import Counts, Floats
from mbs_fx.results.analysis import Analysis


@dataclass(frozen=True, slots=True)
class Column:
    """Non-zero values at one activation node, over the channels at ``positions`` (``None``: all)."""

    activation: str
    positions: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Columns:
    """Everything that is counted: columns grouped by activation, and how statistics are made of them.

    ``members[j]`` are the columns of statistic j, ``dense[j]`` the number of its activations without zeros;
    ``index`` maps a convolution's node name to its statistic.
    """

    columns: tuple[Column, ...]
    members: tuple[tuple[int, ...], ...]
    dense: tuple[int, ...]
    index: Mapping[str, int]

    @staticmethod
    def of(analysis: Analysis) -> Columns:
        """The columns and statistics that an analysis asks for."""
        wanted: dict[Column, int] = {}
        statistics: dict[tuple[frozenset[Column], int], int] = {}
        index: dict[str, int] = {}
        for conv in analysis.convs:
            if not conv.counted:
                continue
            sparse = [a for a in conv.activations if analysis.activations[a].sparse]
            columns = frozenset(Column(a, conv.activations[a]) for a in sparse)
            for column in sorted(columns, key=lambda c: (c.activation, c.positions or ())):
                wanted.setdefault(column, len(wanted))
            key = (columns, len(conv.activations) - len(sparse))
            index[conv.name] = statistics.setdefault(key, len(statistics))
        order = {name: i for i, name in enumerate(analysis.activations)}
        columns = sorted(wanted, key=lambda c: (order[c.activation], c.positions is not None, wanted[c]))
        place = {column: i for i, column in enumerate(columns)}
        members = tuple(tuple(sorted(place[c] for c in chosen)) for chosen, _ in statistics)
        return Columns(tuple(columns), members, tuple(dense for _, dense in statistics), index)

    def by_activation(self) -> Mapping[str, Sequence[Column]]:
        """Activation node to its columns, in column order."""
        grouped: dict[str, list[Column]] = {}
        for column in self.columns:
            grouped.setdefault(column.activation, []).append(column)
        return grouped

    def rows(self, counts: Counts, elements: Counts) -> Floats:
        """Statistics per image (images, J) from counts per image (images, K) and values per image (K,)."""
        shares = counts / elements
        rows = np.empty((len(counts), len(self.members)))
        for j, (chosen, dense) in enumerate(zip(self.members, self.dense, strict=True)):
            total = shares[:, list(chosen)].sum(axis=1)
            rows[:, j] = (total + dense) / (len(chosen) + dense)
        return rows
