"""Rule tables of the label pass.

A rule takes ``(flow, node)`` and returns the labels of the node's output: a tuple of factors for a tensor, a list
of such tuples for an operation with several outputs.  Functions and methods are looked up by operation name
(``add``, ``add_`` and ``operator.iadd`` are one operation), modules by class, the most derived first.
Add one with `register`; docs/rules.md shows how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Node

from mbs_fx.channels.flow import Flow, Rule
from mbs_fx.channels.rules import contractions as mixing
from mbs_fx.channels.rules import elementwise as arithmetic
from mbs_fx.channels.rules import layout as moves
from mbs_fx.channels.rules import modules as layers
from mbs_fx.channels.rules import normalisation as statistics
from mbs_fx.channels.rules import onnx
from mbs_fx.channels.rules import padding as growth
from mbs_fx.channels.rules import slicing as parts

FUNCTIONS: dict[str, Rule] = {
    **arithmetic.FUNCTIONS,
    **statistics.FUNCTIONS,
    **moves.FUNCTIONS,
    **parts.FUNCTIONS,
    **growth.FUNCTIONS,
    **mixing.FUNCTIONS,
}
MODULES: dict[type[nn.Module], Rule] = {**layers.MODULES}
OBJECTS: dict[Callable[..., Any], Rule] = {}
_registered: list[Rule] = []


def register_count() -> int:
    """How many rules were added: what was found out with fewer is found out again."""
    return len(_registered)


def operation(target: Any) -> str:
    """The one name of an operation in all its spellings."""
    name: str = target if isinstance(target, str) else getattr(target, "__name__", "")
    module = "" if isinstance(target, str) else (getattr(target, "__module__", "") or "")
    name = name.rstrip("_")
    if module == "_operator" and name in _IN_PLACE:
        return name[1:]
    return name


_IN_PLACE = {
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "ipow",
    "imod",
    "iand",
    "ior",
    "ixor",
    "imatmul",
}


def rule_for(flow: Flow, node: Node) -> Rule | None:
    """The rule of a node, None where there is none."""
    if node.op == "call_module":
        kind = type(flow.modules[str(node.target)])
        own = next((MODULES[k] for k in kind.__mro__ if k in MODULES), None)
        return own if own is not None else onnx.BY_NAME.get(kind.__name__)
    if node.op == "call_function" and not _of_library(node.target):
        return OBJECTS.get(node.target)  # type: ignore[arg-type]
    return FUNCTIONS.get(operation(node.target))


def _of_library(target: Any) -> bool:
    """Whether a function's name means what it means in torch; somebody's own ``clip`` may be anything."""
    module = getattr(target, "__module__", None) or "torch"
    return module.split(".")[0] in ("torch", "torchvision", "timm", "_operator", "builtins", "math")


def register(*kinds: type[nn.Module] | Callable[..., Any] | str) -> Callable[[Rule], Rule]:
    """Decorator: use the decorated rule for module classes, functions, or operation names."""

    def add(rule: Rule) -> Rule:
        for kind in kinds:
            if isinstance(kind, type):
                MODULES[kind] = rule
            elif isinstance(kind, str) or _of_library(kind):
                FUNCTIONS[operation(kind)] = rule
            else:
                OBJECTS[kind] = rule
        _registered.append(rule)
        return rule

    return add
