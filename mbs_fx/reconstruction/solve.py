"""The least squares of one layer, from sums over positions.

Semantics
- W = argmin E|y - W u - b|^2 + lambda |W - W0|^2 for every group: the normal equations in float64, where W0 are the
  inherited weights and lambda is a multiple of the mean diagonal of the patches' second moment.
- The multiple is the one of `REGULARISATIONS` with the smallest error on images that are held back from the fit; the
  inherited weights stay where none is better than they.  The weights come from all images.
- b is free where the layer has a bias, or a BatchNorm behind it whose mean can take it; elsewhere it is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

REGULARISATIONS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Multiples of the mean diagonal, tried in this order."""


@dataclass(frozen=True)
class Sums:
    """Sums over positions of patches u and targets y: (groups, D), (groups, O), and of their products.

    ``energy`` sums the squares of what errors are relative to: the targets, or the sum that they complete.
    """

    count: int
    u: Tensor
    y: Tensor
    uu: Tensor
    uy: Tensor
    yy: Tensor
    energy: Tensor

    @staticmethod
    def of(patches: Tensor, targets: Tensor, energies: Tensor) -> Sums:
        """Sums over rows: patches (groups, rows, D), targets and energies (groups, rows, O)."""
        turned = patches.transpose(1, 2)
        return Sums(
            patches.shape[1],
            patches.sum(1),
            targets.sum(1),
            turned @ patches,
            turned @ targets,
            targets.square().sum(1),
            energies.square().sum(1),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count,
            self.u + other.u,
            self.y + other.y,
            self.uu + other.uu,
            self.uy + other.uy,
            self.yy + other.yy,
            self.energy + other.energy,
        )

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """E(y - W u - b)^2 for every output, (groups, O)."""
        spread = ((weight @ self.uu) * weight).sum(2) - 2 * (weight * self.uy.transpose(1, 2)).sum(2) + self.yy
        shift = 2 * bias * ((weight * self.u[:, None]).sum(2) - self.y)
        return ((spread + shift) / self.count + bias.square()).clamp_min(0)


@dataclass(frozen=True)
class Fit:
    """Weights (groups, O, D) and biases (groups, O) of a layer; ``regularisation`` is None where they are inherited.

    ``before`` and ``after`` are errors per output on held-back images: of the inherited weights, and of what was
    fitted to the other images.
    """

    weight: Tensor
    bias: Tensor
    regularisation: float | None
    before: Tensor
    after: Tensor


def fit(
    fitted: Sums,
    held: Sums,
    weight: Tensor,
    bias: Tensor,
    free_bias: bool,
    scale: Tensor,
    regularisations: tuple[float, ...] = REGULARISATIONS,
) -> Fit:
    """The best weights; ``scale`` (groups, O) says how much an error of each output counts."""
    before = held.error(weight, bias)
    best, least, after = None, float((before * scale).sum()), before
    for multiple in regularisations:
        error = held.error(*solve(fitted, weight, bias, free_bias, multiple))
        total = float((error * scale).sum())
        if total < least:
            best, least, after = multiple, total, error
    if best is None:
        return Fit(weight, bias, None, before, before)
    return Fit(*solve(fitted + held, weight, bias, free_bias, best), best, before, after)


def solve(sums: Sums, weight: Tensor, bias: Tensor, free_bias: bool, multiple: float) -> tuple[Tensor, Tensor]:
    """Weights and biases for one lambda."""
    n = sums.count
    uu, uy = sums.uu / n, sums.uy / n
    u, y = sums.u / n, sums.y / n
    if free_bias:
        uu = uu - u[:, :, None] * u[:, None]
        uy = uy - u[:, :, None] * y[:, None]
    else:
        uy = uy - u[:, :, None] * bias[:, None]
    mean = uu.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(uu.dtype).tiny)
    ridge = uu.clone()
    ridge.diagonal(dim1=1, dim2=2).add_(multiple * mean[:, None])
    factor, failed = torch.linalg.cholesky_ex(ridge)
    change = torch.cholesky_solve(uy - uu @ weight.transpose(1, 2), factor).transpose(1, 2)
    weight = torch.where((failed == 0)[:, None, None], weight + change, weight)
    return weight, y - (weight * u[:, None]).sum(2) if free_bias else bias
