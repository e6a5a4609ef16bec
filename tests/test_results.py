"""Results: plain values, and what they print below their tables."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

import mbs_fx
from mbs_fx.results.reconstruction import LayerError, Reconstruction
from mbs_fx.results.tables import change_text, kept_lines, listed, remarks, size_text, span_text, widths_text

INTEGER = np.int64


class Configured(nn.Module):
    """A network whose layers are configured with NumPy's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, INTEGER(8), INTEGER(3), stride=INTEGER(2), padding=INTEGER(1))
        self.second = nn.Conv2d(8, 8, (INTEGER(3), INTEGER(3)), padding=(INTEGER(1), INTEGER(1)), groups=INTEGER(1))
        self.up = nn.Upsample(scale_factor=np.float64(2))
        self.pool = nn.MaxPool2d(INTEGER(2))
        self.third = nn.Conv2d(8, 8, INTEGER(3), dilation=INTEGER(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.first(x).relu())
        return self.third(self.up(self.second(x).relu())).relu().mean((2, 3))


def numpy_numbers(value: Any, place: str = "") -> list[str]:
    if isinstance(value, np.generic):
        return [place]
    if is_dataclass(value):
        return [found for f in fields(value) for found in numpy_numbers(getattr(value, f.name), f"{place}.{f.name}")]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
    return [found for key, item in items for found in numpy_numbers(item, f"{place}[{key}]")]


def test_results_hold_plain_numbers() -> None:
    gm = fx.symbolic_trace(Configured().eval())
    analysis = mbs_fx.analyze(gm, (1, 3, 32, 32))
    plans = [
        mbs_fx.plan(analysis, z=np.float32(0.5)),
        mbs_fx.plan(analysis, betas={"first": np.float64(0.5)}, widths={"second": INTEGER(4)}),
        mbs_fx.plan(analysis, min_width=INTEGER(2), round_to=INTEGER(2)),
    ]
    assert numpy_numbers(analysis) == []
    assert [numpy_numbers(plan) for plan in plans] == [[], [], []]
    for plan in plans:
        assert mbs_fx.Plan.from_json(plan.to_json()) == plan
    small = mbs_fx.rewrite(gm, plans[0])
    assert mbs_fx.Plan.from_json(small.meta["mbs"].to_json()) == small.meta["mbs"]


def test_notes_that_are_not_printed_are_counted() -> None:
    analysis = mbs_fx.analyze(fx.symbolic_trace(Configured().eval()), (1, 3, 32, 32))
    noted = replace(analysis, notes=tuple(f"number {i}" for i in range(11)))
    last = ["note  number 7", "note  … and 3 more"]
    assert str(noted).splitlines()[-2:] == last
    assert str(mbs_fx.plan(noted, z=100)).splitlines()[-1] == "note  … and 5 more"  # and two of the plan's own


def test_lines_below_a_table() -> None:
    assert remarks(["stage", "stage"], {"fc": "linear"}, ["measured"]) == [
        "* opaque segments, scaled as a whole: stage",
        "kept  fc: linear",
        "note  measured",
    ]
    kept = {f"{reason}{i}": reason for reason, count in (("a", 5), ("b", 1), ("c", 2)) for i in range(count)}
    assert kept_lines(kept, 2) == ["a0, a1, a2 and 2 more: a", "c0, c1: c", "… and 1 more, for 1 other reasons"]


def test_numbers_as_text() -> None:
    assert size_text((32, 16)) == "32 × 16"
    assert span_text((17.0, 3.0, 5.0)) == "3 – 17"
    assert span_text((3, 3)) == "3"
    assert [change_text(pair) for pair in ((64, 48), (64, 64))] == ["64 → 48", "64"]
    assert widths_text([(8, 4), (8, 8), (6, 3)], most=2) == "8 → 4, 8, … (3)"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed(["a", "b"], 2) == "a, b"


def test_large_held_back_errors_are_marked():
    layers = tuple(
        LayerError(f"conv{n}", "output", 0.6, error, 0.01, 9, 90, 20) for n, error in enumerate((0.1, 0.45, 0.299))
    )
    made = Reconstruction(layers, {}, 20, 4)
    lines = str(made).splitlines()
    assert [line.split("  ")[0] for line in lines if " * " in line] == ["conv1"]
    assert "* 0.3 or more: the plan cut too deep here" in lines
    assert made.worst(2) == "conv1 0.450 *, conv2 0.299 and 1 more"
    assert "too deep" not in str(replace(made, layers=layers[:1]))
    assert Reconstruction.from_dict(made.to_dict()) == made
