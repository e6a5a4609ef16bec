"""Tracing without shapes: torch.fx's own tracer with our leaves.

Semantics
- Parameters and buffers that are used outside leaves are ``get_attr`` nodes, so that nothing computed from
  them is frozen into a constant.
- Inputs that nobody fills keep their default values and are not inputs of the graph.
- A layer that ``forward`` makes on the fly has no path; its own forward is traced.
- ``registries=True`` also keeps whole what torchvision.ops and timm say cannot be traced.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn

from mbs_fx.tracing.assemble import assemble
from mbs_fx.tracing.autograd import recorded_functions
from mbs_fx.tracing.caches import Caches, restore
from mbs_fx.tracing.check import copied, seeded
from mbs_fx.tracing.example import Argument, place_and_dtype
from mbs_fx.tracing.leaves import Failure, Leaves, UntraceableError, failure_of
from mbs_fx.tracing.regions import detach_regions, recorded_regions


def registered_functions() -> tuple[Callable[..., Any], ...]:
    """Functions that torchvision and timm, where they are loaded, want kept whole."""
    found: list[Callable[..., Any]] = []
    operations = sys.modules.get("torchvision.ops")
    if isinstance(operations, ModuleType):
        found += [value for value in vars(operations).values() if inspect.isfunction(value)]
    timm = sys.modules.get("timm.layers")
    if isinstance(timm, ModuleType):
        found += timm.get_notrace_functions()
    return tuple(found)


def registered_modules() -> tuple[type[nn.Module], ...]:
    """Module classes that timm, where it is loaded, wants kept whole."""
    timm = sys.modules.get("timm.layers")
    return tuple(timm.get_notrace_modules()) if isinstance(timm, ModuleType) else ()


class StrictProxy(fx.Proxy):
    """A proxy that refuses what a graph would drop: an assignment to an attribute of the tensor (``.data``)."""

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(torch.Tensor, name):
            raise NotImplementedError(f"the attribute {name} of a tensor is assigned, which no graph shows")
        super().__setattr__(name, value)


class LeafTracer(fx.Tracer):
    """A tracer with our leaves that remembers the innermost module in which it failed."""

    proxy_buffer_attributes = True

    def __init__(self, leaves: Leaves | None = None, registries: bool = False) -> None:
        super().__init__(autowrap_modules=(math,), autowrap_functions=registered_functions() if registries else ())
        self.leaves = leaves or Leaves()
        self.failure: Failure | None = None
        self.keep_functions = self.leaves.functions
        self.followed: set[str] = set()
        self.told: dict[str, None] = {}
        self.without_gradient: set[fx.Node] = set()
        self.paused = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return StrictProxy(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        if not torch.is_grad_enabled() and kind.startswith("call_"):
            self.without_gradient.add(node)
        return node

    def apply(self, path: str, args: tuple[Any, ...]) -> Any:
        """One node for the custom autograd function that the root holds at ``path``."""
        return self.create_proxy("call_module", path, args, {})

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.leaves.keep(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = (self.submodule_paths or {}).get(m)
        if path is None:
            return forward(*args, **kwargs)
        if kwargs and self.is_leaf_module(m, path) and not isinstance(m, torch.jit.ScriptModule):
            # Code may try a call, and make another one where a layer does not take the keyword.
            inspect.signature(m.forward).bind(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            self.note(path, error)
            raise

    def note(self, path: str, error: Exception) -> Failure:
        """Remember where ``error`` was raised, unless a module further inside has said so."""
        if self.failure is None or not self.failure.is_cause_of(error):
            self.failure = failure_of(path, error)
        return self.failure


class SymbolicTracer(LeafTracer):
    """Runs ``forward`` on proxies that know nothing but the graph."""

    def __init__(
        self, leaves: Leaves | None = None, inputs: Sequence[Argument] | None = None, registries: bool = False
    ) -> None:
        super().__init__(leaves, registries)
        self.inputs = inputs

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        if self.inputs is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        # The instance's forward, which may differ from the class's.
        forward = self.root.forward
        given = [self._placeholder(argument) for argument in self.inputs]
        keywords = [argument.name if argument.keyword else None for argument in self.inputs]

        def call(*values: Any) -> Any:
            named = list(zip(keywords, values, strict=True))
            return forward(*(v for k, v in named if k is None), **{k: v for k, v in named if k is not None})

        return call, given

    def _placeholder(self, argument: Argument) -> Any:
        proxy = self.create_proxy("placeholder", argument.name, (), {})
        # The placeholder of a constant is not used, but keeps the call signature.
        return argument.value if argument.is_constant else proxy


def trace_symbolically(
    model: nn.Module, inputs: Sequence[Argument], leaves: Leaves, registries: bool = False, caches: Caches = ()
) -> fx.GraphModule:
    """Trace a copy of the model, so that nothing its forward stores in itself stays behind."""
    twin = copied(model, {id(parameter): parameter for parameter in model.parameters()})
    restore(twin, caches)
    if registries:
        leaves = replace(leaves, registered=registered_modules())
    tracer = SymbolicTracer(leaves, inputs, registries)
    try:
        with seeded(place_and_dtype(model)[0]), recorded_regions(tracer), recorded_functions(tracer):
            graph = tracer.trace(twin)
    except Exception as error:
        raise UntraceableError(tracer.note("", error), bool(tracer.followed)) from error
    detach_regions(graph, twin, tracer.without_gradient)
    gm = assemble(model, twin, graph)
    gm.meta["mbs_leaves"] = leaves.met(graph, model)
    gm.meta["mbs_notes"] = tuple(tracer.told)
    gm.meta["mbs_followed"] = tuple(sorted(tracer.followed))
    return gm
