"""How many images `measure` reads on trained networks, and how often it stops at other widths than the whole set has.

Counts per image are computed once; `replay` then runs the loop that `measure` runs, with its looks, totals and
intervals, on any order of the images.  Used by density.py and by the tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper_tables import cifar_graph, cifar_images
from torch import Tensor, fx

import mbs_fx
from mbs_fx import sample
from mbs_fx.algorithm import Counts
from mbs_fx.density.batches import Batch
from mbs_fx.density.columns import Columns
from mbs_fx.density.execution import executions
from mbs_fx.density.meter import Meter
from mbs_fx.density.progress import Progress
from mbs_fx.density.reading import Reading
from mbs_fx.density.statistics import Block, Moments
from mbs_fx.density.stopping_rule import StoppingRule, factors
from mbs_fx.results.density import Density
from mbs_fx.runtime.ranks import Ranks

QUESTIONS = (((1.0,), 0.99), ((1.0,), 0.9), ((1.4, 1.2, 1.0, 0.8, 0.6), 0.99))
"""Thresholds to be settled together, and the confidence."""


@dataclass
class Counted:
    """A network and the counts of every image of a set; stands in for the `Meter` when they are replayed."""

    name: str
    analysis: mbs_fx.Analysis
    columns: Columns
    counts: Counts
    elements: Counts
    blocks: list[Block] = field(default_factory=list)

    def run(self, number: int, groups: Sequence[Batch]) -> None:
        self.blocks += [Block(number, self.counts[list(group.indices)], self.elements) for group in groups]

    def collect(self) -> list[Block]:
        blocks, self.blocks = self.blocks, []
        return blocks

    def moments(self) -> Moments:
        """Of the whole set."""
        return Moments.empty(self.columns).plus(self.columns, Block(0, self.counts, self.elements))

    def widths(self, moments: Moments, z: float) -> dict[str, int]:
        density = Density(self.columns.index, moments.mean, moments.covariance, moments.images)
        return dict(mbs_fx.plan(self.analysis, density, z).widths)


def count(name: str, gm: fx.GraphModule, images: Tensor, batch: int = 100) -> Counted:
    """The counts of every image, from the copy that `measure` runs."""
    analysis = mbs_fx.analyze(gm, (1, *images.shape[1:]))
    columns = Columns.of(analysis)
    meter = Meter(gm, executions(gm, columns, analysis, None, True, None, False), columns, analysis)
    with torch.no_grad():
        for number, part in enumerate(images.split(batch)):
            meter.run(number, [Batch((part,), tuple(range(len(part))))])
    blocks = meter.collect()
    return Counted(name, analysis, columns, np.concatenate([b.counts for b in blocks]), blocks[0].elements)


def replay(counted: Counted, order: Sequence[int], zs: Sequence[float], confidence: float, batch: int = 32) -> Moments:
    """What `measure` would have read of the images in this order."""
    columns, population = counted.columns, len(counted.counts)
    batches = [Batch((), tuple(order[i : i + batch])) for i in range(0, population, batch)]
    rule = StoppingRule(counted.analysis, factors(counted.analysis, columns.index, zs), confidence, population)
    stand_in: Any = counted
    reading = Reading(stand_in, columns, Ranks(), Progress(False, None), rule, None, {}, Moments.empty(columns))
    return reading.run(iter([(number, [b]) for number, b in enumerate(batches)])).moments


def trained(shared: Path, images: int) -> list[Counted]:
    """Every trained CIFAR network that is at hand, counted on real images."""
    data = shared / "data"
    seen = sample.images()
    found = [count("ResNet-20 (shipped)", fx.symbolic_trace(sample.trained()), seen[:images])]
    if (data / "cifar10_subset.npz").exists():
        seen = cifar_images(data / "cifar10_subset.npz")[:images]
        for depth in (20, 32, 56):
            gm = cifar_graph(depth, data / f"cifar10_resnet{depth}.safetensors")
            found.append(count(f"ResNet-{depth}", gm, seen))
    return found


def images_read(networks: Sequence[Counted]) -> Iterator[dict[str, Any]]:
    """One row per network: what `measure` reads by default, and the width that is closest to changing."""
    for counted in networks:
        population = len(counted.counts)
        order = torch.randperm(population, generator=torch.Generator().manual_seed(0)).tolist()
        moments = replay(counted, order, (1.0,), 0.99)
        asked = factors(counted.analysis, counted.columns.index, (1.0,))
        found = StoppingRule(counted.analysis, asked, 0.99, population)(moments, edges=True)
        closest = min((i for i in found if i.edge), key=lambda i: float(i.edge.split()[0]), default=None)
        yield {
            "network": counted.name,
            "images": moments.images,
            "of": population,
            "target": 256,
            "closest": f"β = {closest.beta:.4f}, {closest.edge}" if closest else "",
        }


def validation(
    networks: Sequence[Counted], questions: Sequence[tuple[Sequence[float], float]], orders: int
) -> Iterator[dict[str, Any]]:
    """One row per network, thresholds and confidence: runs that stopped at other widths than the set's."""
    random = np.random.default_rng(0)
    for counted, (zs, confidence) in itertools.product(networks, questions):
        population = len(counted.counts)
        truth = [counted.widths(counted.moments(), z) for z in zs]
        runs = [replay(counted, random.permutation(population).tolist(), zs, confidence) for _ in range(orders)]
        read = [run.images for run in runs]
        yield {
            "network": counted.name,
            "z": " ".join(map(str, zs)),
            "confidence": confidence,
            "orders": orders,
            "other widths": sum([counted.widths(run, z) for z in zs] != truth for run in runs) / orders,
            "promised": round(1 - confidence, 6),
            "images, median": int(np.median(read)),
            "images, 95 %": int(np.quantile(read, 0.95)),
            "of": population,
        }
