"""What the layers that read channels would lose without them, when the other channels take over what they can.

Semantics
- A *reader* is a convolution or linear layer.  With M the second moments of its input channels over images and
  positions, and A = sum over kernel positions of W^T W, the least error of its output without the channels R is

      L(R) = tr(A_RR S_R),   S_R = ((M^-1)_RR)^-1,

  S_R being the part of the channels R that the others do not predict.
- Channels are removed one by one.  With P = M^-1 and N = A at first, removing c adds N_cc / P_cc, and leaves

      P - P_c P_c^T / P_cc   and   N - t N_c^T - N_c t^T + N_cc t t^T,   t = P_c / P_cc

  (Optimal Brain Surgeon, Hassibi and Stork 1993, for channels and with the readers' outputs as the error).
- Channels that one decision keeps or removes together, as groups of a grouped convolution or pixels of a flattened
  map, count as one, with M and A summed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mbs_fx.reconstruction.linear_forms import LinearForm

Array = NDArray[np.float64]

RIDGE = 1e-2
"""Added to the diagonal of M as a share of its mean: what few images say about prediction is not all to be trusted."""


@dataclass
class Reader:
    """One layer; ``choices`` are the decisions that its input channels hang on, sorted."""

    choices: NDArray[np.int64]
    p: Array
    n: Array
    energy: float
    p_diagonal: Array = field(init=False)
    n_diagonal: Array = field(init=False)
    _count: int = 0
    _t: Array = field(init=False)
    _rows: Array = field(init=False)
    _middles: Array = field(init=False)
    _scales: Array = field(init=False)

    def __post_init__(self) -> None:
        self.p_diagonal, self.n_diagonal = self.p.diagonal().copy(), self.n.diagonal().copy()
        self._t, self._rows = np.empty_like(self.p), np.empty_like(self.p)
        self._middles, self._scales = np.empty_like(self.p_diagonal), np.empty_like(self.p_diagonal)

    def costs(self) -> Array:
        """What removing each channel next adds to the relative error of the output, squared."""
        return self.n_diagonal / np.maximum(self.p_diagonal, np.finfo(float).tiny) / self.energy

    def remove(self, c: int) -> None:
        """Remove a channel: rank-one updates of the diagonals, rows being made when they are needed."""
        k = self._count
        earlier, rows, middles, scales = self._t[:k], self._rows[:k], self._middles[:k], self._scales[:k]
        own = earlier[:, c]
        p = self.p[c] - (own * scales) @ earlier
        n = self.n[c] + (middles * own - rows[:, c]) @ earlier - own @ rows
        scale, middle = float(p[c]), float(n[c])
        t = p / scale
        self._t[k], self._rows[k], self._middles[k], self._scales[k] = t, n, middle, scale
        self._count += 1
        self.p_diagonal -= t * t * scale
        self.n_diagonal += middle * t * t - 2 * t * n


def reader(form: LinearForm, weight: Tensor, moments: Tensor, choices: NDArray[np.int64]) -> Reader | None:
    """A layer as a reader; ``weight`` (groups, outputs, D), rows of outputs that do not count being zero.

    ``moments`` (inputs, inputs) are mean products of input channels, ``choices`` their decisions.  None for a layer
    that gives nothing.
    """
    width, groups = len(choices), weight.shape[0]
    per = width // groups
    parts = weight.reshape(groups, weight.shape[1], per, -1)
    products = torch.einsum("goik,gojk->gij", parts, parts).cpu().numpy()
    own = moments.cpu().numpy()
    unique, place = np.unique(choices, return_inverse=True)
    m, a = np.zeros((len(unique),) * 2), np.zeros((len(unique),) * 2)
    for at in _rounds(place, groups, per):
        group = at[0] // per
        m[np.ix_(place[at], place[at])] += own[np.ix_(at, at)]
        a[np.ix_(place[at], place[at])] += products[group][np.ix_(at - group * per, at - group * per)]
    energy = float((m * a).sum())
    if energy <= 0:
        return None
    m[np.diag_indices_from(m)] += RIDGE * m.diagonal().mean()
    return Reader(unique, _inverse(m), a, energy)


def _inverse(m: Array) -> Array:
    """The inverse of a symmetric positive matrix."""
    return torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(m))).numpy()


def _rounds(place: NDArray[np.int64], groups: int, per: int) -> list[NDArray[np.int64]]:
    """Channels in sets of one group in which no decision stands twice."""
    found: list[NDArray[np.int64]] = []
    for group in range(groups):
        own = place[group * per : (group + 1) * per]
        order = np.argsort(own, kind="stable")
        first = np.searchsorted(own[order], own[order])
        turn = np.empty(per, np.int64)
        turn[order] = np.arange(per) - first
        found += [group * per + np.flatnonzero(turn == number) for number in range(int(turn.max(initial=0)) + 1)]
    return found
