"""Which modules stay one node of the graph, and what a failed trace says about the next try.

Semantics
- A module is a leaf when any of its base classes is a layer of torch.nn, containers excepted: a subclass of
  Conv2d is a leaf whatever its forward does, a subclass of Sequential is not.
- TorchScript modules are leaves, since they are not Python.
- ``leaves=`` of the caller names further ones, by path or by class.
- Automatic leaves are added one failure at a time: the innermost module whose forward could not be traced.
  When a second module of a class fails, the whole class follows.
- ``functions`` keeps custom autograd functions as single nodes, too (`mbs_fx.tracing.autograd`).
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from mbs_fx.errors import MBSError

LAYER_PACKAGES = ("torch.nn.", "torch.ao.nn.")
CONTAINERS = ("torch.nn.modules.container", "torch.nn.modules.module", "torch.nn.parallel")
TORCH, HERE, LIBRARY = (Path(module).parent for module in (torch.__file__, __file__, traceback.__file__))


def is_layer(kind: type[nn.Module]) -> bool:
    """Whether a class is or derives from a layer of torch.nn."""
    return any(
        base.__module__.startswith(LAYER_PACKAGES) and not base.__module__.startswith(CONTAINERS)
        for base in kind.__mro__
    )


@dataclass(frozen=True)
class Leaves:
    """The rule, the caller's choice, and the automatic leaves found so far with their reasons."""

    paths: frozenset[str] = frozenset()
    classes: tuple[type[nn.Module], ...] = ()
    automatic: Mapping[str, str] = field(default_factory=dict[str, str])
    registered: tuple[type[nn.Module], ...] = ()
    functions: bool = False

    def keep(self, module: nn.Module, path: str) -> bool:
        return (
            is_layer(type(module))
            or isinstance(module, (torch.jit.ScriptModule, *self.classes, *self.registered))
            or path in self.paths
            or path in self.automatic
        )

    def after(self, failure: Failure, model: nn.Module) -> Leaves:
        """These leaves and the module that failed, or its whole class when it is the second one."""
        modules = dict(model.named_modules(remove_duplicate=False))
        kind = type(modules[failure.path])
        if any(type(modules[path]) is kind for path in self.automatic):
            paths = [path for path, module in modules.items() if path and type(module) is kind]
        else:
            paths = [failure.path]
        added = {path: failure.reason for path in paths if path not in self.automatic}
        return replace(self, automatic={**self.automatic, **added})

    def met(self, graph: fx.Graph, model: nn.Module) -> dict[str, str]:
        """The leaves that nobody chose and that the graph calls, with the reason of each."""
        called = {str(node.target): None for node in graph.nodes if node.op == "call_module"}
        own = {path for path, _ in model.named_modules(remove_duplicate=False)}
        reasons = {path: self._reason(model.get_submodule(path), path) for path in called if path in own}
        return {path: reason for path, reason in reasons.items() if reason}

    def _reason(self, module: nn.Module, path: str) -> str:
        if path in self.automatic:
            return self.automatic[path]
        if isinstance(module, torch.jit.ScriptModule):
            return "a TorchScript module, which is not Python"
        chosen = path in self.paths or isinstance(module, self.classes) or is_layer(type(module))
        return "registered by timm as not traceable" if isinstance(module, self.registered) and not chosen else ""


@dataclass(frozen=True)
class Failure:
    """Where a trace stopped: the innermost module, and what happened in it."""

    path: str
    reason: str
    error: Exception

    def is_cause_of(self, error: BaseException | None) -> bool:
        while error is not None:
            if error is self.error:
                return True
            error = error.__cause__ or error.__context__
        return False


class UntraceableError(Exception):
    """A strategy gave up, perhaps since it ``followed`` a custom autograd function; `mbs_fx.trace` goes on."""

    def __init__(self, failure: Failure, followed: bool = False) -> None:
        super().__init__(failure.reason)
        self.failure = failure
        self.followed = followed


def failure_of(path: str, error: Exception) -> Failure:
    """Describe an exception that a trace raised inside the module at ``path``."""
    # The first sentence; torch.fx goes on with a tutorial.
    text = str(error).strip().splitlines() or [""]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_model_code(frame.filename)]
    place = f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return Failure(path, f"{type(error).__name__}: {text[0].split('. ')[0]}{place}", error)


def _is_model_code(filename: str) -> bool:
    path = Path(filename)
    if TORCH in path.parents or HERE in path.parents:
        return False
    return LIBRARY not in path.parents or "site-packages" in path.parts


def leaves_of(model: nn.Module, leaves: Iterable[Any]) -> Leaves:
    """The caller's ``leaves=`` checked against the model."""
    chosen = (leaves,) if isinstance(leaves, (str, type)) else tuple(leaves)
    known = {path for path, _ in model.named_modules(remove_duplicate=False) if path}
    for leaf in chosen:
        if isinstance(leaf, str) and leaf not in known:
            raise MBSError(f"leaves: {type(model).__name__} has no submodule {leaf!r}; give a path of named_modules()")
        if not isinstance(leaf, str) and not (isinstance(leaf, type) and issubclass(leaf, nn.Module)):
            raise MBSError(f"leaves: {leaf!r} is neither a module path nor a module class")
    classes = tuple(leaf for leaf in chosen if isinstance(leaf, type))
    return Leaves(frozenset(leaf for leaf in chosen if isinstance(leaf, str)), classes)
