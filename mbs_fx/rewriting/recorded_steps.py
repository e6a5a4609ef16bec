"""What a network does on its way, step by step, to compare two codes without numbers.

Semantics
- A step is an operator of torch with its arguments: numbers as they are, tensors by their shape, their type and their
  place in the order in which they first appear.  Two runs with equal steps compute the same from equal parameters.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mbs_fx.runtime.torch_private import TorchDispatchMode, tree_map
from mbs_fx.tracing.check import run
from mbs_fx.tracing.example import Example

Step = tuple[Any, str]


class _Recorder(TorchDispatchMode):
    """Notes every operator that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.seen: dict[int, tuple[int, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.steps.append((func, repr(tree_map(self._known, (args, kwargs or {}, result)))))
        return result

    def _known(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # The tensor is held, so that no later one has its identity.
        place, _ = self.seen.setdefault(id(value), (len(self.seen), value))
        return place, tuple(value.shape), value.dtype


def recorded(model: nn.Module, example: Example) -> tuple[Any, list[Step]]:
    """What a model gives, and its steps; raises `RunError` as `run` does."""
    with _Recorder() as recorder:
        given = run(model, example)
    return given, recorder.steps
