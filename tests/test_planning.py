"""Plans: what is asked for, what comes out, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mbs_fx
from mbs_fx import MBSError, sample
from mbs_fx.sample import resnet


@pytest.fixture(scope="module")
def analysis():
    return mbs_fx.analyze(torch.fx.symbolic_trace(resnet(20).eval()), (1, 3, 32, 32))


def test_equal_densities_give_the_documented_reduction(analysis):
    plan = mbs_fx.plan(analysis)
    assert plan.reduction == pytest.approx(0.3593, abs=5e-5)
    assert [w for m in plan.macroblocks for _, w in m.widths] == [16, 30, 47]
    assert plan.boundary == (33, 33)
    assert "p = 1" in str(plan)


def test_betas_by_spatial_size(analysis):
    plan = mbs_fx.plan(analysis, betas={8: 0.5})
    assert plan.widths["layer3.0.conv1"] == 32
    assert plan.widths["layer2.0.conv1"] == 32
    assert plan.widths["layer1.0.conv1"] == 16


def test_a_width_by_any_convolution_of_its_group(analysis):
    by_first = mbs_fx.plan(analysis, widths={"layer3.0.conv2": 40})
    by_last = mbs_fx.plan(analysis, widths={"layer3.2.conv2": 40})
    assert by_first.widths == by_last.widths
    assert by_first.widths["layer3.0.conv1"] == 64


def test_option_a_shortcuts_share_the_channels_of_earlier_stages(analysis):
    plan = mbs_fx.plan(analysis, betas={32: 14 / 16, 16: 21 / 32, 8: 39 / 64})
    assert [plan.widths[f"layer{i}.0.conv2"] for i in (1, 2, 3)] == [14, 21, 39]


def test_json_both_ways(analysis, tmp_path):
    plan = mbs_fx.plan(analysis)
    plan.to_json(tmp_path / "plan.json")
    assert mbs_fx.Plan.from_json(tmp_path / "plan.json") == plan
    assert mbs_fx.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"z": 0}, "positive"),
        ({"betas": {9: 0.5}}, r"no macroblock has spatial size 9; there are \[32, 16, 8\]"),
        ({"betas": {8: 0.0}}, r"not in \(0, 1\]"),
        ({"widths": {"layer3.0.conv1": 0}}, "between 1 and its present width 64"),
        ({"widths": {"layer9": 3}}, "no convolution of that name"),
        ({"widths": {"layer3.0.conv2": 40, "layer3.1.conv2": 41}}, "contradicts"),
    ],
)
def test_what_cannot_be_is_refused(analysis, arguments, message):
    with pytest.raises(MBSError, match=message):
        mbs_fx.plan(analysis, **arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "not a plan"), ("{", "not JSON"), ('{"format": "mbs_fx.plan", "version": 99}', "version 99")],
)
def test_what_is_not_a_plan_is_refused(text, message, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(text)
    with pytest.raises(MBSError, match=message):
        mbs_fx.Plan.from_json(file)


def test_a_plan_file_that_is_not_there(tmp_path):
    with pytest.raises(MBSError, match="cannot read the plan"):
        mbs_fx.Plan.from_json(tmp_path / "none.json")


def test_a_graph_without_convolutions_is_refused():
    gm = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    with pytest.raises(MBSError, match="no convolution"):
        mbs_fx.analyze(gm, (1, 4))


def test_an_analysis_needs_a_shape():
    with pytest.raises(MBSError, match="input shape is not known"):
        mbs_fx.analyze(torch.fx.symbolic_trace(resnet(20)))


def test_what_keeps_its_width_says_why():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.second = nn.Conv2d(8, 8, 3)
            self.head = nn.Conv2d(8, 5, 1)

        def forward(self, x):
            x = F.relu(self.first(x))
            return self.head(torch.cumsum(self.second(x), 1))

    analysis = mbs_fx.analyze(torch.fx.symbolic_trace(Net()), (1, 3, 16, 16))
    assert analysis.kept["head"] == "network output"
    assert "cumsum" in analysis.kept["second"]
    assert "first" not in analysis.kept


def test_an_analysis_is_made_anew_when_the_graph_changes():
    gm = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()))
    before = mbs_fx.analyze(gm, (1, 3, 16, 16))
    gm.set_submodule("2", nn.Conv2d(8, 6, 3))
    after = mbs_fx.analyze(gm, (1, 3, 16, 16))
    assert (before.convs[1].width, after.convs[1].width) == (8, 6)


def test_a_plan_says_what_its_measurement_leaves_open():
    gm = mbs_fx.trace(sample.trained())
    few = mbs_fx.measure(gm, sample.images(), max_images=8)
    here, larger = (mbs_fx.analyze(gm, (1, 3, size, size)) for size in (32, 64))
    assert "8 images do not settle the widths at 16 × 16, 8 × 8: read more to be sure" in mbs_fx.plan(here, few).notes
    tiny = mbs_fx.analyze(gm, (1, 3, 2, 2))
    assert [m.spatial_size for m in tiny.macroblocks] == [(2, 2), (1, 1)]  # the second and the third fall together
    for other in (larger, tiny):
        assert any(
            "another input size, where a macroblock was 32 × 32" in note for note in mbs_fx.plan(other, few).notes
        )
    enough = mbs_fx.measure(gm, sample.images())
    assert mbs_fx.plan(here, enough).notes == ()


def test_where_no_width_depends_on_the_images_a_budget_still_has_a_density_to_go_by():
    density = mbs_fx.measure(mbs_fx.trace(sample.trained()), sample.images(), z=10.0, batch_size=16)
    assert density.images == 32
