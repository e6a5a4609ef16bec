"""From a node of a graph to its operation: the one place that says what a target means.

Semantics
- A function means what its name says if it is torch's or Python's own: a builtin of torch, ``operator``, ``math`` or
  Python, or a function that torch holds under that name.  Somebody's own ``clip`` may be anything.
- ``x.relu_()``, ``torch.relu``, ``F.relu``, ``aten.relu.default`` and ``nn.ReLU`` are one operation; so are
  ``operator.iadd``, ``x.__add__`` and ``torch.add``.
- What `register_operation` adds comes first, and only for as long as it is registered.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from mbs_fx.operations.operation import Operation
from mbs_fx.operations.vocabulary import CLASS_NAMES, METHODS, MODULES, NAMES, is_pointwise

LIBRARIES = frozenset({"torch", "torchvision", "math", "operator", "_operator", "builtins"})
"""Libraries whose functions are the same function of their arguments at every call."""

_SPACES = (("", torch), ("", F), ("", torch.Tensor), ("special_", torch.special), ("linalg_", torch.linalg))
_BUILTINS = frozenset({"torch", "_operator", "math", "builtins"})
_ELEMENTWISE = (("input", "self", "x"), ("other",))

registered: dict[Any, list[Operation]] = {}
"""Operations that were added: by function, by module class, or by `spelling` for torch's functions; the last counts."""


def operation_of(gm: GraphModule, node: Node) -> Operation | None:
    """The operation that a node applies; None for what is not in the vocabulary, inputs and attributes."""
    if node.op == "call_module":
        return of_module(type(gm.get_submodule(str(node.target))))
    return of_target(node)


def of_target(node: Node) -> Operation | None:
    """The operation of a function or a method; None for every other node."""
    if node.op not in ("call_function", "call_method"):
        return None
    if registered and (mine := _registered(node)):
        return mine
    return _of_method(str(node.target)) if node.op == "call_method" else of_function(node.target)


def of_function(target: Any) -> Operation | None:
    """The operation of a function, None where it is not torch's own."""
    try:
        return _of_function(target)
    except TypeError:  # a callable object that cannot be hashed
        return None


def of_module(kind: type[nn.Module]) -> Operation | None:
    """The operation of a module class, by base class, the most derived first."""
    for base in kind.__mro__ if registered else ():
        if found := registered.get(base):
            return found[-1]
        if base in MODULES:
            break
    return _of_class(kind)


def spelling(target: Any) -> str:
    """The name of a function, method or operator without what marks it as in place: ``relu`` for ``relu_``."""
    if isinstance(target, str):
        return _plain(target)
    packet = getattr(target, "overloadpacket", target)
    if type(packet).__module__ == "torch._ops":
        return _plain(str(packet).partition(".")[2])
    name = _plain(getattr(target, "__name__", ""))
    in_place = getattr(target, "__module__", "") == "_operator" and name.startswith("i") and name[1:] in NAMES
    return name[1:] if in_place else name


def is_in_place(node: Node) -> bool:
    """Whether a function or method is spelled as one that changes its argument."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if getattr(node.target, "__module__", "") == "_operator" or name.startswith("__"):
        return name.strip("_")[:1] == "i" and name.strip("_")[1:] == spelling(node.target)
    return name.endswith("_")


def torchs_own(target: Any) -> bool:
    """Whether a function's name means what it means in torch or Python; somebody's own ``clip`` may be anything."""
    return _hashable(target) and _torchs_own(target)


def of_library(target: Any) -> bool:
    """Whether a function belongs to Python, torch or torchvision; builtins of torch have no module."""
    module = getattr(target, "__module__", None)
    return module is None or module.split(".")[0] in LIBRARIES


def is_plain_layer(module: nn.Module) -> bool:
    """Whether a module is exactly a layer of ``torch.nn``: a subclass may compute something else."""
    return type(module) in MODULES and type(module).__module__.startswith("torch.nn.modules.")


def named(name: str) -> Operation | None:
    """The operation of a name as it is printed: of a function, a method or a class of ``torch.nn``."""
    kind = getattr(nn, name, None)
    return of_module(kind) if isinstance(kind, type) and issubclass(kind, nn.Module) else _named(spelling(name))


def _registered(node: Node) -> Operation | None:
    held = _hashable(node.target) and not isinstance(node.target, str) and registered.get(node.target)
    if not held and (isinstance(node.target, str) or torchs_own(node.target)):
        held = registered.get(spelling(node.target))
    return held[-1] if held else None


def _hashable(target: Any) -> bool:
    try:
        hash(target)
    except TypeError:
        return False
    return True


def _plain(name: str) -> str:
    if name.startswith("__"):
        inner = name.strip("_")
        return inner[1:] if inner[:1] in ("i", "r") and inner not in NAMES and inner[1:] in NAMES else inner
    return name.rstrip("_")


@cache
def _of_function(target: Any) -> Operation | None:
    packet = getattr(target, "overloadpacket", target)
    if type(packet).__module__ == "torch._ops":
        return _of_method(spelling(target)) if str(packet).startswith("aten.") else NAMES.get(str(packet))
    path = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
    if path in NAMES:
        return NAMES[path]
    return _named(spelling(target)) if torchs_own(target) else None


@cache
def _of_method(name: str) -> Operation | None:
    return METHODS.get(_plain(name)) or _named(_plain(name))


@cache
def _named(name: str) -> Operation | None:
    """By spelling; what torch says is elementwise is one without an entry."""
    found = NAMES.get(name) or NAMES.get(name.lstrip("_"))
    if found is None and is_pointwise(name):
        return Operation(name, _ELEMENTWISE, (name,), elementwise=True)
    return found


@cache
def _torchs_own(target: Any) -> bool:
    name, module = getattr(target, "__name__", ""), getattr(target, "__module__", None) or "torch"
    if not name or module.split(".")[0] not in _BUILTINS:
        return False
    if type(target) is type(len):  # a builtin
        return True
    return any(getattr(space, name.removeprefix(prefix), None) is target for prefix, space in _SPACES)


@cache
def _of_class(kind: type[nn.Module]) -> Operation | None:
    found = next((MODULES[base] for base in kind.__mro__ if base in MODULES), None)
    return found or CLASS_NAMES.get(kind.__name__)
