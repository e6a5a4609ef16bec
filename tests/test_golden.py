"""The printed tables, word for word.

The texts lie in ``tests/golden``.  After a deliberate change of a table, write them again and read the difference::

    python -m pytest tests/test_golden.py --renew-golden && git diff tests/golden

Networks are untrained and densities are given, so that nothing depends on the machine but the last digit of a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mbs_fx
from mbs_fx.results.density import Density, Interval
from mbs_fx.sample import resnet

GOLDEN = Path(__file__).parent / "golden"
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


class Mixed(nn.Module):
    """All that a table can say: a path up again, an opaque segment, SiLU, and widths that cannot change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.SiLU())
        self.segment = nn.Sequential(nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 24, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(24, 16, 2, 2)
        self.join = nn.Sequential(nn.Conv2d(40, 20, 3, padding=1), nn.ReLU())
        self.fixed = nn.Conv2d(20, 12, 1)
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        x = torch.cat([x, self.up(self.segment(x))], 1)
        x = self.fixed(self.join(x)).cumsum(1).relu()
        return self.last(x)


@cache
def analysis(name: str) -> mbs_fx.Analysis:
    if name == "mixed":
        return mbs_fx.analyze(torch.fx.symbolic_trace(Mixed().eval()), (1, 3, 32, 48), opaque=["segment"])
    return mbs_fx.analyze(torch.fx.symbolic_trace(resnet(20).eval()), (1, 3, 32, 32))


def density(name: str) -> Density:
    """Between 2/12 and 8/12, of 48 images, with a standard error of 1/100."""
    counted = [conv.name for conv in analysis(name).convs if conv.counted]
    mean = np.array([(2 + 5 * j % 7) / 12 for j in range(len(counted))])
    covariance = 48 * np.eye(len(mean)) / 100**2
    size = analysis(name).macroblocks[0].spatial_size
    known = (
        Interval(1.0, 0, size, 0.9203, 0.9124, 0.9281, True, "width 30 of 32 from 0.9063 on"),
        Interval(0.8, 0, size, 0.75, 0.7421, 0.7579, False),
    )
    index = {conv: j for j, conv in enumerate(counted)}
    notes = ("2 images could not be read and were left out",)
    return Density(index, mean, covariance, images=48, population=500, partial=True, intervals=known, notes=notes)


def plan(name: str) -> mbs_fx.Plan:
    if name == "mixed":
        return mbs_fx.plan(analysis(name), density(name), z=0.1, keep=["join.0"], round_to=4)
    return mbs_fx.plan(analysis(name), density(name), max_params="60%", widths={"layer3.0.conv1": 50})


TABLES: dict[str, Callable[[str], object]] = {
    "analysis": analysis,
    "density": density,
    "plan": plan,
    "sweep": lambda name: mbs_fx.sweep(analysis(name), density(name)),
}


@pytest.mark.parametrize("name", ["resnet20", "mixed"])
@pytest.mark.parametrize("table", TABLES)
def test_table(table: str, name: str, request: pytest.FixtureRequest) -> None:
    path, text = GOLDEN / f"{table}-{name}.txt", str(TABLES[table](name)) + "\n"
    if request.config.getoption("--renew-golden"):
        path.write_text(text, encoding="utf-8")
    assert same(text, path.read_text(encoding="utf-8")), f"\n{text}\ndiffers from {path.name}; {__doc__}"


def same(text: str, golden: str) -> bool:
    """Equal texts; a number may differ by one in its last digit, as sums do between CPUs."""
    if NUMBER.split(text) != NUMBER.split(golden):
        return False
    pairs = zip(NUMBER.findall(text), NUMBER.findall(golden), strict=True)
    return all(close(one, other) for one, other in pairs)


def close(one: str, other: str) -> bool:
    if one == other:
        return True
    decimals = {len(number.partition(".")[2]) for number in (one, other)}
    digits = [int(re.sub(r"\D", "", number)) for number in (one, other)]
    return len(decimals) == 1 and decimals != {0} and abs(digits[0] - digits[1]) <= 1


@pytest.mark.parametrize(
    ("text", "golden", "equal"),
    [
        ("β 0.9203, 1,234 fewer", "β 0.9203, 1,234 fewer", True),
        ("β 0.9203", "β 0.9204", True),
        ("β 0.9999", "β 1.0000", True),
        ("β 0.9203", "β 0.9205", False),
        ("32 → 30", "32 → 31", False),
        ("1,234 fewer", "1,235 fewer", False),
        ("0.5 – 0.75", "0.5 – 0.7", False),
        ("fewer 0.5", "less 0.5", False),
    ],
)
def test_numbers_are_compared_to_the_last_digit_and_words_exactly(text: str, golden: str, equal: bool) -> None:
    assert same(text, golden) is equal
