"""The least squares of one layer, from sums over positions.

Semantics
- W = argmin E|y - W u - b|^2 + lambda |W - W0|^2 for every group, in float64, where W0 are the inherited weights and
  lambda is a multiple of the mean diagonal of the patches' second moment.
- One eigendecomposition of that moment gives the error of every lambda on the images that are held back.  The multiple
  is the one of `REGULARISATIONS` with the smallest; the inherited weights stay where none is better than they.  The
  weights come from all images.
- b is free where the layer has a bias, or a BatchNorm behind it whose mean can take it; elsewhere it is zero.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

REGULARISATIONS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Multiples of the mean diagonal."""


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
            patches.sum(1).double(),
            targets.sum(1).double(),
            (turned @ patches).double(),
            (turned @ targets).double(),
            targets.square().sum(1).double(),
            energies.square().sum(1).double(),
        )

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """E(y - W u - b)^2 for every output, (groups, O)."""
        spread = ((weight @ self.uu) * weight).sum(2) - 2 * (weight * self.uy.transpose(1, 2)).sum(2) + self.yy
        shift = 2 * bias * ((weight * self.u[:, None]).sum(2) - self.y)
        return ((spread + shift) / self.count + bias.square()).clamp_min(0)

    def about(self, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean products of patches less ``u`` with each other, and with targets less ``y``."""
        uu, uy = self.uu / self.count, self.uy / self.count
        own_u, own_y = self.u / self.count, self.y / self.count
        cross = own_u[:, :, None] * u[:, None]
        moment = uu - cross - cross.transpose(1, 2) + u[:, :, None] * u[:, None]
        return moment, uy - own_u[:, :, None] * y[:, None] - u[:, :, None] * (own_y - y)[:, None]

    def centre(self, bias: Tensor, free_bias: bool) -> tuple[Tensor, Tensor]:
        """What a fit takes off patches and targets: their means where the bias is free, else the bias."""
        return (self.u / self.count, self.y / self.count) if free_bias else (torch.zeros_like(self.u), bias)


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
    width: int | None = None,
    prior: Tensor | None = None,
) -> Fit:
    """The best weights; ``scale`` (groups, O) says how much an error of each output counts.

    ``width``: the length of the diagonal that lambda is a multiple of the mean of, where it is not D.  ``prior``:
    what the weights from all images are regularised towards, where ``weight`` is fitted without those held back.
    """
    before = held.error(weight, bias)
    stays = Fit(weight, bias, None, before, before)
    u, y = fitted.centre(bias, free_bias)
    moment, cross = fitted.about(u, y)
    if not bool(torch.isfinite(moment).all()):
        return stays
    turned = weight.transpose(1, 2)
    values, basis = torch.linalg.eigh(moment)
    across = basis.transpose(1, 2)
    wanted = across @ (cross - moment @ turned)
    held_moment, held_cross = held.about(u, y)
    slope = across @ (held_cross - held_moment @ turned)
    scaled = wanted * scale[:, None]
    linear = (scaled * slope).sum(2)
    square = (across @ held_moment @ basis) * (scaled @ wanted.transpose(1, 2))
    start = float((held.error(weight, y - (weight * u[:, None]).sum(2)) * scale).sum())
    best, least = None, float((before * scale).sum())
    tiny = torch.finfo(values.dtype).tiny
    mean = _mean_diagonal(moment, width)
    for multiple in regularisations:
        shrink = (values.clamp_min(0) + multiple * mean).clamp_min(tiny).reciprocal()
        change = (shrink[:, :, None] * square).sum(1)
        total = start + float((shrink * (change - 2 * linear)).sum())
        if total < least:
            best, least = multiple, total
    if best is None:
        return stays
    after = held.error(*solve(fitted, weight, bias, free_bias, best, width))
    if not float((after * scale).sum()) < float((before * scale).sum()):
        return stays
    start = weight if prior is None else prior
    return Fit(*solve(fitted + held, start, bias, free_bias, best, width), best, before, after)


def solve(
    sums: Sums, weight: Tensor, bias: Tensor, free_bias: bool, multiple: float, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weights and biases for one lambda; ``width`` as for `fit`."""
    u, y = sums.centre(bias, free_bias)
    moment, cross = sums.about(u, y)
    ridge = moment.clone()
    ridge.diagonal(dim1=1, dim2=2).add_(multiple * _mean_diagonal(moment, width))
    factor, failed = torch.linalg.cholesky_ex(ridge)
    change = torch.cholesky_solve(cross - moment @ weight.transpose(1, 2), factor).transpose(1, 2)
    weight = torch.where((failed == 0)[:, None, None], weight + change, weight)
    return weight, y - (weight * u[:, None]).sum(2) if free_bias else bias


def _mean_diagonal(moment: Tensor, width: int | None) -> Tensor:
    total = moment.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
    return (total / (width or moment.shape[2])).clamp_min(torch.finfo(moment.dtype).tiny)
