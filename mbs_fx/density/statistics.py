"""Mean and covariance of per-image statistics, gathered block by block.  No torch.

- Blocks are merged in order (Chan, Golub and LeVeque, 1979): the same blocks in the same order give the
  same bits, on one machine or on many.
- Counts are kept beside them as exact integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mbs_fx.algorithm import Counts, Floats
from mbs_fx.density.columns import Columns


@dataclass(frozen=True)
class Block:
    """Counts per image (images, K) of batch ``number``, and values per image (K,) in each column."""

    number: int
    counts: Counts
    elements: Counts
    skipped: int = 0


@dataclass(frozen=True)
class Moments:
    """Totals over images: J statistics, K exact counts, and how many batches they come from."""

    images: int
    batches: int
    skipped: int
    mean: Floats
    scatter: Floats
    nonzero: Counts
    elements: Counts

    @staticmethod
    def empty(columns: Columns) -> Moments:
        """No image read yet."""
        k, j = len(columns.columns), len(columns.members)
        integers = np.zeros(k, np.int64), np.zeros(k, np.int64)
        return Moments(0, 0, 0, np.zeros(j), np.zeros((j, j)), *integers)

    def plus(self, columns: Columns, block: Block) -> Moments:
        """With one more block taken in."""
        size = len(block.counts)
        batches, skipped = max(self.batches, block.number + 1), self.skipped + block.skipped
        if not size:
            return replace(self, batches=batches, skipped=skipped)
        rows = columns.rows(block.counts, block.elements)
        images = self.images + size
        block_mean = rows.mean(axis=0)
        centred = rows - block_mean
        step = block_mean - self.mean
        return Moments(
            images,
            batches,
            skipped,
            self.mean + step * (size / images),
            self.scatter + centred.T @ centred + np.outer(step, step) * (self.images * size / images),
            self.nonzero + block.counts.sum(axis=0),
            self.elements + block.elements * size,
        )

    @property
    def covariance(self) -> Floats:
        """Unbiased covariance of the statistics over images; infinite while a single image is known."""
        if self.images < 2:
            return np.full_like(self.scatter, np.inf)
        return self.scatter / (self.images - 1)
