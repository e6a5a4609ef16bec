"""The sweep: every plan that there is, none twice, in order."""

import json
import math
from itertools import pairwise

import planning_helpers as nets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from work import calls

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.planning.candidates import simplest


@pytest.mark.parametrize("name", nets.NETWORKS)
def test_any_threshold_finds_its_plan_in_the_sweep(name):
    analysis, density = nets.analysis(name), nets.density(name, 0)
    sweep = mbs_fx.sweep(analysis, density)
    for step in range(1, 80):
        z = step * 0.037
        assert sweep.at(z).widths == mbs_fx.plan(analysis, density, z).widths


@pytest.mark.parametrize("name", nets.NETWORKS)
def test_a_plan_of_the_sweep_is_the_plan_of_its_threshold(name):
    analysis, density = nets.analysis(name), nets.density(name, 1)
    sweep = mbs_fx.sweep(analysis, density)
    for made, (low, high) in zip(sweep, sweep.ranges, strict=True):
        assert low <= made.z < high
        assert mbs_fx.plan(analysis, density, made.z) == made


@settings(max_examples=25)
@given(st.sampled_from(nets.NETWORKS), st.integers(0, 1000))
def test_smaller_thresholds_cost_less(name, seed):
    sweep = mbs_fx.sweep(nets.analysis(name), nets.density(name, seed))
    assert sweep[0].params[0] == sweep[0].params[1]
    for large, small in pairwise(sweep):
        assert large.z > small.z
        assert small.widths != large.widths
        assert all(small.widths[path] <= width for path, width in large.widths.items())
        assert small.params[1] < large.params[1]
        assert small.flops[1] <= large.flops[1]
        assert small.model_bytes[1] < large.model_bytes[1]
        assert small.activation_bytes[1] <= large.activation_bytes[1]


@pytest.mark.parametrize("name", nets.NETWORKS)
def test_the_ranges_leave_no_gap(name):
    ranges = mbs_fx.sweep(nets.analysis(name)).ranges
    assert ranges[0][1] == math.inf
    assert ranges[-1][0] == 0
    assert all(a[0] == b[1] for a, b in pairwise(ranges))


def test_a_rectangle_has_thresholds_on_both_axes():
    # RF / L of every convolution, L = 160 on one axis and 256 on the other.
    sweep = mbs_fx.sweep(nets.analysis("rectangle"))
    ends = {round(low, 9) for low, _ in sweep.ranges}
    fields = {conv.receptive_field for conv in nets.analysis("rectangle").convs}
    per_axis = [{round(rf[axis] / size, 9) for rf in fields} for axis, size in enumerate((160, 256))]
    assert ends - per_axis[1]
    assert ends - per_axis[0]
    assert ends <= per_axis[0] | per_axis[1] | {0.0}


def test_asked_for_thresholds_only():
    analysis = nets.analysis("resnet20")
    sweep = mbs_fx.sweep(analysis, z=[0.6, 1.4, 1.0, 0.99])
    assert [made.z for made in sweep] == [1.4, 1.0, 0.6]
    assert [made.widths for made in sweep] == [mbs_fx.plan(analysis, z=z).widths for z in (1.4, 1.0, 0.6)]
    with pytest.raises(MBSError, match=r"no plan there"):
        sweep.at(5.0)


@pytest.mark.parametrize("z", [[], [0.0], [1.0, -1.0]])
def test_thresholds_that_are_none(z):
    with pytest.raises(MBSError, match="positive multiple"):
        mbs_fx.sweep(nets.analysis("resnet20"), z=z)


def test_what_is_decided_stays_throughout():
    sweep = mbs_fx.sweep(nets.analysis("resnet20"), keep=["layer2"], betas={8: 0.75}, round_to=4)
    # Only the first convolutions of layer1's blocks are left to decide: 16, or 12 from beta < 3/4 on.
    assert [made.widths["layer1.0.conv1"] for made in sweep] == [16, 12]
    for made in sweep:
        assert made.widths["layer2.0.conv2"] == made.widths["layer2.1.conv1"] == 32
        assert made.widths["layer3.0.conv2"] == 48


def test_it_prints_and_is_json(tmp_path):
    sweep = mbs_fx.sweep(nets.analysis("resnet20"))
    lines = str(sweep).splitlines()
    assert len([line for line in lines if "%" in line]) == len(sweep)
    assert "35.93%" in str(sweep)
    assert "<table>" in sweep._repr_html_()
    sweep.to_json(tmp_path / "sweep.json")
    data = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["params"][1] for row in data["plans"]] == [made.params[1] for made in sweep]
    assert data["plans"][0]["range"] == [sweep.ranges[0][0], None]
    assert data["before"] == sweep[0].before


def test_accuracies_of_all_plans_make_a_column():
    analysis = nets.analysis("resnet20")
    sweep = mbs_fx.sweep(analysis, evaluate=lambda made: 1 - made.reduction)
    plain = mbs_fx.sweep(analysis)
    assert [made.tested for made in sweep] == [1 - made.reduction for made in plain]
    assert [made.tested for made in plain] == [None] * len(plain)
    head, *rows = sweep.to_markdown().splitlines()
    assert head.endswith("accuracy   |")
    assert f"{1 - sweep[1].reduction:.2%}" in rows[2]
    assert "accuracy" not in str(plain)
    assert json.loads(sweep.to_json())["plans"][1]["accuracy"] == {"reduced": sweep[1].tested}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.9, 1.03, 1.0), (2.28, math.inf, 3.0), (0, 0.09375, 0.09), (0.5, 0.6, 0.5), (1.28, 1.53, 1.5), (1.2, 2.0, 1.9)],
)
def test_the_simplest_number_of_a_range(low, high, expected):
    assert simplest(low, high) == expected


def test_a_thousand_layers_are_swept_with_work_in_proportion():
    """Fewer than 300 calls per layer for all of its 53 plans."""
    analysis = nets.analysis("resnet1202")
    assert calls(lambda: mbs_fx.sweep(analysis)) < 300 * len(analysis.convs)
    assert mbs_fx.sweep(analysis).at(1.0).reduction == pytest.approx(0.7274, abs=5e-5)
