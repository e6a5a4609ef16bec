"""Tensors that a model's forward keeps on the model for its next call.

Semantics
- A tensor in an ordinary attribute of a module, or in a dict or list there, is a *cache* when ``forward`` makes it
  again after it was taken away, with the same outputs.  Everything else in attributes is a constant.
- A trace starts from copies whose caches are empty, so that the graph computes what the model would compute once and
  keep: it follows the parameters that went into it.
- A cache for one size of the input (anchors) is filled again when the size changes.  Where a graph does not hold at
  another size, it is traced again with the attributes that a run at that size leaves behind.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

MODULE_FIELDS = frozenset(vars(nn.Module()))
MOST_TRIALS = 3

Caches = Sequence[tuple[str, str, Any]]
"""Module path, attribute, and the value that it has when a trace starts."""


def restore(model: nn.Module, caches: Caches) -> None:
    """Give the attributes of a copy the values that a trace starts with."""
    for path, name, value in caches:
        module = model.get_submodule(path)
        held: dict[str, Any] = module._buffers if name in module._buffers else vars(module)  # type: ignore[assignment]
        held[name] = copy.copy(value) if isinstance(value, (dict, list)) else value


def empty_caches(model: nn.Module, agrees: Callable[[Caches], nn.Module | None]) -> Caches:
    """The caches that hold something, and what they hold when they are empty.

    ``agrees`` runs the model with the caches given and returns the copy that ran, or None where it failed or its
    outputs changed.
    """
    filled = [
        (path, name, _emptied(value))
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in MODULE_FIELDS and _holds_tensors(value)
    ]
    for trial in _trials(model, filled) if filled else ():
        ran = agrees(trial)
        if ran is not None:
            return [c for c in trial if _holds_tensors(vars(ran.get_submodule(c[0])).get(c[1]))]
    return ()


def _trials(model: nn.Module, filled: list[tuple[str, str, Any]]) -> Iterable[Caches]:
    """All that is filled, then the attributes of one class of modules at a time."""
    kinds: dict[tuple[type, str], list[tuple[str, str, Any]]] = {}
    for path, name, value in filled:
        kinds.setdefault((type(model.get_submodule(path)), name), []).append((path, name, value))
    return [filled, *(list(kinds.values())[:MOST_TRIALS] if len(kinds) > 1 else ())]


def _emptied(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = copy.copy(value)
        for key in [key for key, held in value.items() if _holds_tensors(held)]:
            del kept[key]  # type: ignore[attr-defined]
        return kept
    return [] if isinstance(value, list) else None


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(isinstance(held, torch.Tensor) for held in value.values())
    if isinstance(value, (list, tuple)):
        return any(isinstance(held, torch.Tensor) for held in value)
    return isinstance(value, torch.Tensor)


def attributes(modules: Iterable[tuple[str, nn.Module]]) -> dict[tuple[str, str], Any]:
    """Every ordinary attribute and every buffer of modules, by path and name."""
    return {
        (path, name): value
        for path, module in modules
        for name, value in (*vars(module).items(), *module._buffers.items())
        if name not in MODULE_FIELDS
    }


def rebound(before: Mapping[tuple[str, str], Any], after: Mapping[tuple[str, str], Any]) -> Caches:
    """The attributes that have other values ``after`` a run than they had ``before``."""
    missing = object()
    return [(*place, value) for place, value in after.items() if before.get(place, missing) is not value]
