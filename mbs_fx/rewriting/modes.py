"""The graphs of a module: one where its two modes agree, else one for each.

Semantics
- Layers know their mode themselves, and a graph calls them; only code outside of layers can give another graph in the
  other mode.  Where no such code names ``training`` (nor a class overrides ``train``) there is one graph.
- The first graph is the one that a plan was made for: evaluation, unless the plan has convolutions that only
  training uses.  The other mode is left out where it cannot be traced.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn
from torch.fx import GraphModule

from mbs_fx.errors import MBSError
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.inputs import example_inputs
from mbs_fx.tracing.check import copied
from mbs_fx.tracing.leaves import is_layer
from mbs_fx.tracing.trace import trace

_MODE = frozenset({"training", "train", "eval"})


def graphs_of(
    model: nn.Module, plan: Plan, traced: GraphModule | None = None
) -> tuple[dict[bool, GraphModule], tuple[str, ...]]:
    """Graphs by training mode, the plan's own first, and notes; ``traced`` is that one where it is at hand."""
    first = traced if traced is not None else planned_graph(model, plan)
    graphs = {first.training: first}
    if not looks_at_training(model, plan.leaves):
        return graphs, ()
    try:
        other = _in_mode(model, plan, not first.training, verify=False)  # the rewritten module is, in both modes
    except MBSError as error:
        return graphs, (unused(not first.training, error),)
    if _text(other) != _text(first):
        graphs[other.training] = other
    return graphs, ()


def unused(training: bool, error: MBSError) -> str:
    """The note on a mode that is left out of a plan."""
    mode = "training" if training else "evaluation"
    return f"not traced in {mode} mode, so layers that only {mode} uses keep their width: {error}"


def planned_graph(model: nn.Module, plan: Plan) -> GraphModule:
    """The graph that a plan was made for; its ``training`` says in which mode."""
    gm = _in_mode(model, plan, False)
    if model.training and not set(plan.before) <= _used(gm):
        return _in_mode(model, plan, True)
    return gm


def _in_mode(model: nn.Module, plan: Plan, training: bool, verify: bool = True) -> GraphModule:
    """A trace in one mode, of a twin that shares the model's tensors.

    A model in training mode is traced with the modes of its modules, some of which may be frozen.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copied(model, shared)
    if not (training and model.training):
        twin.train(training)
    gm = trace(twin, example_inputs(twin, plan), leaves=plan.leaves, verify=verify)
    gm.training = training
    return gm


def _used(gm: GraphModule) -> set[str]:
    """Paths of the modules that a graph calls, and of those whose tensors it reads."""
    targets = [(node.op, str(node.target)) for node in gm.graph.nodes]
    return {target.rpartition(".")[0] if op == "get_attr" else target for op, target in targets}


def _text(gm: GraphModule) -> list[tuple[str, ...]]:
    return [(node.op, str(node.target), repr(node.args), repr(node.kwargs)) for node in gm.graph.nodes]


def looks_at_training(model: nn.Module, leaves: tuple[str, ...] = ()) -> bool:
    """Whether any code of the model outside of layers names the mode."""
    inside = tuple(f"{path}." for path in leaves)
    kinds = {
        type(module)
        for path, module in model.named_modules()
        if path not in leaves and not path.startswith(inside or ("\0",)) and not is_layer(type(module))
    }
    seen: set[CodeType] = set()
    functions = [function for kind in kinds for function in _methods(kind)]
    return any("train" in vars(base) for kind in kinds for base in _own(kind)) or any(
        _names_mode(function, seen) for function in functions
    )


def _own(kind: type[nn.Module]) -> Iterator[type]:
    """The classes of a module that are not torch's."""
    return (base for base in kind.__mro__ if base is not object and not base.__module__.startswith("torch."))


def _methods(kind: type[nn.Module]) -> Iterator[FunctionType]:
    for base in _own(kind):
        for name, held in vars(base).items():
            function = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
            if isinstance(function, FunctionType) and name != "__init__":
                yield function


def _names_mode(function: FunctionType, seen: set[CodeType]) -> bool:
    """Whether a function, or one that it names outside of torch, names the mode."""
    code = function.__code__
    if code in seen or (function.__module__ or "").startswith("torch."):
        return False
    seen.add(code)
    names = set(_names(code))
    if names & _MODE:
        return True
    return any(_names_mode(each, seen) for each in _named(function, names))


def _names(code: CodeType) -> Iterator[str]:
    """Names and texts in a function's code and in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _names(constant)


def _named(function: FunctionType, names: set[str]) -> Iterator[FunctionType]:
    """Functions that a function can reach by its names: globals, what it closes over, what it wraps."""
    closed = inspect.getclosurevars(function).nonlocals.values() if function.__closure__ else ()
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    for held in [*found]:
        if isinstance(held, ModuleType) and not held.__name__.startswith("torch"):
            found += [vars(held)[name] for name in names if name in vars(held)]
    for held in (*closed, *found):
        inner: Any = inspect.unwrap(held) if callable(held) else held
        if isinstance(inner, FunctionType):
            yield inner
