"""The sequential test: its intervals, its decisions, and how often they are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import stopping
import torch
from paper_tables import cifar_graph, cifar_images
from torch import Tensor, fx, nn

import mbs_fx
from mbs_fx import sample
from mbs_fx.algorithm import Floats
from mbs_fx.density.columns import Columns
from mbs_fx.density.stopping_rule import FEWEST, StoppingRule, factors, half_width, intervals, intervals_of
from mbs_fx.results.density import Density, Interval

ZS = (0.1, 0.2)
"""On 16 pixels: up to receptive fields of 3 and of 5 everything is base.  The convolutions have 3, 5 and 7."""


@pytest.fixture(scope="module")
def analysis() -> mbs_fx.Analysis:
    convs = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU()]
    net = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2)).eval()
    return mbs_fx.analyze(fx.symbolic_trace(net), (1, 3, 16, 16))


def draws(count: int) -> Floats:
    """Shares of three layers for ``count`` images, correlated and skewed."""
    random = np.random.default_rng(0)
    common = random.gamma(4, 0.02, (count, 1))
    return np.clip(0.4 + common + random.normal(0, 0.02, (count, 3)), 0, 1)


def density(analysis: mbs_fx.Analysis, rows: Floats, population: int | None = None) -> Density:
    return Density(Columns.of(analysis).index, rows.mean(0), np.cov(rows.T), len(rows), population)


def judged(analysis: mbs_fx.Analysis, rows: Floats, population: int | None = None) -> list[Interval]:
    """Of the scaling factors that depend on densities."""
    return [i for i in intervals(analysis, density(analysis, rows, population), ZS) if i.edge]


def test_factors_sum_to_the_algorithm_of_the_paper(analysis: mbs_fx.Analysis) -> None:
    measured = density(analysis, draws(50))
    for z in ZS:
        plan = mbs_fx.plan(analysis, measured, z=z)
        found = intervals(analysis, measured, z)
        assert [i.beta for i in found] == pytest.approx([m.beta for m in plan.macroblocks], abs=1e-12)


def test_the_whole_set_leaves_no_doubt(analysis: mbs_fx.Analysis) -> None:
    for interval in judged(analysis, draws(50), 50):
        assert interval.low == interval.beta == interval.high
        assert interval.settled


def test_few_images_decide_nothing(analysis: mbs_fx.Analysis) -> None:
    for interval in judged(analysis, draws(FEWEST - 1)):
        assert (interval.low, interval.high) == (0.5, 1.0)
        assert not interval.settled


def test_images_that_were_left_out_are_no_part_of_the_set(analysis: mbs_fx.Analysis) -> None:
    rows = draws(50)
    measured = Density(Columns.of(analysis).index, rows.mean(0), np.cov(rows.T), 50, population=53, skipped=3)
    assert all(i.low == i.high for i in intervals(analysis, measured, ZS))


def test_an_interval_holds_the_ratios_that_the_data_do_not_exclude(analysis: mbs_fx.Analysis) -> None:
    """Fieller's interval against its definition: |mean(A - x B)| <= reach x standard deviation of (A - x B)."""
    rows = draws(100)
    asked = [f for f in factors(analysis, Columns.of(analysis).index, ZS) if not f.fixed]
    reach = half_width(100, None, 0.01 / len(asked))
    for factor, found in zip(asked, judged(analysis, rows), strict=True):
        a, b = rows @ factor.base, rows @ factor.total
        grid = np.linspace(0, 1.2, 24001)
        residual = a[:, None] - grid * b[:, None]
        inside = grid[np.abs(residual.mean(0)) <= reach * residual.std(0, ddof=1)]
        assert found.low == pytest.approx(1 / (2 - inside[0]), abs=1e-4)
        assert found.high == pytest.approx(1 / (2 - min(1, inside[-1])), abs=1e-4)


@pytest.mark.parametrize("population", [None, 600])
def test_the_truth_leaves_the_interval_no_more_often_than_promised(population: int | None) -> None:
    """At one of 30 looks or more, in 400 random orders of a skewed set: in at most 10 %."""
    random = np.random.default_rng(1)
    members = random.gamma(8, 1, population) if population else None
    truth = 8 if members is None else members.mean()
    looks = np.unique(np.geomspace(FEWEST, 590, 30).astype(int))
    reach = {n: half_width(n, population, 0.1) for n in looks}
    missed = 0
    for _ in range(400):
        drawn = random.gamma(8, 1, 590) if members is None else random.permutation(members)
        missed += any(abs(drawn[:n].mean() - truth) > reach[n] * drawn[:n].std(ddof=1) for n in looks)
    assert missed <= 40


def test_the_interval_shrinks_to_nothing_as_a_set_is_exhausted() -> None:
    widths = [half_width(n, 1000, 0.01) for n in (32, 100, 300, 900, 999, 1000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 0
    assert half_width(300, 1000, 0.01) < half_width(300, None, 0.01)


@pytest.mark.parametrize(("above", "edge"), [(0.001, "0.0010"), (-0.002, "0.0020")])
def test_an_undecided_width_is_named_with_its_distance(analysis: mbs_fx.Analysis, above: float, edge: str) -> None:
    """The last convolution has 12 channels, and gets its eighth at beta = 7 / 12."""
    (factor,) = [f for f in factors(analysis, Columns.of(analysis).index, (0.1,)) if not f.fixed and f.macroblock == 1]
    target = 2 - 1 / (7 / 12 + above)  # E_base / E_total by Eq. 7 and 9
    rest = factor.total - factor.base
    mean = np.where(factor.base > 0, target / (1 - target) * rest.sum() / factor.base.sum(), 1) * 0.01
    (found,) = intervals_of(analysis, [factor], mean, np.eye(3) * 4e-6, 100, None, 0.99)
    assert found.beta == pytest.approx(7 / 12 + above)
    assert not found.settled
    assert found.edge == f"{edge} from where 4 has 7 or 8 channels at 0.5833"
    (later,) = intervals_of(analysis, [factor], mean, np.eye(3) * 1e-8, 100, None, 0.99)
    assert later.settled


@pytest.fixture(scope="module")
def counted() -> stopping.Counted:
    """Counts of all shipped images."""
    return stopping.count("shipped", *shipped())


def shipped() -> tuple[fx.GraphModule, Tensor]:
    return fx.symbolic_trace(sample.trained()), sample.images()


def widths(gm: fx.GraphModule, measured: Density) -> dict[str, int]:
    return dict(mbs_fx.plan(mbs_fx.analyze(gm, (1, 3, 32, 32)), measured).widths)


def test_a_trained_network_settles_early_on_the_widths_of_the_whole_set(counted: stopping.Counted) -> None:
    gm, images = shipped()
    early, whole = mbs_fx.measure(gm, images), counted.moments()
    assert early.settled
    assert early.images <= 256
    assert early.population == 500
    assert widths(gm, early) == counted.widths(whole, 1.0)
    asked = factors(counted.analysis, counted.columns.index, (1.0,))
    for interval, truth in zip(early.intervals, StoppingRule(counted.analysis, asked, 0.99, 500)(whole), strict=True):
        assert interval.low <= truth.beta <= interval.high


def test_a_limit_that_is_too_small_says_which_width_is_on_the_edge() -> None:
    measured = mbs_fx.measure(*shipped(), max_images=16)
    assert not measured.settled
    assert any("not settled after 16 images" in n and "channels at" in n for n in measured.notes)


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_bfloat16_agrees_on_trained_networks(depth: int, shared: Path) -> None:
    gm = cifar_graph(depth, shared / "data" / f"cifar10_resnet{depth}.safetensors")
    images = cifar_images(shared / "data" / "cifar10_subset.npz")[:16]
    exact = mbs_fx.measure(gm, images, confidence=None, fast=False)
    fast = mbs_fx.measure(gm, images, confidence=None, dtype=torch.bfloat16)
    assert all(abs(fast.p[name] - p) < exact.stderr[name] for name, p in exact.p.items())
    assert widths(gm, fast) == widths(gm, exact)


def test_a_replay_reads_what_measure_reads(counted: stopping.Counted) -> None:
    order = torch.randperm(500, generator=torch.Generator().manual_seed(7)).tolist()
    replayed, measured = stopping.replay(counted, order, (1.0,), 0.99), mbs_fx.measure(*shipped(), seed=7)
    assert replayed.images == measured.images
    assert np.allclose(replayed.mean, measured.mean, atol=1e-4)


@pytest.mark.parametrize("zs", [(1.0,), (0.8, 1.2)])
def test_stopping_is_wrong_no_more_often_than_promised(counted: stopping.Counted, zs: tuple[float, ...]) -> None:
    (row,) = stopping.validation([counted], [(zs, 0.9)], orders=60)
    assert row["other widths"] <= 0.1
    assert row["images, median"] <= 256
