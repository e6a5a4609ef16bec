"""A layer of torch.nn as the call that makes it.

Semantics
- The arguments of a constructor are read from the attributes of the same names.
- Every call is tried: the layer that it makes must have the attributes and the shapes of the original.  So a layer is
  written right, or not at all.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn

from mbs_fx.exporting.calls import REQUIRED, Argument, Call, Slot, literal

_NO_ARGUMENT = frozenset({"device", "dtype", "_weight", "_freeze", "self", "init"})
_PAIRS = frozenset({"kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"})
_KEPT_PLAIN = (int, float, bool, str, type(None), tuple)


def layer_call(path: str, module: nn.Module) -> Call | None:
    """The call that makes a layer of torch or torchvision as it is; None for any other."""
    kind = type(module)
    name = public_class(kind)
    if name is None:
        return None
    child = path.rpartition(".")[2]
    attempts = (Call(name, _arguments(module, child, short)) for short in (True, False))
    return next((call for call in attempts if _makes(call, module)), None)


def _arguments(module: nn.Module, child: str, short: bool) -> tuple[Argument, ...]:
    """What the constructor was given; ``short`` writes one number for equal numbers along all axes."""
    arguments: list[Argument] = []
    for parameter in inspect.signature(type(module).__init__).parameters.values():
        held = _value(module, parameter)
        if held is _ABSENT:
            continue
        required = parameter.default is parameter.empty
        value = _plain(module, parameter.name, held, short)
        slot = Slot(value, REQUIRED if required else parameter.default, child, parameter.name)
        arguments.append(Argument("" if required else parameter.name, slot))
    return tuple(arguments)


def public_class(kind: type[nn.Module]) -> str | None:
    """How a file that imports ``torch.nn as nn`` calls a class; None for a class of others."""
    if getattr(nn, kind.__name__, None) is kind:
        return f"nn.{kind.__name__}"
    operations = sys.modules.get("torchvision.ops")  # a network that has none of these need not wait for its import
    return f"torchvision.ops.{kind.__name__}" if getattr(operations, kind.__name__, None) is kind else None


_ABSENT: Any = object()


def _value(module: nn.Module, parameter: inspect.Parameter) -> Any:
    """What a constructor was given for a parameter, as the layer tells it; `_ABSENT` where nothing is to be given."""
    name = parameter.name
    if name in _NO_ARGUMENT or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return _ABSENT
    if isinstance(module, nn.MultiheadAttention) and name in ("bias", "add_bias_kv"):
        return (module.in_proj_bias if name == "bias" else module.bias_k) is not None
    held = getattr(module, name, _ABSENT)
    return held is not None if name == "bias" and (held is None or isinstance(held, Tensor)) else held


def _plain(module: nn.Module, name: str, held: Any, short: bool) -> Any:
    """The value as it is usually written."""
    if isinstance(held, list | torch.Size):
        held = tuple(held)
    windows = "Conv" in type(module).__name__ or "Pool" in type(module).__name__
    if short and windows and name in _PAIRS and isinstance(held, tuple) and len(set(held)) == 1:
        return held[0]
    return held


def _makes(call: Call, module: nn.Module) -> bool:
    """Whether the call gives a layer like this one."""
    if not all(isinstance(slot.value, _KEPT_PLAIN) for slot in call.slots()):
        return False
    text = call.text(lambda slot: None if slot.value == slot.default else literal(slot.value))
    try:
        with torch.device("meta"):
            made: nn.Module = eval(text, {"nn": nn, "torch": torch, "torchvision": sys.modules.get("torchvision")})
    except (TypeError, ValueError, AttributeError):
        return False
    shapes = [{name: tuple(tensor.shape) for name, tensor in m.state_dict().items()} for m in (made, module)]
    return shapes[0] == shapes[1] and _attributes(made) == _attributes(module)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a layer knows about itself, apart from tensors, hooks and its mode."""
    return {
        name: held
        for name, held in vars(module).items()
        if isinstance(held, _KEPT_PLAIN) and not name.startswith("_") and name not in ("training", "meta")
    }
