"""What the caller decides: what a key names, what it does, what contradicts what; and plans edited as text."""

import json
import re

import planning_helpers as nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.planning.overrides import named
from mbs_fx.runtime.devices import block

# CIFAR ResNet-20: macroblocks 0, 1, 2 at 32, 16, 8 with widths 16, 32, 64; layerN.B.conv1 is a group of its own,
# layerN.*.conv2 are one group, and that of layer2 holds the channels of layer1's, that of layer3 those of layer2's.


def convs(key, name="resnet20"):
    analysis = nets.analysis(name)
    return [analysis.by_name[conv].target for conv in named(analysis, key, "keep").convs]


@pytest.mark.parametrize(
    ("key", "first", "number"),
    [
        (8, "layer3.0.conv1", 6),
        ((16, 16), "layer2.0.conv1", 6),
        (2, "layer3.0.conv1", 6),
        ("m2", "layer3.0.conv1", 6),
        ("layer3", "layer3.0.conv1", 6),
        ("layer3.1", "layer3.1.conv1", 2),
        ("layer3.1.conv2", "layer3.1.conv2", 1),
        (r"layer\d\.0\.conv1", "layer1.0.conv1", 3),
        (re.compile(".*conv2"), "layer1.0.conv2", 9),
    ],
)
def test_what_a_key_names(key, first, number):
    assert convs(key)[0] == first
    assert len(convs(key)) == number


def test_a_number_is_a_spatial_size_before_it_is_an_index():
    # ResNet-50 at 224: sizes 112 to 7, five macroblocks. At a size of 1 the last macroblock of a small input.
    analysis = mbs_fx.analyze(nets.graph("resnet50"), (1, 3, 32, 32))
    assert [m.spatial_size[0] for m in analysis.macroblocks] == [16, 8, 4, 2, 1]
    assert named(analysis, 1, "keep").macroblocks == (4,)
    assert named(analysis, "m1", "keep").macroblocks == (1,)
    assert named(analysis, 3, "keep").macroblocks == (3,)


def test_a_path_is_a_path_before_it_is_an_expression():
    # As an expression "layer1.0.conv1" would name it too, "layer1.1" nothing more than the module.
    assert convs("layer1.0.conv1") == ["layer1.0.conv1"]
    assert convs("layer1.1") == ["layer1.1.conv1", "layer1.1.conv2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": ["layer9"]}, r"keep: layer9: there is no convolution of that name.*did you mean layer\d,"),
        ({"keep": ["linear"]}, r"keep: linear: there is no convolution"),
        ({"betas": {r"layer7\..*": 0.5}}, r"betas: layer7.*matches none"),
        ({"betas": {"[": 0.5}}, r"betas: '\[': neither a module path nor a regular expression"),
        ({"widths": {5: 3}}, r"widths: no macroblock has spatial size 5; there are \[32, 16, 8\], with indices 0 to 2"),
        ({"betas": {8: 0.5, "m2": 0.6}}, r"betas: m2 \(0.6\) contradicts betas: 8 \(0.5\).*macroblock 2"),
        (
            {"betas": {"layer3.0.conv2": 0.5, "layer3.1.conv2": 0.6}},
            r"layer3.1.conv2 \(0.6\) contradicts .*0.conv2 \(0.5",
        ),
        (
            {"betas": {"layer3.0.conv1": 0.5}, "keep": "layer3"},
            r"betas: layer3.0.conv1 \(0.5\) contradicts keep: layer3",
        ),
        ({"betas": {8: 0.5}, "keep": [8]}, r"betas: 8 \(0.5\) contradicts keep: 8"),
        ({"widths": {"layer3.0.conv1": 40}, "keep": [2]}, r"widths: layer3.0.conv1 \(40\) contradicts keep: 2"),
        (
            {"widths": {"layer3.0.conv1": 40}, "betas": {"layer3": 0.5}},
            r"widths: layer3.0.conv1 \(40\) contradicts betas",
        ),
        ({"betas": {8: "half"}}, r"betas: half for 8 is not in \(0, 1\]"),
        ({"widths": {"layer3.0.conv1": 4.5}}, r"4.5 is not between 1 and its present width 64"),
        ({"widths": {"layer2.0.conv2": 10}}, r"a width of 10 cannot be had, the nearest is 17.*conv1, layer3.0.conv2"),
        ({"round_to": 0}, r"round_to = 0: give a whole number"),
        ({"min_width": 2.5}, r"min_width = 2.5: give a whole number"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(MBSError, match=message):
        mbs_fx.plan(nets.analysis("resnet20"), **arguments)


def test_what_says_the_same_is_no_contradiction():
    twice = {"layer3.0.conv2": 0.75, "layer3.1.conv2": 0.75, 8: 0.9, "m2": 0.9}
    plan = mbs_fx.plan(
        nets.analysis("resnet20"), betas=twice, widths={"layer3.2.conv2": 48, "layer2.0.conv1": 32}, keep=[16]
    )
    assert plan.widths["layer3.0.conv2"] == 48  # 3/4 of 64
    assert plan.widths["layer3.0.conv1"] == 58  # ceil(0.9 x 64)


def test_what_is_named_stands_in_place_of_its_macroblock():
    plan = mbs_fx.plan(nets.analysis("resnet20"), betas={8: 0.75, "layer3.1.conv1": 0.5}, keep=["layer3.2.conv1"])
    assert [plan.widths[f"layer3.{i}.conv1"] for i in range(3)] == [48, 32, 64]
    assert plan.kept["layer3.2.conv1"] == "asked for (keep: layer3.2.conv1)"


def test_algorithm_1_decides_what_is_left_open_where_there_is_something_to_decide_by():
    analysis, density = nets.analysis("resnet20"), nets.density("resnet20", 0)
    by_algorithm = mbs_fx.plan(analysis, density)
    for extra in ({"density": density}, {"z": 1.0}, {"max_params": "200%", "z": 1.0}):
        plan = mbs_fx.plan(analysis, betas={16: 0.75}, **extra)
        free = by_algorithm if "density" in extra else mbs_fx.plan(analysis)
        assert plan.widths["layer3.0.conv1"] == free.widths["layer3.0.conv1"] < 64
        assert plan.widths["layer2.0.conv1"] == 24
    assert mbs_fx.plan(analysis, betas={16: 0.75}).widths["layer3.0.conv1"] == 64


def test_what_shares_channels_with_what_is_kept_stays_too():
    plan = mbs_fx.plan(nets.analysis("resnet20"), z=0.2, keep=["layer2.0.conv2"])
    assert plan.widths["layer2.1.conv2"] == 32
    assert plan.widths["layer1.0.conv2"] == plan.widths["conv1"] == 16
    assert "shares its channels with what keep= names" in plan.kept["conv1"]
    assert plan.widths["layer1.0.conv1"] < 16


def test_a_width_for_a_macroblock_is_that_of_the_groups_which_the_others_follow():
    # The paper's ResNet-101 configuration is written like this; here ResNet-50.
    plan = mbs_fx.plan(nets.analysis("resnet50"), widths={14: 174, 7: 337})
    assert plan.widths["layer3.2.conv1"] == plan.widths["layer3.2.conv2"] == 174
    assert plan.widths["layer3.2.conv3"] == 4 * 174
    assert plan.widths["layer4.0.downsample.0"] == 4 * 337
    with pytest.raises(MBSError, match=r"widths: 14: its groups have the widths \[64, 96\] by design"):
        mbs_fx.plan(nets.analysis("mobilenet_v2"), widths={14: 50})


def test_a_designed_ratio_stays_under_one_factor_and_goes_under_two():
    analysis = nets.analysis("resnet50")
    one = mbs_fx.plan(analysis, betas={"layer4": 0.61})
    # ceil(0.61 x 512) = 313; 4 x 313 = 1252 and not ceil(0.61 x 2048) = 1250.
    assert (one.widths["layer4.1.conv1"], one.widths["layer4.1.conv3"]) == (313, 1252)
    followed = mbs_fx.plan(analysis, betas={"layer4.0.conv2": 0.61})
    assert followed.widths["layer4.2.conv3"] == 1252
    two = mbs_fx.plan(analysis, betas={7: 0.61, "layer4.1.conv3": 0.5})
    assert (two.widths["layer4.1.conv1"], two.widths["layer4.1.conv3"]) == (313, 1024)


def ratios_kept(name, plan):
    analysis = nets.analysis(name)
    for stream in analysis.streams:
        path, own = analysis.by_name[stream.convs[0]].target, stream
        if own.base is not None:
            base = analysis.by_name[analysis.streams[own.base].convs[0]].target
            assert plan.widths[path] == own.ratio * plan.widths[base]


@settings(max_examples=25)
@given(
    st.sampled_from(("resnet50", "mobilenet_v2", "densenet121", "resnext50_32x4d")),
    st.floats(0.1, 2.0),
    st.integers(1, 24),
    st.integers(1, 40),
)
def test_rounding_up_keeps_ratios_and_never_widens(name, z, round_to, min_width):
    analysis, density = nets.analysis(name), nets.density(name, 5)
    plain = mbs_fx.plan(analysis, density, z)
    plan = mbs_fx.plan(analysis, density, z, round_to=round_to, min_width=min_width)
    ratios_kept(name, plan)
    said = " ".join(plan.notes)
    for stream in analysis.streams:
        path = analysis.by_name[stream.convs[0]].target
        width, before = plan.widths[path], plan.before[path]
        assert plain.widths[path] <= width <= before
        assert width >= min(min_width, before)
        if width % round_to:
            assert width == before
            assert f"not a multiple of {round_to}" in said
        elif stream.base is None and width > max(plain.widths[path], min_width):
            assert width - max(plain.widths[path], min_width) < round_to * (32 if "next" in name else 1)


def test_what_could_not_be_rounded_is_named():
    # Option A: layer3 is bound to 32 channels of layer2, of which 16 are layer1's; the sums are multiples of 8.
    plan = mbs_fx.plan(nets.analysis("resnet20"), z=0.5, round_to=8)
    assert {width % 8 for width in plan.widths.values()} == {0}
    assert not any("multiple" in note for note in plan.notes)
    plan = mbs_fx.plan(nets.analysis("resnet20"), z=0.5, round_to=24)
    note = next(note for note in plan.notes if "not a multiple of 24" in note)
    assert "conv1 (16)" in note
    assert "layer2.0.conv1" not in note


def test_a_width_that_was_given_is_not_rounded():
    plan = mbs_fx.plan(nets.analysis("resnet20"), z=1.0, widths={"layer3.0.conv1": 41}, round_to=16)
    assert plan.widths["layer3.0.conv1"] == 41
    assert plan.widths["layer3.1.conv1"] == 48


def edited(plan, **widths):
    """The plan as a person saves it after changing some numbers in its text."""
    data = json.loads(plan.to_json())
    data["widths"].update(widths)
    return mbs_fx.Plan.from_json(json.dumps(data))


def test_an_edited_plan_is_applied_and_counted_anew():
    gm, plan = nets.graph("resnet20"), mbs_fx.plan(nets.analysis("resnet20"))
    small = mbs_fx.rewrite(gm, edited(plan, **{"layer3.0.conv1": 40}))
    made = small.meta["mbs"]
    assert small.get_submodule("layer3.0.conv1").out_channels == made.widths["layer3.0.conv1"] == 40
    assert sum(p.numel() for p in small.parameters()) == made.params[1] < plan.params[1]
    assert made.flops[1] == sum(conv.flops for conv in mbs_fx.analyze(small, (1, 3, 32, 32)).convs)
    assert (64, 40) in made.macroblocks[2].widths
    assert made.notes[0].startswith("widths were edited")


def test_an_edited_member_of_a_group_names_the_others():
    gm, plan = nets.graph("resnet20"), mbs_fx.plan(nets.analysis("resnet20"))
    message = (
        r"layer3.1.conv2: .* width 40, but it has the same channels as layer3.0.conv2 \(47\), layer3.2.conv2 \(47\)"
    )
    with pytest.raises(MBSError, match=message):
        mbs_fx.rewrite(gm, edited(plan, **{"layer3.1.conv2": 40}))
    whole = {f"layer3.{i}.conv2": 40 for i in range(3)}
    assert mbs_fx.rewrite(gm, edited(plan, **whole)).get_submodule("layer3.1.conv2").out_channels == 40


def test_an_edited_group_names_those_it_shares_channels_with():
    gm, plan = nets.graph("resnet20"), mbs_fx.plan(nets.analysis("resnet20"))
    with pytest.raises(MBSError, match=r"layer2.0.conv2: a width of 12 cannot be had.*conv1, layer3.0.conv2: change"):
        mbs_fx.rewrite(gm, edited(plan, **{f"layer2.{i}.conv2": 12 for i in range(3)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer3.0.conv1": "40"}, r"layer3.0.conv1: a width of '40' is not a whole number between 1 and 64"),
        ({"layer3.0.conv1": 65}, r"layer3.0.conv1: a width of 65 is not a whole number between 1 and 64"),
        ({"layer9": 4}, r"layer9: the plan gives it a width, but has no convolution of that name"),
    ],
)
def test_an_edit_that_cannot_be(change, message):
    with pytest.raises(MBSError, match=message):
        edited(mbs_fx.plan(nets.analysis("resnet20")), **change)


def test_an_edit_beside_recorded_channels():
    small = mbs_fx.rewrite(nets.graph("resnet20"), mbs_fx.plan(nets.analysis("resnet20")))
    with pytest.raises(MBSError, match=r"layer3.0.conv1: .* width 40, but lists 47 channels.*empty"):
        edited(small.meta["mbs"], **{"layer3.0.conv1": 40})


@pytest.mark.parametrize("name", ["widths", "params"])
def test_what_was_edited_into_something_else(name):
    data = json.loads(mbs_fx.plan(nets.analysis("resnet20")).to_json())
    with pytest.raises(MBSError, match=f'edited into something else: "{name}"'):
        mbs_fx.Plan.from_json(json.dumps({**data, name: [1]}))


@pytest.mark.parametrize(
    ("device", "cpu", "dtype", "expected"),
    [
        ("cuda", "AVX512", torch.float32, 4),
        ("cuda", "AVX512", torch.bfloat16, 8),
        ("cuda", "AVX512", torch.int8, 16),
        ("cpu", "AVX512", torch.float32, 16),
        ("cpu", "AVX2", torch.float32, 8),
        ("cpu", "AVX2", torch.float64, 4),
        ("cpu", "SVE256", torch.float32, 8),
        ("cpu", "DEFAULT", torch.float32, 4),
    ],
)
def test_the_block_of_a_device_and_type(monkeypatch, device, cpu, dtype, expected):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: cpu)
    assert block(torch.device(device), dtype) == expected


@pytest.mark.parametrize(("cpu", "share", "step"), [("AVX2", "60%", 8), ("AVX512", "80%", 16)])
def test_reduce_rounds_by_itself(monkeypatch, cpu, share, step):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: cpu)
    small = mbs_fx.reduce(nets.graph("resnet20"), example=(1, 3, 32, 32), round_to="auto", max_params=share)
    assert {width % step for width in small.meta["mbs"].widths.values()} == {0}
    assert small.meta["mbs"].reduction > 0
