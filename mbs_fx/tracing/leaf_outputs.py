"""Shapes that only a real run can tell: the outputs of leaves that do not run on fake tensors.

Semantics
- One run of a copy of the model on the example, at the first question; it keeps shapes, dtypes and devices.
- A model that fails in that run tells only what came before.
- The n-th call of a leaf in the trace is its n-th call in the run.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import nn

from mbs_fx.runtime.torch_private import FakeTensorMode, tree_map_only
from mbs_fx.tracing.check import RunError, copied, run
from mbs_fx.tracing.example import Example
from mbs_fx.tracing.leaves import Leaves

ORIGINAL_CALL: Final = nn.Module.__call__


@dataclass(frozen=True)
class Form:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def fake(self, mode: FakeTensorMode) -> torch.Tensor:
        """A fake tensor of this form."""
        with mode:
            return torch.empty(self.shape, dtype=self.dtype, device=self.device)


def form_of(tensor: torch.Tensor) -> Form:
    """What a tensor looks like."""
    return Form(tuple(tensor.shape), tensor.dtype, tensor.device)


class Observations:
    """What each leaf of a model returned when the model ran on an example."""

    def __init__(self, model: nn.Module, example: Example, leaves: Leaves) -> None:
        self.model = model
        self.example = example
        self.leaves = leaves

    def output(self, path: str, call: int, mode: FakeTensorMode) -> Any:
        """The output of the leaf at ``path`` in its ``call``-th call (from 0), as fake tensors, or None."""
        found = self.outputs.get(path, [])
        return tree_map_only(Form, lambda form: form.fake(mode), found[call]) if call < len(found) else None

    @cached_property
    def outputs(self) -> dict[str, list[Any]]:
        """The outputs of all leaves, in the order of their calls."""
        found: dict[str, list[Any]] = defaultdict(list)
        twin = copied(self.model)
        paths = {m: path for path, m in twin.named_modules() if path and self.leaves.keep(m, path)}

        # Not by hooks, which TorchScript modules do not take.
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            output = ORIGINAL_CALL(module, *args, **kwargs)
            if module in paths:
                found[paths[module]].append(tree_map_only(torch.Tensor, form_of, output))
            return output

        with suppress(RunError), patch.object(nn.Module, "__call__", call):
            run(twin, self.example)
        return found
