"""Where a NaN or an infinity first appears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mbs_fx.density.counting import floating_tensors
from mbs_fx.shapes.graph_inputs import Name, arguments_of


def locate(gm: fx.GraphModule, inputs: Sequence[Tensor], names: Sequence[Name] = ()) -> str | None:
    """The first node of ``gm`` that gives a value that is not finite, in words; None if there is none."""
    search = _Search(gm)
    first = next((t for t in gm.parameters() if t.is_floating_point()), None)
    if first is not None:
        inputs = [t.to(first.device, first.dtype) if t.is_floating_point() else t.to(first.device) for t in inputs]
    search.run(*arguments_of(names, inputs), enable_io_processing=False)
    return search.found


class _Search(fx.Interpreter):
    """Runs a graph and notes the first value that is not finite."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.found: str | None = None

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, noted where it is the first that is not finite."""
        result = super().run_node(n)
        if self.found is None and n.op not in ("get_attr", "output"):
            for tensor in floating_tensors(result):
                if not bool(torch.isfinite(tensor).all()):
                    value = "NaN" if bool(torch.isnan(tensor).any()) else "an infinite value"
                    place = f"module {n.target}" if n.op == "call_module" else n.op.replace("_", " ")
                    what = "the image itself holds" if n.op == "placeholder" else f"node {n.name} ({place}) gives"
                    self.found = f"{what} {value}"
        return result
