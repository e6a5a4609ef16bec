"""Ties: which labels can only be kept or removed together.

Semantics
- A *tie* is an identity: an addition, a shared weight.  The classes of labels under ties are the channels
  whose counts a plan decides.
- A *balance* is weaker: equally many channels must stay in each of several equal parts (the groups of a grouped
  convolution, the chunks of a split).  Tying position i of every part satisfies it, so balances are offered as
  ties of a second kind; where they would tie nearly everything, counting still works and indices do not.
- The groups of a group normalisation are *statistics*: balanced as well, and never a reason to stop following.  A layer
  that several of them divide differently keeps every n-th channel, where n divides all group sizes.
- A *frozen* class loses nothing, for a reason that is kept for the report.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]


class Ties:
    """Collects ties while labels travel through a graph; `resolve` turns them into classes."""

    def __init__(self) -> None:
        self.count = 1
        self._ties: list[tuple[Array, Array]] = []
        self.balances: list[tuple[Array, int]] = []
        self.statistics: list[tuple[Array, int]] = []
        self._frozen: list[tuple[Array, str]] = []

    def new(self, size: int) -> Array:
        """Fresh labels."""
        first = self.count
        self.count += size
        return np.arange(first, self.count, dtype=np.int64)

    def tie(self, a: Array, b: Array, reason: str = "bound to channels that cannot be removed") -> None:
        """Labels at equal positions of two arrays of one shape are the same channel."""
        a, b = a.reshape(-1), b.reshape(-1)
        free = (a != 0) & (b != 0)
        if not free.all():
            self.freeze(a[(b == 0)], reason)
            self.freeze(b[(a == 0)], reason)
            a, b = a[free], b[free]
        if a.size:
            self._ties.append((a, b))

    def balance(self, vector: Array, parts: int) -> None:
        """Equally many labels stay in each of ``parts`` equal consecutive parts of a vector."""
        if parts > 1 and vector.any():
            self.balances.append((vector, parts))

    def balance_statistics(self, vector: Array, parts: int) -> None:
        """The same for the groups of a normalisation."""
        if parts > 1 and vector.any():
            self.statistics.append((vector, parts))

    def freeze(self, labels: Array, reason: str) -> None:
        """None of these labels can be removed."""
        labels = labels[labels != 0].reshape(-1)
        if labels.size:
            self._frozen.append((labels, reason))

    def records(self) -> int:
        """How much has been recorded so far."""
        return len(self._ties) + len(self.balances) + len(self.statistics) + len(self._frozen)

    def resolve(self, statistics: bool = True) -> tuple[Array, Array, Array]:
        """(class of each label under ties, the same under ties and balances, lcm of the parts balanced there).

        Without ``statistics`` the groups of normalisations are left out.
        """
        balances = [*self.balances, *(self.statistics if statistics else ())]
        hard = components(self.count, self._ties)
        pairs = [_pairs(hard[vector].reshape(parts, -1)) for vector, parts in balances]
        soft = components(self.count, pairs)[hard]
        steps = np.ones(self.count, np.int64)
        for vector, parts in balances:
            roots = np.unique(soft[vector])
            steps[roots] = np.lcm(steps[roots], parts)
        return hard, soft, steps[soft]

    def frozen(self, classes: Array) -> dict[int, str]:
        """Frozen classes with the first reason given for each."""
        reasons: dict[int, str] = {0: "channels of the network's input"}
        for labels, reason in self._frozen:
            for root in np.unique(classes[labels]):
                reasons.setdefault(int(root), reason)
        return reasons


def _pairs(rows: Array) -> tuple[Array, Array]:
    return np.broadcast_to(rows[0], rows[1:].shape).reshape(-1), rows[1:].reshape(-1)


def components(count: int, pairs: list[tuple[Array, Array]]) -> Array:
    """The smallest label of each connected component, for every label."""
    parent = np.arange(count, dtype=np.int64)
    if not pairs:
        return parent
    a = np.concatenate([p[0] for p in pairs])
    b = np.concatenate([p[1] for p in pairs])
    while True:
        low = np.minimum(parent[a], parent[b])
        differs = parent[a] != parent[b]
        if not differs.any():
            return parent
        a, b, low = a[differs], b[differs], low[differs]
        np.minimum.at(parent, parent[a], low)
        np.minimum.at(parent, parent[b], low)
        while (parent[parent] != parent).any():
            parent = parent[parent]
