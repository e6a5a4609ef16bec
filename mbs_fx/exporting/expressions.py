"""One step of a graph as Python text.

Semantics
- Functions are found by identity in the public namespaces of torch and torchvision; any other is foreign and is named
  in the error.
- Numbers are marked in the text (`mbs_fx.exporting.calls.MARK`) and collected, so that a class may take them as
  arguments.
"""

from __future__ import annotations

import builtins
import importlib
import math
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from mbs_fx.errors import MBSError
from mbs_fx.exporting.calls import MARK, literal

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
    "eq": "==", "ne": "!=", "lt": "<", "gt": ">", "le": "<=", "ge": ">=", "and_": "&", "or_": "|", "xor": "^",
}  # fmt: skip
IN_PLACE = {f"i{name}": f"{sign}=" for name, sign in INFIX.items() if name in ("add", "sub", "mul", "truediv")}
_UNARY = {"neg": "-", "invert": "~", "inv": "~", "pos": "+", "not_": "not "}
_SPACES = ((torch, "torch"), (F, "F"), (math, "math"), (operator, "operator"), (torch.linalg, "torch.linalg"),
           (torch.fft, "torch.fft"), (torch.special, "torch.special"), (builtins, ""))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fragment:
    """Text with marks, and the numbers that the marks stand for; ``open`` text needs brackets inside an expression."""

    text: str
    numbers: tuple[Any, ...] = ()
    open: bool = False

    @property
    def closed(self) -> Fragment:
        return Fragment(f"({self.text})", self.numbers) if self.open else self


Write = Callable[[Any], Fragment]


def joined(parts: Sequence[Fragment], between: str = ", ", before: str = "", after: str = "") -> Fragment:
    """Fragments one after the other."""
    numbers = tuple(number for part in parts for number in part.numbers)
    return Fragment(before + between.join(part.text for part in parts) + after, numbers)


def value(held: Any, name: Write) -> Fragment:
    """An argument: nested containers, nodes by ``name``, constants."""
    if isinstance(held, Node):
        return name(held)
    if isinstance(held, slice):
        return joined([value(each, name) for each in (held.start, held.stop, held.step)], before="slice(", after=")")
    if isinstance(held, dict):
        parts = [joined([value(key, name), value(each, name)], ": ") for key, each in held.items()]
        return joined(parts, before="{", after="}")
    if isinstance(held, tuple | list):
        inside = joined([value(each, name) for each in held])
        opening, closing = ("[", "]") if isinstance(held, list) else ("(", ",)" if len(held) == 1 else ")")
        return Fragment(opening + inside.text + closing, inside.numbers)
    if type(held) in (int, float) and math.isfinite(held):
        return Fragment(MARK, (held,), held < 0)
    return Fragment("..." if held is Ellipsis else literal(held))


def _slice(held: slice, name: Write) -> Fragment:
    start, stop, step = ("" if each is None else each for each in (held.start, held.stop, held.step))
    parts = [Fragment("") if each == "" else value(each, name).closed for each in (start, stop)]
    return joined(parts if step == "" else [*parts, value(step, name).closed], ":")


def expression(node: Node, name: Write) -> Fragment:
    """What a function or method node computes."""
    if node.op == "call_method":
        source, *rest = node.args
        return _call(joined([name(source).closed, Fragment(str(node.target))], "."), rest, node.kwargs, name)
    target: Any = node.target
    kind = getattr(target, "__name__", "")
    if target is getattr and isinstance(node.args[1], str):
        return joined([value(node.args[0], name).closed, Fragment(node.args[1])], ".")
    if target is operator.getitem:
        return _item(node, name)
    if target is operator.setitem:
        return joined([_item(node, name), value(node.args[2], name)], " = ")
    if getattr(operator, kind, None) is target and not node.kwargs:
        if kind in INFIX:
            first, second = (value(argument, name).closed for argument in node.args)
            simple = kind == "pow" and all(
                part.replace(".", "").replace(MARK, "n").isidentifier() for part in (first.text, second.text)
            )
            between = joined([first, second], "**" if simple else f" {INFIX[kind]} ")
            return Fragment(between.text, between.numbers, True)
        if kind in _UNARY:
            inside = value(node.args[0], name).closed
            return Fragment(_UNARY[kind] + inside.text, inside.numbers, True)
    return _call(Fragment(function_name(node)), node.args, node.kwargs, name)


def _item(node: Node, name: Write) -> Fragment:
    source, index = node.args[:2]

    def part(each: Any) -> Fragment:
        return _slice(each, name) if isinstance(each, slice) else value(each, name)

    if isinstance(index, tuple) and index:
        inside = joined([part(each) for each in index])
        inside = Fragment(inside.text + ("," if len(index) == 1 else ""), inside.numbers)
    else:
        inside = part(index)
    return joined([value(source, name).closed, inside], "[", after="]")


def _call(function: Fragment, args: Sequence[Any], kwargs: dict[str, Any], name: Write) -> Fragment:
    parts = [value(each, name) for each in args]
    parts += [joined([Fragment(key), value(each, name)], "=") for key, each in kwargs.items()]
    inside = joined(parts, before="(", after=")")
    return joined([function, inside], "")


@cache
def _public() -> dict[int, str]:
    """Public functions of torch and Python by identity; the first name counts."""
    found: dict[int, str] = {}
    for space, prefix in _SPACES:
        for name in sorted(vars(space)):
            held = vars(space)[name]
            if callable(held) and not name.startswith("_"):
                found.setdefault(id(held), f"{prefix}.{name}".removeprefix("."))
    return found


def function_name(node: Node) -> str:
    """How a file that imports torch calls a function; raises `MBSError` for a foreign one."""
    target: Any = node.target
    known = _public().get(id(target))
    if known is not None:
        return known
    module, name = str(getattr(target, "__module__", "")), str(getattr(target, "__name__", target))
    if type(target).__name__ in ("OpOverload", "OpOverloadPacket"):
        return f"torch.ops.{target}"
    if module.startswith("torchvision.ops.") and getattr(sys.modules["torchvision.ops"], name, 0) is target:
        return f"torchvision.ops.{name}"
    if module.split(".")[0] in ("torch", "torchvision") and getattr(importlib.import_module(module), name, 0) is target:
        return f"{module}.{name}"
    raise MBSError(
        f"%{node.name} cannot be written: it calls {module}.{name}, which is neither torch's nor torchvision's; keep "
        "the network with mbs_fx.save, or write that function with operations of torch"
    )
