"""Tensors of one number that a graph makes of numbers alone: ``torch.as_tensor(length / 2).ceil().long()``.

Semantics
- Such a tensor keeps its number while shapes are inferred, since it may be the bound of a slice.
- Other operations get it without its number, as they get every tensor.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

from mbs_fx.operations.resolve import of_library

MAKERS = (torch.as_tensor, torch.scalar_tensor, torch.tensor)


class KnownNumbers:
    """The tensors of one number that a run has made so far."""

    def __init__(self) -> None:
        self.held: dict[int, Tensor] = {}

    def made(self, n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """What a node returns that makes such a tensor, None for every other node."""
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        if any(id(each) not in self.held for each in tensors) or not (tensors or n.target in MAKERS):
            return None
        if n.op == "call_method":
            result = getattr(args[0], str(n.target))(*args[1:], **kwargs)
        elif n.op == "call_function" and callable(n.target) and of_library(n.target):
            result = n.target(*args, **kwargs)
        else:
            return None
        if not isinstance(result, Tensor) or result.dim() or result.is_meta:
            return None
        self.held[id(result)] = result
        return result

    def given(self, n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The arguments of a node, with numbers where it is an index, and otherwise with tensors that have none."""
        if not self.held:
            return args, kwargs

        def plain(value: Any) -> Any:
            if id(value) not in self.held:
                return value
            return value.item() if n.target is operator.getitem else torch.empty_like(value, device="meta")

        return map_aggregate((args, kwargs), plain)  # type: ignore[return-value]
