"""Layers with more unknowns than positions: the same least squares with one unknown for every position.

Semantics
- With the penalty on W - W0, the change is a combination of the patches.  So patches are written in an orthonormal
  basis of what they span, and targets are what the inherited weights leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mbs_fx.reconstruction.solve import Fit


@dataclass(frozen=True)
class Rows:
    """Patches (groups, rows, D), targets and what errors are relative to (groups, rows, O).

    ``fitted`` rows are of images that are not held back, and come first.
    """

    patches: Tensor
    targets: Tensor
    energies: Tensor
    fitted: int


@dataclass(frozen=True)
class Span:
    """An orthonormal basis (D, rows) of all patches of a layer without groups, and its inherited weights."""

    basis: Tensor
    weight: Tensor

    @staticmethod
    def of(patches: Sequence[Tensor], weight: Tensor) -> Span:
        """The span of all rows."""
        return Span(torch.linalg.qr(torch.cat([each[0].double() for each in patches]).T)[0], weight)

    def written(self, rows: Rows) -> Rows:
        """Rows in this basis."""
        patches = rows.patches.double()
        rest = rows.targets.double() - patches @ self.weight.transpose(1, 2)
        return Rows(patches @ self.basis, rest, rows.energies.double(), rows.fitted)

    def start(self, prior: Tensor) -> Tensor:
        """Weights in this basis, less the inherited ones."""
        return (prior - self.weight) @ self.basis

    def whole(self, fit: Fit, prior: Tensor) -> Fit:
        """A fit in this basis, with the layer's own weights; no row says anything against ``prior`` elsewhere."""
        weight = prior + (fit.weight - self.start(prior)) @ self.basis.T
        return replace(fit, weight=weight)
