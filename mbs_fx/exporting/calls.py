"""Constructor calls as values: what is written for a layer, with every number in a place of its own.

A class that is written once for several blocks turns the numbers in which they differ into arguments, so a number has
to be found again in the text that it stands in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch

REQUIRED: Final = "required"
MARK: Final = "\0"
"""Stands for a number in a template."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One value in a call: what it is, its default, and what it may be called as an argument."""

    value: Any
    default: Any = REQUIRED
    child: str = ""
    argument: str = ""


@dataclass(frozen=True, slots=True)
class Argument:
    """A value or a nested call, by position where ``name`` is empty."""

    name: str
    held: Slot | Call


@dataclass(frozen=True, slots=True)
class Call:
    """``name(arguments)``, a line of a constructor."""

    name: str
    arguments: tuple[Argument, ...] = ()

    @property
    def structure(self) -> str:
        """The call without its values: two blocks of one class have equal structures."""
        inside = (f"{a.name}={MARK if isinstance(a.held, Slot) else a.held.structure}" for a in self.arguments)
        return f"{self.name}({', '.join(inside)})"

    def slots(self) -> Iterator[Slot]:
        """Every value, in the order of the text."""
        for argument in self.arguments:
            if isinstance(argument.held, Slot):
                yield argument.held
            else:
                yield from argument.held.slots()

    def text(self, write: Callable[[Slot], str | None]) -> str:
        """The call as Python; ``write`` gives the text of a value, None for one that is left out."""
        parts: list[str] = []
        for argument in self.arguments:
            held = argument.held
            text = write(held) if isinstance(held, Slot) else held.text(write)
            if text is not None:
                parts.append(f"{argument.name}={text}" if argument.name else text)
        if self.name in ("nn.Sequential", "nn.ModuleList"):
            parts = [*_repeated(parts)]
        if self.name == "nn.ModuleList":
            return f"nn.ModuleList([{', '.join(parts)}])"
        if self.name == "nn.ModuleDict":
            entries = (
                f"{literal(a.name)}: {part.partition('=')[2]}" for a, part in zip(self.arguments, parts, strict=True)
            )
            return f"nn.ModuleDict({{{', '.join(entries)}}})"
        return f"{self.name}({', '.join(parts)})"


def _repeated(parts: list[str]) -> Iterator[str]:
    """Three equal parts and more in a row become one."""
    start = 0
    while start < len(parts):
        end = next((i for i in range(start, len(parts)) if parts[i] != parts[start]), len(parts))
        if end - start > 2:
            yield f"*({parts[start]} for _ in range({end - start}))"
        else:
            yield from parts[start:end]
        start = end


def literal(value: Any) -> str:
    """A constant as Python text, quoted as formatters do."""
    if isinstance(value, str):
        return json.dumps(value)
    if (isinstance(value, float) and value in (float("inf"), float("-inf"))) or value != value:
        return f'float("{value}")'
    if isinstance(value, tuple | list):
        inside = ", ".join(map(literal, value))
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    return repr(value)
