"""Does the file give what the network gives?

Semantics
- The text is run with the weights, in eval mode, on random inputs, beside a copy of the network.
- Outputs agree as those of a trace and its module do (`mbs_fx.tracing.check`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from mbs_fx.errors import MBSError
from mbs_fx.shapes.graph_inputs import Shapes
from mbs_fx.shapes.shapes import random_inputs
from mbs_fx.tracing.check import RunError, copied, disagreement, run
from mbs_fx.tracing.example import Example, place_and_dtype


def require_same(text: str, state: Mapping[str, Tensor], gm: GraphModule, shapes: Shapes, types: Sequence[str]) -> None:
    """Raise `MBSError` where the network of a file differs from a graph; one without numbers is not compared."""
    device, dtype = place_and_dtype(gm)
    if device.type == "meta":
        return
    example = Example(random_inputs(shapes, types, dtype)).map(lambda tensor: tensor.to(device))
    try:
        expected = run(copied(gm).eval(), example)
        differs = disagreement(expected, run(_made(text, dict(state), device), example))
    except RunError as error:
        differs = f"it fails: {error}"
    if differs:
        raise MBSError(
            f"the network cannot be written as Python: the file would not give what the network gives, {differs}; "
            "keep it with mbs_fx.save"
        )


def _made(text: str, state: dict[str, Tensor], device: torch.device) -> nn.Module:
    """The network of a file with its weights, in eval mode."""
    space: dict[str, Any] = {"__name__": "exported", "__file__": "exported.py"}
    try:
        exec(compile(text, "exported.py", "exec"), space)
        return space["load"](state).to(device)
    except Exception as error:
        raise RunError(f"{type(error).__name__}: {error}") from error
