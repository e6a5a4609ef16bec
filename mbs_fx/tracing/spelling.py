"""How a torch function that was intercepted is written in a graph: as symbolic tracing would write it.

Semantics
- Operators arrive as methods of Tensor and leave as functions of `operator`; reflected ones change sides.
- Other methods are ``call_method``; attributes are ``getattr``; everything else is ``call_function``.
- In-place operators (``x += y``) arrive as in-place methods (``add_``) and stay so.
"""

from __future__ import annotations

import operator
from typing import Any, Final

import torch

BINARY: Final = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "__floordiv__": operator.floordiv,
    "remainder": operator.mod,
    "pow": operator.pow,
    "matmul": operator.matmul,
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__xor__": operator.xor,
    "__lshift__": operator.lshift,
    "__rshift__": operator.rshift,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "__eq__": operator.eq,
    "__ne__": operator.ne,
    "__getitem__": operator.getitem,
}
REFLECTED: Final = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rpow__": operator.pow,
    "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
}
OTHERS: Final = {"__setitem__": operator.setitem, "neg": operator.neg, "__invert__": operator.invert}


def is_property(func: Any) -> str:
    """The name of the attribute that ``func`` reads, empty where it is not an attribute's getter."""
    return func.__self__.__name__ if getattr(func, "__name__", "") == "__get__" else ""


def is_method(func: Any) -> bool:
    """Whether ``func`` is a method of Tensor rather than a function of torch."""
    if getattr(func, "__objclass__", None) in torch.Tensor.__bases__:
        return True
    return getattr(func, "__qualname__", "").split(".")[0] in ("Tensor", "TensorBase")


def spelling(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any, tuple[Any, ...]]:
    """Kind of node, its target, and its positional arguments."""
    attribute = is_property(func)
    if attribute:
        return "call_function", getattr, (args[0], attribute)
    if not is_method(func):
        return "call_function", func, args
    name = func.__name__
    if name in OTHERS and not kwargs:
        return "call_function", OTHERS[name], args
    if name in BINARY and len(args) == 2 and not kwargs:
        return "call_function", BINARY[name], args
    if name in REFLECTED and len(args) == 2:
        return "call_function", REFLECTED[name], args[::-1]
    return "call_method", name, args


def is_in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``func`` changes the tensor that it returns."""
    name = getattr(func, "__name__", "")
    changes = name.endswith("_") and not name.endswith("__")
    return changes or name.startswith("__i") or bool(kwargs.get("inplace")) or kwargs.get("out") is not None


def name_of(func: Any) -> str:
    """What a torch function is called; the setter of an attribute by the attribute."""
    setter = getattr(func, "__name__", "") == "__set__"
    return f"assigning a tensor's {func.__self__.__name__}" if setter else getattr(func, "__name__", repr(func))
