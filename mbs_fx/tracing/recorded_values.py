"""Numbers that remember where they come from.

Semantics
- While ``forward`` runs on concrete shapes, the sizes of tensors are ordinary ints to Python: they compare,
  index, format and count as such.  Each also knows how the graph computes it, so that a size that ends up
  in an operation is a node and not a constant.
- Arithmetic keeps the memory.  ``int()``, ``max()``, ``len()`` and the like may lose it; then it is a
  constant.
- Nodes are made when they are first needed, so that what is only compared leaves no trace in the graph.
- Nothing outlives a trace: torch's functions get plain numbers, and a ``functools.lru_cache`` that has taken up a
  number with a memory is emptied.  Code of einops is told that such numbers are no keys; it then computes afresh,
  as it does for torch's own symbolic sizes.
"""

from __future__ import annotations

import functools
import gc
import math
import operator
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import fx


class Source:
    """How the graph gets a value: a node, or the recipe of one."""

    def __init__(self, kind: str, target: Any, args: tuple[Any, ...] = (), node: fx.Node | None = None) -> None:
        self.kind = kind
        self.target = target
        self.args = args
        self.node = node
        # The node may be written later, in a region of another gradient mode.
        self.gradients = torch.is_grad_enabled()

    def __fx_create_arg__(self, tracer: fx.Tracer) -> fx.Node:
        if self.node is None:
            with torch.set_grad_enabled(self.gradients):
                args = tracer.create_arg(self.args)
                assert isinstance(args, tuple)
                self.node = tracer.create_node(self.kind, self.target, args, {})
        return self.node


class Traced:
    """The part that traced ints and floats share."""

    source: Source
    hashed: ClassVar[bool] = False

    def __hash__(self) -> int:
        if str(sys._getframe(1).f_globals.get("__name__", "")).startswith("einops."):
            raise TypeError("a size that is being traced is no key")
        Traced.hashed = True
        return hash(plain(self))

    def __fx_create_arg__(self, tracer: fx.Tracer) -> fx.Node:
        return self.source.__fx_create_arg__(tracer)

    def __deepcopy__(self, memo: dict[int, Any]) -> Traced:
        return self


class TracedInt(Traced, int):
    """A size, or something computed of sizes."""

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


class TracedFloat(Traced, float):
    """A ratio or root of sizes."""

    def __reduce__(self) -> tuple[type[float], tuple[float]]:
        return float, (float(self),)


def traced(value: Any, source: Source) -> Any:
    """``value`` with a memory where it is an int or a float, ``value`` itself otherwise."""
    if type(value) is int:
        number: Traced = TracedInt(value)
    elif type(value) is float:
        number = TracedFloat(value)
    else:
        return value
    number.source = source
    return number


def plain(value: Any) -> Any:
    """The number without its memory."""
    if isinstance(value, TracedInt):
        return int(value)
    return float(value) if isinstance(value, TracedFloat) else value


def plainly(value: Any) -> Any:
    """Arguments of a call without the memory of their numbers."""
    if isinstance(value, Traced):
        return plain(value)
    if isinstance(value, torch.Size):
        return torch.Size(map(plain, value))
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if type(value) in (tuple, list):
        return type(value)(map(plainly, value))
    return {key: plainly(item) for key, item in value.items()} if type(value) is dict else value


@contextmanager
def forgotten_afterwards() -> Generator[None]:
    """Empty, at the end, the caches of functions that hold numbers with a memory."""
    Traced.hashed = False
    try:
        yield
    finally:
        if Traced.hashed:
            for wrapper in [held for held in gc.get_objects() if type(held) is functools._lru_cache_wrapper]:
                if any(_holds_traced(held) for held in gc.get_referents(wrapper)):
                    wrapper.cache_clear()


def _holds_traced(value: Any, depth: int = 4) -> bool:
    if isinstance(value, Traced):
        return True
    if not depth or not isinstance(value, (tuple, list, set, frozenset, Mapping)):
        return False
    parts = (*value, *value.values()) if isinstance(value, Mapping) else value
    return any(_holds_traced(part, depth - 1) for part in parts)


def _remember(name: str, function: Callable[..., Any], reflected: bool = False) -> None:
    def method(*operands: Any) -> Any:
        if not all(isinstance(operand, (int, float)) for operand in operands):
            return NotImplemented
        args = operands[::-1] if reflected else operands
        return traced(function(*map(plain, args)), Source("call_function", function, args))

    for kind in (TracedInt, TracedFloat):
        setattr(kind, f"__{name}__", method)


BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
UNARY = {"neg": operator.neg, "abs": abs, "ceil": math.ceil, "floor": math.floor, "round": round}

for _name in BINARY:
    _remember(_name, getattr(operator, _name))
    _remember(f"r{_name}", getattr(operator, _name), reflected=True)
for _name, _function in UNARY.items():
    _remember(_name, _function)
