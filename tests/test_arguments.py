"""What is handed to the calls by mistake: an error that says what was meant, or the number that it stands for."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from wirings import Residual

import mbs_fx
from mbs_fx import MBSError, Plan

SHAPE = (2, 3, 8, 8)


@pytest.fixture(scope="module")
def gm():
    return mbs_fx.trace(Residual().eval(), SHAPE)


@pytest.fixture(scope="module")
def analysis(gm):
    return mbs_fx.analyze(gm, SHAPE)


@pytest.fixture(scope="module")
def plan(analysis):
    return mbs_fx.plan(analysis, z=0.3)


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 3), None, 5])
def test_a_model_that_is_not_traced_is_said(model):
    with pytest.raises(MBSError, match="is not a traced graph: trace the model first"):
        mbs_fx.analyze(model, SHAPE)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"z": "1"}, "z = 1: the threshold is a positive"),
        ({"z": [0.5, 1]}, r"z = \[0.5, 1\]: the threshold"),
        ({"betas": [0.5]}, "betas is a list: give a dict"),
        ({"widths": "a"}, "widths is a str: give a dict"),
        ({"betas": {None: 0.5}}, "betas: None names nothing"),
        ({"keep": None}, "keep: None names nothing"),
        ({"keep": [1.5]}, "keep: 1.5 names nothing"),
        ({"density": 5}, "the density is a int: mbs_fx.measure"),
    ],
)
def test_what_a_plan_cannot_be_made_of(analysis, wanted, text):
    with pytest.raises(MBSError, match=text):
        mbs_fx.plan(analysis, **wanted)


def test_an_analysis_is_asked_for(gm):
    with pytest.raises(MBSError, match=r"the analysis is a Residual: mbs_fx\.analyze"):
        mbs_fx.plan(gm)


@pytest.mark.parametrize("z", ["a", [0.1, "a"], [[0.1]]])
def test_thresholds_that_are_no_numbers(analysis, z):
    with pytest.raises(MBSError, match="sweep: z holds thresholds"):
        mbs_fx.sweep(analysis, z=z)


def test_numbers_of_numpy_are_numbers(analysis):
    plain = mbs_fx.plan(analysis, z=0.5, betas={8: 0.5}, widths={"tail": 7})
    same = mbs_fx.plan(analysis, z=np.float32(0.5), betas={8: np.float32(0.5)}, widths={"tail": np.int64(7)})
    assert Plan.from_json(same.to_json()) == plain


@pytest.mark.parametrize("opaque", [["("], [5]])
def test_an_expression_that_is_none(gm, opaque):
    with pytest.raises(MBSError, match="neither a module class nor a regular expression"):
        mbs_fx.analyze(gm, SHAPE, opaque=opaque)


def test_one_opaque_class_or_path_needs_no_list(gm):
    found = [mbs_fx.analyze(gm, SHAPE, opaque=one).opaque for one in (nn.Conv2d, "stem", ["stem"])]
    assert found == [("a", "b", "stem.0", "tail"), ("stem",), ("stem",)]


def test_a_plan_and_a_model_are_asked_for(gm, plan):
    with pytest.raises(MBSError, match=r"the plan is a str: .* mbs_fx\.Plan\.from_json reads one"):
        mbs_fx.rewrite(gm, plan.to_json())
    with pytest.raises(MBSError, match="the model is a type: give a traced graph"):
        mbs_fx.rewrite(Residual, plan)


@pytest.mark.parametrize(
    "scores",
    [lambda path, weight: torch.zeros(3), lambda path, weight: 1, lambda path, weight: weight.sum((1, 2, 3)) * np.nan],
)
def test_scores_that_rank_nothing_are_refused(gm, plan, scores):
    with pytest.raises(MBSError, match=r"stem\.0: the criterion gives scores of shape .* each of the 16"):
        mbs_fx.rewrite(gm, plan, criterion=scores)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("z", "a"),
        ("boundary", 5),
        ("beyond", []),
        ("input_shapes", None),
        ("input_types", [1]),
        ("opaque", 5),
        ("leaves", [1]),
        ("notes", None),
    ],
)
def test_a_plan_of_wrong_types_is_refused(plan, name, value):
    text = json.dumps({**json.loads(plan.to_json()), name: value})
    with pytest.raises(MBSError, match="edited into something else"):
        Plan.from_json(text)


def test_a_plan_without_a_width_is_refused(gm, plan):
    data = json.loads(plan.to_json())
    del data["widths"]["a"]
    with pytest.raises(MBSError, match="it has no width for the convolution a"):
        mbs_fx.rewrite(gm, Plan.from_json(json.dumps(data)))


def test_completion_offers_the_public_names_and_no_others():
    assert sorted(dir(mbs_fx)) == sorted(mbs_fx.__all__)
    assert all(hasattr(mbs_fx, name) for name in mbs_fx.__all__)
