"""``outputs=``: only the outputs that are named keep their channels."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest
import torch
from proof import difference
from torch import Tensor, nn

import mbs_fx
from mbs_fx import MBSError

SHAPE = (2, 3, 16, 16)


class Detector(nn.Module):
    """In evaluation boxes and a dict with the raw maps, as ultralytics has it; in training the dict alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.ModuleList([nn.Conv2d(16, 5, 1), nn.Conv2d(24, 5, 1)])
        self.stride = torch.tensor([2.0, 4.0])

    def forward(self, x: Tensor) -> Any:
        maps = [self.stem(x)]
        maps.append(self.deep(maps[0]))
        boxes = torch.cat([head(held).flatten(2) for head, held in zip(self.head, maps, strict=True)], 2)
        raw = {"boxes": boxes, "maps": maps}
        if self.training:
            return raw
        sizes = [held.new_full((held.shape[2] * held.shape[3],), self.stride[i]) for i, held in enumerate(maps)]
        return boxes * torch.cat(sizes), raw


def planned(outputs: Any) -> tuple[mbs_fx.Plan, nn.Module]:
    torch.manual_seed(0)
    model = Detector().eval()
    analysis = mbs_fx.analyze(mbs_fx.trace(model, SHAPE), outputs=outputs)
    return mbs_fx.plan(analysis, betas={m.spatial_size: 0.5 for m in analysis.macroblocks}), model


@pytest.mark.parametrize(
    ("outputs", "widths"),
    [
        (None, (16, 24)),
        (0, (8, 12)),
        ([0], (8, 12)),
        ((0, (1, "boxes")), (8, 12)),
        ([0, (1, "maps", 1)], (8, 24)),
        ([(1, "maps")], (16, 24)),
    ],
)
def test_other_outputs_lose_channels(outputs: Any, widths: tuple[int, int]) -> None:
    plan, _ = planned(outputs)
    assert (plan.widths["stem.0"], plan.widths["deep.0"]) == widths
    assert plan.widths["head.0"] == (3 if outputs == [(1, "maps")] else 5)  # a box keeps its numbers where it is read


def test_graph_module_and_file_agree_in_both_modes() -> None:
    plan, model = planned(0)
    graph, small = mbs_fx.rewrite(mbs_fx.trace(model, SHAPE), plan), mbs_fx.rewrite(model, plan)
    x = torch.randn(1, 3, 24, 16)
    with torch.no_grad():
        assert difference(graph(x), small(x)) == 0
    again = mbs_fx.rewrite(model, mbs_fx.Plan.from_json(plan.to_json()))
    assert [p.shape for p in again.parameters()] == [p.shape for p in small.parameters()]
    raw = small.train()(x)
    assert [held.shape[1] for held in raw["maps"]] == [8, 12]
    raw["boxes"].sum().backward()


def test_keys_and_positions_of_an_ordered_dict() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Any:
            y = self.one(x)
            return OrderedDict(out=self.two(y), aux=y)

    gm = mbs_fx.trace(Named().eval(), SHAPE)
    for name in ("out", 0, ("out",), [("out",)]):
        assert mbs_fx.analyze(gm, outputs=name).kept == {"two": "network output"}
    assert set(mbs_fx.analyze(gm).kept) == {"one", "two"}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (3, "no output \\(3,\\): the positions are 0 to 1"),
        ([(1, "masks")], "the keys are 'boxes', 'maps'"),
        ([(0, 0)], "there is a single tensor"),
        (2.5, "names no outputs"),
        ([()], "names no outputs"),
    ],
)
def test_names_that_mean_nothing(outputs: Any, message: str) -> None:
    with pytest.raises(MBSError, match=message):
        planned(outputs)


def test_a_plan_edited_by_hand() -> None:
    text = replace(planned(0)[0], outputs=(3,)).to_json()  # type: ignore[arg-type]
    with pytest.raises(MBSError, match='"outputs" is null or a list of lists'):
        mbs_fx.Plan.from_json(text)


def test_reduce_takes_outputs() -> None:
    small = mbs_fx.reduce(Detector().eval(), example=SHAPE, outputs=0, betas={(8, 8): 0.5, (4, 4): 0.5})
    assert small.meta["mbs"].widths["stem.0"] == 8
