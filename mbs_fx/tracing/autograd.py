"""Custom autograd functions while tracing.

Semantics
- *Followed*: ``SomeFunction.apply(x)`` is traced into its ``forward``, and torch derives the gradients from the
  operations found there.  `mbs_fx.trace` accepts such a graph only where its gradients are the model's.
- *Kept*: one node, an `AutogradFunction`, with the function's own ``forward`` and ``backward``.  That takes tensors
  and plain values; a function applied to anything else cannot be kept, and the module that applies it becomes a leaf.
- Checkpointing by torch.utils.checkpoint is such a function, too: it is followed and noted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import nn
from torch.autograd import Function
from torch.utils.checkpoint import CheckpointFunction

from mbs_fx.runtime.torch_private import tree_leaves
from mbs_fx.tracing.regions import RegionTracer, tell_of_checkpoint


class Context:
    """The ``ctx`` of a forward pass whose backward pass will not come: takes everything, keeps nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class AutogradFunction(nn.Module):
    """Applies a custom autograd function."""

    def __init__(self, function: type[Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function.apply(*args)

    def extra_repr(self) -> str:
        return self.function.__name__


class FunctionTracer(RegionTracer, Protocol):
    """What `recorded_functions` needs of a tracer."""

    root: nn.Module
    keep_functions: bool
    followed: set[str]

    def apply(self, path: str, args: tuple[Any, ...]) -> Any: ...


@contextmanager
def recorded_functions(tracer: FunctionTracer) -> Generator[None]:
    """Follow or keep custom functions inside, outside of leaves.

    Code that kept ``SomeFunction.apply`` from before arrives at ``SomeFunction.forward``, so that is patched, too.
    """
    original = inspect.getattr_static(Function, "apply")

    def apply(kind: type[Function], *args: Any, **kwargs: Any) -> Any:
        if kind is CheckpointFunction and not tracer.paused:
            tell_of_checkpoint(tracer)
            return args[0](*args[2:])
        if tracer.paused or kind.__module__.startswith("torch."):
            return original.__get__(None, kind)(*args, **kwargs)
        return _applied(tracer, kind, _forward(kind), args, kwargs)

    with ExitStack() as patches:
        for kind in _defined(Function):
            patches.enter_context(patch.object(kind, "forward", _patched(tracer, kind)))
            if "setup_context" in vars(kind):
                patches.enter_context(patch.object(kind, "setup_context", staticmethod(_setup(tracer, kind))))
        patches.enter_context(patch.object(Function, "apply", classmethod(apply)))
        yield


def _applied(tracer: FunctionTracer, kind: type[Function], forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    if tracer.keep_functions and not kwargs:
        return tracer.apply(_installed(tracer.root, kind, args), args)
    tracer.followed.add(kind.__name__)
    return forward(Context(), *args, **kwargs) if _is_combined(kind) else forward(*args, **kwargs)


def _forward(kind: type[Function]) -> Callable[..., Any]:
    """The function's own ``forward``, behind a patch of ours."""
    return getattr(kind.forward, "original", kind.forward)


def _is_combined(kind: type[Function]) -> bool:
    """Whether ``forward`` takes the context itself."""
    held = getattr(kind.setup_context, "original", kind.setup_context)
    return held is Function.setup_context


def _patched(tracer: FunctionTracer, kind: type[Function]) -> Any:
    original = kind.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if tracer.paused:
            return original(*args, **kwargs)
        # torch has switched gradients off on the way here.
        with torch.enable_grad():
            return _applied(tracer, kind, original, args[1:] if _is_combined(kind) else args, kwargs)

    forward.original = original  # type: ignore[attr-defined]
    return staticmethod(forward)


def _setup(tracer: FunctionTracer, kind: type[Function]) -> Callable[..., Any]:
    original = kind.setup_context

    def setup_context(*args: Any) -> Any:
        return original(*args) if tracer.paused else None

    setup_context.original = original  # type: ignore[attr-defined]
    return setup_context


def _defined(kind: type[Function]) -> Iterator[type[Function]]:
    """Functions outside of torch with a ``forward`` of their own."""
    for child in kind.__subclasses__():
        if "forward" in vars(child) and not child.__module__.startswith("torch."):
            yield child
        yield from _defined(child)


def _installed(root: nn.Module, kind: type[Function], args: tuple[Any, ...]) -> str:
    """The name under which ``root`` holds the function."""
    strange = [a for a in tree_leaves(args) if isinstance(a, nn.Module) or (callable(a) and not _is_proxy(a))]
    if strange:
        held = type(strange[0]).__name__
        raise NotImplementedError(f"the autograd function {kind.__name__} takes a {held}, which no node of a graph can")
    number = 0
    while True:
        name = f"autograd_{kind.__name__}" + (f"_{number}" if number else "")
        held = getattr(root, name, None)
        if held is None:
            setattr(root, name, AutogradFunction(kind))
        if held is None or (isinstance(held, AutogradFunction) and held.function is kind):
            return name
        number += 1


def _is_proxy(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, torch.fx.Proxy))
