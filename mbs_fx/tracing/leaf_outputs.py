"""What leaves return while a graph is recorded: fake tensors.

Semantics
- A leaf runs on fake tensors.  Layers of torch.nn of one configuration return one form for one form of their input, so
  each combination runs once.
- The output of a leaf that does not run on fake tensors is read off a real run: one run of a copy of the model on the
  example, at the first question; it keeps shapes, dtypes and devices.  A model that fails in that run tells only what
  came before.  The n-th call of a leaf in the trace is its n-th call in the run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import nn

from mbs_fx.runtime.torch_private import FakeTensor, FakeTensorMode, tree_map_only
from mbs_fx.shapes.fake_interpreter import keeps_layout
from mbs_fx.shapes.layouts import hashed
from mbs_fx.tracing.check import RunError, copied, is_plain_layer, run
from mbs_fx.tracing.example import Example
from mbs_fx.tracing.leaves import Leaves

ORIGINAL_CALL: Final = nn.Module.__call__


@dataclass(frozen=True)
class Form:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def fake(self, mode: FakeTensorMode) -> FakeTensor:
        """A fake tensor of this form."""
        held = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        return FakeTensor(mode, held, self.device)


def form_of(tensor: torch.Tensor) -> Form:
    """What a tensor looks like."""
    dense = tensor if tensor.layout is torch.strided else torch.empty(tensor.shape, device="meta")
    return Form(tuple(tensor.shape), dense.stride(), tensor.dtype, tensor.device)


class LeafOutputs:
    """What the leaves of one trace return."""

    def __init__(self, mode: FakeTensorMode, observations: Observations) -> None:
        self.mode = mode
        self.observations = observations
        self.num_calls: Counter[str] = Counter()
        self.known: dict[Hashable, Form | None] = {}

    def output(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of the next call of the leaf at ``path``."""
        call = self.num_calls[path]
        self.num_calls[path] += 1
        key = _key(module, args, kwargs)
        if key is not None and keeps_layout(module, args[0]):
            return form_of(args[0]).fake(self.mode)
        if key in self.known:
            form = self.known[key]
            return args[0] if form is None else form.fake(self.mode)
        try:
            with self.mode:
                result = ORIGINAL_CALL(module, *args, **kwargs)
        except Exception:
            result = self.observations.output(path, call, self.mode)
            if result is None:
                raise
            return result
        if key is not None and isinstance(result, FakeTensor):
            self.known[key] = None if result is args[0] else form_of(result)
        return result


def _key(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
    """What the form of a layer's output follows from, None where that cannot be told; a form of None is the input."""
    if kwargs or len(args) != 1 or type(args[0]) is not FakeTensor or not is_plain_layer(module):
        return None
    if torch.is_autocast_enabled(args[0].device.type):
        return None
    configuration = hashed(module)
    devices = frozenset(tensor.device for tensor in module._parameters.values() if tensor is not None)
    return None if configuration is None else (configuration, form_of(args[0]), devices)


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
