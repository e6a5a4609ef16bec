"""Networks that return objects: their channels are the network's outputs, and the object's type survives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from proof import difference
from torch import Tensor, nn

import mbs_fx

SHAPE = (2, 3, 8, 8)


@dataclass
class Plain:
    logits: Tensor
    maps: list[Tensor] = field(default_factory=list)
    name: str = "plain"


@dataclass(frozen=True, eq=False)
class Checked:
    """Compares by identity, and refuses what is no tensor."""

    logits: Tensor
    maps: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        assert self.logits.shape[0] == self.maps[0].shape[0]


@dataclass(slots=True)
class Nested:
    inner: Any
    maps: dict[str, Tensor]

    @property
    def logits(self) -> Tensor:
        return self.inner.logits


class Named(NamedTuple):
    logits: Tensor
    maps: list[Tensor]


MAKERS = {
    Plain: lambda logits, held: Plain(logits, [held]),
    Checked: lambda logits, held: Checked(logits, (held,)),
    Nested: lambda logits, held: Nested(Plain(logits), {"held": held}),
    Named: lambda logits, held: Named(logits, [held]),
}


class Net(nn.Module):
    """A body of 16 channels, a head of 10, and a feature map of 12 that leaves as well."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.body, self.head, self.side = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 16), (16, 10), (16, 12)))

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).relu()
        return MAKERS[self.kind](self.head(x).mean((2, 3)), self.side(x))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("as_graph", [True, False])
def test_what_an_object_holds_is_the_output(kind: type, as_graph: bool) -> None:
    torch.manual_seed(0)
    net = Net(kind).eval()
    gm = mbs_fx.trace(net, SHAPE)
    plan = mbs_fx.plan(mbs_fx.analyze(gm), betas={(8, 8): 0.5})
    assert plan.widths == {"body": 8, "head": 10, "side": 12}
    assert plan.kept == {"head": "network output", "side": "network output"}
    small = mbs_fx.rewrite(gm if as_graph else net, plan)
    outputs = small(torch.zeros(SHAPE))
    assert type(outputs) is kind
    assert outputs.logits.shape == (2, 10)
    # The output of the original without the removed channels' part of what follows.
    kept = list(small.meta["mbs"].channels["body"])
    with torch.no_grad():
        gone = [c for c in range(16) if c not in kept]
        for layer in (net.head, net.side):
            layer.weight[:, gone] = 0
    x = torch.randn(SHAPE)
    with torch.no_grad():
        assert difference(net(x).logits, small(x).logits) < 1e-5


class Boxed:
    """An object that torch.fx would not take from a forward; a leaf may return it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Boxing(nn.Module):
    def forward(self, x: Tensor) -> Boxed:
        return Boxed(x)


class Unboxing(nn.Module):
    def forward(self, box: Boxed) -> Tensor:
        return box.tensor * torch.arange(16.0).view(16, 1, 1)


def test_channels_that_enter_an_unknown_object_stay() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), Boxing(), Unboxing(), nn.Conv2d(16, 4, 1)).eval()
    gm = mbs_fx.trace(net, SHAPE, leaves=[Boxing, Unboxing])
    kept = mbs_fx.analyze(gm).kept
    assert kept["0"].endswith("returns an object of the class Boxed")
