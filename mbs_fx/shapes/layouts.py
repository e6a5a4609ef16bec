"""Keys for calls whose results have the same layout: shape, stride and type."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

MODULE_FIELDS = frozenset(vars(nn.Module()))
_PLAIN = frozenset({int, float, bool, str, type(None)})


def layout(tensor: Tensor) -> Hashable:
    """Shape, stride and type of a tensor, with its numbers where it may be a shape."""
    numbers = tuple(tensor.tolist()) if is_constant(tensor) else ()
    return tensor.shape, tensor.stride(), tensor.dtype, numbers


def is_constant(tensor: Tensor) -> bool:
    """Whether a tensor may be a shape or an order: short, of whole numbers, with its numbers at hand."""
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
    return (
        whole and type(tensor) is Tensor and tensor.dim() == 1 and tensor.numel() <= 16 and tensor.device.type == "cpu"
    )


def hashed(value: Any) -> Hashable | None:
    """A key that the layout of a call's result follows from; None where that cannot be told."""
    key = _key(value)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _key(value: Any) -> Hashable:
    """Values with equal keys give equal layouts; 1, 1.0 and True are equal to Python, not to torch."""
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if isinstance(value, Tensor):
        return layout(value)
    if isinstance(value, tuple | list):
        return (kind, *map(_key, value))
    if isinstance(value, dict):
        return (dict, *((name, _key(item)) for name, item in value.items()))
    if isinstance(value, slice):
        return slice, _key(value.start), _key(value.stop), _key(value.step)
    return _module_key(value) if isinstance(value, nn.Module) else (type(value), value)


def _module_key(module: nn.Module) -> Hashable:
    held = vars(module)
    parts: list[Hashable] = [type(module), module.training]
    parts += [(name, _key(value)) for name, value in held.items() if name not in MODULE_FIELDS]
    return (*parts, _key(held["_parameters"]), _key(held["_buffers"]), _key(held["_modules"]))
