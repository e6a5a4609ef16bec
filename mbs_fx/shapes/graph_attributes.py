"""Attributes of the module that a graph belongs to, and copies of modules that share tensors."""

from __future__ import annotations

from copy import copy
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def attribute(root: nn.Module, path: str) -> Any:
    """The module, parameter, buffer or plain attribute at a dotted path, as a ``get_attr`` node reads it."""
    held: Any = root
    for name in path.split("."):
        held = getattr(held, name)
    return held


def shallow_copy(module: Module) -> Module:
    """A copy with the same tensors and children, and with dictionaries, lists and sets of its own.

    Putting another tensor, child or hook into the copy leaves the original as it was.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return copy(module)
    new = object.__new__(type(module))
    held = vars(new)
    held.update(vars(module))
    for name, value in held.items():
        if isinstance(value, dict | list | set):
            held[name] = value.copy() if value else type(value)()
    return new
