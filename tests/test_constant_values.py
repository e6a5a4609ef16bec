"""Values that a model reads from its own tensors are constants of its graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mbs_fx

SHAPE = (2, 3, 8, 8)


class Reads(nn.Module):
    """One convolution; what is read from ``self`` decides what comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("times", torch.tensor(3))
        self.gains = nn.Parameter(torch.tensor([2.0, 0.5]))
        self.stride = torch.tensor([8.0, 16.0])

    def after(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] < 1:  # no symbolic trace follows this
            return x
        return self.after(self.conv(x))


class Constant(Reads):
    def after(self, y: Tensor) -> Tensor:
        return y * y.new_full((y.shape[2], 1), self.stride[1])


class Buffer(Reads):
    def after(self, y: Tensor) -> Tensor:
        for _ in range(int(self.times)):
            y = y + 1
        return y * (self.times + 1).item()


class Parameter(Reads):
    def after(self, y: Tensor) -> Tensor:
        return (y.relu() if self.gains.abs().sum() > 2 else y) * float(self.gains[0])


def traced(kind: type[Reads]) -> tuple[Reads, Any]:
    torch.manual_seed(0)
    model = kind().eval()
    return model, mbs_fx.trace(model, SHAPE)


@pytest.mark.parametrize("kind", [Constant, Buffer, Parameter])
def test_no_leaf_and_nothing_left_over(kind: type[Reads]) -> None:
    model, gm = traced(kind)
    assert gm.meta["mbs_leaves"] == {}
    for shape in (SHAPE, (3, 3, 12, 10)):
        x = torch.randn(shape)
        assert torch.equal(gm(x), model(x))
    assert all(node.users for node in gm.graph.nodes if node.op != "output")


def test_a_parameter_that_was_read_is_named() -> None:
    told = {kind: " ".join(traced(kind)[1].meta["mbs_notes"]) for kind in (Constant, Buffer, Parameter)}
    assert [kind for kind, notes in told.items() if "values that gains have now" in notes] == [Parameter]


def test_what_depends_on_the_input_is_no_constant() -> None:
    class Decides(Reads):
        def after(self, y: Tensor) -> Tensor:
            return y * 2 if (y.mean() + self.gains.sum()) > 0 else y

    with pytest.raises(mbs_fx.MBSError, match="cannot be traced"):
        traced(Decides)


def test_random_numbers_are_no_constants() -> None:
    class Drops(Reads):
        def after(self, y: Tensor) -> Tensor:
            return y * float(torch.rand_like(self.gains).sum())

    with pytest.raises(mbs_fx.MBSError):
        traced(Drops)


class Typed(Reads):
    """Converts its own constant with the parameters, as detectors do."""

    def after(self, y: Tensor) -> Tensor:
        return y * y.new_full((y.shape[2], 1), self.stride[1], dtype=y.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.stride = fn(self.stride)
        return self


def test_a_number_that_is_a_constant_in_another_type_leaves_types_free() -> None:
    _, gm = traced(Typed)
    assert gm.meta["mbs_notes"] == ()
    assert gm.double()(torch.randn(SHAPE).double()).dtype is torch.float64
