"""An example input: what the caller gave, made into the arguments of one call.

Semantics
- A tensor is one positional input.  A tuple of ints is the shape of one: standard normal numbers, always
  the same ones, in the model's dtype and on its device.  A tuple of tensors (or of shapes) is several
  positional inputs. A dict is keyword inputs.
- The caller's tensors are never handed to a model; every call gets clones.
- Which parameters of ``forward`` become inputs of the graph: those that the example fills.  Without an
  example the ones without a default value, or the first one where all have defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import torch
from torch import nn

from mbs_fx.errors import MBSError
from mbs_fx.runtime.torch_private import tree_leaves, tree_map_only

UNKNOWN: Final = object()


@dataclass(frozen=True)
class Example:
    """The arguments of one call of a model."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Example:
        """The same call with every tensor in it replaced."""
        args, kwargs = tree_map_only(torch.Tensor, function, (self.args, dict(self.kwargs)))
        return Example(args, kwargs)

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor in the call, in order."""
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def clone(self) -> Example:
        """The same call on tensors of its own."""
        return self.map(lambda tensor: tensor.detach().clone())


@dataclass(frozen=True)
class Argument:
    """One input of the graph: its name, whether it is passed by keyword, and its value in the example."""

    name: str
    keyword: bool = False
    value: Any = UNKNOWN

    @property
    def is_constant(self) -> bool:
        """Flags, numbers, None: they decide in Python, so a trace holds for this value only."""
        return self.value is not UNKNOWN and not any(isinstance(v, torch.Tensor) for v in tree_leaves(self.value))


def place_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of an input: those of the first floating point parameter or buffer."""
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.get_default_device(), torch.get_default_dtype()


def is_shape(value: object) -> bool:
    """Whether a value is a non-empty tuple or list of ints."""
    return (
        isinstance(value, (tuple, list))
        and len(value) > 0
        and all(isinstance(size, int) and not isinstance(size, bool) for size in value)
    )


def example_of(model: nn.Module, example: Any) -> Example | None:
    """What the caller passed as ``example``, as the arguments of one call."""
    if example is None:
        return None
    if isinstance(example, Mapping):
        return Example((), {str(name): _input(model, value) for name, value in example.items()})
    if isinstance(example, torch.Tensor) or is_shape(example):
        return Example((_input(model, example),))
    if isinstance(example, (tuple, list)) and example:
        return Example(tuple(_input(model, value) for value in example))
    raise MBSError(
        f"the example is a {type(example).__name__}; give an input tensor, its shape as a tuple of ints, "
        "a tuple of tensors for several inputs, or a dict for keyword inputs"
    )


def _input(model: nn.Module, value: Any) -> Any:
    if not is_shape(value):
        return value
    if min(value) < 1:
        raise MBSError(f"the example's shape {tuple(value)} has a size below 1; give positive sizes, batch first")
    device, dtype = place_and_dtype(model)
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(tuple(value), dtype=dtype, device=device, generator=generator)


def arguments(model: nn.Module, example: Example | None) -> list[Argument]:
    """The inputs of the graph, in order."""
    signature = inspect.signature(model.forward)
    if example is None:
        return _required(model, signature)
    try:
        bound = signature.bind(*example.args, **example.kwargs)
    except TypeError as error:
        call = f"{type(model).__name__}.forward{signature}"
        raise MBSError(f"the example does not fit {call}: {error}; give one value per input") from error
    found: list[Argument] = []
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found += [Argument(f"{name}_{i}", value=item) for i, item in enumerate(value)]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found += [Argument(key, True, item) for key, item in value.items()]
        else:
            found.append(Argument(name, name in example.kwargs, value))
    return found


def _required(model: nn.Module, signature: inspect.Signature) -> list[Argument]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [p for p in signature.parameters.values() if p.kind not in variable]
    required = [p for p in named if p.default is inspect.Parameter.empty] or named[:1]
    if not required:
        raise MBSError(f"{type(model).__name__}.forward{signature} has no named input: pass an example")
    return [Argument(p.name, p.kind is inspect.Parameter.KEYWORD_ONLY) for p in required]
