"""One application of an operation, as rules see it.

Semantics
- `Call` answers by parameter name, whether an argument was given by position or by name, to a function or a method, or
  is an attribute of a module.
- Arguments stand as they do in the graph; `Call.value` puts what a node returns in place of the node: a `TensorShape`
  or a Python value.
- A call is frozen and so is what it knows: a rule returns what it found out and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from mbs_fx.operations.operation import Operation

Place = tuple[str | int, ...]
"""Where an argument stands in a node: ``("args", 1)``, ``("kwargs", "dim")``, and further into a sequence."""


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def holds_tensor(value: Any) -> bool:
    """Whether a value that a node returns is a tensor, or holds one."""
    if isinstance(value, list | tuple):
        return any(map(holds_tensor, value))
    return isinstance(value, TensorShape) or (isinstance(value, dict) and any(map(holds_tensor, value.values())))


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A node of a graph, the operation that it applies, and what every node before it returns.

    ``module`` is that of a ``call_module`` node; ``values`` is the result of `mbs_fx.shapes.shapes.infer`.
    """

    gm: GraphModule
    node: Node
    operation: Operation | None
    module: nn.Module | None
    values: Mapping[str, Any]

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument as it stands in the graph, or an attribute of the module; ``default`` where none is given."""
        node, at = self.node, self.operation.position(name) if self.operation is not None else None
        if node.kwargs:
            for each in self.operation.alternatives(name) if self.operation is not None else (name,):
                if each in node.kwargs:
                    return default if node.kwargs[each] is None else node.kwargs[each]
        if self.module is not None and at != 0 and hasattr(self.module, name):
            found = getattr(self.module, name)
        else:
            found = node.args[at] if at is not None and len(node.args) > at else None
        return default if found is None else found

    def value(self, name: str, default: Any = None) -> Any:
        """An argument as a Python value; a `TensorShape` for a tensor."""
        return self.evaluated(self.argument(name, default))

    def number(self, name: str, default: Any = None) -> Any:
        """An argument that is a number; None where it is a tensor, or not given."""
        value = self.value(name, default)
        return value if isinstance(value, int | float) else None

    def evaluated(self, given: Any) -> Any:
        """``given`` with nodes replaced by what they return."""
        if isinstance(given, Node):
            return self.values[given.name]
        if isinstance(given, list | tuple):
            return tuple(map(self.evaluated, given))
        if isinstance(given, slice):
            return slice(self.evaluated(given.start), self.evaluated(given.stop), self.evaluated(given.step))
        return given

    def place(self, name: str) -> Place:
        """Where an argument stands in the node."""
        operation = self.operation
        for each in operation.alternatives(name) if operation is not None else (name,):
            if each in self.node.kwargs:
                return ("kwargs", each)
        at = operation.position(name) if operation is not None else None
        return ("kwargs", name) if at is None or len(self.node.args) <= at else ("args", at)

    def collected(self, name: str) -> tuple[list[Any], Place, int]:
        """An argument that is a sequence or several arguments: (its items, where they stand, index of the first)."""
        operation = self.operation
        at = operation.position(f"*{name}") if operation is not None else None
        if at is not None and len(self.node.args) > at:
            first = self.node.args[at]
            if isinstance(first, list | tuple):
                return list(first), ("args", at), 0
            return list(self.node.args[at:]), ("args",), at
        names = () if operation is None else operation.alternatives(f"*{name}")
        given = next((k for k in ("shape", *(each.lstrip("*") for each in names)) if k in self.node.kwargs), None)
        if given is None:
            return [], ("kwargs", name), 0
        held: Any = self.node.kwargs[given]
        return (list(held) if isinstance(held, list | tuple) else [held]), ("kwargs", given), 0

    @property
    def source(self) -> Any:
        """What the operation works on: its first argument, by position or by name."""
        if self.node.args:
            return self.node.args[0]
        first = self.operation.parameters[0] if self.operation is not None and self.operation.parameters else ()
        named = (self.node.kwargs[name] for name in first if name in self.node.kwargs)
        return next(named, next(iter(self.node.all_input_nodes), None))

    @property
    def returned(self) -> Any:
        """What the node returns."""
        return self.values[self.node.name]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what the node returns; () where that is no tensor."""
        return self.shape_of(self.node)

    def shape_of(self, given: Any) -> tuple[int, ...]:
        """The shape of a tensor among the arguments; () for numbers."""
        value = self.values[given.name] if isinstance(given, Node) else given
        return value.shape if isinstance(value, TensorShape) else ()

    @property
    def where(self) -> str:
        """How messages name the node: its name, its operation, and the module that it stands in."""
        return where(self.node)


def where(node: Node) -> str:
    """How messages name a node: its name, its operation, and the module that it stands in."""
    stack = node.meta.get("nn_module_stack")
    inside = next(reversed(stack.values()))[0] if stack else ""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return f"%{node.name} ({target})" + (f" in {inside}" if inside else "")
