"""Budgets: held, used up, and refused where they cannot be."""

import planning_helpers as nets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mbs_fx
from mbs_fx import MBSError

COSTS = {"max_params": "params", "max_flops": "flops", "max_bytes": "model_bytes"}


def betas_at(plan, e_base):
    """The scaling factors of all macroblocks for another E_base: Eq. 7 and 9."""
    ratios = [min(1.0, e_base / m.e_total) for m in plan.macroblocks]
    return {f"m{m.index}": 1 / (2 - ratio) for m, ratio in zip(plan.macroblocks, ratios, strict=True)}


def above(plan, highest, steps=60):
    """E_base from a plan's own to the highest, finer near the plan's."""
    own = plan.macroblocks[0].e_base
    return [own + (highest - own) * (step / steps) ** 3 for step in range(1, steps + 1)]


@settings(max_examples=20)
@given(
    st.sampled_from(("resnet20", "resnet50", "mobilenet_v2", "shufflenet_v2_x0_5", "rectangle")),
    st.integers(0, 100),
    st.sampled_from(sorted(COSTS)),
    st.floats(0.0, 1.0),
    st.sampled_from([1, 8]),
)
def test_a_budget_is_held_and_used_up(name, seed, argument, share, round_to):
    analysis, density, cost = nets.analysis(name), nets.density(name, seed), COSTS[argument]
    sweep = mbs_fx.sweep(analysis, density, round_to=round_to)
    least, most = (getattr(sweep[i], cost)[1] for i in (-1, 0))
    budget = least + share * (most - least)
    plan = mbs_fx.plan(analysis, density, round_to=round_to, **{argument: budget})
    assert getattr(plan, cost)[1] <= budget
    for e_base in above(plan, sweep[0].macroblocks[0].e_base):
        larger = mbs_fx.plan(analysis, betas=betas_at(plan, e_base), round_to=round_to)
        assert larger.widths == plan.widths or getattr(larger, cost)[1] > budget


@settings(max_examples=12)
@given(st.sampled_from(nets.NETWORKS), st.integers(0, 100), st.data())
def test_every_plan_of_the_sweep_is_the_answer_to_its_own_cost(name, seed, data):
    analysis, density = nets.analysis(name), nets.density(name, seed)
    sweep = mbs_fx.sweep(analysis, density)
    wanted = data.draw(st.sampled_from(sweep))
    assert mbs_fx.plan(analysis, density, max_params=wanted.params[1]).params == wanted.params


@settings(max_examples=12)
@given(st.sampled_from(nets.NETWORKS), st.floats(0.75, 1.0), st.floats(0.75, 1.0), st.floats(0.75, 1.0))
def test_several_budgets_all_hold_and_one_of_them_binds(name, params, flops, size):
    analysis, density = nets.analysis(name), nets.density(name, 3)
    full = mbs_fx.sweep(analysis, density)[0]
    budgets = {"max_params": params * full.params[0], "max_flops": f"{100 * flops}%", "max_bytes": f"{100 * size} %"}
    plan = mbs_fx.plan(analysis, density, **budgets)
    alone = [mbs_fx.plan(analysis, density, **{name: budget}) for name, budget in budgets.items()]
    assert plan.widths == min(alone, key=lambda p: p.macroblocks[0].e_base).widths


def test_between_two_thresholds_the_paper_s_equations_hold():
    # Eq. 7 and 9 from the plan's own table; every macroblock has the same E_base.
    plan = mbs_fx.plan(nets.analysis("resnet20"), nets.density("resnet20", 0), max_params="60%")
    assert 0 < plan.beyond < 1
    assert len({m.e_base for m in plan.macroblocks}) == 1
    for m in plan.macroblocks:
        r = max(0.0, 1 - m.e_base / m.e_total)
        assert m.redundancy == pytest.approx(r)
        assert m.beta == pytest.approx(1 / (1 + r))
    assert f"{plan.beyond:.0%} of the layers just beyond" in str(plan)
    assert mbs_fx.Plan.from_json(plan.to_json()) == plan


def test_it_lies_between_the_neighbouring_thresholds():
    analysis, density = nets.analysis("resnet20"), nets.density("resnet20", 0)
    sweep = mbs_fx.sweep(analysis, density)
    plan = mbs_fx.plan(analysis, density, max_params="60%")
    below = next(made for made in sweep if made.params[1] <= 0.6 * made.params[0])
    above = sweep[sweep.plans.index(below) - 1]
    assert plan.z == below.z
    assert below.params[1] <= plan.params[1] < above.params[1]
    expected = below.macroblocks[0].e_base * (1 - plan.beyond) + above.macroblocks[0].e_base * plan.beyond
    assert plan.macroblocks[0].e_base == pytest.approx(expected)


def test_a_budget_above_the_original_reduces_nothing():
    plan = mbs_fx.plan(nets.analysis("resnet20"), max_params="200%")
    assert plan.reduction == 0
    assert plan.beyond == 0


def test_z_is_the_most_that_a_budget_may_use():
    analysis = nets.analysis("resnet20")
    assert mbs_fx.plan(analysis, z=0.8, max_params="99%") == mbs_fx.plan(analysis, z=0.8)
    assert mbs_fx.plan(analysis, z=0.8, max_params="40%").widths == mbs_fx.plan(analysis, max_params="40%").widths


def test_what_the_caller_decides_stays_and_the_rest_is_searched():
    analysis = nets.analysis("resnet50")
    plan = mbs_fx.plan(analysis, keep=["layer4.2"], betas={"m3": 0.6}, max_params="80%")
    assert plan.widths["layer4.2.conv1"] == 512
    assert plan.macroblocks[3].beta == 0.6
    assert plan.widths["layer3.1.conv1"] == 154  # ceil(0.6 x 256)
    assert plan.params[1] <= 0.8 * plan.params[0]


@pytest.mark.parametrize(("number", "share"), [(0.5, "50%"), (50, "50%"), (1, "1%"), (100, "100%")])
def test_a_number_that_looks_like_a_share_is_asked_about(number, share):
    with pytest.raises(MBSError, match=f'max_flops = {number} is an amount, of 40,550,400: did you mean "{share}"'):
        mbs_fx.plan(nets.analysis("resnet20"), max_flops=number)


@pytest.mark.parametrize("argument", sorted(COSTS))
def test_an_unreachable_budget_states_the_smallest(argument):
    analysis = nets.analysis("resnet20")
    least, most = (getattr(mbs_fx.sweep(analysis)[i], COSTS[argument])[1] for i in (-1, 0))
    with pytest.raises(MBSError, match=f"{argument} = 900: the smallest that can be reached is {least:,} of {most:,}"):
        mbs_fx.plan(analysis, **{argument: 900})
    assert getattr(mbs_fx.plan(analysis, **{argument: least}), COSTS[argument])[1] == least


@pytest.mark.parametrize("budget", [0, -3, "half", "%", "-5%", "nan", [1]])
def test_what_is_no_budget(budget):
    with pytest.raises(MBSError, match="give a positive number"):
        mbs_fx.plan(nets.analysis("resnet20"), max_flops=budget)


def test_latency_is_found_by_bisection():
    analysis, asked = nets.analysis("resnet50"), []

    def latency(plan):
        asked.append(plan)
        return plan.flops[1] / 1e8

    plan = mbs_fx.plan(analysis, max_latency_ms="75%", latency=latency)
    assert plan.widths == mbs_fx.plan(analysis, max_flops="75%").widths
    assert asked[0].params[1] == asked[0].params[0]
    assert len(asked) < 16
    assert any(note.startswith("latency 30.") and "40.9" in note for note in plan.notes)
    both = mbs_fx.plan(analysis, max_latency_ms="75%", max_params="40%", latency=latency)
    assert both.widths == mbs_fx.plan(analysis, max_params="40%").widths


def test_latency_that_cannot_be_reached():
    with pytest.raises(MBSError, match=r"takes 7 ms, the original 7 ms"):
        mbs_fx.plan(nets.analysis("resnet20"), max_latency_ms=5, latency=lambda plan: 7.0)


@pytest.mark.parametrize(
    "arguments",
    [{"max_latency_ms": 5}, {"latency": lambda plan: 1.0}, {"latency": lambda plan: 1.0, "max_params": "50%"}],
)
def test_latency_needs_both(arguments):
    with pytest.raises(MBSError, match="go together"):
        mbs_fx.plan(nets.analysis("resnet20"), **arguments)


def test_a_network_in_which_nothing_may_change():
    gm = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3)))
    analysis = mbs_fx.analyze(gm, (1, 3, 16, 16))
    assert len(mbs_fx.sweep(analysis)) == 1
    assert mbs_fx.plan(analysis, z=0.1).notes[0].startswith("nothing is reduced")
    assert mbs_fx.plan(analysis, max_params="100%").params == (224, 224)  # 3*8*9 + 8
    with pytest.raises(MBSError, match="the smallest that can be reached is 224 of 224"):
        mbs_fx.plan(analysis, max_params="50%")
